"""Laws of `coder.fit`."""

from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from coder_cases import fitted_codec, laplace_embeddings
from transform_cases import CHANNELS, GRID, class_tokens, embeddings, ladder, smooth_embeddings

import coder
import coder.fitting
from coder import InputError, UnusualEmbedding
from coder.fitting.histograms import BINS, CENTRES, EDGES, add
from coder.transform.dead_zone import cells
from coder.transform.distributions import SCALES, SHAPES, member


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
    for quality in range(ladder().num_qualities):
        codec = ladder().at(quality)
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
    blob = codec.encode(flat, grid, quality=codec.num_qualities - 1)
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

    monkeypatch.setattr("coder.fitting.sample._BATCH", 20 * y[0].size)
    lazy: Any = Lazy()
    codec, whole = coder.fit(lazy), coder.fit(y)
    assert max(reads) <= 20
    assert abs(codec.num_qualities - whole.num_qualities) <= 1
    blobs = [codec.encode(one, GRID, quality=6) for one in embeddings(False)]
    expected = [whole.encode(one, GRID, quality=6) for one in embeddings(False)]
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
    coder.fit(lazy, max_samples=most)
    assert sum(reads) <= 2 * read  # twice


@pytest.mark.parametrize("unit", [1e16, 1e-25])
def test_the_unit_of_embeddings_does_not_matter(unit):
    y = smooth_embeddings(1, 50)
    codec, other = coder.fit(y), coder.fit(y * np.float32(unit))
    assert other.num_qualities == codec.num_qualities
    one = y[0].reshape(-1, CHANNELS)
    decoded = other.decode(other.encode(one * np.float32(unit), GRID, quality=8)) / unit
    error = np.abs(decoded - codec.decode(codec.encode(one, GRID, quality=8)))
    assert np.median(error) < 1e-4  # but for ties


def test_class_tokens_of_another_spread_are_coded_as_finely():
    y, tokens = smooth_embeddings(1, 100), class_tokens(1, 100)
    codec = coder.fit(y, 1e-3 * tokens)
    usual = coder.fit(y, tokens)
    for one, token in zip(y[:5], tokens, strict=False):
        whole = np.concatenate([1e-3 * token[None], one.reshape(-1, CHANNELS)])
        decoded = codec.decode(codec.encode(whole, GRID, quality=8))[0]
        whole[0] = token
        expected = usual.decode(usual.encode(whole, GRID, quality=8))[0]
        np.testing.assert_allclose(1e3 * decoded, expected, atol=1e-2)


def test_a_class_token_is_coded_as_finely_as_its_weight_says():
    y, tokens = smooth_embeddings(1, 200), class_tokens(1, 200)
    usual, finer = (coder.fit(y, tokens, class_weight=weight) for weight in (1, 16))
    quality = {codec: int(np.abs(codec.steps - 1).argmin()) for codec in (usual, finer)}
    own, grid, size = {}, {}, {}
    for codec in (usual, finer):
        whole = np.concatenate([tokens[:, None], y.reshape(len(y), -1, CHANNELS)], axis=1)
        blobs = [codec.encode(one, GRID, quality=quality[codec]) for one in whole]
        error = np.square(np.stack([codec.decode(blob) for blob in blobs]) - whole)
        own[codec], grid[codec] = error[:, 0].mean(), error[:, 1:].mean()
        size[codec] = sum(map(len, blobs))
    assert own[finer] < own[usual] / 4
    np.testing.assert_allclose(grid[finer], grid[usual], rtol=0.05)
    assert size[finer] > size[usual]


@pytest.mark.parametrize("weight", [0, -1, np.inf, np.nan, 1e9, "x", True, None])
def test_a_weight_that_means_nothing_is_refused(weight: Any):
    with pytest.raises(coder.InputError, match="class_weight"):
        coder.fit(smooth_embeddings(1, 5), class_tokens(1, 5), class_weight=weight)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "a", None, 2**31])
@pytest.mark.parametrize("name", ["max_samples", "max_tokens"])
def test_a_count_that_is_none_is_refused(name, value):
    arguments: Any = {name: value}
    with pytest.raises(InputError, match=f"{name} is "):
        coder.fit(smooth_embeddings(1, 5), **arguments)


