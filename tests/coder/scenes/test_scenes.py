"""Scenes: what is read is what the codec makes of what was written, wherever it lies."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from scene_cases import SHAPE, cells, grid, writer, written
from zarr.storage import LocalStore

import coder
from coder import FileError, InputError, OutputError
from coder.archive import zarr_nodes
from coder.scenes import scene_layout

pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("scenes") / "a.zarr")


@pytest.fixture(scope="module")
def scene(path):
    return coder.open_scene(path)


def test_a_scene_is_read_as_zarr_reads_it_and_is_nan_where_nothing_is(scene, path):
    y, coverage = cells()
    read = scene.read()
    plain = zarr.open_array(path / "embedding")
    np.testing.assert_array_equal(read, plain[:])
    np.testing.assert_array_equal(np.isnan(read), np.isnan(y))
    assert np.nanmean(np.square(read - y)) < 0.05 * np.nanvar(y)
    np.testing.assert_array_equal(scene.valid(), coverage >= 50)
    np.testing.assert_array_equal(scene.coverage(), coverage)


def test_any_window_is_the_part_of_the_whole(scene):
    whole, rng = scene.read(), np.random.default_rng(5)
    for _ in range(25):
        (top, left), (bottom, right) = np.sort(rng.integers(0, (301, 531), (2, 2)), axis=0)
        rows, columns = slice(top, bottom), slice(left, right)
        np.testing.assert_array_equal(scene.read(rows, columns), whole[rows, columns])


def test_the_cell_at_a_point_is_that_of_the_map(scene):
    whole, rng = scene.read(), np.random.default_rng(6)
    for row, column in rng.integers((100, 100), SHAPE, (10, 2)):
        if np.isnan(whole[row, column, 0]):
            continue
        x, y = grid().x[column] + rng.uniform(-79, 79), grid().y[row] + rng.uniform(-79, 79)
        np.testing.assert_array_equal(scene.at(x, y), whole[row, column])
    with pytest.raises(InputError, match="has no embedding"):
        scene.at(grid().x[0], grid().y[0])


def test_an_overview_is_the_mean_of_the_valid_cells_of_the_level_below(scene):
    assert scene.levels == (1, 2, 4)
    for below, level in ((1, 2), (2, 4)):
        y, valid = scene.read(level=below), scene.valid(level=below)
        height, width = scene.grid_at(level).shape
        padded = np.full((2 * height, 2 * width, y.shape[-1]), np.nan, np.float32)
        padded[: y.shape[0], : y.shape[1]] = y
        four = padded.reshape(height, 2, width, 2, -1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of means of nothing
            mean = np.nanmean(four, axis=(1, 3))
        read = scene.read(level=level)
        np.testing.assert_array_equal(np.isnan(read), np.isnan(mean))
        assert np.nanmean(np.square(read - mean)) < 0.05 * np.nanvar(y)
        assert scene.valid(level=level).sum() >= valid.sum() / 4


def test_xarray_and_rioxarray_find_coordinates_crs_and_transform(path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("rioxarray")
    from rasterio.transform import Affine

    with warnings.catch_warnings():
        # affine's own, of the operator that rioxarray uses.
        warnings.filterwarnings("ignore", "Use `@` matmul")
        for name, factor in ((None, 1), ("overviews/2", 2)):
            opened = xarray.open_zarr(path, group=name)
            assert opened.rio.crs.to_epsg() == 32633
            expected = Affine(*grid().coarser(factor).transform)
            assert opened.embedding.rio.transform() == expected
            np.testing.assert_array_equal(opened.x, grid().coarser(factor).x)
            np.testing.assert_array_equal(opened.y, grid().coarser(factor).y)
            assert {"valid", "coverage"} <= set(opened.coords)


def test_a_scene_can_be_sent_to_another_process(scene):
    other = pickle.loads(pickle.dumps(scene))
    np.testing.assert_array_equal(other.read(slice(9, 20)), scene.read(slice(9, 20)))


def test_the_conventions_hold(path):
    """By the package of those who wrote them."""
    from zarr_cm import multiscales, proj, spatial

    metadata = json.loads((path / "zarr.json").read_text())
    attributes = metadata["attributes"]
    for convention in (proj, spatial, multiscales):
        convention.validate_group_metadata(metadata)
    assert attributes["proj:code"] == "EPSG:32633"
    west, south, east, north = attributes["spatial:bbox"]
    assert (west, south, east, north) == grid().bounds
    names = {one["name"] for one in attributes["zarr_conventions"]}
    assert names == {"proj", "spatial", "multiscales"}  # geoemb: needs attributes of its own


def test_times_are_one_more_dimension_and_are_added_one_by_one(tmp_path, scene):
    times = np.array(["2026-05-01", "2026-06-01T12:30"], "datetime64[us]")
    y, coverage = cells()
    out = tmp_path / "t.zarr"
    for i, time in enumerate(times):
        with writer(out, time=time) as writing:
            if i:  # what is complete can be read meanwhile
                np.testing.assert_array_equal(coder.open_scene(out).times, times[:i])
            else:
                with pytest.raises(FileError, match="still being written"):
                    coder.open_scene(out)
            for part in writing.missing():
                writing.write(part, y[part] + i, coverage[part])
            writing.finish()
        there = coder.open_scene(out).times
        assert there is not None
        assert len(there) == i + 1
    opened = coder.open_scene(out)
    np.testing.assert_array_equal(opened.times, times)
    np.testing.assert_array_equal(opened.read(time=0), scene.read())
    assert np.nanmean(opened.read(time=1) - opened.read(time=0)) == pytest.approx(1, abs=0.3)
    wrong: tuple[Any, ...] = (None, 2, -1, "2026-05-01", True)
    for time in wrong:
        with pytest.raises(InputError, match="has 2 times"):
            opened.read(time=time)
    before = zarr_nodes.sizes(out)
    written(out, time=times[1])  # which is there
    assert zarr_nodes.sizes(out) == before


def test_xarray_finds_the_times(tmp_path):
    xarray = pytest.importorskip("xarray")
    times = np.array(["2026-05-01T10:30", "2026-06-01"], "datetime64[us]")
    for time in times:
        written(tmp_path / "t.zarr", time=time)
    for name in (None, "overviews/2"):
        opened = xarray.open_zarr(tmp_path / "t.zarr", group=name)
        np.testing.assert_array_equal(opened.time, times)
        assert opened.embedding.dims == ("time", "y", "x", "channel")
        assert (opened.coverage.dtype, opened.valid.dtype) == (np.uint8, np.bool_)
        there = opened.embedding.notnull().all("channel")
        np.testing.assert_array_equal(there, opened.valid)


def test_an_interrupted_scene_goes_on_and_has_the_same_bytes(tmp_path, path):
    y, coverage = cells()
    out = tmp_path / "b.zarr"
    done = 0
    for _ in range(6):
        with writer(out) as writing:
            assert len(writing.missing()) == 6 - done
            part = writing.missing()[0]
            writing.write(part, y[part], coverage[part])
            done += 1
            if done < 6:
                with pytest.raises(FileError, match=f"{6 - done} parts of the scene are not"):
                    writing.finish()
    with pytest.raises(FileError, match="run `nec encode` again"):
        coder.open_scene(out)
    written(out)
    files = [
        {p.relative_to(r): p.read_bytes() for p in r.rglob("*") if p.is_file()} for r in (path, out)
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"made": {"model": "other"}}, "was made with model 'm', and now it is 'other'"),
        ({"step": {"files": ["b.tif"]}}, "with other files or settings for this scene"),
        ({"time": np.datetime64("2026-01-01")}, "has no times"),
    ],
)
def test_another_scene_is_not_written_over_one(tmp_path, settings, message):
    y, coverage = cells()
    with writer(tmp_path / "a.zarr") as writing:
        part = writing.missing()[0]
        writing.write(part, y[part], coverage[part])
    with pytest.raises(InputError, match=message), writer(tmp_path / "a.zarr", **settings):
        pass


def test_a_folder_that_is_no_scene_is_not_written_to(tmp_path):
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(OutputError, match="is no scene"), writer(tmp_path / "other.zarr"):
        pass
    with writer(tmp_path / "a.zarr"), pytest.raises(OutputError, match="another process"):  # noqa: SIM117
        with writer(tmp_path / "a.zarr"):
            pass


def test_what_is_lost_or_in_another_place_is_named(tmp_path):
    out = written(tmp_path / "a.zarr")
    group = zarr.open_group(out, mode="r")
    assert not list(scene_layout.lost(group))
    first, second = (out / "embedding/c/0" / name / "0" for name in ("1", "2"))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    ((_, why),) = scene_layout.changed(group, "embedding")
    assert "holds what embedding/c/0/2/0 held" in why
    first.unlink()
    assert [key for key, _ in scene_layout.lost(group)] == ["embedding/c/0/1/0"]
    with pytest.raises(FileError, match="is valid, and has no embedding"):
        coder.open_scene(out).read()
    first.write_bytes(kept[:-1])
    with pytest.raises(FileError, match="is cut short or damaged"):
        coder.open_scene(out).read()


def test_one_cell_costs_two_requests_and_then_one(path):
    keys: list[tuple[str, int]] = []

    class Counted(LocalStore):
        async def get(self, key, prototype=None, byte_range=None):
            found = await super().get(key, prototype, byte_range)
            keys.append((key, 0 if found is None else len(found)))
            return found

    scene = coder.open_scene(Counted(path, read_only=True))
    keys.clear()
    scene.at(grid().x[200], grid().y[200])
    assert [key for key, _ in keys] == ["embedding/c/0/0/0"] * 2
    assert sum(size for _, size in keys) < 8192
    keys.clear()
    scene.at(grid().x[240], grid().y[240])
    assert len(keys) == 1
    keys.clear()
    scene.read(slice(0, 256), slice(0, 256))
    assert len([key for key, _ in keys if key.startswith("embedding")]) == 1  # the shard itself
