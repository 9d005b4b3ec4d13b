"""Zarr arrays of embeddings: what is read is what the codec makes of what was written."""

import base64
import json
import math
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import zarr
from archive_cases import (
    CLASS_TOKEN,
    CLASS_TOKEN_HAT,
    CODEC,
    EMBEDDING_HAT,
    GRID,
    SHARD,
    Y,
    filled,
    opened,
)
from coder_cases import fitted_codec, laplace_embeddings, small_codec
from transform_cases import CHANNELS, class_tokens, ladder, smooth_embeddings, smooth_tiles
from zarr.core.buffer import default_buffer_prototype
from zarr.core.buffer.cpu import Buffer
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from coder import (
    CodecError,
    CorruptBlob,
    FileError,
    InputError,
    LossyWrite,
    ScalarCodec,
    WrongCodec,
    fit,
)
from coder.archive.zarr_codec import NecCodec, nec_codec
from coder.transform import filled as without_holes


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
    codec, _ = CODEC.split()
    blobs = [codec.encode(y, GRID) for y in Y[8:16, 1:]]
    assert shard.startswith(b"".join(blobs))
    assert len(shard) == sum(map(len, blobs)) + 16 * SHARD + 4


def test_grids_that_do_not_fill_their_chunks():
    # A scene: one cell a patch, chunks of 4 x 4 at the edge of 6 x 7.
    codec, _ = CODEC.split()
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


@pytest.mark.parametrize("shape", [(6, 7), (21, 19), (9,), (3, 4, 5)])
def test_what_lies_beyond_the_edge_of_an_array_costs_nothing_and_spoils_nothing(shape):
    codec = fit(smooth_embeddings(1, 200)).at(12)
    y = smooth_embeddings(3, 1, (math.prod(shape[:-1]), shape[-1])).reshape(*shape, CHANNELS)
    chunks = (*(4 if n < 16 else 16 for n in shape), CHANNELS)
    array: Any = zarr.create_array(
        store := MemoryStore(), shape=y.shape, chunks=chunks, dtype="float32",
        serializer=NecCodec(codec), compressors=None, fill_value=0.0,
    )  # fmt: skip
    array[:] = y
    read = array[:]
    for corner in np.ndindex(*array.cdata_shape[:-1]):
        place = tuple(slice(c * n, (c + 1) * n) for c, n in zip(corner, chunks, strict=False))
        part = y[place]
        grid = (math.prod(part.shape[:-2]), part.shape[-2])
        alone = codec.decode(codec.encode(part.reshape(-1, CHANNELS), grid))
        np.testing.assert_array_equal(read[place], alone.reshape(part.shape))
    before = {name: chunk.to_bytes() for name, chunk in store._store_dict.items()}
    array[:] = read
    np.testing.assert_array_equal(array[:], read)
    assert {name: chunk.to_bytes() for name, chunk in store._store_dict.items()} == before


@pytest.mark.parametrize("shards", [None, (16, 32, CHANNELS)])
@pytest.mark.parametrize("transform", [False, True])
def test_what_is_not_written_of_an_array_with_fill_value_nan_is_nan(transform, shards):
    codec = ladder().at(12) if transform else fitted_codec(smooth_tiles(60, 60), class_token=False)
    y = smooth_tiles(60, 60)[0]
    array: Any = zarr.create_array(
        store := MemoryStore(), shape=y.shape, chunks=(16, 16, CHANNELS), shards=shards,
        dtype="float32", serializer=NecCodec(codec), compressors=None, fill_value=np.nan,
    )  # fmt: skip
    assert np.isnan(array[:]).all()
    array[:16, :16] = y[:16, :16]  # a chunk; half of one; its first tokens; one at the edge
    array[16:32, 16:24] = y[16:32, 16:24]
    array[40:, 50:] = np.nan
    array[48:, 48:50] = y[48:, 48:50]
    there = np.zeros((60, 60), bool)
    there[:16, :16] = there[16:32, 16:24] = there[48:, 48:50] = True
    read = array[:]
    np.testing.assert_array_equal(np.isnan(read).any(-1), ~there)
    assert np.abs(read - y)[there].max() < np.abs(y).max() / 4
    # A part of a chunk that is NaN again is left out again.
    array[16:32, 16:32] = np.nan
    there[16:32, 16:32] = False
    np.testing.assert_array_equal(np.isnan(array[:]).all(-1), ~there)
    before = {name: chunk.to_bytes() for name, chunk in store._store_dict.items()}
    array[:] = array[:]
    assert {name: chunk.to_bytes() for name, chunk in store._store_dict.items()} == before


