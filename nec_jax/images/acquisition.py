"""When and where an image was taken, as its file says."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image

from coder.scenes.map_outline import PLACES, in_degrees
from nec_jax.images.record import Record

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_OFFSET = re.compile(r"([+-])(0\d|1[0-4]):([0-5]\d)")
_APART = timedelta(hours=26)  # between a local time and UTC, at most


def time_of_picture(image: Image.Image) -> np.datetime64 | None:
    """When the picture of a camera was taken, in UTC, by its EXIF; None if that does not say.

    It is the original time with its offset from UTC, or else the time of the position (GPS), which
    is in UTC, or else the original time, which is then taken for UTC.
    """
    if "exif" not in image.info:
        return None
    try:
        exif = image.getexif()
        taken, place = exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)
    except Exception:  # decoders raise nearly anything
        return None
    original = taken.get(ExifTags.Base.DateTimeOriginal)
    return _original_time(original, taken.get(ExifTags.Base.OffsetTimeOriginal), _gps_time(place))


def time_of_raster(dataset: "DatasetReader") -> np.datetime64 | None:
    """When a raster was taken, in UTC, by GDAL's metadata; None if these do not say.

    It is the acquisition time that GDAL reads from the metadata of some satellites' products, or
    else the original time of EXIF. (The time tag of a TIFF says when the file was written.)
    """
    acquired = dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME", "")
    with suppress(ValueError, OverflowError):
        found = datetime.fromisoformat(acquired.strip())
        return _utc(found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found)
    said = dataset.tags() | dataset.tags(ns="EXIF")
    return _original_time(said.get("EXIF_DateTimeOriginal"), said.get("EXIF_OffsetTimeOriginal"))


def footprint(record: Record) -> str:
    """The outline of a georeferenced image as WKT, in degrees of longitude and latitude (WGS 84).

    The corners are projected, to 7 decimals; across the 180th meridian it is a MULTIPOLYGON. Empty
    if the image has no georeference, or one without a place on Earth.
    """
    if "transform" not in record or "crs" not in record:
        return ""
    a, b, c, d, e, f = record["transform"]
    height, width = record["image"].shape[:2]
    corners = [(0, 0), (0, height), (width, height), (width, 0), (0, 0)]
    ring = [(c + a * x + b * y, f + d * x + e * y) for x, y in corners]
    if a * e == b * d:
        return ""
    parts = in_degrees(record["crs"], ring)
    if len(parts) == 1:
        return _polygon(parts[0], "POLYGON ")
    return f"MULTIPOLYGON ({', '.join(map(_polygon, parts))})" if parts else ""


def _polygon(rings: Sequence[Sequence[Sequence[float]]], kind: str = "") -> str:
    texts = (", ".join(f"{_degrees(x)} {_degrees(y)}" for x, y in ring) for ring in rings)
    return f"{kind}({', '.join(f'({text})' for text in texts)})"


def _degrees(value: float) -> str:
    text = f"{value:.{PLACES}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _original_time(text: Any, offset: Any, place: datetime | None = None) -> np.datetime64 | None:
    """The original time of EXIF in UTC: by its offset, by the time of the position, or as it is.

    A position of another day is one that the receiver had remembered.
    """
    original, shift = _exif_time(text), _OFFSET.fullmatch(str(offset).strip("\0 "))
    if original is not None and shift is not None:
        east = timedelta(hours=int(shift[2]), minutes=int(shift[3]))
        with suppress(OverflowError):
            return _utc(original - east if shift[1] == "+" else original + east)
    if place is not None and original is not None and abs(place - original) > _APART:
        place = None
    return _utc(place or original)


def _exif_time(text: Any) -> datetime | None:
    """A time as EXIF writes it; None if there is none, or zeros or blanks in its place."""
    try:
        return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None


def _gps_time(place: Mapping[int, Any]) -> datetime | None:
    """The time of a position in EXIF."""
    try:
        day = datetime.strptime(str(place[ExifTags.GPS.GPSDateStamp]).strip("\0 "), "%Y:%m:%d")
        hours, minutes, seconds = map(float, place[ExifTags.GPS.GPSTimeStamp])
        if not (0 <= hours < 24 and 0 <= minutes < 60 and 0 <= seconds < 61):
            return None
        return day + timedelta(hours=hours, minutes=minutes, seconds=seconds)
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None


def _utc(time: datetime | None) -> np.datetime64 | None:
    return None if time is None else np.datetime64(time, "us")
