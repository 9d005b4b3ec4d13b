"""STAC Items of scenes: valid by the core schema, and by the rules of the extensions."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import pytest
import scene_cases
from export_cases import CHANNELS, grid_of, written

import coder
from coder import InputError
from coder.scenes.scene_layout import ATTRIBUTE
from coder.scenes.stac_item import EMBEDDINGS, PROJECTION, _place, stac_item

pytest.importorskip("rasterio")
TIME = datetime(2024, 5, 1, 10)
OF_ITEMS = {  # what the schema of the embeddings extension lets an Item have
    *("runtime_parameters", "preprocessing", "postprocessing", "fit_for_use"),
    *("spatial_coverage", "uncertainty", "quantization", "energy"),
}
FACTS = {
    "model_name": "nec-vit-ti",
    "geoemb:type": "chip",
    "geoemb:model": "https://example.org/nec-vit-ti",
    "geoemb:source_data": ["https://example.org/scene.tif", "file:own.tif"],
    "geoemb:gsd": 160.0,
    "geoemb:quantization": {"method": "nec", "original_dtype": "float32", "scale": {"type": "a"}},
    "geoemb:build_version": "0.1.0",
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "a.zarr"
    return coder.open_scene(written(path, (20, 24), attributes=FACTS))


@contextmanager
def without_network() -> Iterator[None]:
    """The core schemas are those that pystac holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", None)
        yield


def validate(item: dict) -> None:
    """By the core schema that pystac holds, and the published rules of the extensions."""
    pystac = pytest.importorskip("pystac")
    validation = pytest.importorskip("pystac.validation.stac_validator")
    item = json.loads(json.dumps(item))
    with without_network():
        validation.JsonSchemaSTACValidator().validate_core(
            item, pystac.STACObjectType.ITEM, item["stac_version"]
        )
    properties = item["properties"]
    for name, value in properties.items():
        prefix, _, rest = name.partition(":")
        if prefix == "emb":
            assert rest in OF_ITEMS
        if prefix == "proj":
            assert rest in ("code", "wkt2", "shape", "transform", "bbox")
        assert value is not None or name in ("datetime", "proj:code")
    assert {PROJECTION, EMBEDDINGS} <= set(item["stac_extensions"])
    assert ("processing:software" in properties) == any(
        "/processing/" in one for one in item["stac_extensions"]
    )
    assert isinstance(properties["emb:runtime_parameters"], dict)
    if (quantization := properties.get("emb:quantization")) is not None:
        assert {"method", "original_dtype"} <= quantization.keys()
        assert quantization.keys() <= {"method", "original_dtype", "quantized_dtype", "link"}
    assert properties["proj:code"] is not None or properties["proj:wkt2"]
    assert properties["proj:code"] is None or re.match(r"[A-Z]+:\d+$", properties["proj:code"])
    assert len(properties["proj:transform"]) == 6
    assert all(isinstance(side, int) for side in properties["proj:shape"])
    assert "embeddings" in item["assets"]
    for asset in item["assets"].values():
        assert not any(name.startswith("emb:") for name in asset)
    for link in item["links"]:
        assert link.keys() >= {"rel", "href"}


def test_an_item_is_valid_and_says_what_the_scene_is(scene):
    item = stac_item(scene, "data/a.zarr", time=TIME, preview="a.tif")
    validate(item)
    properties = item["properties"]
    assert item["id"] == "a"
    assert properties["datetime"] == "2024-05-01T10:00:00.000000Z"
    assert properties["proj:code"] == "EPSG:32633"
    assert properties["proj:shape"] == [20, 24]
    assert properties["proj:bbox"] == list(scene.grid.bounds)
    assert properties["proj:transform"] == list(scene.grid.transform)
    assert properties["gsd"] == 160
    assert properties["emb:quantization"] == {"method": "nec", "original_dtype": "float32"}
    assert properties["processing:software"] == {"nec-jax": "0.1.0"}
    parameters = properties["emb:runtime_parameters"]
    assert parameters["type"] == "chip"
    assert parameters["dimensions"] == CHANNELS
    assert parameters["quality"] == 8
    assert item["links"] == [
        {"rel": "emb:model", "href": "https://example.org/nec-vit-ti"},
        {"rel": "emb:source-data", "href": "https://example.org/scene.tif"},
    ]
    embeddings, preview = item["assets"]["embeddings"], item["assets"]["preview"]
    assert embeddings["href"] == "data/a.zarr"
    assert (embeddings["type"], embeddings["roles"]) == ("application/vnd+zarr", ["data"])
    assert preview["type"] == "image/tiff; application=geotiff; profile=cloud-optimized"


