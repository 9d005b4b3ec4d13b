"""coder.fit without what is missing: NaN, masks and nodata values."""

import functools
import re
import warnings
from typing import Any

import dask.array
import numpy as np
import pytest
from numpy.typing import NDArray
from transform_cases import CHANNELS, GRID, class_tokens, smooth_embeddings

import coder
import coder.fitting
from coder import InputError, UnusualEmbedding


def test_class_tokens_that_are_all_the_same_are_no_missing_data():
    tokens = np.ones((40, CHANNELS), np.float32)
    y = smooth_embeddings(1, 40)
    with pytest.warns(UnusualEmbedding, match="40 of 1480 tokens have one number"):
        codec = coder.fit(y, tokens)
    one = np.concatenate([tokens[:1], y[0].reshape(-1, CHANNELS)])
    np.testing.assert_allclose(codec.decode(codec.encode(one, GRID))[0], 1, atol=1e-4)


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


# As if there were many: of fewer tokens, a codec is smaller.
PLAIN: dict[str, Any] = {"metric": "standardised", "count": 1 << 40}


@functools.cache
def of_shape(shape: str) -> NDArray[np.float32]:
    return {
        "grids": lambda: smooth_embeddings(1, 100, (12, 16)),
        "raster": lambda: smooth_raster(1),
        "vectors": lambda: smooth_embeddings(1, 40, (16, 16)).reshape(-1, CHANNELS),
    }[shape]()


@functools.cache
def whole_mse(shape: str, step: float) -> float:
    codec = coder.fit(of_shape(shape), **PLAIN)
    return relative_mse(codec, step, smooth_embeddings(2, 10, (16, 16)))


# Of few missing tokens, those of one kind.
PARTS = [(kind, 0.1) for kind in ("nodata", "mask", "NaN", *HIDDEN)] + [("nodata", 0.008)]


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        *PARTS,
        *(pytest.param(kind, 0.008, marks=pytest.mark.slow) for kind in ("mask", "NaN", *HIDDEN)),
    ],
)
@pytest.mark.parametrize("shape", ["grids", "raster", "vectors"])
def test_missing_tokens_do_not_count(shape, kind, part):
    y = of_shape(shape)
    holes = np.random.default_rng(0).random(y.shape[:-1]) < part
    holed = y.copy()
    holed[holes] = {"nodata": -9999, "NaN": np.nan}.get(kind, 1e20)
    nodata = {"nodata": -9999, "NaN": np.nan}.get(kind)
    source: Any = holed
    chunks: Any = (50, *y.shape[1:])
    if kind not in ("nodata", "NaN"):
        source = np.ma.masked_array(holed, np.repeat(holes[..., None], CHANNELS, -1))
        source = HIDDEN.get(kind, lambda y, _: y)(source, chunks)
    codec = coder.fit(source, nodata=nodata, **PLAIN)
    test = smooth_embeddings(2, 10, (16, 16))
    for step in (1.5, 0.5):
        assert relative_mse(codec, step, test) < 1.05 * whole_mse(shape, step)
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
    # Some are held out, too.
    mean = tokens[holed[:, 0] > -9999].mean(0)
    np.testing.assert_allclose(codec.transform.class_mean, mean, rtol=0, atol=0.4)
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
