"""What the attributes of a Zarr array say of its numbers (CF): missing data, scale and offset."""

import base64
import binascii
import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from coder.archive import zarr_nodes
from coder.errors import InputError

_MARKS = ("_FillValue", "missing_value")


class StatedNumbers(NamedTuple):
    """What an array says of its numbers.

    Attributes:
      nodata: the number that marks missing data; None if there is none, or if it is NaN.
      by: what says so.
      scale, offset: the values are `number * scale + offset`; 1 and 0 if there are none.
      lines: what to say.
    """

    nodata: float | None
    by: str
    scale: float
    offset: float
    lines: list[str]


def stated_numbers(array: zarr.Array, nodata: float | None = None) -> StatedNumbers:
    """What an array says of its numbers.

    In Zarr v2, xarray keeps `_FillValue` in `fill_value` of the metadata. Other programs leave 0
    there, the default, for which they mean nothing: it counts only if xarray's dimensions are
    there. In v3, only attributes count. Missing data that are NaN need no mark.

    Args:
      array: it.
      nodata: the number that marks missing data, in place of what the array says.

    Raises InputError: an attribute that is not understood; two numbers that mark missing data.
    """
    attributes = array.attrs.asdict()
    if "_Unsigned" in attributes and array.dtype.kind == (
        "i" if str(attributes["_Unsigned"]).lower() == "true" else "u"
    ):
        raise InputError(
            f"its attribute _Unsigned says that {array.dtype} stands for another type: write it "
            "as that type (xarray: open_zarr, astype, to_zarr)"
        )
    scale, offset = _number(attributes, "scale_factor"), _number(attributes, "add_offset")
    scale, offset = 1.0 if scale is None else scale, 0.0 if offset is None else offset
    if not (math.isfinite(scale) and scale and math.isfinite(offset)):
        raise InputError(f"its scale_factor is {scale:g} and its add_offset {offset:g}: mend them")
    if nodata is not None:
        return StatedNumbers(nodata, "--nodata", scale, offset, [])
    marks = {f"its attribute {name}": _number(attributes, name) for name in _MARKS}
    lines, own = [], array.fill_value
    if array.metadata.zarr_format == 2:
        # Zarr's default: an attribute, or a file that is not of xarray, is to be believed.
        is_default = own == 0 and (
            "_ARRAY_DIMENSIONS" not in attributes or any(m is not None for m in marks.values())
        )
        if own is not None and not is_default:
            marks["its fill_value"] = np.asarray(own).item()
    elif own and np.isfinite(own) and all(mark is None for mark in marks.values()):
        lines.append(
            f"its fill_value is {own:g}, which in Zarr v3 marks nothing: if it is missing data, "
            f"give --nodata {own:g}"
        )
    found = {by: m for by, m in marks.items() if m is not None and not math.isnan(m)}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{by} {mark:g}" for by, mark in found.items())
        raise InputError(f"more than one number marks missing data ({said}): choose, --nodata")
    by, mark = next(iter(found.items()), ("", None))
    return StatedNumbers(mark, by, scale, offset, lines)


def values_of(array: zarr.Array) -> NDArray[Any]:
    """All values of an array, with its scale and offset: NaN in float64 where they are missing."""
    stated = stated_numbers(array)
    values = np.asarray(zarr_nodes.read(array))
    is_plain = stated.scale == 1 and not stated.offset
    gone = np.zeros(values.shape, bool) if stated.nodata is None else values == stated.nodata
    if is_plain and not gone.any():
        return values
    return np.where(gone, np.nan, values * np.float64(stated.scale) + stated.offset)


def _number(attributes: Mapping[str, Any], name: str) -> float | None:
    """An attribute as a number; None if it is not there."""
    if name not in attributes:
        return None
    value = given = attributes[name]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        value = _of_text(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        remedy = "give --nodata" if name in _MARKS else "write it as a number"
        raise InputError(f"its attribute {name} is {given!r}, which is no number: {remedy}")
    return value


def _of_text(text: str) -> float | None:
    """A number as Zarr writes it in JSON, or xarray: float64 in base 64."""
    if text in ("NaN", "Infinity", "-Infinity"):
        return float(text)
    try:
        (value,) = struct.unpack("<d", base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, struct.error):
        return None
    return value
