"""The whole model: its shapes, its bottleneck, and which of its parameters train."""

import functools
import json
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import FLOAT32, NETWORK, ONE_ULP, random_images, tiny_config
from vit_b_shapes import VIT_B

from coder import InputError
from nec_jax import VARIANTS, NecParams, model_config
from nec_jax.models import density
from nec_jax.models.bottleneck import bottleneck as plain_bottleneck
from nec_jax.models.freezing import TRAINABLE, trainable_rule
from nec_jax.models.mae import Decoder, random_masking
from nec_jax.models.nec import forward, init_weights, normalise
from nec_jax.models.rounding import soft_round
from nec_jax.models.vit import Encoder, patchify
from nec_jax.models.weight_tree import merge, path_name, split


@functools.cache
def shapes(arch: str) -> dict[str, jax.ShapeDtypeStruct]:
    config = model_config(arch)
    tree = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def total(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def test_vit_b_has_exactly_these_parameters():
    assert {name: leaf.shape for name, leaf in shapes("vit-b").items()} == VIT_B
    assert {leaf.dtype for leaf in shapes("vit-b").values()} == {np.dtype(np.float32)}


def test_vit_b_has_the_papers_111_70_million_parameters_and_our_gain():
    assert total(VIT_B.values()) == 111_700_992
    assert total(s for n, s in VIT_B.items() if n.endswith("log_gain")) == 768


@pytest.mark.parametrize(
    ("arch", "count"),
    [
        ("vit-ti", 6_415_168),
        ("vit-s", 25_068_416),
        ("vit-b", 111_700_992),
        ("vit-l", 329_299_712),
        ("vit-h", 656_689_484),
    ],
)
def test_every_architecture_has_its_count_of_parameters(arch, count):
    assert total(leaf.shape for leaf in shapes(arch).values()) == count


def test_a_configuration_is_of_pythons_own_values():
    """So that it is hashed, compared and written, whatever it was made of."""
    usual = tiny_config(mean=(1.5, 2.5, 3.5), value_range=(0.0, 255.0), embedding_blocks=(1, 2))
    other = tiny_config(
        mean=np.array([1.5, 2.5, 3.5], np.float32),
        std=list(usual.std),
        value_range=np.array([0.0, 255.0]),
        embedding_blocks=[np.int64(1), np.int8(2)],
        bands=["red", "green", "blue"],
        depth=np.int64(2),
        coding_batch=np.uint8(8),
    )
    assert other == usual
    assert hash(other) == hash(usual)
    assert json.dumps(other.to_meta()) == json.dumps(usual.to_meta())


@pytest.mark.parametrize(
    "changes",
    [
        {"code_class_token": 2},
        {"class_token": 1},
        {"layer_scale": None},
        {"patch_bias": "no"},
        {"depth": True},
        {"coding_batch": 4.0},
        {"coding_batch": -1},
        {"embedding_blocks": (True, 2)},
        {"embedding_blocks": (1.0, 2.0)},
        {"value_range": (0.0, np.nan)},
        {"mean": (np.nan, 1, 1)},
    ],
)
def test_a_setting_of_another_kind_is_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes)).split("_")[0]):
        tiny_config(**changes)


def test_the_architectures_are_those_that_are_counted():
    assert set(VARIANTS) == {"vit-ti", "vit-s", "vit-b", "vit-l", "vit-h"}


def test_the_papers_trainable_set_has_11_67_million_parameters_of_vit_b():
    train = trainable_rule("paper", model_config("vit-b"))
    names = [name for name in VIT_B if train(name)]
    assert total(VIT_B[name] for name in names) == 11_666_944
    # Two levels of each path: last block, patch embedding, class token, norm; density; decoder
    # embedding and mask token (the stem), first block, norm, prediction.
    items = {"/".join(name.split("/")[:2]) for name in names}
    assert items == {
        "encoder/block_11",
        "encoder/patch_embed",
        "encoder/class_token",
        "encoder/norm",
        "bottleneck/density",
        "decoder/stem",
        "decoder/block_0",
        "decoder/norm",
        "decoder/pred",
    }
    assert {name for name in VIT_B if "/".join(name.split("/")[:2]) in items} == set(names)


