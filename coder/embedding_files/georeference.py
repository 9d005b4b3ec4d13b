"""Where the tokens of a raster lie on the map: from a transform, or as CF writes it in Zarr."""

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from coder.embedding_files.array_views import Flipped
from coder.embedding_files.stated_numbers import values_of
from coder.errors import InputError
from coder.scenes.scene_grid import SceneGrid

ROWS, COLUMNS = ("y", "lat", "latitude", "northing"), ("x", "lon", "longitude", "easting")
"""Names of the dimensions of rows, and of columns."""
_TIMES = ("time", "t")
_UNEVEN = 0.01  # of a cell: coordinates that are further from an even grid are not of one
_SINCE = re.compile(r"(day|hour|minute|second|millisecond|microsecond|nanosecond)s? since (.+)")
_DATE = re.compile(
    r"(\d{1,4})-(\d{1,2})-(\d{1,2})"
    r"(?:[T ]+(\d{1,2}):(\d{1,2})(?::(\d{1,2}(?:\.\d*)?))?)?\s*(Z|UTC|[+-]\d\d:?\d\d)?"
)
_UNITS = {"day": 86_400_000_000, "hour": 3_600_000_000, "minute": 60_000_000}
_UNITS |= {"second": 1_000_000, "millisecond": 1000, "microsecond": 1}
_UNITS |= {"nanosecond": Fraction(1, 1000)}  # all in microseconds
_MIXED = ("standard", "gregorian")  # Julian before 15 October 1582
_NAT = -(1 << 63)


class Georeference(NamedTuple):
    """Where tokens lie.

    Attributes:
      grid: north-up.
      flips: whether rows, and columns, are in reverse order in the file.
      times: datetime64[us] of the first dimension, if it is time.
    """

    grid: SceneGrid
    flips: tuple[bool, bool]
    times: NDArray[np.datetime64] | None = None

    def north_up(self, y: Any) -> Any:
        """Rasters [.., H, W, D] with rows from north to south, and columns from west to east."""
        rows, columns = self.flips
        return Flipped(y, rows=rows, columns=columns) if rows or columns else y


def georeference(crs: Any, transform: Sequence[float], shape: tuple[int, int]) -> Georeference:
    """The place of a raster.

    Args:
      crs: the coordinate reference system: of rasterio, or what it takes (WKT, a code).
      transform: a to f, (column, row) -> map.
      shape: height and width.

    Raises:
      ModuleNotFoundError: rasterio is missing.
      InputError: a rotated raster, or a system that is none.
    """
    try:
        from rasterio.crs import CRS
        from rasterio.errors import CRSError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a georeference needs rasterio: install nec-jax[scenes]"
        ) from error
    try:
        known: Any = crs if isinstance(crs, CRS) else CRS.from_user_input(crs)
        found = known.to_authority(confidence_threshold=100)
        code = ":".join(found) if found and CRS.from_authority(*found) == known else None
        text = known.to_wkt(version="WKT2_2019")
    except CRSError as error:
        raise InputError(f"its coordinate reference system is not understood: {error}") from error
    a, b, c, d, e, f = (float(value) for value in transform)
    if b or d:
        raise InputError("a rotated raster: make it north-up (gdalwarp INPUT OUTPUT.tif)")
    flips = e > 0, a < 0
    if flips[0]:
        e, f = -e, f + e * shape[0]
    if flips[1]:
        a, c = -a, c + a * shape[1]
    return Georeference(SceneGrid(text, code, (a, b, c, d, e, f), shape), flips)


def dimensions_of(array: zarr.Array) -> tuple[str, ...] | None:
    """The names of an array's dimensions, as Zarr v3 has them or xarray writes them in v2."""
    names: Any = getattr(array.metadata, "dimension_names", None)
    names = names or array.attrs.get("_ARRAY_DIMENSIONS")
    if not names or len(names) != array.ndim or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def is_map_dimension(name: str) -> bool:
    """Whether a dimension of this name is of rows or columns of a map."""
    return name.lower() in (*ROWS, *COLUMNS)


def cf_georeference(
    group: zarr.Group, arrays: Mapping[str, zarr.Array], array: zarr.Array
) -> tuple[Georeference | None, list[str]]:
    """Where the tokens of an array lie, by the coordinates and CRS of its group; and what to say.

    Args:
      group: of the array.
      arrays: of the group, by name.
      array: with dimensions of rows and columns, in this order.

    Raises InputError: coordinates that are of no even grid; times that cannot be read.
    """
    names: tuple[str, ...] = dimensions_of(array) or ()
    places = {name: axis for axis, name in enumerate(names)}
    row = next((name for name in names if name.lower() in ROWS), None)
    column = next((name for name in names if name.lower() in COLUMNS), None)
    if row is None or column is None:
        return None, []
    shape = array.shape[places[row]], array.shape[places[column]]
    mapping = str(array.attrs.get("grid_mapping"))
    held = next((arrays[n] for n in (mapping, "spatial_ref", "crs") if n in arrays), None)
    facts: Any = {} if held is None else held.attrs
    crs = facts.get("crs_wkt") or facts.get("spatial_ref")
    crs = crs or group.attrs.get("proj:code") or group.attrs.get("proj:wkt2")
    lines: list[str] = []
    if crs is None and row.lower().startswith("lat"):
        crs = "EPSG:4326"
        lines.append("no CRS is stated: latitude and longitude are taken as EPSG:4326")
    if crs is None and not {row, column} <= arrays.keys():
        return None, []
    if crs is None:
        return None, ["it has no coordinate reference system: its place on the map is not kept"]
    stated = _stated(facts.get("GeoTransform"), group.attrs.get("spatial:transform"))
    transform = stated
    if row in arrays and column in arrays:
        (e, f), (a, c) = (_even(arrays[name], name) for name in (row, column))
        transform = (a, 0.0, c, 0.0, e, f)
        if stated is not None and not _is_same(stated, transform, shape):
            lines.append(
                f"its GeoTransform is another than that of {row} and {column}, which are taken"
            )
    if transform is None:
        return None, [f"it has no coordinates {row} and {column}: its place is not kept"]
    found = georeference(crs, transform, shape)
    first = next(iter(names))
    if array.ndim == 4 and first.lower() in _TIMES and first in arrays:
        found = found._replace(times=_times(arrays[first]))
    return found, lines


