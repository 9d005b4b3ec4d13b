"""What parts of a scene cost over HTTP, at most: docs/scenes.md says these counts."""

import numpy as np
import pytest
import zarr
from scene_cases import cells, grid, ladder
from zarr.storage import LocalStore

import coder
from coder import FileError
from coder.archive import stored_chunks
from coder.scenes.scene_writer import SceneWriter

for package in ("rasterio", "aiohttp", "xarray", "benchmarks"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A scene whose cells all have an embedding."""
    out = tmp_path_factory.mktemp("requests") / "small.zarr"
    y = np.nan_to_num(cells()[0])
    with SceneWriter(out, ladder().at(8), grid(), made={}, step={}) as writer:
        for part in writer.missing():
            writer.write(part, y[part], np.full(y[part].shape[:2], 100, np.uint8))
        writer.finish()
    return out


@pytest.fixture(scope="module")
def costs(small, tmp_path_factory):
    from benchmarks import scene_requests

    out = tmp_path_factory.mktemp("requests") / "large.zarr"
    scene_requests.repeated(coder.open_scene(small), out)
    return {cost.what: cost.answers for cost in scene_requests.costs(out)}


def test_opening_is_one_request_of_the_metadata(costs):
    assert [key for key, _ in costs["open a scene"]] == ["zarr.json"]


def test_a_cell_is_two_requests_of_some_kilobytes_and_then_one(costs):
    assert [key for key, _ in costs["a cell"]] == ["embedding/c/0/0/0"] * 2
    assert sum(size for _, size in costs["a cell"]) < 10_000
    assert len(costs["a cell of another chunk"]) == 1
    assert sum(size for _, size in costs["a cell of another chunk"]) < 5_000


@pytest.mark.parametrize(
    ("what", "requests"),
    [
        ("a window of this chunk", 2),  # `valid`, the chunk
        ("a window of one chunk", 3),  # the shard's index, too
        ("a window of four chunks", 3),  # in one range
        ("a window of four chunks and two shards", 6),
        ("a whole shard", 2),
        ("`valid` of a window", 1),
        ("the coarsest overview", 2),
        ("xarray: open a scene", 3),  # x, y
        ("xarray: a cell", 5),  # with the coordinates of the array
        ("xarray: open an overview", 3),
    ],
)
def test_requests(costs, what, requests):
    assert len(costs[what]) <= requests


def test_an_object_store_is_asked_as_often(small, objects):
    url = objects.folder()
    objects.upload(small, url)
    with objects.counted() as requests:
        scene = coder.open_scene(url)
    assert requests == {("GET", "object"): 1}
    with objects.counted() as requests:
        y = scene.at(scene.grid.x[9], scene.grid.y[9])
    assert requests == {("GET", "range"): 2}
    np.testing.assert_array_equal(y, coder.open_scene(small).read()[9, 9])


def test_chunks_that_are_read_in_one_range_are_those_that_are_read_alone(small, monkeypatch):
    scene = coder.open_scene(small)
    whole = np.asarray(zarr.open_array(small / "embedding")[:])
    rng = np.random.default_rng(7)
    for gap in (0, 200, 1 << 16):
        monkeypatch.setattr(stored_chunks, "_GAP", gap)
        for top, left in rng.integers(0, (280, 510), (20, 2)):
            part = slice(top, top + 20), slice(left, left + 20)
            np.testing.assert_array_equal(scene.read(*part), whole[part])


def test_a_scene_without_copies_of_its_metadata_is_read_all_the_same(small, tmp_path):
    """As one that a program wrote again that does not know of them."""
    import json
    import shutil

    out = tmp_path / "plain.zarr"
    shutil.copytree(small, out)
    metadata = json.loads((out / "zarr.json").read_text())
    del metadata["consolidated_metadata"]
    (out / "zarr.json").write_text(json.dumps(metadata))
    for level in coder.open_scene(small).levels:
        expected = coder.open_scene(small).read(level=level)
        np.testing.assert_array_equal(coder.open_scene(out).read(level=level), expected)


def test_a_shard_that_the_record_says_is_not_stored_is_not_asked_for(tmp_path):
    asked = []

    class Counted(LocalStore):
        async def get(self, key, prototype=None, byte_range=None):
            asked.append(key)
            return await super().get(key, prototype, byte_range)

    y = cells()[0].copy()
    y[:, 256:512] = np.nan
    with SceneWriter(tmp_path / "a.zarr", ladder().at(8), grid(), made={}, step={}) as writer:
        for part in writer.missing():
            writer.write(part, y[part], np.where(np.isnan(y[part][..., 0]), 0, 100).astype("u1"))
        writer.finish()
    scene = coder.open_scene(Counted(tmp_path / "a.zarr", read_only=True))
    np.testing.assert_array_equal(np.isnan(scene.read()), np.isnan(y))
    assert not {"embedding/c/0/1/0", "embedding/c/1/1/0"} & set(asked)
    assert {"embedding/c/0/0/0", "embedding/c/0/2/0", "valid/c/0/1"} <= set(asked)


def test_a_part_of_valid_that_is_lost_is_named_at_once(small, tmp_path):
    class Lost(LocalStore):
        async def get(self, key, prototype=None, byte_range=None):
            if key == "valid/c/0/1":
                return None
            return await super().get(key, prototype, byte_range)

    scene = coder.open_scene(Lost(small, read_only=True))
    scene.valid(slice(0, 9), slice(0, 9))
    for _ in range(2):
        with pytest.raises(FileError, match="valid/c/0/1 is lost"):
            scene.valid(slice(0, 9))
