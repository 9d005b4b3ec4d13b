"""The dead zone and the rounding of magnitudes, from what they cost.

Magnitude m = 1, 2, .. stands for m - shift, with one shift for all: the centroid of its cell. A
cell begins where coding m - 1 and coding m cost the same in `error + KAPPA * bits` (error in
squared steps). KAPPA = ln(4) / 12 is what a bit costs a fine uniform quantiser, so that all scales
and qualities make the same trade (Sullivan 1996, "Efficient scalar quantization of exponential and
Laplacian random variables").
"""

import math

import numpy as np
from numpy.typing import NDArray

from coder.entropy import PRECISION, Tables

KAPPA = math.log(4) / 12
MARGIN = 0.05
"""Of a step, from what a symbol stands for to the ends of its cell: decoded is coded as before."""


def cells(bits: NDArray[np.float64], shift: float) -> tuple[float, float]:
    """Where magnitude 1 begins, and what is added to larger values before they are rounded down.

    Args:
      bits: [3], what magnitudes 0, 1, 2 cost, with their sign.
      shift: of all magnitudes.
    """
    first = (1 - shift) / 2 + KAPPA * (bits[1] - bits[0]) / (2 * (1 - shift))
    rounding = 0.5 + shift - KAPPA * (bits[2] - bits[1]) / 2
    low, high = shift + MARGIN, shift + 1 - MARGIN
    first = min(max(first, MARGIN), 1 - shift - MARGIN)
    return first, min(max(rounding, low), high)


def cells_of(tables: Tables, k: int, shift: float) -> tuple[float, float]:
    """`cells` of a stored table; what it does not hold costs what its escape does."""
    weights, low = tables.weights_of(k), int(tables.minimum[k])
    at = np.arange(3) - low
    inside = (at >= 0) & (at < len(weights) - 1)
    return cells(PRECISION - np.log2(weights[np.where(inside, at, -1)]), shift)
