"""Columns of an archive: what is known of each image, such as its time, in an array for each.

A column has the dimension `image` and a dtype: text, bool, int64, float64, or times in UTC
(datetime64[us], stored as int64 by the CF conventions, as xarray stores times). Missing text is "",
a missing float NaN and a missing time NaT; whole numbers and bools are never missing.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray

from coder.errors import InputError, printable

TIME = np.dtype("datetime64[us]")
TEXT = np.dtype(object)
"""The dtype of columns of text, whose values are `str`."""
_NAT = int(np.iinfo(np.int64).min)
_FINER = ("ns", "ps", "fs", "as")  # units of times that are cut to microseconds
_UNITS = "microseconds since 1970-01-01"
_RESERVED = {
    "id", "label", "valid", "error", "embedding", "class_token", "refiner",  # arrays
    "image", "y", "x", "channel", "refiner_byte",  # dimensions
    "label_name",  # of exports
    "zarr.json",
}  # fmt: skip
_NAME = re.compile(r"(?!__|\.)[^/\\\s\x00-\x1f\ud800-\udfff]+( +[^/\\\s\x00-\x1f\ud800-\udfff]+)*")
_LONGEST = 200  # bytes of a name, which is that of a folder
_FILL = {TEXT: "", np.dtype(bool): False, np.dtype(np.int64): 0}
_FILL |= {np.dtype(np.float64): np.nan, TIME: _NAT}


def as_column(dtype: DTypeLike, name: str = "") -> np.dtype:
    """The dtype that a column has for values of a dtype. Raises InputError if there is none."""
    try:
        kind = np.dtype(dtype).kind
    except TypeError:
        kind = ""
    if kind == "O" and not isinstance(dtype, np.dtype):  # NumPy takes any class for objects
        kind = ""
    for own, kinds in zip(_FILL, ("OUT", "b", "iu", "f", "M"), strict=True):
        if kind and kind in kinds:
            return own
    raise InputError(f"the column {name} has the type {dtype}: give text, bools, numbers or times")


def checked(columns: Mapping[str, DTypeLike]) -> dict[str, np.dtype]:
    """Names and dtypes of columns. Raises InputError for those that an archive cannot have."""
    found: dict[str, np.dtype] = {}
    for name, dtype in columns.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name.encode()) > _LONGEST:
            raise InputError(
                f"the column {printable(repr(name))}: a name is text of at most {_LONGEST} bytes "
                "without a slash, a backslash, a line break or spaces at its ends, and it does not "
                "begin with a dot or two underscores"
            )
        if name.casefold() in _RESERVED:
            raise InputError(f"the column {name} has a name that an archive uses: rename it")
        if (other := next((o for o in found if o.casefold() == name.casefold()), None)) is not None:
            raise InputError(f"the columns {other} and {name} differ in case alone: rename one")
        found[name] = as_column(dtype, name)
    return found


def make(group: zarr.Group, name: str, dtype: np.dtype, count: int, shard: int, **how: Any) -> None:
    """Make the array of a column.

    Args:
      group: the archive.
      name: the column's.
      dtype: as `as_column` has it.
      count: number of images.
      shard: images per chunk.
      how: further arguments of `zarr.Group.create_array`.
    """
    stored: Any = str if dtype == TEXT else np.dtype(np.int64) if dtype == TIME else dtype
    # `_FillValue` is what xarray reads; Zarr's own fill value alone is not taken for missing.
    about = {"units": _UNITS, "calendar": "proleptic_gregorian", "_FillValue": _NAT}
    group.create_array(
        name,
        shape=(count,),
        chunks=(shard,),
        dtype=stored,
        fill_value=_FILL[dtype],
        dimension_names=("image",),
        attributes=about if dtype == TIME else {},
        **how,
    )


def of(arrays: Mapping[str, zarr.Array]) -> dict[str, np.dtype]:
    """The columns among the arrays of an archive, and their dtypes."""
    found = {}
    for name, array in arrays.items():
        dimensions = getattr(array.metadata, "dimension_names", None)
        if dimensions == ("image",) and name not in _RESERVED:
            found[name] = TIME if is_time(array) else as_column(array.dtype, name)
    return found


def is_time(array: zarr.Array) -> bool:
    """Whether the numbers of an array are times as columns store them."""
    return array.dtype == np.int64 and array.attrs.get("units") == _UNITS


def values_of(array: zarr.Array, values: NDArray[Any]) -> NDArray[Any]:
    """What is read of a column, with times as datetime64[us]."""
    return values.view(TIME) if is_time(array) else values


def as_stored(
    name: str, dtype: np.dtype, values: Sequence[Any] | NDArray[Any], images: slice
) -> NDArray[Any]:
    """The values of consecutive images as they are stored.

    None and masked values are missing.

    Raises InputError: another number of values, values of another type, or a missing one of a
    column that cannot have it; names the image.
    """
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise InputError(f"the column {name}: give a value for each image")
    count = images.stop - images.start
    if len(values) != count:
        raise InputError(f"the column {name} has {len(values)} values for {count} images")
    hidden = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    found = np.full(count, _FILL[dtype], np.int64 if dtype == TIME else dtype)
    for i, value in enumerate(np.ma.getdata(values) if hidden is not None else values):
        try:
            if _is_missing(value) or (hidden is not None and hidden[i]):
                if dtype.kind in "bi":
                    raise ValueError("is missing, which its type cannot say: use floats or text")
            else:
                found[i] = _one(dtype, value)
        except (ValueError, OverflowError) as error:
            number = images.start + i
            raise InputError(f"image {number}: its {name} {error}") from error
    return found


def _is_missing(value: Any) -> bool:
    """Whether it is None, or pandas' NA or NaT."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _one(dtype: np.dtype, value: Any) -> Any:
    """One value as it is stored. Raises ValueError that says what is wrong with it."""
    if dtype == TEXT and isinstance(value, float) and np.isnan(value):
        return ""  # as pandas has it
    if dtype == TIME and isinstance(value, datetime):  # also pandas' Timestamp
        zoned = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        value = np.datetime64(zoned, "us")
    if dtype == TEXT and isinstance(value, str):
        if "\0" in value:
            raise ValueError("has a NUL: leave it out")
        return printable(value)
    given = np.asarray(value)
    kind = given.dtype.kind
    if given.ndim or kind not in {"b": "b", "i": "iu", "f": "fiu", "M": "M"}.get(dtype.kind, ""):
        wanted = {"O": "text", "b": "a bool", "i": "a whole number", "f": "a number", "M": "a time"}
        raise ValueError(f"is {value!r:.60}: give {wanted[dtype.kind]}")
    if dtype == TIME:
        exact, is_finer = given.astype(TIME), np.datetime_data(given.dtype)[0] in _FINER
        if not (is_finer or np.isnat(given)) and exact.astype(given.dtype) != given:
            raise ValueError(f"is {value!r}, which is out of range")
        return int(exact.astype(np.int64))
    if kind in "iu" and dtype.kind == "f" and int(float(value)) != int(value):
        raise ValueError(f"is {value}, which a float does not hold exactly: use whole numbers")
    if kind in "iu" and dtype.kind == "i" and not -(2**63) <= int(value) < 2**63:
        raise ValueError(f"is {value}, which 64 bits do not hold")
    return value