def _stated(text: Any, numbers: Any) -> tuple[float, ...] | None:
    """The transform that attributes state: GDAL's text, or numbers of the convention spatial:."""
    try:
        if isinstance(text, str):
            c, a, b, f, d, e = map(float, text.split())
            return a, b, c, d, e, f
        if isinstance(numbers, list) and len(numbers) == 6:
            return tuple(map(float, numbers))
    except ValueError:
        pass
    return None


def _is_same(one: Sequence[float], other: Sequence[float], shape: tuple[int, int]) -> bool:
    """Whether two transforms put all cells at the same places, up to a hundredth of a cell."""
    side = min(abs(other[0]), abs(other[4]))
    height, width = shape
    return all(
        abs((p - q) * width + (r - s) * height + t - u) <= _UNEVEN * side
        for width, height in ((0, 0), (width, height))
        for (p, r, t), (q, s, u) in ((one[:3], other[:3]), (one[3:], other[3:]))
    )


def _even(array: zarr.Array, name: str) -> tuple[float, float]:
    """The step and the first edge of coordinates of centres. Raises InputError: they are uneven."""
    values = values_of(array).astype(np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise InputError(f"its coordinate {name} is no list of two numbers or more")
    step = (values[-1] - values[0]) / (len(values) - 1)
    even = values[0] + step * np.arange(len(values))
    # Coordinates are often float32, whose rounding is no unevenness.
    slack = _UNEVEN * abs(step) + 4 * np.finfo(np.float32).eps * np.abs(values).max()
    if not step or (np.abs(values - even) > min(slack, abs(step) / 4)).any():
        raise InputError(
            f"its coordinate {name} is not even: resample the raster to even cells (rioxarray's "
            "reproject), or give the array alone"
        )
    return float(step), float(values[0] - step / 2)


def _times(array: zarr.Array) -> NDArray[np.datetime64]:
    """The times of a coordinate (CF) as datetime64[us]; NaT where they are missing."""
    values = values_of(array)
    if values.dtype.kind == "M":
        return values.astype("datetime64[us]")
    units, calendar = array.attrs.get("units"), array.attrs.get("calendar", "standard")
    found = _SINCE.fullmatch(str(units).strip())
    if found is None or calendar not in (*_MIXED, "proleptic_gregorian"):
        raise InputError(
            f"its times are in {units!r} ({calendar}): write them as xarray does, in days (or "
            "seconds, ..) since a date"
        )
    start = _start(found[2], mixed=calendar in _MIXED)
    unit, us = _UNITS[found[1]], []
    for value in values.ravel().tolist():
        if not math.isfinite(value):
            us.append(_NAT)
            continue
        # Exact: a float of days has no whole microseconds, and int64 has more digits than floats.
        whole = start + Fraction(value) * unit
        us.append(math.floor(whole) if isinstance(value, int) else round(whole))
        if abs(us[-1]) > -_NAT - 1:
            raise InputError(f"its time {value} in {units!r} is too far away: mend it")
    return np.array(us, np.int64).astype("datetime64[us]").reshape(values.shape)


def _start(text: str, *, mixed: bool) -> Fraction:
    """A date, with or without time, in microseconds since 1970.

    In a mixed calendar, days before 15 October 1582 are Julian.
    """
    found = _DATE.fullmatch(text.strip())
    if found is None:
        raise InputError(f"its times are since {text!r}, which is no date")
    year, month, day = (int(found[i]) for i in (1, 2, 3))
    try:
        days = int(np.datetime64(f"{year:04}-{month:02}-{day:02}", "D").astype(np.int64))
    except ValueError as error:
        raise InputError(f"its times are since {text!r}, which is no date") from error
    if mixed and (year, month, day) < (1582, 10, 15):
        if not year:
            raise InputError(f"its times are since {text!r}, and its calendar has no year 0")
        century = (year - (month < 3)) // 100
        days += century - century // 4 - 2
    hours, minutes, seconds = (Fraction(found[i] or 0) for i in (4, 5, 6))
    zone = found[7] or ""
    if zone[:1] in ("+", "-"):
        ahead = 60 * int(zone[1:3]) + int(zone[-2:])
        minutes -= ahead if zone[0] == "+" else -ahead
    return (((24 * days + hours) * 60 + minutes) * 60 + seconds) * 1_000_000
