"""Distributions of coefficients: quantised generalised Gaussians of many scales and two shapes.

    p(x) ~ exp(-|x / a|^shape),   of standard deviation `scale`, in steps

`coder.transform.dead_zone` defines the cell of a magnitude and the value it decodes to.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder.arrays import read_only
from coder.entropy import Tables
from coder.transform.dead_zone import cells

SCALES = 2.0 ** (np.arange(-9, 17) / 2)
"""Standard deviations in steps: from 0.04, where nearly all symbols are zero, to 256."""
SHAPES = (0.7, 1.2)
_ESCAPE = 1e-6  # probability of all magnitudes beyond the largest
_LARGEST = 2048
_ROUNDS = 20


class Member(NamedTuple):
    """One distribution, quantised: probabilities [M] of magnitudes 0 .. M - 1, and their shift."""

    pmf: NDArray[np.float64]
    shift: float


@cache
def member(scale: float, shape: float) -> Member:
    """The quantised distribution of a scale and a shape."""
    a = scale * math.sqrt(math.gamma(1 / shape) / math.gamma(3 / shape))
    end = min(a * math.log(1 / _ESCAPE) ** (1 / shape) + 3, _LARGEST)
    # Points are dense where the density changes fast.
    x = np.union1d(np.linspace(0, end, 1 << 15), np.geomspace(1e-4, end, 1 << 13))
    middle = (x[:-1] + x[1:]) / 2
    mass = np.exp(-((middle / a) ** shape)) * np.diff(x)
    mass /= mass.sum()
    shift, first, rounding = 0.0, 0.6, 0.5
    pmf = np.zeros(1)
    for _ in range(_ROUNDS):
        m = np.where(middle < first, 0, np.floor(middle + rounding)).astype(int)
        pmf = np.asarray(np.bincount(m, mass), np.float64)
        if pmf.size > 1 and pmf[1:].sum() > 1e-12:
            shift = float(((m - middle) * mass)[m > 0].sum() / pmf[1:].sum())
        shift = min(max(shift, -0.3), 0.3)
        bits = -np.log2(np.append(pmf, [1e-12] * 2)[:3] + 1e-12) + [0, 1, 1]
        first, rounding = cells(bits, shift)
    kept = int(np.searchsorted(np.cumsum(pmf), 1 - _ESCAPE)) + 1
    return Member(read_only(pmf[: max(kept, 2)]), shift)


def family() -> tuple[Tables, NDArray[np.float32]]:
    """Integer tables of all members, and their shifts; the tables of one shape by rising scale."""
    members = [member(float(scale), shape) for shape in SHAPES for scale in SCALES]
    pmfs = []
    for one in members:
        half = one.pmf[1:] / 2
        symmetric = np.concatenate([half[::-1], one.pmf[:1], half])
        pmfs.append((-half.size, symmetric, _ESCAPE))
    return Tables.from_pmfs(pmfs), np.array([one.shift for one in members], np.float32)
