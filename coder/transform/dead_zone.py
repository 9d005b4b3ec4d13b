"""The dead zone and the rounding of magnitudes, derived from rate and distortion.

Magnitude m = 1, 2, .. decodes to m - shift, the centroid of its cell, with one shift for all. A
cell begins where coding m - 1 and coding m cost the same in `error + KAPPA * bits` (error in
squared steps). KAPPA = ln(4) / 12 is the price of a bit for a fine uniform quantiser, so that all
scales and qualities make the same trade (Sullivan 1996, "Efficient scalar quantization of
exponential and Laplacian random variables").
"""

import math

import numpy as np
from numpy.typing import NDArray

from coder.entropy import PRECISION, Tables

KAPPA = math.log(4) / 12
MARGIN = 0.05
"""Minimum distance, in steps, of a decoded value from its cell's ends: it is coded as before."""


def cells(bits: NDArray[np.float64], shift: float) -> tuple[float, float]:
    """Where magnitude 1 begins, and what to add to larger values before rounding them down.

    Args:
      bits: [3], the cost of magnitudes 0, 1 and 2, signs included.
      shift: what decoding subtracts from every magnitude.
    """
    first = (1 - shift) / 2 + KAPPA * (bits[1] - bits[0]) / (2 * (1 - shift))
    rounding = 0.5 + shift - KAPPA * (bits[2] - bits[1]) / 2
    low, high = shift + MARGIN, shift + 1 - MARGIN
    first = min(max(first, MARGIN), 1 - shift - MARGIN)
    return first, min(max(rounding, low), high)


def cells_of(tables: Tables, k: int, shift: float) -> tuple[float, float]:
    """`cells` for a stored table; a magnitude that it does not hold costs as much as its escape."""
    weights, low = tables.weights_of(k), int(tables.minimum[k])
    at = np.arange(3) - low
    inside = (at >= 0) & (at < len(weights) - 1)
    return cells(PRECISION - np.log2(weights[np.where(inside, at, -1)]), shift)
