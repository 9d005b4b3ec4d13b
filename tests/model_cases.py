"""Models, images and tolerances that the model's tests share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nec_jax import ModelConfig, NecParams, density, latents, model_config
from nec_jax.nec import init_weights

# Every tolerance of the model's tests.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}  # one expression, computed in another order
NETWORK = {"rtol": 1e-3, "atol": 1e-4}  # a whole network, compiled to another program
ONE_ULP = {"rtol": 2.5e-7, "atol": 2.5e-7}
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


def pretrained(config: ModelConfig, seed: int = 0) -> NecParams:
    """Random weights whose densities match the latents and whose gains differ; no codec."""
    params = NecParams(init_weights(config, jax.random.key(seed)), config)
    images = np.moveaxis(random_images(seed + 1, 8 * config.channels, config.image_size, 1), -1, 0)
    images = images.reshape(8, config.channels, *images.shape[2:]).transpose(0, 2, 3, 1)
    y = latents(params, images.astype(config.dtype)).reshape(-1, config.width)
    gain = np.linspace(1.0, 6.0, config.width).astype(np.float32)
    held = {
        "log_gain": jnp.log(gain),
        "density": density.match_moments(
            params.weights["bottleneck"]["density"],
            jnp.asarray(y.mean(0) * gain),
            jnp.asarray(y.std(0) * gain),
        ),
    }
    return NecParams(params.weights | {"bottleneck": held}, config)
