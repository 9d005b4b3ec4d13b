"""Laws of fitting a refiner: it helps on embeddings that it never saw, or does nothing."""

from dataclasses import replace

import numpy as np
import pytest

import coder
import coder.fitting
from coder import InputError
from coder.codecs.coefficients import NOT_CODED
from coder.fitting import Coded


def curved(count: int, seed: int, channels: int = 16) -> np.ndarray:
    """Grids [count, 4, 4, channels] of tokens near a curve, no linear subspace."""
    rng = np.random.default_rng(seed)
    angle = np.cumsum(rng.normal(0, 0.3, (count, 4, 4, 1)), axis=1) + rng.uniform(
        0, 6, (count, 1, 1, 1)
    )
    waves = np.concatenate(
        [np.cos(k * angle) for k in (1, 2, 3)] + [np.sin(k * angle) for k in (1, 2, 3)], -1
    )
    mix = np.random.default_rng(0).standard_normal((6, channels))
    return (waves @ mix + 0.05 * rng.standard_normal((count, 4, 4, channels))).astype(np.float32)


@pytest.fixture(scope="module")
def codec() -> coder.QualityLadder:
    return coder.fitting.fit_for_model(curved(300, 1))


@pytest.fixture(scope="module")
def refiner(codec: coder.QualityLadder) -> coder.Refiner:
    return coder.fit_refiner(codec, curved(300, 1), hidden=64, steps=400)


def test_it_lowers_the_error_on_unseen_embeddings_and_harms_at_no_quality(
    codec: coder.QualityLadder, refiner: coder.Refiner
) -> None:
    refined = codec.with_refiner(refiner)
    unseen = curved(40, 2).reshape(40, 16, 16)
    ratios = []
    for quality in range(codec.num_qualities):
        plain = better = 0.0
        for y in unseen:
            blob = codec.encode(y, (4, 4), quality=quality)
            plain += float(np.square(codec.decode(blob) - y).sum())
            better += float(np.square(refined.decode(blob, refine=True) - y).sum())
        ratios.append(better / plain)
    assert max(ratios) < 1.01
    assert min(ratios) < 0.8


def test_symbols_that_are_chosen_for_it_need_fewer_bytes_at_equal_error(
    codec: coder.QualityLadder, refiner: coder.Refiner
) -> None:
    refined = codec.with_refiner(refiner)
    unseen = curved(40, 2).reshape(40, 16, 16)
    sizes, errors = (np.zeros((2, codec.num_qualities)) for _ in range(2))
    for quality in range(codec.num_qualities):
        for for_refiner in (0, 1):
            for y in unseen:
                blob = refined.encode(y, (4, 4), quality=quality, for_refiner=bool(for_refiner))
                sizes[for_refiner, quality] += len(blob)
                error = np.square(refined.decode(blob, refine=True) - y).sum()
                errors[for_refiner, quality] += float(error)
    # Bytes that the plain choice needs for the same error.
    needed = np.interp(-np.log(errors[1]), -np.log(errors[0]), np.log(sizes[0]))
    ratio = np.exp(np.log(sizes[1]) - needed)
    assert ratio.max() < 1.002
    assert ratio.mean() < 0.998


def test_a_codec_of_one_quality_has_a_refiner_of_all_channels(
    codec: coder.QualityLadder,
) -> None:
    """Also where it codes a few components: the others are predicted, the large ones first."""
    one = codec.at(0)
    y = curved(300, 1)
    refiner = coder.fit_refiner(one, y, hidden=32, steps=200)
    assert one.transform.components < 16
    assert refiner.basis.shape == (16, 16)
    assert refiner.inputs[0] <= one.transform.components
    rest = refiner.basis[:, one.transform.components :].astype(float)
    spread = ((y.reshape(-1, 16) - refiner.mean) / refiner.scale @ rest).var(0)
    assert (np.diff(spread) < 0.2 * spread[:-1]).all()
    assert refiner.outputs[0] > one.transform.components


def last_coded(codec: coder.QualityLadder, quality: int) -> int:
    """How many first components are coded, at most."""
    return int(np.flatnonzero((codec.layout[quality] != NOT_CODED).any(1)).max()) + 1


def test_every_quality_is_drawn_however_few_embeddings_there_are(
    codec: coder.QualityLadder,
) -> None:
    """A quality that was never drawn would get a gain that is nearly, but not quite, zero."""
    for seed in range(8):
        refiner = coder.fit_refiner(codec, curved(8, 3), hidden=8, steps=2, seed=seed)
        gains = refiner.gains
        assert ((gains == 0) | (gains > 1e-9)).all()
        assert (refiner.outputs[gains == 0] == 0).all()


def test_noise_gives_no_gain(codec: coder.QualityLadder) -> None:
    """A network that saves nothing as a whole is not used in part."""
    noise = np.random.default_rng(0).standard_normal((64, 4, 4, 16), np.float32)
    own = coder.fit(noise)
    refiner = coder.fit_refiner(own, noise, hidden=8, steps=3)
    used = refiner.gains > 0
    assert (refiner.inputs[~used] == 0).all()
    assert (refiner.outputs[~used] == 0).all()