def test_nan_in_some_channels_of_a_token_is_refused_and_its_place_is_named():
    array: Any = zarr.create_array(
        MemoryStore(), shape=(6, 8, CHANNELS), chunks=(6, 8, CHANNELS), dtype="float32",
        serializer=NecCodec(ladder().at()), compressors=None, fill_value=np.nan,
    )  # fmt: skip
    y = smooth_tiles(6, 8)[0]
    for place, value, message in (
        ((2, 3, 1), np.nan, "NaN in channel 1 of the token at row 2, column 3"),
        ((5, 7, 0), np.nan, "NaN in channel 0 of the token at row 5, column 7"),
        ((1, 1, 2), np.inf, "infinity in channel 2 of the token at row 1, column 1"),
    ):
        bad = y.copy()
        bad[place] = value
        with pytest.raises(InputError, match=message):
            array[:] = bad


def with_gaps(codec, y, there):
    """An array of one chunk with gaps, and what its store holds."""
    array: Any = zarr.create_array(
        store := MemoryStore(), shape=y.shape, chunks=y.shape, dtype="float32",
        serializer=NecCodec(codec), compressors=None, fill_value=np.nan,
    )  # fmt: skip
    array[:] = np.where(there[..., None], y, np.nan)
    return array, store


@pytest.mark.parametrize("share", [0.005, 0.02, 0.5, 0.98])
@pytest.mark.parametrize("quality", [4, 12])
def test_tokens_of_blocks_may_be_missing_anywhere_and_the_others_are_as_exact_as_ever(
    share, quality
):
    """As in a scene with an oblique edge: a row of those that are there, or the grid, filled."""
    y = smooth_tiles(16, 16)[0]
    there = np.random.default_rng(3).random((16, 16)) > share
    there[0, 3], there[2, 2], there[15, 15] = False, True, True
    array, store = with_gaps(codec := ladder().at(quality), y, there)
    read = array[:]
    np.testing.assert_array_equal(np.isnan(read).all(-1), ~there)
    row = codec.decode(codec.encode(y[there], (1, int(there.sum()))))
    blob = codec.encode_quietly(without_holes(y, there).reshape(256, -1), (16, 16))
    grid = codec.decode(blob)[there.ravel()]
    lost = [np.square((one - y[there]) / codec.transform.scale).sum() for one in (row, grid)]
    is_row = np.array_equal(read[there], row)
    assert is_row or np.array_equal(read[there], grid)
    assert np.square((read[there] - y[there]) / codec.transform.scale).sum() <= 1.02 * lost[1]
    # Of two that are as exact, the smaller.
    size = len(store._store_dict["c/0/0/0"].to_bytes()) - 1 - 32 - 4
    assert size <= len(blob)
    if is_row:
        before = {name: chunk.to_bytes() for name, chunk in store._store_dict.items()}
        array[:] = read
        assert {name: chunk.to_bytes() for name, chunk in store._store_dict.items()} == before


