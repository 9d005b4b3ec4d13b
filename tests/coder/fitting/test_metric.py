"""What a fitted codec counts as error."""

from typing import Any

import numpy as np
import pytest
from transform_cases import CHANNELS, GRID, class_tokens, smooth_embeddings

import coder
from coder import InputError
from coder.fitting import fit_codec, fit_measured

Y = smooth_embeddings(1, 150) * np.geomspace(0.05, 5, CHANNELS).astype(np.float32)
FLAT = Y.reshape(-1, CHANNELS)


def test_the_metric_is_the_scale_of_the_transform():
    deviations = FLAT.std(0)
    euclidean, standardised = (coder.fit(Y, metric=m).transform for m in METRICS)
    assert np.ptp(euclidean.scale) == 0
    np.testing.assert_allclose(euclidean.scale[0], np.sqrt(np.mean(deviations**2)), rtol=0.1)
    np.testing.assert_allclose(standardised.scale, deviations, rtol=0.1)
    # Both are weights.
    assert coder.fit(Y, metric=np.ones(CHANNELS)) == coder.fit(Y)
    assert coder.fit(Y, metric=7 * np.ones(CHANNELS)) == coder.fit(Y, metric="euclidean")
    weighted = coder.fit(Y, metric=1 / standardised.scale.astype(np.float64) ** 2).transform
    np.testing.assert_allclose(weighted.scale, standardised.scale, rtol=1e-5)


METRICS: Any = ("euclidean", "standardised")


@pytest.mark.parametrize("shape", [Y.shape, FLAT.shape])
def test_each_metric_is_best_at_its_own_error(shape):
    y = Y.reshape(shape)
    other = coder.fit(y, metric="standardised").transform.scale

    def curve(metric: str) -> tuple[list[float], list[float], list[float]]:
        codec, held = fit_measured(y, metric=metric)  # type: ignore[arg-type]
        ones = [codec.at(quality) for quality in range(2, 11)]
        errors = [held.error(one) for one in ones]
        grid = (len(FLAT), 1) if y.ndim == 2 else GRID
        parts = FLAT[None] if y.ndim == 2 else Y.reshape(len(Y), -1, CHANNELS)
        decoded = [
            np.stack([one.dequantise(one.quantise(p, grid), grid) for p in parts]) for one in ones
        ]
        scaled = [float(np.square((d - parts) / other).mean()) for d in decoded]
        sizes = [held.bytes_per_vector(one) for one in ones]
        return sizes, [error.relative_rms or 0 for error in errors], scaled

    curves = {metric: curve(metric) for metric in METRICS}
    sizes = curves["standardised"][0]
    at = np.geomspace(min(sizes), max(sizes), 9)[2:7]
    rms = {m: np.interp(at, sizes, rms) for m, (sizes, rms, _) in curves.items()}
    scaled = {m: np.interp(at, sizes, scaled) for m, (sizes, _, scaled) in curves.items()}
    assert (rms["euclidean"] < rms["standardised"]).all()
    assert (scaled["standardised"] < scaled["euclidean"]).all()


def test_weights_move_the_error():
    weights = np.ones(CHANNELS)
    weights[:3] = 100
    plain, weighted = coder.fit(FLAT), coder.fit(FLAT, metric=weights)

    def errors(codec: coder.QualityLadder) -> np.ndarray:
        one = codec.at(8)
        return np.square(one.decode(one.encode(FLAT, (len(FLAT), 1))) - FLAT).mean(0)

    share = [errors(codec)[:3].sum() / errors(codec).sum() for codec in (plain, weighted)]
    assert share[1] < share[0] / 2


@pytest.mark.parametrize("weight", [1, 16])
def test_class_tokens_have_one_unit_of_their_own(weight):
    tokens = 10 * class_tokens(1, len(Y))
    transform = coder.fit(Y, tokens, class_weight=weight).transform
    assert transform.class_scale is not None
    assert np.ptp(transform.class_scale) == 0
    expected = np.sqrt(tokens.var(0).mean() / weight)
    np.testing.assert_allclose(transform.class_scale[0], expected, rtol=0.1)


@pytest.mark.parametrize(
    "metric", ["cosine", 3, np.ones(5), np.zeros(CHANNELS), -np.ones(CHANNELS), [np.nan] * CHANNELS]
)
def test_what_is_no_metric_is_refused(metric: Any):
    with pytest.raises(InputError, match="metric"):
        coder.fit(Y, metric=metric)


def test_a_transform_has_its_metric():
    with pytest.raises(InputError, match="leave metric out"):
        coder.fit(Y, metric="euclidean", transform=coder.fit(Y).transform)


def test_what_rounding_leaves_of_a_large_component_does_not_spread():
    """Of components with most of the variance in few channels, each row has large entries."""
    rng = np.random.default_rng(0)
    d = 64
    deviations = np.exp(rng.normal(0, 1.2, d))
    small = rng.laplace(size=(4000, d)) @ (rng.normal(size=(d, d)) / np.arange(1, d + 1))
    direction = deviations**2 * rng.normal(size=d)
    large = np.outer(rng.normal(size=4000), direction / np.linalg.norm(direction))
    small *= deviations
    y = (small / small.std() / d**0.5 + 2.2 * large).astype(np.float32)
    codec = coder.fit(y)
    c = np.stack([codec.transform.forward(y, (len(y), 1))])[0]
    exact = np.linalg.eigvalsh(np.cov((y / codec.transform.scale).T))[::-1]
    # Beyond those that are found again, no component has much more than its own variance.
    ratio = c.var(0)[16:48] / exact[16:48]
    assert ratio.max() < 1.5


def test_vectors_at_low_qualities_keep_more_neighbours_at_equal_bytes(monkeypatch):
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(48, 48)))[0]
    y = (rng.normal(size=(3000, 48)) * 0.9 ** np.arange(48)) @ rotation

    def recall(size: float) -> float:
        codec, held = fit_measured(y.astype(np.float32))
        low = [codec.at(k) for k in range(8)]
        errors = [held.error(one) for one in low]
        sizes = [held.bytes_per_vector(one) for one in low]
        return float(np.interp(size, sizes, [error.recall_at_10 or 0 for error in errors]))

    with_rule = recall(2)
    monkeypatch.setattr(fit_codec, "_LEAST", 0.0)
    assert with_rule > recall(2) + 0.02
