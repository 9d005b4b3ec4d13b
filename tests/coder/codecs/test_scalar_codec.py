from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from coder_cases import Y, fitted_codec, laplace_embeddings, small_codec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import coder
from coder import (
    BlobError,
    CorruptBlob,
    InputError,
    Tables,
    UnsupportedVersion,
    WrongCodec,
)
from coder.format.blob import Header, pack, unpack

# small_codec().encode(Y, (1, 2)): changes only with the format version.
GOLDEN_BLOB = "11b6e25988000102ecbff71f91ce75bf0f637d0adb88d4d3"
REAL_BITS_FACTOR, REAL_BITS_CONSTANT = 1.01, 16 * 8


def embeddings(rows):
    floats = st.floats(-(2**28), 2**28, width=32) | st.floats(-8, 8, width=32)
    return hnp.arrays(np.float32, (rows, 3), elements=floats)


@pytest.mark.parametrize("class_token", [True, False])
@given(st.data(), st.integers(1, 4), st.integers(1, 4))
def test_decode_inverts_encode_up_to_quantisation(class_token, data, height, width):
    codec = small_codec(class_token)
    y = data.draw(embeddings(height * width + class_token))
    q = codec.quantise(y)
    blob = codec.encode(y, (height, width))
    y_hat = codec.decode(blob)
    assert y_hat.dtype == np.float32
    assert y_hat.flags.c_contiguous
    np.testing.assert_array_equal(y_hat, codec.dequantise(q))
    symbols, grid = codec.decode_symbols(blob)
    assert grid == (height, width)
    np.testing.assert_array_equal(symbols, q)
    assert codec.encode_symbols(symbols, grid) == blob


@given(hnp.arrays(np.int32, (2, 3)))
def test_any_int32_symbol_round_trips(q):
    codec = small_codec(class_token=False)
    np.testing.assert_array_equal(codec.decode_symbols(codec.encode_symbols(q, (1, 2)))[0], q)


@given(embeddings(3).filter(lambda y: np.abs(y).max() < 1e5))
def test_encoding_what_was_decoded_changes_nothing(y):
    codec = small_codec()
    blob = codec.encode(y, (2, 1))
    assert codec.encode(codec.decode(blob), (2, 1)) == blob


def test_quantise_rounds_in_float32_and_takes_batches():
    codec = small_codec()
    y = np.stack([Y, Y + 1])
    expected = np.rint((y - codec.offsets) / codec.steps)
    np.testing.assert_array_equal(codec.quantise(y), expected)
    np.testing.assert_array_equal(codec.quantise(y.astype(np.float64)), expected)
    np.testing.assert_array_equal(
        codec.dequantise(codec.quantise(y))[1], codec.dequantise(codec.quantise(Y + 1))
    )