def test_both_codes_of_a_chunk_with_gaps_are_read():
    y = smooth_tiles(16, 16)[0]
    there = np.random.default_rng(3).random((16, 16)) > 0.1
    there[-1, 5:] = there[:, -1] = False  # the grid that is coded is smaller
    codec = ladder().at(12)
    array, store = with_gaps(codec, y, there)
    mask = b"\0" + np.packbits(there, bitorder="little").tobytes()
    mask += zlib.crc32(mask).to_bytes(4, "little")
    row = codec.encode(y[there], (1, int(there.sum())))
    part, own = y[:, :15], there[:, :15]
    grid = codec.encode_quietly(without_holes(part, own).reshape(240, -1), (16, 15))
    for blob, expected in ((row, codec.decode(row)), (grid, codec.decode(grid)[own.ravel()])):
        store._store_dict["c/0/0/0"] = Buffer.from_bytes(mask + blob)
        np.testing.assert_array_equal(array[:][there], expected)
    whole = codec.encode(y.reshape(256, -1), (16, 16))
    store._store_dict["c/0/0/0"] = Buffer.from_bytes(mask + whole)
    with pytest.raises(CodecError, match="other numbers of tokens"):
        array[:]


def test_writing_a_part_of_a_chunk_with_gaps_warns_if_it_changes_the_others():
    y = smooth_tiles(16, 16)[0]
    array: Any = zarr.create_array(
        MemoryStore(), shape=y.shape, chunks=y.shape, dtype="float32",
        serializer=NecCodec(ladder().at(8)), compressors=None, fill_value=np.nan,
    )  # fmt: skip
    array[4:8, 5:9] = y[4:8, 5:9]
    with pytest.warns(LossyWrite, match=r"of whole chunks$"):
        array[0, 0] = y[0, 0]


@pytest.mark.parametrize("transform", [False, True])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 40])
def test_tokens_that_are_strangers_may_be_missing_anywhere(transform, width):
    """Class tokens of images that are not valid, among others."""
    if transform:
        whole = fit(smooth_embeddings(1, 60), class_tokens(1, 60)).at()
        codec, y = whole.split()[1], class_tokens(2, width)
    else:
        codec, y = CODEC.split()[1], np.resize(CLASS_TOKEN, (width, 3))
    assert codec is not None
    array: Any = zarr.create_array(
        store := MemoryStore(), shape=y.shape, chunks=y.shape, dtype="float32",
        serializer=NecCodec(codec), compressors=None, fill_value=np.nan,
    )  # fmt: skip
    rng = np.random.default_rng(width)
    for there in [np.arange(width) == i for i in range(width)] + list(
        rng.random((20, width)) < 0.5
    ):
        array[:] = np.where(there[:, None], y, np.nan)
        read = array[:]
        np.testing.assert_array_equal(np.isnan(read), np.repeat(~there[:, None], y.shape[1], 1))
        if not there.any():
            assert "c/0/0" not in store._store_dict
            continue
        alone = codec.decode(codec.encode(y[there], (1, there.sum())))
        np.testing.assert_array_equal(read[there], alone)
        data = store._store_dict["c/0/0"].to_bytes()
        array[:] = read
        assert store._store_dict["c/0/0"].to_bytes() == data
        # Without a gap, a chunk is a blob, as ever; with one, what the format says.
        last = 1 + np.flatnonzero(there).max()
        blob = codec.encode(y[there], (1, there.sum()))
        mask = b"\0" + np.packbits(there, bitorder="little").tobytes()
        gapped = mask + zlib.crc32(mask).to_bytes(4, "little") + blob
        assert data == (blob if there[:last].all() else gapped)


def test_damage_of_a_chunk_with_gaps_is_loud():
    codec = CODEC.split()[1]
    assert codec is not None
    array: Any = zarr.create_array(
        store := MemoryStore(), shape=(9, 3), chunks=(9, 3), dtype="float32",
        serializer=NecCodec(codec), compressors=None, fill_value=np.nan,
    )  # fmt: skip
    array[1::2] = CLASS_TOKEN[:4]
    good = store._store_dict["c/0/0"].to_bytes()

    def refused(data, error: type[Exception] = CodecError):
        store._store_dict["c/0/0"] = Buffer.from_bytes(data)
        with pytest.raises(error):
            array[:]

    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        refused(bytes(bad))
    for size in range(1, len(good)):
        refused(good[:size])

    def masked(mask):
        start = b"\0" + bytes(mask)
        return start + zlib.crc32(start).to_bytes(4, "little") + good[7:]

    assert masked([0b10101010, 0]) == good
    for mask in ([0b10101000, 0], [0b10101010, 1], [0b10101010, 2], [0b10101010]):
        refused(masked(mask), CorruptBlob)


