"""Laws of the codec of coefficients, and of the ladder of its qualities."""

import dataclasses
import pickle
import zlib
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from transform_cases import CHANNELS, GRID, embeddings, ladder, smooth_embeddings

import coder
from coder import (
    BlobError,
    CodecError,
    FileError,
    InputError,
    TransformCodec,
    UnusualEmbedding,
    WrongCodec,
    archive,
    codecs,
)
from coder.archive.zarr_codec import NecCodec

BOTH = pytest.mark.parametrize("with_class_token", [False, True])


def error(y, y_hat, codec):
    """Mean squared error, in units of the codec's scales."""
    return float((((y_hat - y) / codec.transform.scale) ** 2).mean())


@BOTH
def test_decoding_gives_what_was_rounded_and_rates_trade_bytes_for_error(with_class_token):
    codec = ladder(with_class_token)
    sizes, errors = [], []
    for quality in range(codec.num_qualities):
        one = codec.at(quality)
        blobs = [codec.encode(y, GRID, quality=quality) for y in embeddings(with_class_token)]
        for y, blob in zip(embeddings(with_class_token), blobs, strict=True):
            q = one.quantise(y, GRID)
            np.testing.assert_array_equal(codec.decode(blob), one.dequantise(q, GRID))
            assert one.encode_symbols(q, GRID) == blob
            assert codec.grid_of(blob) == GRID
            assert 0 <= 8 * len(blob) - one.estimate_bits(q, GRID) < 18 * 8
        sizes.append(sum(map(len, blobs)))
        decoded = np.stack([codec.decode(blob) for blob in blobs])
        errors.append(error(embeddings(with_class_token), decoded, codec))
    assert codec.num_qualities >= 12
    assert (np.diff(sizes) >= 0).all()
    assert (np.diff(errors) < 0).all()
    assert errors[0] > 0.5
    assert errors[-1] < 0.01


@BOTH
def test_what_is_decoded_is_coded_as_before(with_class_token):
    for quality in range(ladder(with_class_token).num_qualities):
        codec = ladder(with_class_token).at(quality)
        for y in embeddings(with_class_token):
            q = codec.quantise(y, GRID)
            np.testing.assert_array_equal(codec.quantise(codec.dequantise(q, GRID), GRID), q)


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (7, 1), (13, 17), (64, 64)])
def test_other_grids_than_the_fitted_one(grid):
    y = smooth_embeddings(5, 1, grid).reshape(-1, CHANNELS)
    # A walk over a larger grid goes further.
    y = (y - y.mean(0)) / y.std(0).clip(1e-3) * ladder().transform.scale + ladder().transform.mean
    sizes = []
    for quality in (3, 8, ladder().num_qualities - 1):
        codec = ladder().at(quality)
        blob = codec.encode(y, grid)
        np.testing.assert_array_equal(
            codec.decode(blob), codec.dequantise(codec.quantise(y, grid), grid)
        )
        sizes.append(len(blob))
    assert sizes == sorted(sizes)
    assert error(y, ladder().decode(blob), ladder()) < 0.03


def test_an_embedding_has_the_bytes_that_it_has_in_any_batch():
    codec, y = ladder(True).at(6), embeddings(True)
    whole = codec.quantise(y, GRID)
    for one, q in zip(y, whole, strict=True):
        np.testing.assert_array_equal(codec.quantise(one, GRID), q)
    decoded = codec.dequantise(whole, GRID)
    np.testing.assert_array_equal(decoded[3], codec.dequantise(whole[3], GRID))
    with coder.Pool(codec, 2) as pool:
        blobs = pool.encode(y, GRID)
        assert blobs == [codec.encode(one, GRID) for one in y]
        np.testing.assert_array_equal(pool.decode(blobs), decoded)


@BOTH
def test_a_rate_that_was_cut_out_reads_and_writes_the_same_blobs(with_class_token, tmp_path):
    codec, y = ladder(with_class_token), embeddings(with_class_token)[0]
    for quality in (0, 7, codec.num_qualities - 1):
        codec.at(quality).save(tmp_path / "one")
        alone = coder.load(tmp_path / "one")
        assert isinstance(alone, TransformCodec)
        assert alone == codec.at(quality)
        blob = codec.encode(y, GRID, quality=quality)
        assert alone.encode(y, GRID) == blob
        np.testing.assert_array_equal(alone.decode(blob), codec.decode(blob))
        assert alone.codec_bytes <= codec.codec_bytes
    with pytest.raises(WrongCodec):
        codec.at(2).decode(blob)


