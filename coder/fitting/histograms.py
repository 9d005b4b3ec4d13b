"""How large coefficients are: counts of magnitudes, for each component and band.

Bins are those of a float32's exponent and first five bits of mantissa, 32 an octave: fine enough to
tell how often any quantiser gives which symbol, without another look at the data.
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
"""float64 [BINS]: what a magnitude in each bin is taken for."""


def empty(components: int, columns: int) -> NDArray[np.int64]:
    """Counts of nothing yet: [K, columns, BINS]."""
    return np.zeros((components, columns, BINS), np.int64)


def add(counts: NDArray[np.int64], c: NDArray[np.float32], columns: NDArray[np.uint8]) -> None:
    """Count coefficients [N, n, K]; `columns` [n] are those of their places."""
    index = (np.abs(c).view(np.int32) >> _SHIFT) - (_LOWEST - 1)
    np.clip(index, 0, BINS - 1, out=index)
    _, width, _ = counts.shape
    index += np.arange(len(counts), dtype=np.int32) * np.int32(width * BINS)
    index += columns.astype(np.int32)[:, None] * np.int32(BINS)
    counts += np.bincount(index.ravel(), minlength=counts.size).reshape(counts.shape)