def test_pystac_reads_it(scene):
    pystac = pytest.importorskip("pystac")
    item = pystac.Item.from_dict(stac_item(scene, "a.zarr", time=TIME))
    assert item.datetime is not None
    assert item.datetime.year == 2024


def test_a_scene_that_records_little_has_a_valid_item(scene, tmp_path, monkeypatch):
    for name in FACTS:
        monkeypatch.delitem(scene.facts, name)
    monkeypatch.setitem(scene.facts, ATTRIBUTE, {})
    item = stac_item(scene, "a.zarr", time=TIME)
    validate(item)
    assert item["links"] == []


def test_several_times_are_a_range(tmp_path):
    times = ("2024-06-01T10:00", "2024-05-01T10:00")
    scene = coder.open_scene(written(tmp_path / "a.zarr", (20, 24), times=times))
    item = stac_item(scene, "a.zarr")
    validate(item)
    assert item["properties"]["datetime"] is None
    assert item["properties"]["start_datetime"] == "2024-05-01T10:00:00.000000Z"
    assert item["properties"]["end_datetime"] == "2024-06-01T10:00:00.000000Z"
    with pytest.raises(InputError, match=r"has no time 2023-.*: it has 2024-06-01T10:00:00"):
        stac_item(scene, "a.zarr", time=datetime(2023, 5, 1, 10, tzinfo=UTC))
    one = coder.open_scene(written(tmp_path / "b.zarr", (20, 24), times=times[:1]))
    assert stac_item(one, "b.zarr")["properties"]["datetime"] == "2024-06-01T10:00:00.000000Z"


def test_one_of_several_times_is_an_item_of_its_own(tmp_path):
    times = ("2024-06-01T10:00", "2024-05-01T10:00")
    scene = coder.open_scene(written(tmp_path / "a.zarr", (20, 24), times=times))
    items = [stac_item(scene, "a.zarr", time=datetime.fromisoformat(time)) for time in times]
    for item, time in zip(items, times, strict=True):
        validate(item)
        assert item["properties"]["datetime"] == f"{time}:00.000000Z"
        assert "start_datetime" not in item["properties"]
    assert [item["id"] for item in items] == ["a_20240601T100000", "a_20240501T100000"]
    assert items[0]["assets"]["embeddings"]["href"] == "a.zarr"


def test_the_item_of_one_time_has_the_sources_of_this_time(tmp_path):
    days = ("2024-05-01", "2024-06-01")
    for i, day in enumerate(days):
        url = f"https://example.org/{day}.tif"
        scene_cases.written_part(
            tmp_path / "a.zarr",
            by=i,
            step={"preparation": {"files": [url]}},
            attributes={"geoemb:source_data": [url]},
            time=np.datetime64(day),
        )
    scene = coder.open_scene(tmp_path / "a.zarr")
    for time in (*days, None):
        item = stac_item(scene, "a.zarr", time=time and datetime.fromisoformat(time))
        expected = [f"https://example.org/{day}.tif" for day in days if time in (day, None)]
        made = item["properties"]["emb:runtime_parameters"]
        assert made["source_data"] == expected
        assert made.get("preparation") == (None if time is None else {"files": expected})
        links = [link["href"] for link in item["links"] if link["rel"] == "emb:source-data"]
        assert links == expected


def test_no_time_is_made_up(scene):
    with pytest.raises(InputError, match="does not record when its pictures were taken"):
        stac_item(scene, "a.zarr")


def test_a_time_with_an_offset_becomes_utc(scene):
    item = stac_item(scene, "a.zarr", time=datetime.fromisoformat("2024-05-01T12:00+02:00"))
    assert item["properties"]["datetime"] == "2024-05-01T10:00:00.000000Z"


@pytest.mark.parametrize(
    ("href", "name"),
    [("https://a.org/b/c.zarr/", "c"), ("../x.zarr", "x"), ("s3://b/scene", "scene")],
)
def test_the_id_is_the_name_of_the_scene(scene, href, name):
    assert stac_item(scene, href, time=TIME)["id"] == name
    assert stac_item(scene, href, time=TIME, name="other")["id"] == "other"


def test_a_scene_of_no_name_is_refused(scene):
    with pytest.raises(InputError, match="name the Item"):
        stac_item(scene, "/", time=TIME)