def test_components_that_are_not_coded_are_not_seen(codec: coder.QualityLadder) -> None:
    refiner = coder.fit_refiner(codec, curved(60, 3), hidden=8, steps=3)
    for quality, y in enumerate(curved(codec.num_qualities, 4).reshape(-1, 16, 16)):
        one = codec.at(quality)
        u = (one.decode(one.encode(y, (4, 4))) - refiner.mean) / refiner.scale
        coded = last_coded(codec, quality)
        assert refiner.inputs[quality] <= coded
        seen = refiner.basis[:, :coded].astype(float)
        np.testing.assert_allclose(seen.T @ seen, np.eye(coded), atol=2e-3)
        rest = u - u @ seen @ seen.T
        assert np.abs(rest).max() <= 5e-3 * np.abs(u).max()


class Frozen:
    """A network that is not trained: the weights of a refiner, blind but for two components."""

    def __init__(self, refiner: coder.Refiner):
        names = ("token", "context", "bias", "out", "offset")
        self.weights = {name: getattr(refiner, name).astype(np.float32) for name in names}
        self.weights["token"][2:] = 0
        self.weights["context"][:, 2:] = 0
        self.weights["context"] = self.weights["context"].reshape(-1, refiner.bias.shape[1])

    def step(self, part: Coded, unit: np.ndarray, rate: float) -> None:
        pass


def test_components_that_tell_nothing_are_not_seen(
    codec: coder.QualityLadder, refiner: coder.Refiner
) -> None:
    blind = coder.fit_refiner(codec, curved(300, 1), network=lambda _: Frozen(refiner), hidden=64)
    helped = blind.gains > 0
    assert helped.sum() > 3
    assert ((blind.inputs <= 2) & (blind.inputs >= 1))[helped].all()
    assert last_coded(codec, codec.num_qualities - 1) > 2


def test_what_is_seen_and_predicted_saves_nearly_as_much_as_all(
    codec: coder.QualityLadder, refiner: coder.Refiner
) -> None:
    """On embeddings that it was not fitted to."""
    whole = np.full_like(refiner.inputs, 16)
    useful = np.flatnonzero(refiner.gains > 0.1).tolist()
    assert len(useful) > 3
    for quality in useful:
        one, saved = codec.at(quality), np.zeros(2)
        for y in curved(80, 2).reshape(-1, 16, 16):
            y_hat = one.decode(one.encode(y, (4, 4)))
            before = np.square(y_hat - y).sum()
            for k, some in enumerate((refiner, replace(refiner, inputs=whole, outputs=whole))):
                better = some.refine(y_hat, (4, 4), one.fingerprint)
                saved[k] += before - np.square(better - y).sum()
        assert saved[0] > 0.9 * saved[1] > 0, quality


def test_the_same_call_gives_the_same_refiner(codec: coder.QualityLadder) -> None:
    made = [coder.fit_refiner(codec, curved(20, 3), hidden=8, steps=3) for _ in range(2)]
    assert made[0].to_bytes() == made[1].to_bytes()


@pytest.mark.parametrize("kind", ["one quality", "vectors", "class tokens"])
def test_it_serves_codecs_of_each_kind(kind: str) -> None:
    y = curved(40, 4)
    tokens = y.mean((1, 2)) if kind == "class tokens" else None
    y = y.reshape(-1, 16) if kind == "vectors" else y
    codec = coder.fit(y, tokens)
    one = codec.at(3)
    refiner = coder.fit_refiner(
        one if kind == "one quality" else codec, y, tokens, hidden=8, steps=5
    )
    grid = (1, 1) if kind == "vectors" else (4, 4)
    first = y[:1] if kind == "vectors" else y[0].reshape(16, 16)
    if tokens is not None:
        first = np.vstack([tokens[0], first])
    blob = one.encode(first, grid)
    plain, refined = one.decode(blob), one.with_refiner(refiner).decode(blob, refine=True)
    assert coder.Refiner.from_bytes(refiner.to_bytes()) == refiner
    assert refined.shape == plain.shape
    assert np.isfinite(refined).all()


def test_what_does_not_fit_is_refused(codec: coder.QualityLadder) -> None:
    with pytest.raises(InputError, match="of 16 channels, the embeddings have 12"):
        coder.fit_refiner(codec, curved(20, 1, channels=12))
    with pytest.raises(InputError, match="at least 8"):
        coder.fit_refiner(codec, curved(7, 1))
    holes = curved(20, 1)
    holes[3:, 0, 0] = np.nan
    with pytest.raises(InputError, match="3 embeddings without missing tokens"):
        coder.fit_refiner(codec, holes, nodata=float("nan"))
    with pytest.raises(InputError, match="steps is 0"):
        coder.fit_refiner(codec, curved(20, 1), steps=0)
    with pytest.raises(InputError, match=r"hidden is 1\.5"):
        coder.fit_refiner(codec, curved(20, 1), hidden=1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nodata is 'x'"):
        coder.fit_refiner(codec, curved(20, 1), nodata="x")  # type: ignore[arg-type]
