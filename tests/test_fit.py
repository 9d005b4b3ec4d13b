"""Laws of `coder.fit`."""

from typing import Any

import numpy as np
import pytest
from coder_cases import fitted_codec
from transform_cases import CHANNELS, GRID, class_tokens, embeddings, ladder, smooth_embeddings

import coder
from coder import InputError
from coder.family import SCALES, SHAPES, cells, member
from coder.histograms import BINS, CENTRES, EDGES, add, empty


def test_half_of_the_bytes_of_a_codec_without_transform():
    deviation = smooth_embeddings(1, 200).std((0, 1, 2))
    train = smooth_embeddings(1, 200).reshape(200, -1, CHANNELS) / deviation
    y = embeddings(False) / deviation
    plain = fitted_codec(train, class_token=False, step=0.8)

    def total(encode, decode):
        blobs = [encode(one) for one in y]
        decoded = np.stack([decode(blob) for blob in blobs])
        return sum(map(len, blobs)), float(((decoded - y) ** 2).mean())

    size, target = total(lambda one: plain.encode(one, GRID), plain.decode)
    ours, mse = 0, np.inf
    for rate in range(ladder().rates):
        codec = ladder().at(rate)
        ours, mse = total(
            lambda one, codec=codec: codec.encode(one * deviation, GRID),
            lambda blob, codec=codec: codec.decode(blob) / deviation,
        )
        if mse <= target:
            break
    assert mse <= target
    assert ours < 0.5 * size


@pytest.mark.parametrize("shape", [(4000, 12), (100, 60, 12)])
def test_vectors_and_rasters(shape):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, 12)) * 0.6 ** np.arange(12)
    y = (rng.laplace(size=shape) @ mixing.T).astype(np.float32)
    codec = coder.fit(y)
    grid = (shape[0], 1) if len(shape) == 2 else shape[:2]
    flat = y.reshape(-1, 12)
    blob = codec.encode(flat, grid, rate=codec.rates - 1)
    assert ((codec.decode(blob) - flat) ** 2).mean() < 0.005 * flat.var()
    if len(shape) == 2:
        alone = np.concatenate([codec.decode(codec.encode(one[None], (1, 1))) for one in flat[:9]])
        np.testing.assert_allclose(alone, codec.decode(codec.encode(flat, grid))[:9], atol=1e-4)


def test_what_can_be_sliced_is_read_in_parts(monkeypatch):
    y = smooth_embeddings(1, 200)
    reads = []

    class Lazy:
        shape = y.shape

        def __getitem__(self, at):
            reads.append(at.stop - at.start)
            return y[at]

    monkeypatch.setattr("coder.fitting._BATCH", 20 * y[0].size)
    lazy: Any = Lazy()
    codec = coder.fit(lazy)
    assert max(reads) <= 20
    assert abs(codec.rates - ladder().rates) <= 1
    blobs = [codec.encode(one, GRID, rate=6) for one in embeddings(False)]
    expected = [ladder().encode(one, GRID, rate=6) for one in embeddings(False)]
    assert sum(map(len, blobs)) == pytest.approx(sum(map(len, expected)), rel=0.02)


