"""When and where an image was taken, as its file says."""

import re
from typing import Any

import numpy as np
import pytest
import rasterio
from image_files import PLACE, encoded, noise, put, write_raster
from PIL import ExifTags, Image
from rasterio.warp import transform

from nec_jax.images.acquisition import footprint
from nec_jax.images.read import read_image
from nec_jax.images.record import Record

ORIGINAL, OFFSET = ExifTags.Base.DateTimeOriginal, ExifTags.Base.OffsetTimeOriginal
DAY, TIME = ExifTags.GPS.GPSDateStamp, ExifTags.GPS.GPSTimeStamp
TAKEN = "2019:05:06 01:02:03"


def taken(tmp_path, original=None, offset=None, day=None, time=None):
    """The time of a JPEG with these tags."""
    exif = Image.Exif()
    for folder, tags in (
        (ExifTags.IFD.Exif, {ORIGINAL: original, OFFSET: offset}),
        (ExifTags.IFD.GPSInfo, {DAY: day, TIME: time}),
    ):
        for tag, value in tags.items():
            if value is not None:
                exif.get_ifd(folder)[tag] = value
    path = put(tmp_path / "a.jpg", encoded(noise(16, 16, 3), "jpeg", exif=exif.tobytes()))
    return read_image(path, "a").get("time")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({"original": TAKEN}, "2019-05-06T01:02:03"),
        ({"original": TAKEN, "offset": "+02:30"}, "2019-05-05T22:32:03"),
        ({"original": TAKEN, "offset": "-02:30"}, "2019-05-06T03:32:03"),
        ({"original": TAKEN, "offset": "local"}, "2019-05-06T01:02:03"),
        (
            {"original": TAKEN, "day": "2019:05:05", "time": (22.0, 32.0, 4.5)},
            "2019-05-05T22:32:04.5",
        ),
        ({"day": "2019:05:05"}, None),
        ({"day": "2019:05:05", "time": (22.0, 32.0)}, None),
        ({"original": "0000:00:00 00:00:00"}, None),
        ({"original": "    :  :     :  :  "}, None),
        ({"original": "2019-05-06"}, None),
        ({"original": "0001:01:01 00:00:00", "offset": "+02:00"}, "0001-01-01"),
        ({"original": TAKEN, "offset": "+99:99"}, "2019-05-06T01:02:03"),
        # A receiver that knows no time yet.
        ({"original": TAKEN, "day": "1980:01:06", "time": (0.0, 0.0, 0.0)}, "2019-05-06T01:02:03"),
        ({"original": TAKEN, "day": "2019:05:05", "time": (99.0, 0.0, 0.0)}, "2019-05-06T01:02:03"),
    ],
)
def test_the_time_of_a_picture_is_in_utc(tags, expected, tmp_path):
    found = taken(tmp_path, **tags)
    assert found is None if expected is None else found == np.datetime64(expected)


def raster(path, *, imagery="", original="", offset="", **options):
    write_raster(path, noise(3, 20, 30), **options)
    with rasterio.open(path, "r+") as file:
        if imagery:
            file.update_tags(ns="IMAGERY", ACQUISITIONDATETIME=imagery)
        if original:
            file.update_tags(EXIF_DateTimeOriginal=original)
        if offset:
            file.update_tags(EXIF_OffsetTimeOriginal=offset)
        file.update_tags(TIFFTAG_DATETIME="2024:01:01 00:00:00")  # when it was written
    return read_image(path, "a")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({"imagery": "2020-01-02 03:04:05"}, "2020-01-02T03:04:05"),
        ({"imagery": "2020-01-02T03:04:05.25+01:00"}, "2020-01-02T02:04:05.25"),
        ({"imagery": "yesterday"}, None),
        ({"original": TAKEN}, "2019-05-06T01:02:03"),
        ({"original": TAKEN, "offset": "+02:00"}, "2019-05-05T23:02:03"),
        ({"imagery": "0001-01-01T00:00:00+14:00"}, None),
        ({"original": TAKEN, "imagery": "2020-01-02 03:04:05"}, "2020-01-02T03:04:05"),
    ],
)
def test_the_time_of_a_raster_is_in_utc(tags, expected, tmp_path):
    found = raster(tmp_path / "a.tif", **tags).get("time")
    assert found is None if expected is None else found == np.datetime64(expected)


