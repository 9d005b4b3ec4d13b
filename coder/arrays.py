"""Arrays that nobody can change, so that a fingerprint once taken stays true."""

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from coder.checks import as_array
from coder.errors import CodecError


def immutable(name: str, values: ArrayLike, dtype: DTypeLike) -> NDArray:
    """A one-dimensional, non-empty, C-ordered copy of `values` in `dtype` that cannot be written.

    Integers must fit `dtype` exactly; floats are rounded to it and must be finite there.

    Raises:
      CodecError: empty, not one-dimensional, not numbers, masked, out of range or not finite.
    """
    source = as_array(values, name)
    target: np.dtype = np.dtype(dtype)
    if source.ndim != 1 or source.size == 0:
        raise CodecError(f"{name} has shape {source.shape}: give one non-empty dimension")
    if target.kind in "iu":
        limits = np.iinfo(target.type)
        if source.dtype.kind not in "iu":
            raise CodecError(f"{name} holds {source.dtype}: give integers")
        if int(source.min()) < limits.min or int(source.max()) > limits.max:
            raise CodecError(f"{name} holds values outside {target}")
    elif source.dtype.kind not in "fiu":
        raise CodecError(f"{name} holds {source.dtype}: give numbers")
    with np.errstate(over="ignore"):
        copy = source.astype(target)
    if not np.isfinite(copy).all():
        raise CodecError(f"{name} holds NaN, infinity or values beyond {target}")
    # An array over `bytes` cannot be made writable again, one with a cleared flag can.
    return np.frombuffer(copy.tobytes(), target)


def read_only(values: NDArray) -> NDArray:
    """The array itself, which many will be given: none of them may change it for the others."""
    values.flags.writeable = False
    return values


def frozen(values: NDArray) -> NDArray:
    """A C-ordered copy of any array that cannot be written."""
    return np.frombuffer(values.tobytes(), values.dtype).reshape(values.shape)
