"""Zarr arrays of embeddings: what is read is what the codec makes of what was written."""

import base64
import json
import multiprocessing
import subprocess
import sys
import zlib
from typing import Any, cast

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from coder_cases import fitted_codec, laplace_embeddings, small_codec
from zarr.core.buffer.cpu import Buffer
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from coder import CodecError, CorruptBlob, EmbeddingCodec, FileError, WrongCodec, archive
from coder.zarr_codec import NecCodec, nec_codec

COUNT, GRID, SHARD = 37, (3, 4), 8
Y = laplace_embeddings(1, COUNT, 13, np.array([0.1, 1, 30]))
CODEC = fitted_codec(Y, class_token=True)
Y_HAT = CODEC.dequantise(CODEC.quantise(Y))
EMBEDDING, CLASS_TOKEN = Y[:, 1:].reshape(COUNT, *GRID, 3), Y[:, 0]
EMBEDDING_HAT, CLASS_TOKEN_HAT = Y_HAT[:, 1:].reshape(COUNT, *GRID, 3), Y_HAT[:, 0]


def opened(store, mode: Any = "r") -> Any:
    # Any: a type checker cannot know which of a group's members are arrays.
    return zarr.open_group(store, mode=mode)


def created(*arguments, **settings) -> Any:
    return archive.create(*arguments, **settings)


def filled(store, shard=SHARD) -> Any:
    group = created(store, CODEC, COUNT, GRID, shard=shard)
    group["embedding"][:] = EMBEDDING
    group["class_token"][:] = CLASS_TOKEN
    group["id"][:] = np.array([f"image {i}" for i in range(COUNT)])
    group["label"][:] = np.arange(COUNT)
    return group


def fsspec_store(tmp_path):
    return FsspecStore.from_url(f"memory://{tmp_path.name}")


@pytest.mark.parametrize(
    "store", [lambda path: MemoryStore(), lambda path: LocalStore(path / "a"), fsspec_store]
)
def test_what_is_read_is_what_the_codec_makes_of_what_was_written(store, tmp_path):
    store = store(tmp_path)
    filled(store)
    group = opened(store, mode="r")
    np.testing.assert_array_equal(group["embedding"][:], EMBEDDING_HAT)
    np.testing.assert_array_equal(group["class_token"][:], CLASS_TOKEN_HAT)
    assert group["id"][5] == "image 5"
    assert group["label"][5] == 5
    assert group["embedding"].metadata.dimension_names == ("image", "y", "x", "channel")


def test_writing_what_was_read_changes_nothing(tmp_path):
    group = filled(tmp_path / "a")

    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    for name in ("embedding", "class_token"):
        group[name][:] = group[name][:]
    group["embedding"][11] = group["embedding"][11]
    group["class_token"][30:] = group["class_token"][30:]
    assert files() == before


def test_chunks_are_the_blobs_of_the_codec(tmp_path):
    filled(tmp_path / "a")
    shard = (tmp_path / "a/embedding/c/1/0/0/0").read_bytes()
    codec, _ = archive.split_codec(CODEC)
    blobs = [codec.encode(y, GRID) for y in Y[8:16, 1:]]
    assert shard.startswith(b"".join(blobs))
    assert len(shard) == sum(map(len, blobs)) + 16 * SHARD + 4


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
    codec, _ = archive.split_codec(CODEC)
    assert Counting.read == index + len(codec.encode(Y[11, 1:], GRID))


@pytest.mark.parametrize("count", [37, 256, 257, 300, 513])
def test_index_and_framing_are_at_most_32_bytes_an_image(count, tmp_path):
    y = laplace_embeddings(3, count, 17, np.full(8, 0.2))
    codec = fitted_codec(y, class_token=True)
    group = created(tmp_path / "a", codec, count, (4, 4))
    group["embedding"][:] = y[:, 1:].reshape(count, 4, 4, 8)
    group["class_token"][:] = y[:, 0]
    for_grid, for_class = archive.split_codec(codec)
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
    with pytest.raises(CodecError, match="0 images"):
        archive.even_shard(0, most)


def test_a_shard_that_is_asked_for_is_kept():
    # Other writers count on it.
    assert created(MemoryStore(), CODEC, COUNT, GRID, shard=36)["embedding"].shards[0] == 36


def test_what_was_not_written_reads_as_the_fill_value(tmp_path):
    group = created(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD)
    group["embedding"][9:11] = EMBEDDING[9:11]
    group["embedding"][36] = EMBEDDING[36]  # the last, incomplete shard
    embedding = opened(tmp_path / "a", mode="r")["embedding"]
    np.testing.assert_array_equal(embedding[9:11], EMBEDDING_HAT[9:11])
    np.testing.assert_array_equal(embedding[36], EMBEDDING_HAT[36])
    assert not embedding[:9].any()
    assert not embedding[11:36].any()
    assert archive.written_shards(embedding) == {1, 4}
    assert archive.written_shards(group["class_token"]) == set()


