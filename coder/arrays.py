"""Arrays from callers: conversions, checks with errors, and immutable copies."""

import warnings
from collections import deque
from collections.abc import Mapping, Set
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from coder.errors import CodecError, InputError, UnusualEmbedding, named

_INT32 = np.iinfo(np.int32)
_MISSING = "a codec codes no missing values: leave them out, or fill them, first"
_LISTS = (list, tuple, deque)


def as_array(values: Any, what: str = "embeddings") -> NDArray:
    """Anything that NumPy can convert, as an array without mask.

    Raises:
      InputError: not an array, or one with masked elements.
    """
    array = with_mask(values, what)
    if isinstance(array, np.ma.MaskedArray):
        # What a mask hides means nothing.
        refuse(np.ma.getmaskarray(array), f"values of {what}", "masked")
        array = array.data
    return np.asarray(array)


def with_mask(values: Any, what: str = "embeddings") -> NDArray:
    """As `as_array`, but a masked array stays masked."""
    if isinstance(values, np.ndarray):
        return values
    try:
        array = np.asanyarray(_stacked(values) if _may_hide(values) else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} are not an array: {error}") from error
    if array.dtype == object:
        kind = "dtype object" if hasattr(values, "dtype") else f"type {type(values).__name__}"
        raise InputError(f"{what} are of {kind}, which is not an array of numbers: give an array")
    return array


def _may_hide(values: Any) -> bool:
    """Whether NumPy might drop a mask: in a dask array, or in arrays inside a list."""
    if isinstance(values, np.ma.MaskedArray) or callable(getattr(values, "compute", None)):
        return True
    return isinstance(values, _LISTS) and any(map(_may_hide, values))


def _stacked(values: Any) -> Any:
    """Convert such an array or (nested) list, keeping its mask."""
    if isinstance(values, _LISTS):
        return np.ma.stack([_stacked(part) for part in values])
    return values.compute() if callable(getattr(values, "compute", None)) else values


def as_floats(
    y: NDArray, what: str = "embeddings", dtype: type[np.floating] = np.float32
) -> NDArray[Any]:
    """Floats as float32, or another type. Raises InputError if they are not floats."""
    if y.dtype.kind not in "fiu" and y.dtype.name != "bfloat16":
        raise InputError(f"{what} are {y.dtype}: give floats, float32 for example")
    with np.errstate(over="ignore"):
        return y.astype(dtype, copy=False)


def check_finite(floats: NDArray[np.floating], source: NDArray, what: str = "embeddings") -> None:
    """Raise InputError that gives the place and source value of the first NaN or infinity."""
    # One sum finds them without allocating memory. It may also overflow where there are none.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(floats.sum(dtype=np.float64))
    if not finite:
        refuse(~np.isfinite(floats), f"values of {what}", "NaN or infinite in float32", source)


def warn_of_integers(dtype: np.dtype, *, stacklevel: int) -> None:
    """Warn if embeddings are integers: these are often stored with a scale, not applied here."""
    if dtype.kind in "iu":
        warnings.warn(
            f"embeddings are {dtype}: integers are coded as plain numbers. If they have a scale or "
            "are companded, dequantise them first, or let `nec` do so (--scale or --companded); "
            "name a no-data value with nodata (--nodata)",
            UnusualEmbedding,
            stacklevel=stacklevel + 1,
        )


def as_symbols(q: ArrayLike) -> NDArray[np.int32]:
    """Integers of any type as int32. Raises InputError if they are not integers or do not fit."""
    symbols = as_array(q, "symbols")
    if symbols.dtype.kind not in "iu":
        raise InputError(f"symbols are {symbols.dtype}: give integers, or embeddings to `encode`")
    if symbols.dtype == np.int32:
        return symbols
    if symbols.size and not _INT32.min <= int(symbols.min()) <= int(symbols.max()) <= _INT32.max:
        raise InputError("symbols do not fit int32")
    return symbols.astype(np.int32)


