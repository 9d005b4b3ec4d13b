"""Embeddings <-> integer symbols: uniform steps around an offset, in float32 NumPy arithmetic."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import as_array, as_floats, check_finite, refuse

UNITS = "are they of the codec's model, in the same units?"


def quantise(
    y: ArrayLike, offsets: NDArray[np.float32], steps: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Floats [..., D] -> rint((y - offset) / step) as int32 [..., D].

    Raises:
      InputError: not numbers, masked, NaN, infinity, or symbols beyond int32.
    """
    source = as_array(y)
    values = as_floats(source)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.subtract(values, offsets)
        scaled /= steps
        np.rint(scaled, out=scaled)
    # 2^31 - 1 is no float32: everything below 2^31 fits. NaN fails both comparisons.
    if scaled.size and not (scaled.min() >= -(2.0**31) and scaled.max() < 2.0**31):
        check_finite(values, source)
        fits = (scaled >= np.float32(-(2**31))) & (scaled < np.float32(2**31))
        what = "values of embeddings"
        refuse(~fits, what, "too far from the offset for an int32 symbol", source, UNITS)
    return scaled.astype(np.int32)


def dequantise(
    q: NDArray[np.int32], offsets: NDArray[np.float32], steps: NDArray[np.float32]
) -> NDArray[np.float32]:
    """int32 [..., D] -> q * step + offset as float32 [..., D]."""
    # NumPy rounds the product and the sum; a compiler that fuses them gives other floats.
    values = q.astype(np.float32)
    values *= steps
    values += offsets
    return values