def test_grids_that_the_codec_could_not_code_are_refused():
    y = smooth_embeddings(1, 5)
    with pytest.raises(InputError, match="grids of 36 tokens, and max_tokens is 35"):
        coder.fit(y, max_tokens=35)
    assert coder.fit(y, max_tokens=36).max_tokens == 36
    # Vectors and rasters are coded in parts of any size.
    assert coder.fit(y.reshape(-1, CHANNELS), max_tokens=35).max_tokens == 35
    assert coder.fit(y.reshape(-1, 90, CHANNELS), max_tokens=35).max_tokens == 35


def test_dead_and_constant_channels_do_no_harm():
    y = smooth_embeddings(1, 50)
    y[..., 3] = 7
    codec = coder.fit(y)
    decoded = codec.decode(
        codec.encode(y[0].reshape(-1, CHANNELS), GRID, quality=codec.num_qualities - 1)
    )
    np.testing.assert_allclose(decoded[:, 3], 7, atol=0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((5, 4)), "all the same"),
        (np.full((5, 4), np.nan), "all tokens are missing"),
        (np.full((5, 3, 3, 4), np.nan), "all tokens are missing"),
        (np.ones((1, 4)), "one vector alone is too few"),
        (np.ones((5, 4)) + 1e-30, "all the same"),
        (1e9 + np.random.default_rng(0).normal(size=(50, 4)), "subtract a constant first"),
        (np.arange(60).reshape(15, 4) + (1 << 40), "subtract a constant first"),
        (1e-40 * np.random.default_rng(0).normal(size=(50, 4)), "multiply them by a constant"),
        (1e30 * np.random.default_rng(0).normal(size=(50, 4)), "multiply them by a constant"),
        (1e300 * np.random.default_rng(0).normal(size=(50, 4)), "infinite in float32"),
        (np.zeros(5), "shape"),
        (np.zeros((0, 4)), "shape"),
        (np.zeros((5, 4), bool), "are bool: give floats"),
        (np.zeros((5, 4), "c8"), "are complex64: give floats"),
        (np.zeros((5, 4), "M8[s]"), "are datetime64.*: give floats"),
        (np.zeros((5, 4), "U3"), "are <U3: give floats"),
        (np.zeros((5, 4), object), "are object: give floats"),
        (np.zeros((5, 4), "f4,f4"), "give floats"),
        ((row for row in np.ones((5, 4))), "of type generator, which is not an array"),
        ([[1.0, 2.0], [3.0]], "not an array"),
        (3.0, "shape"),
        ("text", "shape"),
        (None, "of type NoneType, which is not an array"),
    ],
)
def test_what_cannot_be_fitted_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        coder.fit(values)


@pytest.mark.parametrize("integers", ["tokens", "grids"])
def test_integers_are_warned_of_among_grids_and_among_class_tokens(integers):
    y, tokens = smooth_embeddings(1, 40) * 30, class_tokens(1, 40) * 30
    if integers == "grids":
        y = np.rint(y).astype(np.int16)
    else:
        tokens = np.rint(tokens).astype(np.int16)
    with pytest.warns(UnusualEmbedding, match="embeddings are int16") as caught:
        coder.fit(y, tokens)
    assert len(caught) == 1


def test_tokens_of_one_number_are_counted_once(monkeypatch):
    counted = []

    class Counting(Counter):
        def update(self, iterable=None, /, **kwds):
            values = list(iterable or ())
            counted.extend(values)
            super().update(values, **kwds)

    monkeypatch.setattr("coder.fitting.sample.Counter", Counting)
    y = np.random.default_rng(0).normal(size=(2000, 12)).astype(np.float32)
    y[::1000] = 0.5
    coder.fit(y)
    assert counted == [0.5, 0.5]


def test_class_tokens_are_one_a_grid():
    with pytest.raises(InputError, match="class tokens"):
        coder.fit(np.zeros((5, 2, 2, 4)), np.zeros((4, 4)))


def test_bins_tile_the_magnitudes():
    assert EDGES.shape == CENTRES.shape == (BINS,)
    assert (np.diff(EDGES) > 0).all()
    counts = np.zeros((2, 3, BINS), np.int64)
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
    kept = coder.fit(shrunk, transform=transform)
    fresh = coder.fit(shrunk, metric="standardised")
    assert kept.transform is transform

    def bits(ladder: coder.QualityLadder) -> float:
        codec = ladder.at(int(np.abs(np.log(ladder.steps / 0.7)).argmin()))
        grids = [one.reshape(25, 12) for one in shrunk]
        return sum(codec.estimate_bits(codec.quantise(g, (5, 5)), (5, 5)) for g in grids)

    # What was made small for it costs little under it; a new one would blow it up again.
    assert bits(kept) < 0.8 * bits(fresh)
    with pytest.raises(InputError, match="the transform is of 12 channels"):
        coder.fit(y[..., :5], transform=transform)
    with pytest.raises(InputError, match="is for grids, and the embeddings are vectors"):
        coder.fit(y.reshape(-1, 12), transform=transform)


