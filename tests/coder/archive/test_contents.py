"""Archives: groups of embeddings, class tokens, ids and labels that anyone can read and write."""

import multiprocessing
from typing import Any, cast

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from archive_cases import (
    CLASS_TOKEN,
    CLASS_TOKEN_HAT,
    CODEC,
    COUNT,
    EMBEDDING,
    EMBEDDING_HAT,
    GRID,
    SHARD,
    Y,
    contents,
    created,
    filled,
    opened,
    written,
)
from coder_cases import fitted_codec, laplace_embeddings, small_codec
from transform_cases import ladder
from zarr.storage import LocalStore, MemoryStore, StorePath

from coder import CodecError, FileError, OutputError, archive


class Counting(MemoryStore):
    """Adds up the bytes that are read."""

    read = 0

    async def get(self, key, prototype=None, byte_range=None):
        value = await super().get(key, prototype, byte_range)
        Counting.read += len(value) if value is not None else 0
        return value


def test_one_embedding_is_read_by_itself():
    store = Counting()
    filled(store)
    array = opened(store, mode="r+")["embedding"]
    Counting.read = 0
    np.testing.assert_array_equal(array[11], EMBEDDING_HAT[11])
    index = 16 * SHARD + 4
    codec, _ = CODEC.split()
    assert Counting.read == index + len(codec.encode(Y[11, 1:], GRID))


@pytest.mark.parametrize("count", [37, 256, 257, 300, 513])
def test_index_and_framing_are_at_most_32_bytes_per_image(count, tmp_path):
    y = laplace_embeddings(3, count, 17, np.full(8, 0.2))
    codec = fitted_codec(y, class_token=True)
    group = created(tmp_path / "a", codec, count, (4, 4))
    group["embedding"][:] = y[:, 1:].reshape(count, 4, 4, 8)
    group["class_token"][:] = y[:, 0]
    for_grid, for_class = codec.split()
    assert for_class is not None
    blobs = [for_grid.encode(v, (4, 4)) for v in y[:, 1:]]
    # Class tokens without the padding of the last shard, which is counted as overhead.
    (size, _) = group["class_token"].chunks
    parts = [y[start : start + size, 0] for start in range(0, count, size)]
    blobs += [for_class.encode(part, (1, len(part))) for part in parts]
    payload = sum(len(blob) - 12 for blob in blobs)
    stored = sum(
        p.stat().st_size
        for name in ("embedding", "class_token")
        for p in (tmp_path / "a" / name / "c").rglob("*")
        if p.is_file()
    )
    assert stored - payload <= 32 * count