def test_the_other_trainable_sets():
    def names(preset: str) -> set[str]:
        return set(filter(trainable_rule(preset, model_config("vit-b")), VIT_B))

    assert names("paper+gain") == names("paper") | {"bottleneck/log_gain"}
    assert names("density") == {n for n in VIT_B if n.startswith("bottleneck/density/")}
    assert names("all") == set(VIT_B)
    assert names("mae") == {n for n in VIT_B if not n.startswith("bottleneck/")}
    assert names("decoder") == {n for n in VIT_B if n.startswith("decoder/")}
    late = ("encoder/norm", "encoder/block_11/", "bottleneck/", "decoder/")
    assert names("late") == {n for n in VIT_B if n.startswith(late)}
    assert set(TRAINABLE) == {"paper", "paper+gain", "late", "density", "decoder", "all", "mae"}
    with pytest.raises(ValueError, match="unknown trainable set 'half': choose from paper"):
        trainable_rule("half", model_config("vit-b"))


def test_a_trainable_set_can_be_patterns_of_paths():
    train = trainable_rule("encoder/block_{last}/.*, bottleneck/.*", model_config("vit-b"))
    assert set(filter(train, VIT_B)) == {
        n for n in VIT_B if n.startswith(("encoder/block_11/", "bottleneck/"))
    }


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("encoder/block_12/.*,bottleneck/.*", "no weight's path is 'encoder/block_12/.*'"),
        ("encoder/(block", "is not a pattern"),
    ],
)
def test_patterns_that_name_nothing_are_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        trainable_rule(patterns, model_config("vit-b"))


@pytest.mark.parametrize("preset", list(TRAINABLE))
def test_merge_inverts_split(preset):
    config = tiny_config()
    weights = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
    train = trainable_rule(preset, config)
    trained, frozen = split(weights, train)
    for part, want in ((trained, True), (frozen, False)):
        names = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(part)}
        assert all(train(name) is want for name in names)
    assert len(jax.tree.leaves(trained)) + len(jax.tree.leaves(frozen)) == len(
        jax.tree.leaves(weights)
    )
    assert merge(trained, frozen) == merge(frozen, trained) == weights


def test_soft_rounding_goes_from_identity_to_rounding():
    x = jnp.linspace(-2.95, 2.95, 60)  # without ties
    np.testing.assert_allclose(soft_round(x, 0.0), x, **NETWORK)
    np.testing.assert_allclose(soft_round(x, 1e6), jnp.round(x), **FLOAT32)
    for alpha in (0.0, 1.0, 5.0):
        y = soft_round(x, alpha)
        assert bool((jnp.diff(y) > 0).all())
        whole = jnp.arange(-2.0, 3.0)
        np.testing.assert_allclose(soft_round(whole, alpha), whole, **FLOAT32)
        assert bool((jnp.abs(y - jnp.round(x)) <= jnp.abs(x - jnp.round(x)) + 1e-5).all())


D = 6
KEYS = jax.random.split(jax.random.key(0), 40)  # one an image of `small_bottleneck`
bottleneck = jax.jit(plain_bottleneck, static_argnums=2)
bin_bits = jax.jit(density.bin_bits)


def small_bottleneck(shape=(40, 50, D)):
    """(bottleneck weights with unequal gains, y [40, 50, D])."""
    params = jax.jit(density.init_density, static_argnums=1)(jax.random.key(0), D)
    ramp = np.linspace(0, 1, D, dtype=np.float32)
    params = jax.jit(density.match_moments)(params, 4 * ramp - 2, 0.5 + 2.5 * ramp)
    y = 2 * np.random.default_rng(1).normal(size=shape)
    return {"log_gain": 2.5 * ramp - 1, "density": params}, y.astype(np.float32)


def test_hard_rounding_is_rounding_around_the_median_in_units_of_the_gain():
    weights, y = small_bottleneck()
    gain = np.exp(np.linspace(-1.0, 1.5, D))
    median = np.asarray(density.quantile(weights["density"], 0.5))
    y_hat, bits = bottleneck(weights, y, "hard")
    symbols = np.asarray(y_hat * gain - median)
    np.testing.assert_allclose(symbols, np.round(symbols), atol=1e-5)
    np.testing.assert_allclose(symbols, np.round(np.asarray(y) * gain - median), atol=1e-5)
    assert np.abs((y_hat - y) * gain).max() <= 0.5 + 1e-5
    expected = bin_bits(weights["density"], np.round(symbols) + median)
    np.testing.assert_allclose(bits, expected, **FLOAT32)


