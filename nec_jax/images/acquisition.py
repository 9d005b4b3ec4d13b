"""When and where an image was taken, as its file says."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image

from nec_jax.images.record import Record

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_PLACES = 7  # decimals of a degree: a centimetre
_DEGREES = ("EPSG:4326", "OGC:CRS84")
_OFFSET = re.compile(r"([+-])(\d\d):(\d\d)")


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
    original = _exif_time(taken.get(ExifTags.Base.DateTimeOriginal))
    offset = _OFFSET.fullmatch(str(taken.get(ExifTags.Base.OffsetTimeOriginal)).strip("\0 "))
    if original is not None and offset is not None:
        sign, hours, minutes = offset[1], int(offset[2]), int(offset[3])
        shift = timedelta(hours=hours, minutes=minutes)
        return _utc(original - shift if sign == "+" else original + shift)
    return _utc(_gps_time(place) or original)


def time_of_raster(dataset: "DatasetReader") -> np.datetime64 | None:
    """When a raster was taken, in UTC, by GDAL's metadata; None if these do not say.

    It is the acquisition time that GDAL reads from the metadata of some satellites' products, or
    else the original time of EXIF. (The time tag of a TIFF says when the file was written.)
    """
    acquired = dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME", "")
    try:
        found = datetime.fromisoformat(acquired.strip())
    except ValueError:
        said = dataset.tags() | dataset.tags(ns="EXIF")
        return _utc(_exif_time(said.get("EXIF_DateTimeOriginal")))
    return _utc(found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found)


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
    if record["crs"] in _DEGREES and all(abs(x) <= 180 and abs(y) <= 90 for x, y in ring):
        return _polygon([ring], "POLYGON ")
    from rasterio.warp import transform_geom

    try:
        found: Any = transform_geom(
            record["crs"], _DEGREES[1], {"type": "Polygon", "coordinates": [ring]}
        )
    except Exception:  # also GDAL's own errors, for a place that is nowhere on Earth
        return ""
    if not np.isfinite(_flat(found["coordinates"])).all():
        return ""
    if found["type"] == "Polygon":
        return _polygon(found["coordinates"], "POLYGON ")
    return f"MULTIPOLYGON ({', '.join(_polygon(part) for part in found['coordinates'])})"


def _polygon(rings: Sequence[Sequence[Sequence[float]]], kind: str = "") -> str:
    texts = (", ".join(f"{_degrees(x)} {_degrees(y)}" for x, y in ring) for ring in rings)
    return f"{kind}({', '.join(f'({text})' for text in texts)})"


def _degrees(value: float) -> str:
    text = f"{value:.{_PLACES}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _flat(coordinates: Any) -> list[float]:
    if isinstance(coordinates, int | float):
        return [coordinates]
    return [value for part in coordinates for value in _flat(part)]


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
        return day + timedelta(hours=hours, minutes=minutes, seconds=seconds)
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None


def _utc(time: datetime | None) -> np.datetime64 | None:
    return None if time is None else np.datetime64(time, "us")
