"""Models, images and tolerances that the model's tests share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nec_jax import ModelConfig, NecParams, latents, model_config
from nec_jax.models import density
from nec_jax.models.nec import init_weights
from nec_jax.models.weight_tree import Weights, path_name

# Every tolerance of the model's tests.
FLOAT32: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}  # one expression, computed in another order
NETWORK: dict[str, Any] = {
    "rtol": 1e-3,
    "atol": 1e-4,
}  # a whole network, compiled to another program
ONE_ULP: dict[str, Any] = {"rtol": 2.5e-7, "atol": 2.5e-7}
TIES = 1e-3  # of all values may round differently in another program

TINY = {
    "depth": 2,
    "width": 48,
    "heads": 3,
    "decoder_width": 32,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "image_size": 64,
}


def tiny_config(**overrides: Any) -> ModelConfig:
    """Two blocks of width 48, decoder of width 32, 64 px in patches of 16: a grid of 4 x 4."""
    return model_config("vit-ti", **(TINY | overrides))


def random_images(seed: int, count: int, side: int = 64, channels: int = 3) -> NDArray[np.uint8]:
    """[count, side, side, channels]: blobs of random colour and noise, each image its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (count, side // 8, side // 8, channels))
    smooth = coarse.repeat(8, axis=1).repeat(8, axis=2)
    return (smooth + rng.integers(0, 56, smooth.shape)).astype(np.uint8)


CALIBRATION_IMAGES = random_images(7, 64)


def filled(shapes: Any, seed: int = 0) -> Any:
    """Random weights for a tree of shapes, from NumPy: compiling flax's initialisers takes long."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name, noise = path_name(path), rng.normal(size=leaf.shape)
        if name.endswith("kernel"):
            noise /= np.sqrt(leaf.shape[0])
        elif name.endswith("scale"):
            noise = 1 + 0.1 * noise
        else:
            noise *= 0.1
        return jnp.asarray(noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """`init_weights` in the blink of an eye; biases and class token are not zero."""
    return filled(jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0)), seed)


def pretrained(config: ModelConfig, images: NDArray, seed: int = 0) -> NecParams:
    """A model whose densities fit the latents of `images`, with unequal gains; no codec."""
    weights = random_weights(config, seed)
    y = latents(NecParams(weights, config), images).reshape(-1, config.width)
    gain = np.linspace(1.0, 6.0, config.width).astype(np.float32)
    fresh = density.init_density(jax.random.key(seed), config.width)
    held = {
        "log_gain": jnp.log(gain),
        "density": jax.jit(density.match_moments)(fresh, y.mean(0) * gain, y.std(0) * gain),
    }
    return NecParams(weights | {"bottleneck": held}, config)