def test_the_outline_follows_bent_edges(scene):
    """All edges of the outline keep to those of the map, to a tenth of a cell."""
    from rasterio.warp import transform

    grid = grid_of((700, 700))  # 112 km
    geometry, box = _place(grid)
    ring = np.array(geometry["coordinates"][0])
    between = (ring[:-1] + ring[1:]) / 2
    x, y = map(np.array, transform("EPSG:4326", "EPSG:32633", *between.T))
    west, south, east, north = grid.bounds
    away = np.min(np.abs([x - west, x - east, y - south, y - north]), axis=0)
    assert away.max() < 16
    assert geometry["type"] == "Polygon"
    np.testing.assert_allclose(box, [*ring.min(0), *ring.max(0)])
    area = np.sum(ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1])
    assert area > 0  # counter-clockwise, as RFC 7946 demands


def test_across_the_antimeridian_there_are_two_polygons_and_west_is_above_east(tmp_path):
    # UTM zone 1 begins at 180 degrees.
    grid = grid_of((100, 100), "EPSG:32601", (1000.0, 0, 300_000.0, 0, -1000.0, 7_000_000.0))
    geometry, (west, south, east, north) = _place(grid)
    assert geometry["type"] == "MultiPolygon"
    assert len(geometry["coordinates"]) == 2
    assert -180 < east < 0 < west < 180
    assert south < north
    for polygon in geometry["coordinates"]:
        assert np.ptp(np.array(polygon[0])[:, 0]) < 10
    scene = coder.open_scene(written(tmp_path / "a.zarr", (100, 100), grid=grid))
    validate(stac_item(scene, "a.zarr", time=TIME))


@pytest.mark.parametrize(
    ("transform", "shape", "box"),
    [
        ((1.0, 0, -180.0, 0, -1.0, 90.0), (180, 360), [-180, -90, 180, 90]),
        ((1.0, 0, 0.0, 0, -1.0, 90.0), (180, 360), [-180, -90, 180, 90]),
        ((1.0, 0, 170.0, 0, -1.0, 10.0), (10, 20), [170, 0, -170, 10]),
        ((1.0, 0, 10.0, 0, -1.0, 10.0), (10, 20), [10, 0, 30, 10]),
        # Whose last cells reach beyond the Earth, on one side or both.
        ((1.1, 0, -180.0, 0, -1.1, 90.0), (164, 328), [-180, -90, 180, 90]),
        ((1.0, 0, -180.5, 0, -1.0, 90.5), (181, 361), [-180, -90, 180, 90]),
    ],
)
def test_bounds_in_degrees(transform, shape, box):
    geometry, found = _place(grid_of(shape, "EPSG:4326", transform))
    assert found == box
    polygons = [geometry["coordinates"]]
    if geometry["type"] == "MultiPolygon":
        polygons = geometry["coordinates"]
    areas = [np.ptp(np.array(rings[0]), axis=0).prod() for rings in polygons]
    assert min(areas) > 0
    assert sum(areas) <= 360 * 180


@pytest.mark.parametrize("sides", [(1000, 1000), (1001, 1001)])
def test_a_projected_map_of_the_earth_lies_once_around_it(sides):
    """Also if its last cells reach beyond."""
    half = 20037508.342789244
    transform = (half / 500, 0, -half, 0, -half / 500, half)
    geometry, box = _place(grid_of(sides, "EPSG:3857", transform))
    assert geometry["type"] == "Polygon"
    assert (box[0], box[2]) == (-180, 180)


def test_what_lies_beyond_a_pole_by_more_than_a_cell_is_no_place():
    with pytest.raises(InputError, match="no place on Earth"):
        _place(grid_of((185, 360), "EPSG:4326", (1.0, 0, -180.0, 0, -1.0, 90.0)))


def test_around_a_pole_bounds_hold_all_meridians():
    transform = (10_000.0, 0, -1_000_000.0, 0, -10_000.0, 1_000_000.0)
    _, (west, south, east, north) = _place(grid_of((200, 200), "EPSG:3413", transform))
    assert (west, east) == (-180, 180)
    assert north > 89.9
    assert 76 < south < 82


def test_a_place_that_is_not_on_earth_is_refused():
    transform = (1.0, 0, 4e8, 0, -1.0, 4e8)
    with pytest.raises(InputError, match="no place on Earth"):
        _place(grid_of((10, 10), "EPSG:32633", transform))
