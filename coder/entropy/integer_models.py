"""constriction's entropy coder and its models, used such that integer weights are exact.

Given `w - 1` as float64 with `perfect=False`, constriction's own conversion to fixed point has a
scale of exactly 1 and adds the 1 back; given w / 2^24 it misses w for many table sizes. Its uniform
model of n symbols gives each `floor(2^24 / n)` and the last what is left.
"""

import constriction
import numpy as np
from numpy.typing import NDArray

# Attributes set by constriction's binary, not modules: neither `from` imports nor stubs exist.
AnsCoder = constriction.stream.stack.AnsCoder  # pyright: ignore[reportAttributeAccessIssue]
_Categorical = constriction.stream.model.Categorical  # pyright: ignore[reportAttributeAccessIssue]

PRECISION = 24
"""Bits of a probability: the weights of a table sum to 2^24."""
TABLE_EACH = _Categorical(perfect=False)
"""Each symbol with a table of its own: pass weights - 1, float64 [symbols, entries]."""
UNIFORM = constriction.stream.model.Uniform()  # pyright: ignore[reportAttributeAccessIssue]
"""Each symbol uniform below its own size: pass sizes >= 2, int32 [symbols]."""


def model(weights: NDArray):
    """One table for any number of symbols: weights [entries] >= 1 that sum to 2^24."""
    return _Categorical(weights.astype(np.float64) - 1.0, perfect=False)
