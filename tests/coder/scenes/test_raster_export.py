"""GeoTIFFs of scenes: the cells as the scene has them, at their place."""

import json
import resource
from functools import partial

import numpy as np
import pytest
from export_cases import CHANNELS, TRANSFORM, cells, grid_of, head_of, written
from refiner_cases import random_refiner
from scene_cases import written_part

import coder
from coder import CodecError, InputError, OutputError
from coder.scenes import raster_export
from coder.scenes.class_map import write_map
from coder.scenes.principal_components import principal_components
from coder.scenes.raster_export import (
    Raster,
    write_channels,
    write_components,
    write_preview,
    write_raster,
)
from coder.scenes.scene_part import part_of

rasterio = pytest.importorskip("rasterio")
BOUNDS = (505_030, 5_792_000, 512_000, 5_798_100)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return coder.open_scene(written(tmp_path_factory.mktemp("scenes") / "a.zarr"))


def test_all_channels_are_those_of_the_scene(scene, tmp_path):
    write_channels(part_of(scene), tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as found:
        np.testing.assert_array_equal(found.read(), scene.read().transpose(2, 0, 1))
        assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert found.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
        assert found.crs.to_epsg() == 32633
        assert tuple(found.transform)[:6] == TRANSFORM
        assert np.isnan(found.nodata)
        assert found.descriptions == tuple(f"channel {i}" for i in range(CHANNELS))
        assert "nec-vit-ti" in found.tags()["nec"]
        assert "sha256" not in found.tags()["nec"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_a_window_of_some_channels_lies_where_its_cells_do(scene, tmp_path):
    part = part_of(scene, BOUNDS)
    write_channels(part, tmp_path / "a.tif", channels=[4, 0])
    with rasterio.open(tmp_path / "a.tif") as found:
        values = found.read()
        np.testing.assert_array_equal(values, part.read(part.rows)[..., [4, 0]].transpose(2, 0, 1))
        assert found.descriptions == ("channel 4", "channel 0")
        for row, column in np.argwhere(~np.isnan(values[0]))[::97]:
            x, y = found.xy(row, column)
            np.testing.assert_array_equal(scene.at(x, y)[[4, 0]], values[:, row, column])
        west, south, east, north = found.bounds
    assert west <= BOUNDS[0] < west + 160
    assert east >= BOUNDS[2] > east - 160
    assert south <= BOUNDS[1] < south + 160
    assert north >= BOUNDS[3] > north - 160


def test_an_overview_has_its_own_resolution(scene, tmp_path):
    write_channels(part_of(scene, level=2), tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as found:
        assert found.res == (320, 320)
        np.testing.assert_array_equal(found.read(), scene.read(level=2).transpose(2, 0, 1))


def test_a_large_raster_has_overviews_of_valid_cells(tmp_path):
    shape = (600, 40)
    path = written(tmp_path / "a.zarr", shape)
    scene = coder.open_scene(path)
    write_channels(part_of(scene), tmp_path / "a.tif", channels=[0])
    with rasterio.open(tmp_path / "a.tif") as found:
        assert found.overviews(1) == [2]
        y = found.read(1)
    with rasterio.open(tmp_path / "a.tif", overview_level=0) as found:
        small = found.read(1)
    valid = ~np.isnan(y.reshape(300, 2, 20, 2))
    np.testing.assert_array_equal(np.isnan(small), ~valid.any((1, 3)))
    expected = np.nansum(y.reshape(300, 2, 20, 2), (1, 3)) / np.maximum(1, valid.sum((1, 3)))
    there = ~np.isnan(small)
    np.testing.assert_allclose(small[there], expected[there], rtol=1e-5, atol=1e-6)


def test_tiles_of_many_channels_are_small(tmp_path):
    path = written(tmp_path / "a.zarr", (20, 20), channels=70)
    write_channels(part_of(coder.open_scene(path)), tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as found:
        assert found.block_shapes[0] == (128, 128)


def test_components_are_of_falling_variance_and_known_sign(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(raster_export, "_SAMPLE", 1 << 20)  # so that they are those of all cells
    part = part_of(scene)
    write_components(part, tmp_path / "a.tif", 3)
    write_components(part, tmp_path / "b.tif", 3)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    with rasterio.open(tmp_path / "a.tif") as found:
        scores = found.read()
        assert found.descriptions == ("component 1", "component 2", "component 3")
    valid = scene.valid()
    np.testing.assert_array_equal(~np.isnan(scores[0]), valid)
    flat = scores[:, valid]
    assert (np.diff(flat.var(1)) < 0).all()
    correlation = np.corrcoef(flat)
    np.testing.assert_allclose(correlation, np.eye(3), atol=1e-3)
    loadings = np.linalg.lstsq(scene.read()[valid], flat.T - flat.mean(1), rcond=None)[0]
    assert all(column[np.abs(column).argmax()] > 0 for column in loadings.T)


def test_the_sign_is_that_of_the_largest_loading():
    y = cells((30, 30), holes=False).reshape(-1, CHANNELS)
    axes = principal_components(y, 4).axes
    assert (axes[np.abs(axes).argmax(0), range(4)] > 0).all()
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-12)
    # A mirrored channel mirrors its loadings, and nothing else of any component.
    mirrored = principal_components(y * [1, 1, 1, 1, 1, -1], 4).axes
    np.testing.assert_allclose(np.abs(mirrored), np.abs(axes), atol=1e-9)


def test_components_are_fitted_on_a_sample_of_chunks(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(raster_export, "_SAMPLE", 40)
    write_components(part_of(scene), tmp_path / "a.tif", 1)
    monkeypatch.setattr(raster_export, "_SAMPLE", 1 << 20)
    write_components(part_of(scene), tmp_path / "b.tif", 1)
    with rasterio.open(tmp_path / "a.tif") as few, rasterio.open(tmp_path / "b.tif") as all_cells:
        valid = scene.valid()
        assert np.corrcoef(few.read(1)[valid], all_cells.read(1)[valid])[0, 1] > 0.97


@pytest.mark.parametrize("write", [partial(write_components, count=3), write_preview])
def test_a_window_has_the_components_and_colours_of_the_whole(scene, tmp_path, write):
    write(part_of(scene), tmp_path / "a.tif")
    window = part_of(scene, scene.grid.part(slice(9, 40), slice(20, 77)).bounds)
    write(window, tmp_path / "b.tif")
    with rasterio.open(tmp_path / "a.tif") as whole, rasterio.open(tmp_path / "b.tif") as part:
        expected = whole.read()[:, window.rows, window.columns]
        np.testing.assert_allclose(part.read(), expected, rtol=1e-5, atol=1e-5)


def test_all_times_and_levels_have_the_components_of_the_first_time(tmp_path):
    times = ("2024-05-01T10:00", "2024-06-01T10:00")
    scene = coder.open_scene(written(tmp_path / "a.zarr", (20, 300), times=times))
    found = {}
    for time, level in ((0, 1), (1, 1), (1, 2)):
        part = part_of(scene, time=time, level=level)
        write_components(part, path := tmp_path / f"{time}{level}.tif", 2)
        with rasterio.open(path) as file:
            y, valid = part.read(part.rows), part.valid()
            design = np.append(y[valid], np.ones((valid.sum(), 1)), 1)
            found[time, level] = np.linalg.lstsq(design, file.read()[:, valid].T, rcond=None)[0]
    for one in found.values():
        np.testing.assert_allclose(one, found[0, 1], atol=1e-3)


def test_a_first_time_without_a_cell_has_no_components(tmp_path):
    for time, by in (("2024-05-01", np.nan), ("2024-06-01", 0)):
        written_part(tmp_path / "a.zarr", by=by, time=np.datetime64(time))
    part = part_of(coder.open_scene(tmp_path / "a.zarr"), time=1)
    with pytest.raises(InputError, match="first time has an embedding"):
        write_preview(part, tmp_path / "a.tif")
    assert not (tmp_path / "a.tif").exists()


def test_a_preview_is_red_green_blue_and_clear_where_nothing_is(scene, tmp_path):
    write_preview(part_of(scene), tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as found:
        assert [one.name for one in found.colorinterp] == ["red", "green", "blue", "alpha"]
        values = found.read()
    valid = scene.valid()
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values[3], np.where(valid, 255, 0))
    for band in values[:3]:
        assert (band[~valid] == 0).all()
        assert 0.005 < (band[valid] == 0).mean() < 0.02
        assert 0.005 < (band[valid] == 255).mean() < 0.02


def test_a_time_is_named_unless_there_is_one(tmp_path):
    times = ("2024-05-01T10:00", "2024-06-01T10:00")
    path = written(tmp_path / "a.zarr", (20, 24), times=times)
    scene = coder.open_scene(path)
    with pytest.raises(InputError, match=r"has 2 times: give one of 2024-05-01T10:00:00.000000Z, "):
        part_of(scene)
    write_channels(part_of(scene, time=1), tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as found:
        np.testing.assert_array_equal(found.read(), scene.read(time=1).transpose(2, 0, 1))
        assert found.tags()["time"] == "2024-06-01T10:00:00.000000Z"
    one = coder.open_scene(written(tmp_path / "b.zarr", (20, 24), times=times[:1]))
    assert part_of(one).time == 0
    with pytest.raises(InputError, match="time is 3"):
        part_of(one, time=3)


def test_what_cannot_be_written_is_refused(scene, tmp_path):
    part = part_of(scene)
    for channels in ([6], [-1], [0, 0]):
        with pytest.raises(InputError, match="channel"):
            write_channels(part, tmp_path / "a.tif", channels=channels)
    with pytest.raises(InputError, match="7 components of 6 channels"):
        write_components(part, tmp_path / "a.tif", 7)
    empty = part_of(scene, (500_000, 5_799_000, 500_500, 5_800_000))
    with pytest.raises(InputError, match="no cell of the window"):
        write_preview(empty, tmp_path / "a.tif")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.tif").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_channels(part, tmp_path / "a.tif")
    assert (tmp_path / "a.tif").read_text() == "mine"


@pytest.mark.parametrize("megabytes", [2, 6.5], ids=["the values", "the overviews"])
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, megabytes):
    raster = Raster(grid_of((1200, 1200)), ["a"], "float32", np.nan)
    values = np.random.default_rng(0).normal(size=(1, 1200, 1200)).astype(np.float32)  # 5.8 MB
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 1e6), before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot be written \(.*\): is there space"):
            write_raster(tmp_path / "a.tif", raster, iter([(0, values)]), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_scene_stays_what_it_is(tmp_path):
    path = written(tmp_path / "a.zarr")
    scene = coder.open_scene(path)
    shard = next(file for file in (path / "embedding" / "c").rglob("*") if file.is_file())
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(CodecError) as caught:
        write_channels(part_of(scene), tmp_path / "a.tif")
    assert not isinstance(caught.value, OutputError)
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]


def test_memory_does_not_grow_with_the_height_of_a_scene(scene, monkeypatch):
    part, heights = part_of(scene), []
    for rows in part.strips():
        heights.append(rows.stop - rows.start)
        assert rows.start % 16 == 0
    assert sum(heights) == 70
    monkeypatch.setattr("coder.scenes.scene_part._STRIP", 1)
    assert [rows.stop - rows.start for rows in part.strips()] == [16, 16, 16, 16, 6]


def test_a_refined_scene_is_written_refined(tmp_path):
    ladder = coder.fit(cells((256, 16), 1, 10, holes=False).reshape(16, 16, 16, -1))
    refining = ladder.with_refiner(random_refiner(ladder)).at(3)
    path = written(tmp_path / "a.zarr", (20, 24), codec=refining, channels=10)
    plain, refined = coder.open_scene(path), coder.open_scene(path, refine=True)
    for scene in (plain, refined):
        write_channels(part_of(scene), tmp_path / "a.tif", overwrite=True)
        with rasterio.open(tmp_path / "a.tif") as found:
            np.testing.assert_array_equal(found.read(), scene.read().transpose(2, 0, 1))
            assert json.loads(found.tags()["nec"])["refined"] is scene.is_refined
    assert np.nanmax(np.abs(plain.read() - refined.read())) > 0.01
    with pytest.raises(InputError, match="open the scene without refining"):
        write_map(part_of(refined), head_of(width=10), tmp_path / "b.tif")


def test_a_system_without_a_code_keeps_its_definition(tmp_path):
    code = "+proj=laea +lat_0=47 +lon_0=9 +datum=WGS84 +units=m"
    grid = grid_of((8, 8), code, (160.0, 0, 0.0, 0, -160.0, 0.0))
    path = written(tmp_path / "a.zarr", (8, 8), grid=grid)
    write_channels(part_of(coder.open_scene(path)), tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as found:
        assert found.crs == rasterio.CRS.from_string(code)