def as_bytes(blob: Any) -> bytes:
    """A blob from any object that holds bytes. Raises InputError for other objects."""
    with suppress(TypeError):
        view = memoryview(blob)
        if view.itemsize == 1:
            return view.tobytes()
    raise InputError(f"a blob is bytes, as encode returns it, not {type(blob).__name__}")


def as_blobs(blobs: Any) -> list[bytes]:
    """Any iterable of blobs as a list. Raises InputError if it is empty or one is not bytes."""
    if isinstance(blobs, (bytes, bytearray, memoryview, str)):
        raise InputError("decode takes a sequence of blobs: wrap a single one in a list")
    if isinstance(blobs, np.ndarray) and blobs.dtype.kind != "O":
        # NumPy drops the zeros that a byte string ends with.
        raise InputError(f"blobs are an array of {blobs.dtype}: pass a list of byte strings")
    refuse_unordered(blobs, "blobs")
    try:
        many = list(blobs)
    except TypeError as error:
        kind = type(blobs).__name__
        raise InputError(f"blobs are of type {kind}: pass a list of them") from error
    if not many:
        raise InputError("no blobs to decode")
    return [named("blob", i, as_bytes, blob) for i, blob in enumerate(many)]


def refuse_unordered(values: Any, what: str) -> None:
    """Raise InputError for a set, whose order differs between runs, and for a mapping."""
    if isinstance(values, Set | Mapping):
        why = ", which has no order" if isinstance(values, Set) else ""
        raise InputError(f"{what} are a {type(values).__name__}{why}: give a list")


def as_grid(grid: Any) -> tuple[int, int]:
    """A grid (height, width) as integers. Raises InputError unless both are above 0."""
    with suppress(TypeError, ValueError):  # of what is not a pair
        height, width = grid
        if is_whole(height) and is_whole(width) and min(height, width) > 0:
            return int(height), int(width)
    raise InputError(f"grid is {grid!r}: give its height and width in tokens, two whole numbers")


def is_whole(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy, and not a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, of Python or NumPy, or NaN."""
    return isinstance(value, (float, np.floating)) or is_whole(value)


def check_whole(name: str, value: Any, lowest: int = 1, highest: int = _INT32.max) -> int:
    """Check a count from a caller. Raises InputError unless it is whole and in range."""
    if not is_whole(value) or not lowest <= value <= highest:
        raise InputError(f"{name} is {value!r}: give a whole number, {lowest} to {highest}")
    return int(value)


def refuse(
    bad: NDArray[np.bool_],
    what: str,
    kind: str,
    values: NDArray | None = None,
    remedy: str = _MISSING,
    start: tuple[int, ...] = (),
) -> None:
    """Raise InputError if any value is bad: says how many, where the first is, and its value.

    Places are counted from `start`, the place of the first value in a larger array.
    """
    if not bad.any():
        return
    first = np.unravel_index(int(bad.argmax()), bad.shape)
    shown = "" if values is None else f" ({values[first]})"
    starts = (*start, *[0] * (bad.ndim - len(start)))
    place = tuple(int(i) + s for i, s in zip(first, starts, strict=True))
    raise InputError(
        f"{int(bad.sum())} of {bad.size} {what} are {kind}, the first at {place}{shown}: {remedy}"
    )


def immutable(name: str, values: ArrayLike, dtype: DTypeLike) -> NDArray:
    """An immutable one-dimensional, non-empty, C-ordered copy of `values` in `dtype`.

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
    # An array over `bytes` cannot be made writable again; one with a cleared flag can.
    return np.frombuffer(copy.tobytes(), target)


def read_only(values: NDArray) -> NDArray:
    """The array itself, made read-only because it is shared."""
    values.flags.writeable = False
    return values


def frozen(values: NDArray) -> NDArray:
    """An immutable C-ordered copy of any array."""
    return np.frombuffer(values.tobytes(), values.dtype).reshape(values.shape)