def test_training_noise_is_uniform_in_half_a_step_and_its_rate_is_that_of_the_noisy_latent():
    weights, y = small_bottleneck()
    gain = np.exp(np.linspace(-1.0, 1.5, D))
    y = np.zeros_like(y)
    y_hat, bits = bottleneck(weights, y, "noise", KEYS)
    noise = np.asarray((y_hat - y) * gain)
    assert -0.5 <= noise.min() < -0.49
    assert 0.49 < noise.max() <= 0.5
    np.testing.assert_allclose(noise.std(axis=(0, 1)), 1 / math.sqrt(12), rtol=0.05)
    np.testing.assert_allclose(bits, bin_bits(weights["density"], y_hat * gain), **FLOAT32)
    for rounding in ("straight-through", "soft"):
        other = bottleneck(weights, y, rounding, KEYS, 4.0)[1]
        np.testing.assert_array_equal(other, bits)
    other = bottleneck(weights, y, "noise", jax.random.split(jax.random.key(1), 40))[0]
    assert not np.array_equal(y_hat, other)


def test_straight_through_looks_like_hard_and_differentiates_like_the_identity():
    weights, y = small_bottleneck()
    seen = bottleneck(weights, y, "straight-through", KEYS, 4.0)[0]
    hard = bottleneck(weights, y, "hard")[0]
    np.testing.assert_allclose(seen, hard, **FLOAT32)
    direction = np.random.default_rng(5).normal(size=y.shape).astype(np.float32)

    def gradient(rounding):
        return jax.jit(
            jax.grad(lambda y: (bottleneck(weights, y, rounding, KEYS)[0] * direction).sum())
        )(y)

    np.testing.assert_allclose(gradient("straight-through"), direction, **ONE_ULP)
    assert not jnp.any(gradient("hard"))


def test_soft_bottleneck_is_soft_rounding_around_the_median():
    weights, y = small_bottleneck()
    gain, median = np.exp(weights["log_gain"]), density.quantile(weights["density"], 0.5)
    for alpha in (0.1, 4.0):
        seen = bottleneck(weights, y, "soft", KEYS, alpha)[0]
        expected = (soft_round(y * gain - median, alpha) + median) / gain
        np.testing.assert_allclose(seen, expected, **FLOAT32)


def test_the_rate_moves_latents_and_gains():
    weights, y = small_bottleneck()

    @jax.jit
    @jax.value_and_grad
    def rate(moved):
        gain, y = moved
        held = weights | {"log_gain": gain}
        return plain_bottleneck(held, y, "noise", KEYS)[1].mean()

    start = (weights["log_gain"], y)
    bits, grads = rate(start)
    assert all(np.isfinite(g).all() and np.any(g) for g in grads)
    # A step down the gradient is a cheaper code.
    step = tuple(x - 0.01 * np.asarray(g) for x, g in zip(start, grads, strict=True))
    assert rate(step)[0] < bits


def test_a_bottleneck_that_needs_randomness_asks_for_keys():
    with pytest.raises(ValueError, match="'noise' draws noise: pass keys"):
        bottleneck(*small_bottleneck(), "noise")


def test_losses_are_those_of_its_parts(bare_model: NecParams):
    config, weights = bare_model.config, bare_model.weights
    images = jnp.asarray(random_images(3, 2))
    keys = jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def losses(keys):
        return forward(config, weights, images, keys, mask_ratio=0.75, rounding="hard")

    @jax.jit
    def by_hand(keys):
        kept, masked = random_masking(jax.vmap(jax.random.split)(keys)[:, 0], 16, 0.75)
        patches = patchify(normalise(config, images), 16)
        y: Any = Encoder(config).apply({"params": weights["encoder"]}, patches, (4, 4), kept)
        y_hat, bits = bottleneck(weights["bottleneck"], y, "hard")
        out: Any = Decoder(config).apply({"params": weights["decoder"]}, y_hat, (4, 4), kept)
        error = (out - patches) ** 2
        return (error.mean(-1) * masked).sum() / masked.sum(), bits

    got, (mse, bits) = losses(keys), by_hand(keys)
    assert bits.shape == (2, 5, 48)
    np.testing.assert_allclose(got.mse, mse, **NETWORK)
    np.testing.assert_allclose(got.bits_per_element, bits.mean(), **NETWORK)