@pytest.mark.parametrize("most", [1, 2, 7, 256])
def test_even_shards_are_as_many_as_there_must_be_and_nearly_full(most):
    for count in range(1, 600):
        size = archive.even_shard(count, most)
        shards = -(-count // size)
        assert 1 <= size <= most
        assert shards == -(-count // most)
        assert shards * size - count < shards
    with pytest.raises(CodecError, match="count is 0"):
        archive.even_shard(0, most)


def test_a_shard_that_is_asked_for_is_kept():
    # Other writers count on it.
    assert created(MemoryStore(), CODEC, COUNT, GRID, shard=36)["embedding"].shards[0] == 36


def test_what_was_not_written_reads_as_nan(tmp_path):
    group = created(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD)
    group["embedding"][9:11] = EMBEDDING[9:11]
    group["embedding"][36] = EMBEDDING[36]  # the last, incomplete shard
    embedding = opened(tmp_path / "a", mode="r")["embedding"]
    np.testing.assert_array_equal(embedding[9:11], EMBEDDING_HAT[9:11])
    np.testing.assert_array_equal(embedding[36], EMBEDDING_HAT[36])
    assert np.isnan(embedding[:9]).all()
    assert np.isnan(embedding[11:36]).all()
    assert np.isnan(group["class_token"][:]).all()
    data = xr.open_zarr(tmp_path / "a", consolidated=False)
    assert np.isnan(data.embedding.values[11:36]).all()
    assert archive.written_shards(embedding) == {1, 4}
    assert archive.written_shards(group["class_token"]) == set()


def test_xarray_and_dask_read_and_write(tmp_path):
    filled(tmp_path / "a")
    data = xr.open_zarr(tmp_path / "a", consolidated=False, chunks={"image": SHARD})
    assert {"id", "label"} <= set(data.coords)
    chosen = data.embedding[data.label.values >= 30]
    np.testing.assert_array_equal(chosen.values, EMBEDDING_HAT[30:])
    mean = data.embedding.data.mean((1, 2)).compute(scheduler="threads")
    np.testing.assert_allclose(mean, EMBEDDING_HAT.mean((1, 2)), rtol=1e-5)

    created(tmp_path / "b", CODEC, COUNT, GRID, shard=SHARD)
    new = da.from_array(EMBEDDING, chunks=cast(Any, (SHARD, *GRID, 3)))
    da.store(new, opened(tmp_path / "b", "r+")["embedding"], lock=False)
    part = xr.Dataset({"class_token": (("image", "channel"), CLASS_TOKEN[:SHARD])})
    part.to_zarr(tmp_path / "b", region={"image": slice(0, SHARD)}, consolidated=False)
    copy = opened(tmp_path / "b")
    np.testing.assert_array_equal(copy["embedding"][:], EMBEDDING_HAT)
    np.testing.assert_array_equal(copy["class_token"][:SHARD], CLASS_TOKEN_HAT[:SHARD])


def write_part(path, start, stop):
    opened(path, mode="r+")["embedding"][start:stop] = EMBEDDING[start:stop]


def test_processes_write_different_shards_at_once(tmp_path):
    created(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD)
    spawn = multiprocessing.get_context("spawn")
    parts = [(0, 16), (16, COUNT)]
    processes = [spawn.Process(target=write_part, args=(tmp_path / "a", *p)) for p in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    group = opened(tmp_path / "a", mode="r")
    np.testing.assert_array_equal(group["embedding"][:], EMBEDDING_HAT)


def test_split_codecs_have_the_tables_they_need():
    for codec in (CODEC, small_codec()):
        grid, classes = codec.split()
        assert classes is not None
        assert classes.codec_bytes < codec.codec_bytes
        q = np.array([[0, 3, -2], [1, 0, 5]], np.int32)
        tokens = codec.dequantise(q)
        np.testing.assert_array_equal(grid.decode(grid.encode(tokens, (1, 2))), tokens)
        assert grid.estimate_bits(q) == pytest.approx(
            codec.estimate_bits(np.concatenate([q[:1], q])) - classes.estimate_bits(q[:1])
        )
    alone = small_codec(class_token=False)
    assert alone.split() == (alone, None)


def test_an_archive_may_have_any_number_of_images():
    count = 10 * CODEC.max_tokens
    group = created(MemoryStore(), CODEC, count, GRID)
    (shard, _) = group["class_token"].chunks
    start = (count - 1) // shard * shard
    tokens = np.resize(CLASS_TOKEN, (count - start, 3))
    group["class_token"][start:] = tokens
    hat = np.resize(CLASS_TOKEN_HAT, tokens.shape)
    np.testing.assert_array_equal(group["class_token"][start:], hat)


def test_what_cannot_be_coded_is_refused_when_written():
    group = created(MemoryStore(), CODEC, 4, GRID, shard=2)
    bad = EMBEDDING[1].copy()
    bad[1, 2, 0] = np.nan
    with pytest.raises(CodecError, match="NaN in channel 0 of the token at row 1, column 2"):
        group["embedding"][1] = bad
    bad = CLASS_TOKEN[1].copy()
    bad[2] = np.nan
    with pytest.raises(CodecError, match="NaN in channel 2 of the token at row 0, column 1"):
        group["class_token"][1] = bad
    # In any order: what is not written reads as NaN.
    group["class_token"][1] = CLASS_TOKEN[1]
    assert np.isnan(group["class_token"][0]).all()
    group["class_token"][0] = CLASS_TOKEN[0]
    np.testing.assert_array_equal(group["class_token"][:2], CLASS_TOKEN_HAT[:2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count is 0: give a whole number"),
        ({"count": -1}, "count is -1"),
        ({"count": 2.0}, "count is 2.0"),
        ({"grid": (0, 4)}, "grid is \\(0, 4\\)"),
        ({"grid": (3, -4)}, "grid is \\(3, -4\\)"),
        ({"grid": (3, 4.0)}, "grid is \\(3, 4.0\\)"),
        ({"grid": 12}, "grid is 12"),
        ({"grid": (3, 4, 5)}, "height and width in tokens, two"),
        ({"shard": 0}, "shard is 0"),
        ({"shard": 1.5}, "shard is 1.5"),
        ({"shard": True}, "shard is True"),
        ({"codec": ladder()}, "one quality: cut one out of the codec"),
        ({"codec": None}, "one quality"),
        ({"attributes": {"a": {1, 2}}}, "not JSON"),
        ({"attributes": {"a": float("nan")}}, "not JSON"),
        ({"attributes": {"nec_archive": 1}}, "nec_archive is the archive's own"),
    ],
)
@pytest.mark.parametrize("begin", [created, archive.Writer])
def test_settings_that_make_no_archive_are_refused_and_leave_nothing(
    begin, changes, message, tmp_path
):
    settings = {"codec": CODEC, "count": 4, "grid": GRID, "shard": 2, **changes}
    with (
        pytest.raises(CodecError, match=message),
        begin(tmp_path / "a", settings.pop("codec"), **settings),
    ):
        pass
    assert not (tmp_path / "a").exists()


def test_what_exists_is_kept(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("text")
    filled(tmp_path / "archive")
    before = contents(tmp_path)
    for name in ("file", "folder", "archive"):
        # The remedy of a function, not of a command.
        with pytest.raises(OutputError, match=f"{name}: exists: .* or delete it first") as caught:
            created(tmp_path / name, CODEC, COUNT, GRID)
        assert "--" not in str(caught.value)
        assert "Writer" in str(caught.value)
    for name in ("file", "folder"):
        with (
            pytest.raises(OutputError, match=f"{name}: exists, and is not an archive"),
            archive.Writer(tmp_path / name, CODEC, COUNT, GRID),
        ):
            pass
    assert contents(tmp_path) == before
    store = MemoryStore()
    created(store, CODEC, COUNT, GRID)
    with pytest.raises(OutputError, match="there is a Zarr group"):
        created(store, CODEC, COUNT, GRID)
    (tmp_path / "empty").mkdir()
    created(str(tmp_path / "empty"), CODEC, COUNT, GRID)
    with pytest.raises(OutputError, match="make it first"):
        created(tmp_path / "no" / "a", CODEC, COUNT, GRID)


def test_an_archive_is_finished_when_it_is_whole():
    group = created(MemoryStore(), CODEC, 4, GRID, shard=2)

    def refused(message):
        with pytest.raises(FileError, match=message):
            archive.finish(group)
        assert group.attrs["nec_archive"]["state"] == "writing"

    group["valid"][:2] = True
    refused("images 0 to 1 are not written: `embedding` has no shard 0")
    group["embedding"][0] = EMBEDDING[0]
    refused("`class_token` has no shard 0")
    group["class_token"][:2] = CLASS_TOKEN[:2]
    refused("image 1 is valid, and has no embedding")
    group["embedding"][1] = EMBEDDING[1]
    refused("images 2 to 3 are not written: `valid` has no shard 1")
    group["embedding"][2:], group["class_token"][2:] = EMBEDDING[2:4], CLASS_TOKEN[2:4]
    group["valid"][2] = True
    refused("image 3 has an embedding, and is not marked valid")
    group["valid"][3] = True
    archive.finish(group)
    state = group.attrs["nec_archive"]
    assert (state["version"], state["state"]) == (1, "complete")
    assert state["shards"]["embedding"] == state["shards"]["valid"] == [[0, 2]]
    assert state["shards"]["error"] == []
    # Nothing is lost by writing to it again.
    group["embedding"][1] = EMBEDDING[2]
    archive.finish(group)


def test_only_a_whole_archive_is_opened(tmp_path):
    group = written(tmp_path / "a", {3})
    assert archive.open_archive(tmp_path / "a").attrs == group.attrs
    assert list(np.flatnonzero(~archive.valid_images(group))) == [3]
    assert archive.not_valid(group) == (1, [(3, "image 3", "no image: 3.png")])
    written(tmp_path / "part", stop=2)
    zarr.create_array(tmp_path / "array", data=np.arange(3))
    zarr.create_group(tmp_path / "group").create_array("embedding", data=np.arange(3))
    (tmp_path / "plain").mkdir()
    (tmp_path / "file").write_text("text")
    filled(tmp_path / "lost")
    (tmp_path / "lost/label/c/1").unlink()
    for name, message in (
        ("part", "2 of 5 shards of `embedding` are there"),
        ("array", "a Zarr array, not an archive"),
        ("group", "not an archive of images"),
        ("plain", "without a Zarr array or group"),
        ("file", "an archive is a folder"),
        ("none", "no such Zarr group or array"),
        ("lost", "label/c/1 is lost: images 8 to 15"),
    ):
        with pytest.raises(FileError, match=message) as caught:
            archive.open_archive(str(tmp_path / name))
        assert caught.value.path == str(tmp_path / name)


@pytest.mark.parametrize("store", [MemoryStore, LocalStore])
@pytest.mark.parametrize("inner", ["", "sub"])
def test_an_archive_that_is_open_is_opened(store, inner, tmp_path):
    place = store(tmp_path) if store is LocalStore else store()
    if inner:
        zarr.create_group(place)
    filled(StorePath(place, inner))
    group = zarr.open_group(place, path=inner, mode="r")
    for one in (group, group.store_path):
        found: Any = archive.open_archive(one)
        np.testing.assert_array_equal(found["embedding"][:], EMBEDDING_HAT)
        np.testing.assert_array_equal(archive.read_array(found, "label"), np.arange(COUNT))
    with pytest.raises(FileError, match="a Zarr array, not an archive"):
        archive.open_archive(group["embedding"])


@pytest.mark.parametrize(
    ("grid", "shard", "message"), [((7, 3), 4, "grid of 7 x 3"), (GRID, 21, "smaller shard")]
)
def test_an_archive_that_its_codec_cannot_hold_is_not_begun(grid, shard, message):
    codec = fitted_codec(Y, class_token=True, max_tokens=20)
    store = MemoryStore()
    with pytest.raises(CodecError, match=message):
        created(store, codec, COUNT, grid, shard=shard)
    assert created(store, codec, COUNT, GRID, shard=20)["class_token"].chunks == (20, 3)