@pytest.mark.parametrize("tokens", [1, 2, 20])
def test_a_thousandth_of_the_tokens_with_most_of_the_variance_is_warned_of(tokens):
    y = smooth_embeddings(1, 56).reshape(-1, CHANNELS)[:2000]
    y[:tokens] = -9999
    with pytest.warns(UnusualEmbedding, match=f"{tokens} of 2000 tokens carry .*%") as caught:
        coder.fit(y)
    assert caught[0].filename == __file__
    with pytest.warns(UnusualEmbedding, match="class tokens carry"):
        coder.fit(smooth_embeddings(1, 2000, (1, 1)), y)


@pytest.mark.parametrize("tokens", [20, 50, 99])
def test_one_of_few_tokens_with_most_of_the_variance_is_warned_of(tokens):
    y = smooth_embeddings(1, 56).reshape(-1, CHANNELS)[:tokens].copy()
    y[7] = -9999
    with pytest.warns(UnusualEmbedding, match=f"1 of {tokens} tokens carry .*%"):
        coder.fit(y)


@pytest.mark.parametrize("count", [20, 50, 99])
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))]
)
def test_heavy_tails_of_few_tokens_are_nothing_unusual(count, seed):
    coder.fit(laplace_embeddings(seed, 1, count, np.ones(4))[0])


@pytest.mark.parametrize("channels", [1, 3, 30])
def test_heavy_tails_are_nothing_unusual(channels):
    # Warnings are errors here. The shipped model's embeddings give none either.
    coder.fit(laplace_embeddings(0, 20, 10, np.ones(channels)).reshape(-1, channels))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "i4", "i8", "u8"])
def test_integers_are_coded_as_they_are_and_warned_of_once(dtype):
    y = (10 * smooth_embeddings(1, 40)).clip(0, 100).round()
    with pytest.warns(UnusualEmbedding, match="integers are coded as plain numbers") as caught:
        codec = coder.fit(y.astype(dtype))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert codec == coder.fit(y)


@pytest.mark.parametrize("dtype", ["f2", "f8", "f16", ">f4", ">f8", ml_dtypes.bfloat16])
def test_floats_of_any_kind_are_fitted(dtype):
    y = smooth_embeddings(1, 40).astype(ml_dtypes.bfloat16).astype(np.float16)
    assert coder.fit(y.astype(dtype)) == coder.fit(y.astype(np.float32))


@pytest.mark.parametrize("change", [np.asfortranarray, lambda y: y[:, ::-1], np.ndarray.tolist])
def test_neither_order_nor_container_matter(change):
    y = smooth_embeddings(1, 40)
    assert coder.fit(change(y)) == coder.fit(np.ascontiguousarray(change(y), np.float32))


@pytest.mark.parametrize(("count", "channels"), [(2, 12), (5, 12), (400, 1)])
def test_few_vectors_and_few_channels(count, channels):
    y = smooth_embeddings(1, 20).reshape(-1, CHANNELS)[:count, :channels]
    codec = coder.fit(y)
    decoded = codec.decode(codec.encode(y, (count, 1), quality=codec.num_qualities - 1))
    assert np.square(decoded - y).mean() < 0.02 * y.var(0).mean()


def test_a_transform_of_other_units_is_named():
    y = smooth_embeddings(1, 40)
    transform = coder.fit(y).transform
    mean = np.broadcast_to(transform.mean, (5, 6, 6, CHANNELS))
    with pytest.raises(InputError, match="all the same"):
        coder.fit(mean, transform=transform)


@pytest.mark.parametrize("part", [0.002, 0.1, 0.6])
@pytest.mark.parametrize("value", [-9999.0, 0.0])
def test_tokens_of_one_number_are_unusual(part, value):
    """What marks missing data in products fills all channels; a model's tokens never do."""
    y = np.random.default_rng(0).normal(size=(2000, 12)).astype(np.float32)
    bad = y.copy()
    bad[: int(part * len(y))] = value
    with pytest.warns(UnusualEmbedding, match=r"one number in all channels, as|of the variance"):
        coder.fit(bad)
    assert coder.fit(bad, nodata=value) == coder.fit(y[int(part * len(y)) :])
