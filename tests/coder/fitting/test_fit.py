"""Laws of `coder.fit`."""

import re
import warnings
from collections import Counter
from typing import Any

import dask.array
import ml_dtypes
import numpy as np
import pytest
from coder_cases import fitted_codec, laplace_embeddings
from numpy.typing import NDArray
from transform_cases import CHANNELS, GRID, class_tokens, embeddings, ladder, smooth_embeddings

import coder
import coder.fitting
from coder import InputError, UnusualEmbedding
from coder.fitting.histograms import BINS, CENTRES, EDGES, add, empty
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
    codec = coder.fit(lazy)
    assert max(reads) <= 20
    assert abs(codec.num_qualities - ladder().num_qualities) <= 1
    blobs = [codec.encode(one, GRID, quality=6) for one in embeddings(False)]
    expected = [ladder().encode(one, GRID, quality=6) for one in embeddings(False)]
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
        (np.ones((1, 4)), "all the same"),
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


def test_class_tokens_that_are_all_the_same_are_no_missing_data():
    tokens = np.ones((40, CHANNELS), np.float32)
    y = smooth_embeddings(1, 40)
    with pytest.warns(UnusualEmbedding, match="40 of 1480 tokens have one number"):
        codec = coder.fit(y, tokens)
    one = np.concatenate([tokens[:1], y[0].reshape(-1, CHANNELS)])
    np.testing.assert_allclose(codec.decode(codec.encode(one, GRID))[0], 1, atol=1e-4)


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

    def bits(ladder: coder.QualityLadder) -> float:
        codec = ladder.at(int(np.abs(np.log(ladder.steps / 0.7)).argmin()))
        grids = [one.reshape(25, 12) for one in shrunk]
        return sum(codec.estimate_bits(codec.quantise(g, (5, 5)), (5, 5)) for g in grids)

    # What was made small for it costs little under it; a new one would blow it up again.
    assert bits(kept) < 0.8 * bits(fresh)
    with pytest.raises(InputError, match="the transform is of 12 channels"):
        coder.fit(y[..., :5], transform=transform)
    with pytest.raises(InputError, match="has a grid, or a class token"):
        coder.fit(y.reshape(-1, 12), transform=transform)


def smooth_raster(seed: int) -> NDArray[np.float32]:
    return smooth_embeddings(seed, 1, (96, 128))[0]


def relative_mse(codec: coder.QualityLadder, step: float, y: NDArray[np.float32]) -> float:
    """Of grids, in variances of their channels, at the quality of a step."""
    at = codec.at(int(np.abs(np.log(codec.steps / step)).argmin()))
    grid = y.shape[1:3] if at.spatial else (y.shape[1] * y.shape[2], 1)
    flat = y.reshape(len(y), -1, CHANNELS)
    error = np.stack([at.decode(at.encode(one, grid)) for one in flat]) - flat
    return float((np.square(error).mean((0, 1)) / y.reshape(-1, CHANNELS).var(0)).mean())


HIDDEN = {  # where NumPy would drop a mask
    "list of masked": lambda y, _: [*y],
    "lists of masked": lambda y, _: [[*one] for one in y],
    "dask": lambda y, chunks: dask.array.from_array(y, chunks=chunks),
}


@pytest.mark.parametrize("part", [0.008, 0.1])
@pytest.mark.parametrize("kind", ["nodata", "mask", "NaN", *HIDDEN])
@pytest.mark.parametrize("shape", ["grids", "raster", "vectors"])
def test_missing_tokens_do_not_count(shape, kind, part):
    y = {
        "grids": smooth_embeddings(1, 100, (12, 16)),
        "raster": smooth_raster(1),
        "vectors": smooth_embeddings(1, 40, (16, 16)).reshape(-1, CHANNELS),
    }[shape]
    holes = np.random.default_rng(0).random(y.shape[:-1]) < part
    holed = y.copy()
    holed[holes] = {"nodata": -9999, "NaN": np.nan}.get(kind, 1e20)
    nodata = {"nodata": -9999, "NaN": np.nan}.get(kind)
    source: Any = holed
    chunks: Any = (50, *y.shape[1:])
    if kind not in ("nodata", "NaN"):
        source = np.ma.masked_array(holed, np.repeat(holes[..., None], CHANNELS, -1))
        source = HIDDEN.get(kind, lambda y, _: y)(source, chunks)
    codec, whole = coder.fit(source, nodata=nodata), coder.fit(y)
    test = smooth_embeddings(2, 10, (16, 16))
    for step in (1.5, 0.5):
        assert relative_mse(codec, step, test) < 1.05 * relative_mse(whole, step, test)
    # Otherwise, they would have most of the variance.
    if kind == "nodata" and part < 0.01:
        with pytest.warns(UnusualEmbedding, match="carry .* of the variance: are they missing"):
            coder.fit(holed)


def test_vectors_without_the_missing_ones_give_the_same_codec():
    y = smooth_embeddings(1, 40).reshape(-1, CHANNELS)
    holes = np.arange(len(y)) % 7 == 3
    holed = y.copy()
    holed[holes, 5] = -1
    assert coder.fit(holed, nodata=-1) == coder.fit(y[~holes])
    # Beside whole grids, one without any token counts nothing.
    grids = smooth_embeddings(1, 40)
    more = np.concatenate([grids, np.full_like(grids[:3], np.nan)])
    assert coder.fit(more, nodata=np.nan, max_samples=43) == coder.fit(grids)