def corners(text):
    """The points of a WKT polygon."""
    inner = text.removeprefix("POLYGON ((").removesuffix("))")
    return np.array([[float(value) for value in point.split()] for point in inner.split(",")])


def test_a_footprint_has_the_corners_in_degrees(tmp_path):
    record = raster(tmp_path / "a.tif", **PLACE)
    x, y = [500000, 500000, 500300, 500300, 500000], [4100000, 4099800, 4099800, 4100000, 4100000]
    expected = np.stack(transform(PLACE["crs"], "OGC:CRS84", x, y), -1)
    np.testing.assert_allclose(corners(footprint(record)), expected, atol=6e-8)


def test_a_window_has_its_own_footprint(tmp_path):
    raster(tmp_path / "a.tif", **PLACE)
    part = footprint(read_image(tmp_path / "a.tif", "a", (5, 10, 10, 10)))
    x, y = 500000 + 100, 4100000 - 50
    lon, lat = transform(PLACE["crs"], "OGC:CRS84", [x], [y])[:2]
    np.testing.assert_allclose(corners(part)[0], [lon[0], lat[0]], atol=6e-8)


@pytest.mark.parametrize("crs", ["EPSG:4326", "OGC:CRS84"])
def test_degrees_stay_as_they_are(crs):
    record: Record = {"image": noise(2, 4, 3), "id": "a", "crs": crs}
    record["transform"] = (0.5, 0.0, -10.0, 0.0, -0.25, 50.0)
    expected = "POLYGON ((-10 50, -10 49.5, -8 49.5, -8 50, -10 50))"
    assert footprint(record) == expected


def test_across_the_antimeridian_it_has_two_parts():
    record: Record = {"image": noise(8, 8, 3), "id": "a", "crs": "EPSG:32660"}
    record["transform"] = (16000.0, 0.0, 700000.0, 0.0, -16000.0, 5000000.0)
    found = footprint(record)
    assert found.startswith("MULTIPOLYGON (((")
    assert found.count("((") == 2
    assert "180 " in found
    assert "-180 " in found


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"crs": "EPSG:32633"},
        {"transform": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)},
        {"crs": 'LOCAL_CS["site",UNIT["metre",1]]', "transform": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)},
        {"crs": "EPSG:32633", "transform": (1e30, 0.0, 1e30, 0.0, -1e30, 0.0)},
    ],
)
def test_without_a_place_on_earth_there_is_none(place):
    record: Any = {"image": noise(8, 8, 3), "id": "a", **place}
    assert footprint(record) == ""


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        ("EPSG:4326", (0.1, 0, 175, 0, -0.1, 50), [(175, 180), (-180, -175)]),
        ("EPSG:4258", (0.1, 0, 175, 0, -0.1, 50), [(175, 180), (-180, -175)]),
        ("EPSG:4326", (0.1, 0, 350, 0, -0.1, 50), [(-10, 0)]),
        ("EPSG:4326", (3.6, 0, -180, 0, -1.8, 90), [(-180, 180)]),
        ("EPSG:3857", (100, 0, 20037000, 0, -100, 0), [(179.9954335, 180), (-180, -179.914735)]),
    ],
)
def test_no_part_is_beyond_180_degrees(crs, transform, expected):
    record: Any = {"image": noise(100, 100, 1), "id": "a", "crs": crs, "transform": transform}
    found = []
    for part in re.findall(r"\(([^()]+)\)", footprint(record)):
        x = [float(point.split()[0]) for point in part.split(",")]
        found.append((min(x), max(x)))
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_latitude_beyond_the_poles_is_no_place():
    for place in ((0.1, 0, 10, 0, -0.1, 95), (0, 0, 0, 0, 0, 0)):
        record: Any = {"image": noise(9, 9, 1), "id": "a", "crs": "EPSG:4326"}
        assert footprint(record | {"transform": place}) == ""