def test_grids_that_do_not_fill_their_chunks():
    # A scene: one cell a patch, chunks of 4 x 4 at the edge of 6 x 7.
    codec, _ = archive.split_codec(CODEC)
    scene = laplace_embeddings(5, 6, 7, np.array([0.1, 1, 30]))
    array = zarr.create_array(
        MemoryStore(), shape=(6, 7, 3), chunks=(4, 4, 3), dtype="float32",
        serializer=NecCodec(codec), compressors=None, fill_value=0.0,
    )  # fmt: skip
    array[:] = scene
    np.testing.assert_array_equal(array[:], codec.dequantise(codec.quantise(scene)))
    array[2:6, 3:] = scene[2:6, 3:] + 5
    np.testing.assert_array_equal(
        array[2:6, 3:], codec.dequantise(codec.quantise(scene[2:6, 3:] + 5))
    )


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


def test_zarr_finds_the_codec_by_itself_and_without_jax(tmp_path):
    filled(tmp_path / "a")
    program = (
        "import sys, zarr; a = zarr.open_group(sys.argv[1])['embedding']; print(float(a[3].sum()));"
        "sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'nec_jax', 'torch')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a"], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) == pytest.approx(float(EMBEDDING_HAT[3].sum()), rel=1e-5)


def test_the_codec_travels_in_the_metadata(tmp_path):
    group = filled(tmp_path / "a")
    grid_codec, class_codec = archive.split_codec(CODEC)
    assert nec_codec(opened(tmp_path / "a")["embedding"]) == grid_codec
    assert nec_codec(opened(tmp_path / "a")["class_token"]) == class_codec
    assert nec_codec(group["label"]) is None
    data = json.loads(json.dumps(NecCodec(grid_codec).to_dict()))
    assert NecCodec.from_dict(data) == NecCodec(grid_codec)
    assert NecCodec.from_dict(data).to_dict() == data


def test_split_codecs_have_the_tables_they_need():
    for codec in (CODEC, small_codec()):
        grid, classes = archive.split_codec(codec)
        assert classes is not None
        assert classes.codec_bytes < codec.codec_bytes
        q = np.array([[0, 3, -2], [1, 0, 5]], np.int32)
        tokens = codec.dequantise(q)
        np.testing.assert_array_equal(grid.decode(grid.encode(tokens, (1, 2))), tokens)
        assert grid.estimate_bits(q) == pytest.approx(
            codec.estimate_bits(np.concatenate([q[:1], q])) - classes.estimate_bits(q[:1])
        )
    alone = small_codec(class_token=False)
    assert archive.split_codec(alone) == (alone, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float64"}, "float64.*float32"),
        ({"fill_value": np.nan}, "fill value"),
        ({"fill_value": 3e38}, "fill value"),
        ({"shape": (4, 3, 4, 2), "chunks": (1, 3, 4, 2), "shards": None}, "3"),
        ({"chunks": (1, 3, 4, 1)}, "all channels"),
        ({"chunks": (1, 3, 4, 1), "shards": None}, "all channels"),
        (
            {
                "serializer": lambda: NecCodec(small_codec(class_token=False, max_tokens=5)),
                "shards": None,
            },
            "takes 5",
        ),
        ({"serializer": lambda: NecCodec(CODEC)}, "split_codec"),
        ({"shape": (3,), "chunks": (3,), "shards": None}, "width"),
    ],
)
def test_arrays_that_cannot_be_coded_are_refused_when_made(changes, message):
    settings = {
        "shape": (4, 3, 4, 3), "chunks": (1, 3, 4, 3), "shards": (2, 3, 4, 3), "dtype": "float32",
        "fill_value": 0.0, "compressors": None, **changes,
    }  # fmt: skip
    make = settings.pop("serializer", lambda: NecCodec(archive.split_codec(CODEC)[0]))
    with pytest.raises(CodecError, match=message):
        zarr.create_array(MemoryStore(), serializer=make(), **settings)


def fill_a_shard(codec):
    array: Any = zarr.create_array(
        MemoryStore(), shape=(4, 3, 4, 3), chunks=(1, 3, 4, 3), shards=(2, 3, 4, 3),
        dtype="float32", fill_value=0.0, compressors=None, serializer=NecCodec(codec),
    )  # fmt: skip
    array[0] = np.ones((3, 4, 3))


def test_too_many_tokens_in_a_shard_s_chunks_are_refused():
    # By zarr 3.1 when the first is written, by later ones when the array is made.
    with pytest.raises(CodecError, match="3 x 4 tokens"):
        fill_a_shard(small_codec(class_token=False, max_tokens=5))


