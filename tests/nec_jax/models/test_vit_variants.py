"""One ViT for many: what each setting of the encoder does. Parity is in test_parity.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import FLOAT32, NETWORK, random_images, random_weights, tiny_config

from coder import InputError
from nec_jax import NecParams, calibrate, decode, embed, encode, latents, load, save
from nec_jax.models.nec import init_weights
from nec_jax.models.vit import Mlp
from nec_jax.models.weight_tree import Weights, path_name

IMAGES = random_images(0, 3)


def paths(config) -> set[str]:
    shapes = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
    return {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(shapes)}


@pytest.mark.parametrize(
    ("overrides", "added", "removed"),
    [
        ({"patch_bias": False}, set(), {"encoder/patch_embed/bias"}),
        ({"pre_norm": True}, {"encoder/pre_norm/scale", "encoder/pre_norm/bias"}, set()),
        (
            {"layer_scale": True},
            {f"encoder/block_{i}/scale{j}" for i in (0, 1) for j in (1, 2)},
            set(),
        ),
        ({"positions": "learned"}, {"encoder/positions"}, set()),
        ({"decoder_positions": "learned"}, {"decoder/stem/positions"}, set()),
        ({"registers": 2}, {"encoder/registers"}, set()),
        (
            {"class_token": False, "code_class_token": False},
            set(),
            {"encoder/class_token"},
        ),
        ({"activation": "quick-gelu", "epsilon": 1e-5}, set(), set()),
    ],
)
def test_each_setting_has_its_parameters_and_no_others(overrides, added, removed) -> None:
    plain = paths(tiny_config())
    assert paths(tiny_config(**overrides)) == (plain | added) - removed


def test_a_model_without_decoder_has_none() -> None:
    plain, bare = paths(tiny_config()), paths(tiny_config(decoder_target="none"))
    assert bare == {name for name in plain if not name.startswith("decoder/")}


def test_activations_are_what_they_are_called() -> None:
    x = jnp.linspace(-4, 4, 17)[:, None]
    ones = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}

    def of(name: str) -> Any:
        return Mlp(1, name).apply({"params": {"fc1": ones, "fc2": ones}}, x)

    np.testing.assert_allclose(of("quick-gelu"), x / (1 + np.exp(-1.702 * x)), **FLOAT32)
    cubic = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    np.testing.assert_allclose(of("gelu-tanh"), x * (1 + np.tanh(cubic)) / 2, **FLOAT32)
    assert not np.allclose(of("gelu"), of("gelu-tanh"), atol=1e-5)


def of_config(weights: Weights, **overrides: Any) -> np.ndarray:
    return latents(NecParams(weights, tiny_config(**overrides)), IMAGES)


def test_neutral_values_change_nothing() -> None:
    weights = random_weights(tiny_config())
    plain = of_config(weights)
    encoder = weights["encoder"]

    def with_(changes: Weights) -> Weights:
        return {**weights, "encoder": {**encoder, **changes}}

    blocks = {
        f"block_{i}": {**encoder[f"block_{i}"], "scale1": jnp.ones(48), "scale2": jnp.ones(48)}
        for i in (0, 1)
    }
    np.testing.assert_allclose(of_config(with_(blocks), layer_scale=True), plain, **NETWORK)
    none = {**encoder["patch_embed"], "bias": jnp.zeros(48)}
    bare = {"patch_embed": {"kernel": none["kernel"]}}
    np.testing.assert_allclose(
        of_config(with_(bare), patch_bias=False),
        of_config(with_({"patch_embed": none})),
        **NETWORK,
    )
    halves = {name: {**b, "scale2": jnp.zeros(48)} for name, b in blocks.items()}
    assert not np.allclose(of_config(with_(halves), layer_scale=True), plain, atol=0.1)


def test_registers_take_part_and_are_dropped() -> None:
    config = tiny_config(registers=3)
    weights = random_weights(config)
    y = latents(NecParams(weights, config), IMAGES)
    assert y.shape == (3, 17, 48)
    encoder = {**weights["encoder"], "registers": weights["encoder"]["registers"] + 5.0}
    assert not np.allclose(latents(NecParams({**weights, "encoder": encoder}, config), IMAGES), y)


def test_several_blocks_are_side_by_side_in_one_format(tmp_path) -> None:
    config = tiny_config(embedding_blocks=(1, 2))
    assert config.embedding_width == 96
    model = calibrate(NecParams(random_weights(config), config), random_images(1, 16))
    save(model, tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors")
    assert model.config.embedding_blocks == (1, 2)
    y = latents(model, IMAGES)
    assert y.shape == (3, 17, 96)
    last = NecParams(model.weights, tiny_config())
    weights = {"encoder": model.weights["encoder"], "bottleneck": None}
    np.testing.assert_allclose(
        y[..., 48:], latents(NecParams(weights, last.config), IMAGES), **NETWORK
    )
    blobs = encode(model, IMAGES)
    np.testing.assert_array_equal(decode(model, blobs), embed(model, IMAGES))


def test_learned_positions_fit_one_grid_only() -> None:
    config = tiny_config(positions="learned")
    params = NecParams(random_weights(config), config)
    assert latents(params, IMAGES).shape == (3, 17, 48)
    for side in (32, 80):
        with pytest.raises(InputError, match=f"images are {side} x {side}, .*for 64 x 64"):
            latents(params, random_images(0, 1, side))


def test_without_class_token() -> None:
    config = tiny_config(class_token=False, code_class_token=False)
    model = calibrate(NecParams(random_weights(config), config), random_images(1, 16))
    assert latents(model, IMAGES).shape == (3, 16, 48)
    np.testing.assert_array_equal(decode(model, encode(model, IMAGES)), embed(model, IMAGES))
