"""The transform in JAX is that of the coder, and training goes through it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import CALIBRATION_IMAGES, pretrained, random_images, tiny_config
from transform_cases import GRID, embeddings, ladder, smooth_embeddings

import coder
import nec_jax
from nec_jax.calibration import fit_transform
from nec_jax.models import nec, transform_bottleneck
from nec_jax.models.bottleneck import bottleneck
from nec_jax.models.mae import random_masking
from train.engine.initial_model import feature_scale
from train.tasks.first_density import calibrate_transform

TIES = 1e-3  # of all coefficients may round differently


@pytest.mark.parametrize("with_class_token", [False, True])
def test_coefficients_and_embeddings_are_those_of_the_coder(with_class_token: bool) -> None:
    own, y = ladder(with_class_token).transform, embeddings(with_class_token)
    held = transform_bottleneck.arrays(own)
    c = jax.jit(lambda y: transform_bottleneck.forward(held, y, GRID))(y)
    expected = np.stack([own.forward(one, GRID) for one in y])
    np.testing.assert_allclose(c, expected, atol=1e-4 * np.abs(expected).max())
    back = transform_bottleneck.inverse(held, c, GRID)
    np.testing.assert_allclose(back, y, atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize("grid", [(1, 1), (17, 5), (3, 40)])
def test_other_grids(grid: tuple[int, int]) -> None:
    own, y = ladder().transform, smooth_embeddings(3, 1, grid).reshape(-1, 12)
    expected = own.forward(y, grid)
    held = transform_bottleneck.arrays(own)
    c = transform_bottleneck.forward(held, jnp.asarray(y), grid)
    np.testing.assert_allclose(c, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(
        transform_bottleneck.inverse(held, c, grid), y, atol=1e-4 * np.abs(y).max()
    )


@pytest.mark.parametrize("quality", [2, 7, 12])
def test_what_is_rounded_is_what_the_coder_decodes_but_for_ties(quality: int) -> None:
    codec, y = ladder(True).at(quality), embeddings(True)
    found = transform_bottleneck.rounded(codec, jnp.asarray(y), GRID)
    expected = codec.dequantise(codec.quantise(y, GRID), GRID)
    c = np.stack([codec.transform.forward(one, GRID) for one in np.asarray(found)])
    other = np.stack([codec.transform.forward(one, GRID) for one in expected])
    assert (np.abs(c - other) > 0.1 * codec.step).mean() <= TIES


def test_a_model_with_a_ladder(bare_model: nec_jax.NecParams, tmp_path) -> None:
    y = nec_jax.latents(bare_model, CALIBRATION_IMAGES)
    whole = coder.fit(y[:, 1:].reshape(-1, 4, 4, 48), y[:, 0])
    params = dataclasses.replace(bare_model, codec=whole)
    nec_jax.save(params, tmp_path / "m")
    params = nec_jax.load(tmp_path / "m")
    assert params.codec == whole
    images, sizes = random_images(5, 9), []
    for quality in (0, 5, whole.num_qualities - 1):
        blobs = nec_jax.encode(params, images, quality=quality)
        np.testing.assert_array_equal(
            nec_jax.decode(params, blobs), nec_jax.embed(params, images, quality=quality)
        )
        assert blobs[3:4] == nec_jax.encode(params, images[3:4], quality=quality)
        sizes.append(sum(map(len, blobs)))
    assert sizes == sorted(sizes)
    for quality in (None, 3):
        traced = jax.jit(functools.partial(nec_jax.embed_traced, quality=quality))(params, images)
        close = np.isclose(traced, nec_jax.embed(params, images, quality=quality), atol=1e-3)
        assert close.mean() > 0.95  # a tie moves a whole block
    with pytest.raises(coder.InputError, match="has qualities 0 to"):
        nec_jax.encode(params, images, quality=99)


def test_bits_are_those_of_unit_bins_of_a_laplacian() -> None:
    scale = jnp.asarray([0.02, 0.3, 1.0, 40.0])[:, None]
    whole = np.arange(-4000, 4001)
    total = np.sum(
        np.exp2(
            -np.asarray(transform_bottleneck.laplacian_bits(jnp.asarray(whole), scale), np.float64)
        ),
        1,
    )
    np.testing.assert_allclose(total, 1, atol=1e-4)
    x = np.random.default_rng(0).laplace(size=200_000)
    for edge in (0.3, 2.2):
        inside = np.mean((x > edge - 0.5) & (x < edge + 0.5))
        bits = float(transform_bottleneck.laplacian_bits(jnp.float32(edge), jnp.float32(1)))
        assert bits == pytest.approx(-np.log2(inside), abs=0.03)


def test_magnitudes_cost_what_their_cells_hold_of_a_laplacian() -> None:
    scale = jnp.asarray([0.05, 0.3, 1.0, 40.0])[:, None]
    zone = transform_bottleneck.zone_of(scale)
    bits = np.asarray(transform_bottleneck.coded_bits(jnp.arange(2000.0), zone, scale), np.float64)
    mass = np.exp2(-bits)
    np.testing.assert_allclose(mass[:, 0] + 2 * mass[:, 1:].sum(1), 1, atol=1e-4)
    x = np.abs(np.random.default_rng(0).laplace(size=400_000)) * 0.3
    assert np.mean(x < float(zone[1, 0])) == pytest.approx(mass[1, 0], abs=2e-3)
    # What is rare is coded more seldom than by rounding to the nearest.
    assert (np.diff(np.asarray(zone)[:, 0]) < 0).all()
    assert 0.45 < float(zone[3, 0]) < 0.5
    assert float(zone[0, 0]) == pytest.approx(0.9)


compiled = jax.jit(bottleneck, static_argnums=(2, 5))


def initial(step: float, drawn: tuple[float, float] | None = None) -> Any:
    """The bottleneck of the embeddings with class tokens."""
    own = ladder(True).transform
    return transform_bottleneck.initial(
        own, step, transform_bottleneck.spread_of(own, embeddings(True), GRID), drawn
    )


def coded(rounding: Any, y: Any, keys: Any = None, step: float = 0.4) -> tuple[Any, Any]:
    held = initial(step)
    return compiled(held, jnp.asarray(y), rounding, keys, 4.0, GRID)


def test_hard_rounding_costs_about_what_the_codec_does_at_its_step() -> None:
    codec, y = ladder(True).at(9), embeddings(True)
    y_hat, bits = coded("hard", y, step=codec.step)
    real = sum(codec.estimate_bits(codec.quantise(one, GRID), GRID) for one in y)
    assert float(bits.sum()) == pytest.approx(real, rel=0.15)
    error = [
        float((((found - y) / codec.transform.scale) ** 2)[:, 1:].mean())
        for found in (np.asarray(y_hat), np.stack([codec.decode(codec.encode(o, GRID)) for o in y]))
    ]
    assert error[0] == pytest.approx(error[1], rel=0.15)


def test_training_sees_what_validation_sees_and_gradients_of_all_that_trains() -> None:
    y, keys = jnp.asarray(embeddings(True)[:4]), jax.random.split(jax.random.key(0), 4)
    hard = coded("hard", y)[0]
    np.testing.assert_allclose(coded("straight-through", y, keys)[0], hard, atol=1e-3)
    seen = jnp.abs(coded("soft", y, keys)[0] - y).mean()
    assert 0 < seen < jnp.abs(hard - y).mean()
    with pytest.raises(coder.InputError, match="draws noise"):
        coded("noise", y)
    held = initial(0.4)

    def quality(density: Any, y: Any) -> jax.Array:
        return compiled(held | {"density": density}, y, "noise", keys, 1.0, GRID)[1].mean()

    of_scale, of_y = jax.jit(jax.grad(quality, argnums=(0, 1)))(held["density"], y)
    assert jnp.isfinite(of_scale["log_scale"]).all()
    assert (of_scale["log_scale"] != 0).any()
    # Smaller embeddings cost less.
    mean = jnp.asarray(held["transform"]["mean"])
    assert jnp.sum(of_y[:, 1:] * (y[:, 1:] - mean)) > 0


def test_a_step_is_found_for_each_lambda() -> None:
    config = tiny_config(depth=1, decoder_target="features", decoder_depth=1)
    params = pretrained(tiny_config(depth=1), CALIBRATION_IMAGES)
    decoder = nec.init_weights(config, jax.random.key(0))["decoder"]
    y = nec_jax.latents(params, CALIBRATION_IMAGES)
    decoder["target"] = feature_scale(y)
    weights = {**params.weights, "decoder": decoder}
    weights["teacher"] = weights["encoder"]
    whole, key = fit_transform(y, (4, 4)), jax.random.key(0)
    gains = [
        calibrate_transform(
            config, weights, CALIBRATION_IMAGES, key, whole,
            lam=lam, mask_ratio=0.0, gain="calibrated",
        )[1]["gain"]
        for lam in (0.1, 1.0, 30.0)
    ]  # fmt: skip
    assert gains == sorted(gains)
    assert gains[-1] > 4 * gains[0]


def test_hidden_tokens_are_hidden_behind_the_transform() -> None:
    config = tiny_config(depth=1, decoder_depth=1)
    params = pretrained(config, CALIBRATION_IMAGES)
    y = nec_jax.latents(params, CALIBRATION_IMAGES)
    own = fit_transform(y, (4, 4)).transform
    held = transform_bottleneck.initial(own, 0.01, transform_bottleneck.spread_of(own, y, (4, 4)))
    weights = {**params.weights, "bottleneck": held}
    images, keys = jnp.asarray(CALIBRATION_IMAGES[:2]), jax.random.split(jax.random.key(3), 2)
    forward = jax.jit(nec.forward, static_argnums=0, static_argnames=("mask_ratio", "rounding"))
    losses = forward(config, weights, images, keys, mask_ratio=0.75, rounding="hard")
    # At a fine step what is decoded of visible tokens is what the encoder makes of whole images.
    kept, masked = random_masking(jax.vmap(jax.random.split, out_axes=1)(keys)[0], 16, 0.75)
    seen = nec.visible(jnp.asarray(y[:2]), kept, (4, 4))
    assert seen.shape == (2, 1 + 4, config.width)
    np.testing.assert_array_equal(seen[1, 2], y[1, 1 + int(kept[1, 1])])
    goal = nec.targets(config, weights, images)
    expected = nec.distortion(config, weights, seen, goal, (4, 4), kept, masked)
    assert float(losses.mse) == pytest.approx(float(expected), rel=1e-2)


def test_the_gradient_of_a_choice_between_integers() -> None:
    scale = jnp.full((1, 1, 4), 0.5)
    z = jnp.asarray([[[0.1, -0.3, 1.4, -2.2]]])
    zone = transform_bottleneck.zone_of(jnp.float32(0.5))
    bits = np.asarray(transform_bottleneck.coded_bits(jnp.arange(4.0), zone, jnp.float32(0.5)))

    def gradient(of_seen: float, of_bits: float) -> np.ndarray:
        _, backward = jax.vjp(transform_bottleneck._straight_through, z, scale)
        like = jnp.ones_like(z)
        return np.asarray(backward((of_seen * like, of_bits * like))[0]).ravel()

    # Without a price the straight-through gradient; without distortion, that of the bits alone.
    np.testing.assert_allclose(gradient(2.0, 0.0), 2.0)
    first, second = bits[1] - bits[0], bits[2] - bits[1]
    np.testing.assert_allclose(gradient(0.0, 1.0), [0, 0, first, -second], rtol=1e-5)
    # A zero stays one until what it saves pays for the bits of a one.
    np.testing.assert_allclose(gradient(0.9 * first, 1.0)[:2], 0)
    np.testing.assert_allclose(gradient(-first - 0.5, 1.0)[:2], -0.5, rtol=1e-4)


def test_training_draws_a_step_for_each_image() -> None:
    y, keys = jnp.asarray(embeddings(True)[:4]), jax.random.split(jax.random.key(0), 4)
    held = initial(0.4, (0.05, 3.2))
    seen, bits = compiled(held, y, "straight-through", keys, 1.0, GRID)
    steps = np.asarray(jnp.abs(seen - y).mean((1, 2)))
    assert len(set(steps.round(6).tolist())) == 4
    order = np.argsort(steps)
    assert (np.diff(np.asarray(bits.sum((1, 2)))[order]) < 0).all()