@BOTH
def test_files_keep_everything(with_class_token, tmp_path):
    codec = ladder(with_class_token)
    codec.save(tmp_path / "codec")
    loaded = coder.load(tmp_path / "codec")
    assert loaded == codec
    assert loaded.to_bytes() == codec.to_bytes()
    assert pickle.loads(pickle.dumps(codec.at(3))) == codec.at(3)
    y = embeddings(with_class_token)[0]
    assert loaded.encode(y, GRID) == codec.encode(y, GRID)


def test_targets_in_bytes_and_in_error():
    codec, y = ladder(), embeddings(False)[0]
    blobs = [codec.encode(y, GRID, quality=quality) for quality in range(codec.num_qualities)]
    for most in (len(blobs[2]), len(blobs[7]) - 1, len(blobs[7]), 10**9):
        found = codec.encode(y, GRID, max_bytes=most)
        assert found == [blob for blob in blobs if len(blob) <= most][-1]
    errors = [float(((codec.decode(blob) - y) ** 2).mean()) for blob in blobs]
    for most in (errors[3] * 1.0001, errors[10] * 1.0001):
        found = codec.encode(y, GRID, max_mse=most)
        assert found == next(b for b, e in zip(blobs, errors, strict=True) if e <= most)
    for quality in (99, -1):
        with pytest.raises(InputError, match="has qualities 0 to"):
            codec.encode(y, GRID, quality=quality)
        with pytest.raises(InputError, match=f"quality {quality}: this codec has quality 3 alone"):
            codec.at(3).at(quality)
    for quality in (2.5, "5", True):
        for one in (codec, codec.at(3)):
            with pytest.raises(InputError, match=f"quality {quality!r}: this codec has"):
                one.at(quality)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="more than 1 bytes at every quality: raise max_bytes"):
        codec.encode(y, GRID, max_bytes=1)
    with pytest.raises(InputError, match="mean squared error"):
        codec.encode(y, GRID, max_mse=0.0)
    with pytest.raises(InputError, match="one of"):
        codec.encode(y, GRID, quality=1, max_bytes=100)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_damaged_blobs_are_named_or_decode_to_themselves(position, value, with_checksum):
    codec = ladder(True).at(8)
    blob = bytearray(codec.encode(embeddings(True)[0], GRID))
    blob[position % (len(blob) - 4)] = value
    if with_checksum:
        blob[-4:] = zlib.crc32(bytes(blob[:-4])).to_bytes(4, "little")
    try:
        q, grid = codec.decode_symbols(bytes(blob))
    except BlobError:
        return
    assert codec.encode_symbols(q, grid) == bytes(blob)


@BOTH
def test_embeddings_unlike_those_of_the_fit_are_warned_of(with_class_token):
    codec = ladder(with_class_token)
    rng = np.random.default_rng(0)
    first, mean, scale = int(with_class_token), codec.transform.mean, codec.transform.scale
    for quality in range(codec.num_qualities):
        for y in embeddings(with_class_token):
            codec.encode(y, GRID, quality=quality)  # warnings are errors here
        if quality < 8:  # hardly anything is coded: the frame outweighs it
            continue
        far = embeddings(with_class_token)[0].copy()
        far[first:] = mean + 3 * scale * rng.normal(size=far[first:].shape)
        with pytest.warns(UnusualEmbedding, match="far more bits") as caught:
            codec.encode(far, GRID, quality=quality)
        assert caught[0].filename == __file__  # where `encode` was called
        # What needs few bits is not warned of, however unlike it is.
        codec.encode((far - mean) / 1000 + mean, GRID, quality=quality)


def test_of_rates_that_are_tried_only_the_chosen_one_warns():
    codec, rng = ladder(False), np.random.default_rng(0)
    noise = rng.normal(size=(GRID[0] * GRID[1], CHANNELS))
    far = np.float32(codec.transform.mean + 3 * codec.transform.scale * noise)
    codec.encode(far, GRID, max_bytes=40)
    finest = codec.at(codec.num_qualities - 1)
    error = finest.dequantise(finest.quantise(far, GRID), GRID) - far
    with pytest.warns(UnusualEmbedding) as caught:
        codec.encode(far, GRID, max_mse=1.0001 * float((error**2).mean(dtype=np.float64)))
    assert len(caught) == 1