def test_a_blob_that_is_larger_than_its_chunk_is_refused():
    codec, _ = CODEC.split()
    store = MemoryStore()
    array: Any = zarr.create_array(
        store, shape=(4, 4, 3), chunks=(4, 4, 3), dtype="float32",
        serializer=NecCodec(codec), compressors=None, fill_value=0.0,
    )  # fmt: skip
    blob = codec.encode(laplace_embeddings(5, 5, 4, np.ones(3)).reshape(20, 3), (5, 4))
    store._store_dict["c/0/0/0"] = default_buffer_prototype().buffer.from_bytes(blob)
    with pytest.raises(CorruptBlob, match="5 x 4 tokens"):
        array[:]


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
    grid_codec, class_codec = CODEC.split()
    assert nec_codec(opened(tmp_path / "a")["embedding"]) == grid_codec
    assert nec_codec(opened(tmp_path / "a")["class_token"]) == class_codec
    assert nec_codec(group["label"]) is None
    data = json.loads(json.dumps(NecCodec(grid_codec).to_dict()))
    assert NecCodec.from_dict(data) == NecCodec(grid_codec)
    assert NecCodec.from_dict(data).to_dict() == data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float64"}, "float64.*float32"),
        ({"fill_value": np.inf}, "fill value"),
        ({"fill_value": -np.inf}, "fill value"),
        (
            {"shape": (4, 3, 4, 2), "chunks": (1, 3, 4, 2), "shards": None},
            r"^an array, or chunks in shards, of shape \(4, 3, 4, 2\): give \[..., width, 3\]",
        ),
        ({"chunks": (1, 3, 4, 1)}, "all channels"),
        ({"chunks": (1, 3, 4, 1), "shards": None}, r"^chunks of shape \(1, 3, 4, 1\): .*all chan"),
        (
            {
                "serializer": lambda: NecCodec(small_codec(class_token=False, max_tokens=5)),
                "shards": None,
            },
            r"chunks of \(1, 3, 4, 3\), 3 x 4 tokens: this codec takes 5",
        ),
        ({"serializer": lambda: NecCodec(CODEC)}, "codec.split"),
        ({"shape": (3,), "chunks": (3,), "shards": None}, "width"),
    ],
)
def test_arrays_that_cannot_be_coded_are_refused_when_made(changes, message):
    settings = {
        "shape": (4, 3, 4, 3), "chunks": (1, 3, 4, 3), "shards": (2, 3, 4, 3), "dtype": "float32",
        "fill_value": 0.0, "compressors": None, **changes,
    }  # fmt: skip
    make = settings.pop("serializer", lambda: NecCodec(CODEC.split()[0]))
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
    codec, _ = fitted_codec(Y, class_token=True, max_tokens=16).split()
    scene = laplace_embeddings(5, 6, 7, np.array([0.1, 1, 30]))
    array: Any = zarr.create_array(
        MemoryStore(), shape=(6, 7, 3), chunks=(4, 4, 3), dtype="float32",
        serializer=NecCodec(codec), compressors=None, fill_value=0.0,
    )  # fmt: skip
    array[:] = scene
    np.testing.assert_array_equal(array[:], codec.dequantise(codec.quantise(scene)))
    array.resize((60, 70, 3))
    np.testing.assert_array_equal(array[:6, :7], codec.dequantise(codec.quantise(scene)))


def test_steps_too_fine_for_float32_are_refused():
    codec = small_codec(class_token=False)
    far = ScalarCodec(codec.offsets + 1e8, codec.steps, codec.tables, codec.grid_layout)
    with pytest.raises(CodecError, match="float32"):
        NecCodec(far)


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
    monkeypatch.setattr("coder.archive.zarr_codec.LARGEST", 1 << 16)
    text = base64.b64encode(zlib.compress(bytes(1 << 24))).decode()
    with pytest.raises(FileError, match="does not end"):
        NecCodec.from_dict({"name": "nec", "configuration": {"codec": text}})