@pytest.mark.parametrize(
    ("shape", "most", "read"),
    [((90, 2, 2, 12), 9, 9), ((30 * 256, 12), 5, 5 * 256), ((40, 300, 12), 3, 3 * 16 * 64)],
)
def test_of_many_embeddings_only_the_chosen_are_read(shape, most, read):
    y = np.resize(smooth_embeddings(1, 100), shape)
    reads = []

    class Lazy:
        shape = y.shape

        def __getitem__(self, at):
            reads.append(y[at].size // int(np.prod(y.shape[1:] if y.ndim == 4 else 12)))
            return y[at]

    lazy: Any = Lazy()
    coder.fit(lazy, most=most)
    assert sum(reads) <= 2 * read  # twice


@pytest.mark.parametrize("unit", [1e16, 1e-25])
def test_the_unit_of_embeddings_does_not_matter(unit):
    y = smooth_embeddings(1, 50)
    codec, other = coder.fit(y), coder.fit(y * np.float32(unit))
    assert other.rates == codec.rates
    one = y[0].reshape(-1, CHANNELS)
    decoded = other.decode(other.encode(one * np.float32(unit), GRID, rate=8)) / unit
    error = np.abs(decoded - codec.decode(codec.encode(one, GRID, rate=8)))
    assert np.median(error) < 1e-4  # but for ties


def test_class_tokens_of_another_spread_are_coded_as_finely():
    y, tokens = smooth_embeddings(1, 100), class_tokens(1, 100)
    codec = coder.fit(y, 1e-3 * tokens)
    usual = coder.fit(y, tokens)
    for one, token in zip(y[:5], tokens, strict=False):
        whole = np.concatenate([1e-3 * token[None], one.reshape(-1, CHANNELS)])
        decoded = codec.decode(codec.encode(whole, GRID, rate=8))[0]
        whole[0] = token
        expected = usual.decode(usual.encode(whole, GRID, rate=8))[0]
        np.testing.assert_allclose(1e3 * decoded, expected, atol=1e-2)


def test_a_class_token_is_coded_as_finely_as_its_weight_says():
    y, tokens = smooth_embeddings(1, 200), class_tokens(1, 200)
    usual, finer = (coder.fit(y, tokens, class_weight=weight) for weight in (1, 16))
    rate = {codec: int(np.abs(codec.steps - 1).argmin()) for codec in (usual, finer)}
    own, grid, size = {}, {}, {}
    for codec in (usual, finer):
        whole = np.concatenate([tokens[:, None], y.reshape(len(y), -1, CHANNELS)], axis=1)
        blobs = [codec.encode(one, GRID, rate=rate[codec]) for one in whole]
        error = np.square(np.stack([codec.decode(blob) for blob in blobs]) - whole)
        own[codec], grid[codec] = error[:, 0].mean(), error[:, 1:].mean()
        size[codec] = sum(map(len, blobs))
    assert own[finer] < own[usual] / 4
    np.testing.assert_allclose(grid[finer], grid[usual], rtol=0.05)
    assert size[finer] > size[usual]


@pytest.mark.parametrize("weight", [0, -1, np.inf, np.nan])
def test_a_weight_that_means_nothing_is_refused(weight):
    with pytest.raises(coder.InputError, match="class_weight"):
        coder.fit(smooth_embeddings(1, 5), class_tokens(1, 5), class_weight=weight)


def test_dead_and_constant_channels_do_no_harm():
    y = smooth_embeddings(1, 50)
    y[..., 3] = 7
    codec = coder.fit(y)
    decoded = codec.decode(codec.encode(y[0].reshape(-1, CHANNELS), GRID, rate=codec.rates - 1))
    np.testing.assert_allclose(decoded[:, 3], 7, atol=0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((5, 4)), "all the same"),
        (np.full((5, 4), np.nan), "NaN"),
        (np.zeros(5), "shape"),
        (np.zeros((0, 4)), "shape"),
        (np.zeros((5, 4), bool), "floats"),
    ],
)
def test_what_cannot_be_fitted_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        coder.fit(values)


def test_class_tokens_are_one_a_grid():
    with pytest.raises(InputError, match="class tokens"):
        coder.fit(np.zeros((5, 2, 2, 4)), np.zeros((4, 4)))


def test_bins_tile_the_magnitudes():
    assert EDGES.shape == CENTRES.shape == (BINS,)
    assert (np.diff(EDGES) > 0).all()
    counts = empty(2, 3)
    c = np.exp(np.random.default_rng(0).normal(0, 3, (4, 5, 2))).astype(np.float32)
    columns = np.array([0, 1, 1, 2, 2], np.uint8)
    add(counts, c, columns)
    for k in range(2):
        for column in range(3):
            values = c[:, columns == column, k].ravel()
            expected = np.bincount(np.searchsorted(EDGES, values, side="right") - 1, minlength=BINS)
            np.testing.assert_array_equal(counts[k, column], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_members_of_the_family_are_quantised_well(shape):
    entropies = []
    for scale in SCALES:
        one = member(float(scale), shape)
        assert one.pmf.sum() == pytest.approx(1, abs=1e-4)
        assert abs(one.shift) <= 0.3
        p = one.pmf[one.pmf > 0]
        entropies.append(float(-(p * np.log2(p)).sum()))
    assert (np.diff(entropies) > 0).all()


def test_a_symbol_stands_inside_its_cell():
    for bits in ([0.01, 20.0, 25.0], [1.0, 2.0, 3.0], [5.0, 5.1, 5.2]):
        for shift in (-0.3, 0.0, 0.3):
            first, rounding = cells(np.array(bits), shift)
            for m in (1, 2, 7):
                point = m - shift
                assert point > first
                assert np.floor(point + rounding) == m


def test_a_transform_may_stay_as_it_is() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60, 5, 5, 12)).astype(np.float32)
    transform = coder.fit(y).transform
    shrunk = y * np.where(np.arange(12) < 6, 0.1, 1).astype(np.float32)
    kept, fresh = coder.fit(shrunk, transform=transform), coder.fit(shrunk)
    assert kept.transform is transform

    def bits(ladder: coder.RateLadder) -> float:
        codec = ladder.at(int(np.abs(np.log(ladder.steps / 0.7)).argmin()))
        grids = [one.reshape(25, 12) for one in shrunk]
        return sum(codec.estimate_bits(codec.quantise(g, (5, 5)), (5, 5)) for g in grids)

    # What was made small for it costs little under it; a new one would blow it up again.
    assert bits(kept) < 0.8 * bits(fresh)
    with pytest.raises(InputError, match="the transform is of 12 channels"):
        coder.fit(y[..., :5], transform=transform)
    with pytest.raises(InputError, match="has a grid, or a class token"):
        coder.fit(y.reshape(-1, 12), transform=transform)