def test_a_grid_is_any_pair_and_a_batch_may_be_empty():
    codec, y = ladder(False).at(5), embeddings(False)
    pair: Any = list(GRID)
    assert codec.encode(y[0], pair) == codec.encode(y[0], GRID)
    assert codec.quantise(y[:0], GRID).shape == (0, *y.shape[1:2], codec.symbols_per_token)


def test_embeddings_that_cannot_be_coded_are_refused():
    codec, y = ladder().at(5), embeddings(False)[0]
    for bad, message in (
        (np.where(np.arange(CHANNELS) == 3, np.nan, y), "NaN"),
        (np.full_like(y, 1e30), "too far"),
        (y[:, :5], "needs"),
        (y[:10], "needs"),
        (y > 0, "floats"),
    ):
        with pytest.raises(InputError, match=message):
            codec.encode(bad, GRID)
    q = codec.quantise(y, GRID)
    dead = np.argwhere((codec.layout[:, codec.transform.columns(GRID)] == 255).T)[0]
    q[tuple(dead)] = 1
    with pytest.raises(InputError, match="must be zero"):
        codec.encode_symbols(q, GRID)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 0.0},
        {"step": np.inf},
        {"layout": np.zeros((3, 8), np.uint8)},
        {"shifts": np.zeros(2)},
        {"max_tokens": 0},
        {"quality": -1},
    ],
)
def test_what_is_no_codec_is_refused(changes):
    with pytest.raises(CodecError):
        dataclasses.replace(ladder().at(5), **changes)


def test_parts_that_make_no_codec_are_refused():
    tensors, content = ladder().at(5).to_parts()
    for name in tensors:
        with pytest.raises(FileError):
            codecs.from_parts({k: v for k, v in tensors.items() if k != name}, content)
    for change in ({"transform": "klt-wavelet"}, {"more": 1}):
        with pytest.raises(FileError):
            codecs.from_parts(tensors, content | change)
    tables = tensors["layout"].copy()
    tables[0, 0] = 200
    with pytest.raises(FileError, match="table"):
        codecs.from_parts(tensors | {"layout": tables}, content)
    with pytest.raises(FileError, match="step must have one dimension"):
        codecs.from_parts(tensors | {"step": tensors["step"].reshape(())}, content)


def test_a_zarr_array_of_one_rate(tmp_path):
    y = embeddings(False).reshape(-1, *GRID, CHANNELS)
    with pytest.raises(CodecError, match="one quality"):
        NecCodec(ladder())  # type: ignore[arg-type]
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=y.shape,
        dtype="float32",
        chunks=(1, *GRID, CHANNELS),
        serializer=NecCodec(ladder().at(6)),
        compressors=None,
    )
    array[:] = y
    read = zarr.open_array(tmp_path / "a.zarr")[:]
    expected = [
        ladder().at(6).decode(ladder().at(6).encode(one.reshape(-1, CHANNELS), GRID)) for one in y
    ]
    np.testing.assert_array_equal(read, np.stack(expected).reshape(y.shape))
    before = {p: p.read_bytes() for p in (tmp_path / "a.zarr").rglob("*") if p.is_file()}
    array[:] = read
    assert before == {p: p.read_bytes() for p in (tmp_path / "a.zarr").rglob("*") if p.is_file()}


def test_an_archive_with_class_tokens(tmp_path):
    codec, y = ladder(True).at(7), embeddings(True)
    group = archive.create(tmp_path / "a.zarr", codec, len(y), GRID)
    for name, values in (("class_token", y[:, 0]), ("embedding", y[:, 1:])):
        array = group[name]
        assert isinstance(array, zarr.Array)
        array[:] = values.reshape(array.shape)
    found = zarr.open_group(tmp_path / "a.zarr", mode="r")
    grids = np.asarray(found["embedding"]).reshape(len(y), -1, CHANNELS)
    whole = np.concatenate([np.asarray(found["class_token"])[:, None], grids], axis=1)
    decoded = np.stack([codec.decode(codec.encode(one, GRID)) for one in y])
    # The same but for the few values that a basis of other components rounds otherwise.
    assert error(y, whole, codec) == pytest.approx(error(y, decoded, codec), rel=0.02)