@pytest.mark.parametrize("bits_per_element", [0.02, 0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("class_token", [True, False])
def test_real_bits_are_close_to_the_estimate(bits_per_element, class_token):
    # Laplacian scales, in steps, that give about these entropies after rounding.
    scale = {0.02: 0.075, 0.1: 0.11, 0.5: 0.22, 1.0: 0.36, 3.0: 1.5}[bits_per_element]
    y = laplace_embeddings(1, 40, 50, np.full(96, scale))
    codec = fitted_codec(y, class_token=class_token)
    grid = (7, 7) if class_token else (5, 10)
    total = 0
    for image in y[:10]:
        blob = codec.encode(image, grid)
        assert codec.encode(image, iter(grid)) == blob  # type: ignore[arg-type]
        estimate = codec.estimate_bits(codec.quantise(image))
        assert 8 * len(blob) <= REAL_BITS_FACTOR * estimate + REAL_BITS_CONSTANT
        assert 8 * len(blob) >= estimate
        total += estimate
    assert 0.3 < total / y[:10].size / bits_per_element < 3


@pytest.mark.parametrize("bits_per_element", [0.005, 0.02, 0.1, 0.5, 2.5, 6.0])
def test_blobs_cost_little_more_than_the_float_densities(bits_per_element):
    rng = np.random.default_rng(7)
    channels, grid = 200, (14, 14)
    k = np.arange(-300, 301)
    spread = np.exp(rng.normal(0, 1, channels))

    def densities(scale):
        # Two-sided geometric: exact, and as heavy-tailed as a table may have to be.
        ratio = np.exp(-1 / (spread * scale))[:, None]
        pmf = ratio ** np.abs(k)
        return pmf / pmf.sum(1, keepdims=True)

    def entropy(pmf):
        return -(pmf * np.log2(np.maximum(pmf, 1e-300))).sum(1)

    scales = np.geomspace(0.03, 60, 400)
    mean = np.array([entropy(densities(scale)).mean() for scale in scales])
    pmf = densities(scales[np.argmin(np.abs(np.log(mean / bits_per_element)))])
    kept = [np.flatnonzero(p > 1e-12) for p in pmf]
    tables = Tables.from_pmfs(
        [(int(k[i[0]]), p[i], max(0.0, 1 - p[i].sum())) for p, i in zip(pmf, kept, strict=True)]
    )
    # The tables: what they add to the densities' entropy, on average over what is coded.
    extra = 0.0
    for d, (p, i) in enumerate(zip(pmf, kept, strict=True)):
        extra += float((p[i] * np.log2(p[i] / tables.pmf(d)[:-1])).sum())
    assert extra <= 1e-3 * entropy(pmf).sum()
    # The blobs: framing, checksum, derived tables and the coder's own state included.
    codec = coder.ScalarCodec(
        np.zeros(channels, np.float32),
        np.ones(channels, np.float32),
        tables,
        np.arange(channels, dtype=np.int32),
    )
    for seed in range(5):
        u = np.random.default_rng(seed).random((196, channels, 1))
        column = (np.cumsum(pmf, 1) < u).sum(2).clip(max=600)
        ideal = -np.log2(pmf[np.arange(channels), column]).sum() / 8
        blob = codec.encode_symbols(k[column].astype(np.int32), grid)
        assert len(blob) <= 1.005 * ideal + 16


@pytest.mark.parametrize("class_token", [False, True])
def test_the_estimate_of_any_number_of_tokens_is_a_number(class_token):
    y = laplace_embeddings(1, 5, 13, np.array([0.1, 1, 30]))
    codec = fitted_codec(y, class_token=class_token)
    q = codec.quantise(y[0])
    bits = [codec.estimate_bits(q[:n]) for n in range(4)]
    assert bits[0] == 0
    assert bits == sorted(bits)


def test_estimate_counts_escapes():
    codec = small_codec(class_token=False)
    # An escape of table 0 costs 3 bits; excess 5 above is v = 11: k = 4 (5 bits), 3 low bits.
    in_table = codec.estimate_bits(np.array([[0, 0, 0]]))
    assert in_table == pytest.approx(1 - np.log2(0.875) + 3)
    escaped = codec.estimate_bits(np.array([[7, 0, 0]]))
    assert escaped == pytest.approx(in_table - 1 + 3 + (24 - 19) + 3)


@pytest.mark.parametrize("grid", [(1, 1), (1, 37), (64, 64), (130, 2)])
@pytest.mark.parametrize("class_token", [True, False])
def test_grids_of_any_shape(grid, class_token):
    y = laplace_embeddings(2, 1, grid[0] * grid[1] + class_token, np.array([0.1, 1, 30]))[0]
    codec = small_codec(class_token)
    blob = codec.encode(y, grid)
    assert codec.decode_symbols(blob)[1] == grid
    np.testing.assert_array_equal(codec.decode(blob), codec.dequantise(codec.quantise(y)))


def test_threads_may_share_a_codec():
    y = {side: laplace_embeddings(side, 8, side * side, np.full(40, 0.12)) for side in (3, 9, 14)}
    codec = fitted_codec(
        np.concatenate([v.reshape(-1, 1, 40) for v in y.values()]), class_token=False
    )
    work = [(image, (side, side)) for side, images in y.items() for image in images] * 6
    expected = [codec.encode(*one) for one in work]
    with ThreadPoolExecutor(8) as threads:
        blobs = list(threads.map(lambda one: codec.encode(*one), work))
        decoded = list(threads.map(codec.decode, blobs))
    assert blobs == expected
    for (image, _), y_hat in zip(work, decoded, strict=True):
        np.testing.assert_array_equal(y_hat, codec.dequantise(codec.quantise(image)))


def test_dead_channels_cost_nothing():
    y = laplace_embeddings(3, 20, 50, np.array([0.0, 0.5]))
    codec = fitted_codec(y, class_token=False)
    assert codec.tables.sizes[0] == 2
    assert -np.log2(codec.tables.pmf(0)[0]) < 1e-6
    q = codec.quantise(y[0])
    np.testing.assert_array_equal(codec.decode_symbols(codec.encode_symbols(q, (5, 10)))[0], q)
    # Should it come alive, it is still coded exactly.
    q[3, 0] = -12
    np.testing.assert_array_equal(codec.decode_symbols(codec.encode_symbols(q, (5, 10)))[0], q)


def test_a_dead_embedding_is_framing_only():
    codec = fitted_codec(np.zeros((20, 51, 4), np.float32), class_token=False)
    blob = codec.encode(np.zeros((49, 4), np.float32), (7, 7))
    assert len(blob) == 12


def test_blob_is_the_same_for_ever():
    codec = small_codec()
    assert codec.encode(Y, (1, 2)).hex() == GOLDEN_BLOB
    assert codec.fingerprint.hex()[:8] == GOLDEN_BLOB[2:10]


def test_every_flipped_bit_is_detected():
    codec = small_codec()
    blob = codec.encode(Y, (1, 2))
    for bit in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptBlob, UnsupportedVersion)):
            codec.decode(bytes(damaged))