def test_class_tokens_may_be_missing():
    y, tokens = smooth_embeddings(1, 60), class_tokens(1, 60)
    holed = tokens.copy()
    holed[::9] = -9999
    codec, whole = coder.fit(y, holed, nodata=-9999), coder.fit(y, tokens)
    assert codec.transform.class_mean is not None
    np.testing.assert_allclose(
        codec.transform.class_mean, tokens[holed[:, 0] > -9999].mean(0), 1e-3
    )
    assert abs(codec.num_qualities - whole.num_qualities) <= 1
    with pytest.raises(InputError, match="all class tokens are missing"):
        coder.fit(y, np.full_like(tokens, -9999), nodata=-9999)


def test_what_is_missing_nearly_everywhere_leaves_nothing_to_fit():
    y = smooth_embeddings(1, 20)
    y[np.random.default_rng(0).random(y.shape[:3]) < 0.6] = np.nan
    with pytest.raises(
        InputError, match=r"more than 25% of every block.*fit the others as vectors"
    ):
        coder.fit(y, nodata=np.nan)
    coder.fit(y.reshape(-1, CHANNELS), nodata=np.nan)


def test_nan_that_nobody_named_is_left_out_with_a_warning():
    y = smooth_embeddings(1, 40)
    y[3, 2, 1, 0] = y[4, 0, 0] = np.nan
    with pytest.warns(
        UnusualEmbedding, match="2 of 1440 tokens hold NaN, and were left out"
    ) as one:
        codec = coder.fit(y)
    assert one[0].filename == __file__
    with pytest.warns(UnusualEmbedding, match="2 of 1440 tokens hold NaN"):
        assert coder.fit(y, nodata=-9999) == codec
    assert coder.fit(y, nodata=np.nan) == coder.fit(np.ma.masked_invalid(y)) == codec


@pytest.mark.parametrize(
    ("shape", "place"), [((40, 6, 6, 12), (33, 1, 2, 3)), ((80, 90, 12), (70, 80, 3))]
)
@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
def test_infinity_is_refused_with_its_place_unless_it_is_named(shape, place, value):
    y = np.resize(smooth_embeddings(1, 40), shape).astype(np.float64)
    y[place] = value
    with pytest.raises(InputError, match=re.escape(f"the first at {place} ({value})")):
        coder.fit(y)
    coder.fit(y, nodata=value)


@pytest.mark.parametrize(
    ("dtype", "nodata", "message"),
    [
        ("f4", "x", "nodata is 'x'"),
        ("f4", True, "nodata is True"),
        ("f4", 1e300, "float32 cannot hold"),
        ("u1", -1, "uint8 cannot hold"),
        ("u1", 300, "uint8 cannot hold"),
        ("i1", np.nan, "int8 cannot hold"),
        ("i2", 2.5, "int16 cannot hold"),
    ],
)
def test_a_nodata_value_that_nothing_can_have_is_refused(dtype, nodata: Any, message):
    with pytest.raises(InputError, match=message):
        coder.fit((10 * smooth_embeddings(1, 5)).clip(0, 100).astype(dtype), nodata=nodata)


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("f4", np.float64(0.1)), ("f2", -9999), ("i2", -9999.0), ("u1", 255)]
)
def test_nodata_is_compared_in_the_dtype_of_the_embeddings(dtype, nodata):
    y = (10 * smooth_embeddings(1, 40)).clip(0, 100).round().reshape(-1, CHANNELS).astype(dtype)
    holed = y.copy()
    holed[::50] = nodata
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "embeddings are u?int", UnusualEmbedding)
        kept = np.delete(y, np.s_[::50], axis=0)
        assert coder.fit(holed, nodata=nodata) == coder.fit(kept)


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
@pytest.mark.parametrize("seed", range(5))
def test_heavy_tails_of_few_tokens_are_nothing_unusual(count, seed):
    coder.fit(laplace_embeddings(seed, 1, count, np.ones(4))[0])


LOWEST = float(np.finfo(np.float32).min)  # a usual mark of missing data


@pytest.mark.parametrize("nodata", [None, -3.4e38])
def test_a_mark_of_missing_data_that_is_not_named_is_shown(nodata):
    y = smooth_embeddings(1, 56).reshape(-1, CHANNELS)[:500].copy()
    y[7, 3] = LOWEST
    with pytest.raises(
        InputError, match=r"is -3\.40282346\d+e\+38 .* Name it with nodata, exactly"
    ):
        coder.fit(y, nodata=nodata)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("nodata", [LOWEST, -3.4028235e38])
def test_a_mark_of_missing_data_may_be_written_as_float32_is(dtype, nodata):
    y = smooth_embeddings(1, 56).reshape(-1, CHANNELS)[:500].copy()
    y[7, 3] = LOWEST
    assert coder.fit(y.astype(dtype), nodata=nodata) == coder.fit(np.delete(y, 7, 0))


@pytest.mark.parametrize("channels", [1, 3, 30])
def test_heavy_tails_are_nothing_unusual(channels):
    # Warnings are errors here. The shipped model's embeddings give none either.
    coder.fit(laplace_embeddings(0, 20, 10, np.ones(channels)).reshape(-1, channels))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "i4", "i8", "u8"])
def test_integers_are_coded_as_they_are_and_warned_of_once(dtype):
    y = (10 * smooth_embeddings(1, 40)).clip(0, 100).round()
    with pytest.warns(UnusualEmbedding, match="integers are coded as the numbers") as caught:
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