def test_an_array_may_have_more_tokens_than_a_chunk():
    codec, _ = archive.split_codec(fitted_codec(Y, class_token=True, max_tokens=16))
    scene = laplace_embeddings(5, 6, 7, np.array([0.1, 1, 30]))
    array: Any = zarr.create_array(
        MemoryStore(), shape=(6, 7, 3), chunks=(4, 4, 3), dtype="float32",
        serializer=NecCodec(codec), compressors=None, fill_value=0.0,
    )  # fmt: skip
    array[:] = scene
    np.testing.assert_array_equal(array[:], codec.dequantise(codec.quantise(scene)))
    array.resize((60, 70, 3))
    np.testing.assert_array_equal(array[:6, :7], codec.dequantise(codec.quantise(scene)))


def test_an_archive_may_have_any_number_of_images():
    count = 10 * CODEC.max_tokens
    group = created(MemoryStore(), CODEC, count, GRID)
    group["class_token"][count - 2 :] = CLASS_TOKEN[:2]
    np.testing.assert_array_equal(group["class_token"][count - 2 :], CLASS_TOKEN_HAT[:2])


def test_steps_too_fine_for_float32_are_refused():
    codec = small_codec(class_token=False)
    far = EmbeddingCodec(codec.offsets + 1e8, codec.steps, codec.tables, codec.grid_layout)
    with pytest.raises(CodecError, match="float32"):
        NecCodec(far)


def test_what_cannot_be_coded_is_refused_when_written():
    group = created(MemoryStore(), CODEC, 4, GRID, shard=2)
    with pytest.raises(CodecError, match="NaN"):
        group["embedding"][1] = np.full((3, 4, 3), np.nan)
    with pytest.raises(CodecError, match="0 images"):
        created(MemoryStore(), CODEC, 0, GRID)


@pytest.mark.parametrize(
    ("grid", "shard", "message"), [((7, 3), 4, "grid of 7 x 3"), (GRID, 21, "smaller shard")]
)
def test_an_archive_that_its_codec_cannot_hold_is_not_begun(grid, shard, message):
    codec = fitted_codec(Y, class_token=True, max_tokens=20)
    store = MemoryStore()
    with pytest.raises(CodecError, match=message):
        created(store, codec, COUNT, grid, shard=shard)
    assert created(store, codec, COUNT, GRID, shard=20)["class_token"].chunks == (20, 3)


def test_damage_is_loud(tmp_path):
    filled(tmp_path / "a")
    path = tmp_path / "a/embedding/c/0/0/0/0"
    good = path.read_bytes()
    for bit in range(0, 8 * len(good), 61):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        # CorruptBlob or WrongCodec in a blob, zarr's own error in the shard's index.
        with pytest.raises(ValueError, match=r"blob|checksum"):
            opened(tmp_path / "a", mode="r")["embedding"][:SHARD]


def test_blobs_of_another_codec_or_shape_are_named():
    store = MemoryStore()
    group = filled(store)
    array = group["class_token"]
    key = "class_token/c/0/0"
    wrong = small_codec(class_token=False)
    codec = nec_codec(array)
    assert codec is not None
    for blob, error in (
        (wrong.encode(CLASS_TOKEN[:SHARD], (1, SHARD)), WrongCodec),
        (codec.encode(CLASS_TOKEN[:SHARD], (2, SHARD // 2)), CorruptBlob),
    ):
        store._store_dict[key] = Buffer.from_bytes(blob)
        with pytest.raises(error):
            array[:]


@pytest.mark.parametrize(
    "text",
    [
        "not base 64!",
        base64.b64encode(b"not deflated").decode(),
        base64.b64encode(zlib.compress(b"no codec")).decode(),
        base64.b64encode(zlib.compress(small_codec(False).to_bytes())[:-5]).decode(),
        base64.b64encode(zlib.compress(small_codec(False).to_bytes()) + b"more").decode(),
        7,
    ],
)
def test_damaged_metadata_is_refused(text):
    with pytest.raises(FileError):
        NecCodec.from_dict({"name": "nec", "configuration": {"codec": text}})
    with pytest.raises(FileError):
        NecCodec.from_dict({"name": "nec", "configuration": {"codec": "", "more": 1}})


@pytest.mark.parametrize("more", [{}, {"configuration": None}, {"configuration": []}])
def test_metadata_without_a_configuration_is_refused(more):
    with pytest.raises(FileError, match="metadata"):
        NecCodec.from_dict({"name": "nec", **more})


def test_metadata_that_unfolds_without_end_is_refused(monkeypatch):
    monkeypatch.setattr("coder.zarr_codec._LARGEST", 1 << 16)
    text = base64.b64encode(zlib.compress(bytes(1 << 24))).decode()
    with pytest.raises(FileError, match="does not end"):
        NecCodec.from_dict({"name": "nec", "configuration": {"codec": text}})