def test_every_truncation_and_trailing_bytes_are_detected():
    codec = small_codec()
    blob = codec.encode(Y, (1, 2))
    for end in range(len(blob)):
        with pytest.raises(BlobError):
            codec.decode(blob[:end])
    for tail in (b"\0", b"\0" * 4, blob):
        with pytest.raises(CorruptBlob):
            codec.decode(blob + tail)


@given(st.binary(max_size=60), st.integers(0, 40), st.integers(0, 40))
def test_forged_payloads_fail_as_blob_errors(payload, height, width):
    # A right checksum and fingerprint: only bounds and the final state are left to catch it.
    codec = small_codec(max_tokens=1000)
    header = Header(codec.fingerprint[:4], 0, (height, width), True)
    payload += bytes(-len(payload) % 4)
    blob = pack(header, np.frombuffer(payload, "<u4"))
    try:
        q, grid = codec.decode_symbols(blob)
    except BlobError:
        return
    assert codec.encode_symbols(q, grid) == blob


def test_hostile_shapes_are_refused_before_allocation():
    codec = small_codec(max_tokens=100)
    for grid in ((2**31 - 1, 2**31 - 1), (2**20, 2**20), (101, 1), (0, 5)):
        blob = pack(Header(codec.fingerprint[:4], 0, grid, True), np.zeros(0, np.uint32))
        with pytest.raises(CorruptBlob, match="tokens"):
            codec.decode(blob)


def test_another_codec_is_named():
    codec, other = small_codec(), small_codec(max_tokens=5)
    blob = codec.encode(Y, (1, 2))
    with pytest.raises(
        WrongCodec, match=f"{blob[1:5].hex()}, this is {other.fingerprint[:4].hex()}"
    ):
        other.decode(blob)
    header, words = unpack(blob)
    forged = pack(Header(header.fingerprint, 1, header.grid, True), words)
    with pytest.raises(WrongCodec, match="quality 1"):
        codec.decode(forged)
    forged = pack(Header(header.fingerprint, 0, header.grid, False), words)
    with pytest.raises(CorruptBlob, match="class token"):
        codec.decode(forged)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e300])
def test_what_cannot_be_coded_is_refused_and_located(bad):
    y = Y.astype(np.float64)
    y[1, 2] = bad
    y[2, 0] = bad
    with pytest.raises(InputError, match=r"2 of 9 values .* first at \(1, 2\)"):
        small_codec().encode(y, (1, 2))


@pytest.mark.parametrize(
    ("y", "grid"),
    [
        (Y, (1, 3)),
        (Y, (3, 1)),
        (Y[:, :2], (1, 2)),
        (Y[None], (1, 2)),
        (Y[0], (1, 1)),
        (Y, (-1, -2)),
        (Y[:1], (0, 0)),
        (Y.astype(str), (1, 2)),
        (Y.astype(complex), (1, 2)),
        (Y[[0] * 12], (1, 11)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(y, grid):
    with pytest.raises(InputError):
        small_codec(max_tokens=10).encode(y, grid)


def test_symbols_must_be_int32():
    codec = small_codec()
    with pytest.raises(InputError, match="integers"):
        codec.encode_symbols(Y, (1, 2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="int32"):
        codec.encode_symbols(np.full((3, 3), 2**31), (1, 2))
    with pytest.raises(InputError, match="one embedding"):
        codec.estimate_bits(np.zeros((1, 3, 3), int))
