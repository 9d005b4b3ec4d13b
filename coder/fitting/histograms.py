"""Histograms of the magnitudes of coefficients, for each component and band.

A bin is a float32's exponent and the first five bits of its mantissa: 32 bins per octave. That is
fine enough to compute how often any quantiser gives each symbol, without reading the data again.
"""

import numpy as np
from numpy.typing import NDArray

_SHIFT = 18  # bits of the mantissa that are dropped
_LOWEST = (127 - 12) << (23 - _SHIFT)  # the second bin begins at 2^-12; the first is all below
BINS = 24 << (23 - _SHIFT)
"""Up to 2^12; the last bin has no end."""

EDGES = np.concatenate(
    [[0.0], (np.arange(_LOWEST, _LOWEST + BINS - 1).astype(np.int32) << _SHIFT).view(np.float32)]
)
"""float64 [BINS]: where each bin begins."""

CENTRES = np.append((EDGES[:-1] + EDGES[1:]) / 2, EDGES[-1])
"""float64 [BINS]: the value that stands for all magnitudes in a bin."""


def add(counts: NDArray[np.int64], c: NDArray[np.float32], columns: NDArray[np.uint8]) -> None:
    """Add coefficients [N, n, K] to the counts [K, columns, BINS].

    `columns` [n] are the columns of the places of the coefficients.
    """
    index = (np.abs(c).view(np.int32) >> _SHIFT) - (_LOWEST - 1)
    np.clip(index, 0, BINS - 1, out=index)
    _, width, _ = counts.shape
    index += np.arange(len(counts), dtype=np.int32) * np.int32(width * BINS)
    index += columns.astype(np.int32)[:, None] * np.int32(BINS)
    counts += np.bincount(index.ravel(), minlength=counts.size).reshape(counts.shape)
