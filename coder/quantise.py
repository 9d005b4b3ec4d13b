"""Embeddings <-> integer symbols: uniform steps around an offset, in float32 NumPy arithmetic."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.errors import InputError

_INT32 = np.iinfo(np.int32)


def quantise(
    y: NDArray, offsets: NDArray[np.float32], steps: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Floats [..., D] -> rint((y - offset) / step) as int32 [..., D].

    Raises:
      InputError: not numbers, NaN, infinity, or symbols beyond int32.
    """
    values = as_floats(y)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.subtract(values, offsets)
        scaled /= steps
        np.rint(scaled, out=scaled)
    # 2^31 - 1 is no float32: everything below 2^31 fits. NaN fails both comparisons.
    if scaled.size and not (scaled.min() >= -(2.0**31) and scaled.max() < 2.0**31):
        _refuse(~np.isfinite(values), y, "NaN or infinite in float32")
        fits = (scaled >= np.float32(-(2**31))) & (scaled < np.float32(2**31))
        _refuse(~fits, y, "too far from the offset for an int32 symbol")
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


def as_floats(y: NDArray) -> NDArray[np.float32]:
    """Numbers as float32. Raises InputError if they are none."""
    if y.dtype.kind not in "fiu" and y.dtype.name != "bfloat16":
        raise InputError(f"embeddings are {y.dtype}: give floats")
    with np.errstate(over="ignore"):
        return y.astype(np.float32, copy=False)


def as_symbols(q: ArrayLike) -> NDArray[np.int32]:
    """Integers of any type as int32. Raises InputError if they are not, or do not fit."""
    symbols = np.asarray(q)
    if symbols.dtype.kind not in "iu":
        raise InputError(f"symbols are {symbols.dtype}: give integers, or embeddings to `encode`")
    if symbols.dtype == np.int32:
        return symbols
    if symbols.size and not _INT32.min <= int(symbols.min()) <= int(symbols.max()) <= _INT32.max:
        raise InputError("symbols are beyond int32")
    return symbols.astype(np.int32)


def _refuse(bad: NDArray[np.bool_], values: NDArray, what: str) -> None:
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{int(bad.sum())} of {bad.size} values are {what}, the first at {first}: "
            f"{values[first]}; clean the embeddings before coding"
        )
