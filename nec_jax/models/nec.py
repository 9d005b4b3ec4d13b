"""Neural embedding compression: encoder, bottleneck and decoder, as one model.

Gomes and Brunschwiler 2024 (arXiv 2403.17886). The latent is the encoder's normalised output y,
class token included; the bottleneck multiplies each channel by a gain, z = g * y, and rounds
around the median m of the channel's density: q = round(z - m), z_hat = q + m, y_hat = z_hat / g.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key, Num

from coder import InputError
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.bottleneck import Bottleneck, Rounding, bottleneck
from nec_jax.models.mae import Decoder, FeatureScale, masked_mse, pixel_targets, random_masking
from nec_jax.models.vit import Encoder, patchify
from nec_jax.models.weight_tree import Weights, merge


class Losses(NamedTuple):
    """The scalars that a forward pass measures."""

    mse: Float[Array, ""]  # of hidden patches, or of features: see `distortion`
    bits_per_element: Float[Array, ""]  # under the density, an element = one channel of one token


class Nec(nn.Module):
    """The whole model, as `init_weights` makes it; the functions below apply its parts."""

    config: ModelConfig

    @nn.compact
    def __call__(self, images: Num[Array, "b h w c"]) -> None:
        """Use every parameter once."""
        c, grid = self.config, grid_of(self.config, images)
        y = coded(c, Encoder(c, name="encoder")(patches(c, images), grid))
        Bottleneck(c.embedding_width, name="bottleneck")()
        if c.decoder_target != "none":
            Decoder(c, name="decoder")(y, grid)


def normalise(config: ModelConfig, images: Num[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Input units -> zero mean and unit variance per band, float32."""
    mean, std = jnp.asarray(config.mean, jnp.float32), jnp.asarray(config.std, jnp.float32)
    return (images.astype(jnp.float32) - mean) / std


def patches(config: ModelConfig, images: Num[Array, "b h w c"]) -> Float[Array, "b t p"]:
    """Images [B, H, W, C] in input units -> their normalised patches [B, T, patch_dim]."""
    return patchify(normalise(config, images), config.patch)


def coded(config: ModelConfig, tokens: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
    """The encoder's tokens without the class token, if that is not coded."""
    return tokens[:, int(config.class_token) - int(config.code_class_token) :]


# Jitted as one program: eagerly, Flax would compile and run the model operation by operation.
@functools.partial(jax.jit, static_argnames="config")
def init_weights(config: ModelConfig, key: Key[Array, ""]) -> Weights:
    """Fresh weights: {"encoder": ..., "bottleneck": ..., "decoder": ...} (see `Weights`)."""
    shape = (1, config.image_size, config.image_size, config.channels)
    variables: Any = Nec(config).init(key, jnp.zeros(shape, jnp.float32))
    return variables["params"]


def forward(
    config: ModelConfig,
    weights: Weights,
    images: Num[Array, " b *image"],
    keys: Key[Array, " b"],
    *,
    mask_ratio: float,
    rounding: Rounding | None,
    alpha: Float[Array, ""] | float = 1.0,
    start: int = 0,
) -> Losses:
    """Mask, encode, quantise, decode and compare.

    Args:
      images: [B, H, W, C] in input units; or the result of `prefix` for images of `image_size`.
      keys: random keys of masks and noise [B], one per image, so that the draws of an image do not
        depend on the batch.
      mask_ratio: part of the patches to hide.
      rounding, alpha: see `bottleneck`. With rounding None there is no bottleneck and no rate, as
        in a plain MAE.
      start: number of blocks that the input has passed (`prefix`). Above 0, patches can no longer
        be hidden, and only features can be compared.
    """
    mask_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    grid = grid_of(config, images, start)
    # A masked input has no grid to transform: with a transform, tokens are hidden after it.
    whole = rounding is not None and "transform" in weights["bottleneck"]
    ratio = 0.0 if whole else mask_ratio
    y, kept, masked = masked_latents(config, weights, images, mask_keys, ratio, start)
    bits = jnp.zeros((), jnp.float32)
    if rounding is not None:
        y, bits = bottleneck(weights["bottleneck"], y, rounding, noise_keys, alpha, grid)
    if whole and mask_ratio:
        kept, masked = random_masking(mask_keys, grid[0] * grid[1], mask_ratio)
        y = visible(y, kept, grid)
    goal = targets(config, weights, images, start)
    mse = distortion(config, weights, y, goal, grid, kept, masked)
    return Losses(mse, jnp.mean(bits))


def visible(
    y: Float[Array, "b n d"], kept: Int32[Array, "b k"], grid: tuple[int, int]
) -> Float[Array, "b m d"]:
    """Tokens [B, (1 +) T, D] of a whole grid -> the class token and the kept tokens [B, K]."""
    tokens = grid[0] * grid[1]
    first, places = y[:, :-tokens], y[:, -tokens:]
    return jnp.concatenate([first, jnp.take_along_axis(places, kept[..., None], axis=1)], axis=1)


def masked_latents(
    config: ModelConfig,
    weights: Weights,
    images: Num[Array, " b *image"],
    keys: Key[Array, " b"],
    mask_ratio: float,
    start: int = 0,
) -> tuple[Float[Array, "b n d"], Int32[Array, "b k"] | None, Float[Array, "b t"]]:
    """The latents of randomly masked images, and the `kept` and `masked` of `random_masking`.

    At a ratio of 0 all tokens stay in their order, and `kept` is None.
    """
    grid = grid_of(config, images, start)
    if mask_ratio == 0:
        nothing = jnp.zeros((images.shape[0], grid[0] * grid[1]), jnp.float32)
        return latents(config, weights, images, start=start), None, nothing
    if start:
        raise InputError("patches are hidden before the first block: the mask ratio must be 0")
    kept, masked = random_masking(keys, grid[0] * grid[1], mask_ratio)
    return latents(config, weights, images, kept), kept, masked


def grid_of(config: ModelConfig, images: Any, start: int = 0) -> tuple[int, int]:
    """The token grid of images [B, H, W, C]; with `start`, the grid of `image_size`."""
    size = (config.image_size, config.image_size) if start else images.shape[1:3]
    return config.grid(*size)


def targets(
    config: ModelConfig, weights: Weights, images: Num[Array, " b *image"], start: int = 0
) -> Float[Array, "b n e"]:
    """The targets of the decoder for images [B, H, W, C].

    Pixels: patches [B, T, patch_dim] (see `pixel_targets`). Features: the teacher's embedding of
    the whole image, [B, (1 +) T, D], in standard deviations; the teacher's weights never change.
    """
    if config.decoder_target == "none":
        raise InputError(
            "this model has no decoder, so nothing measures its distortion: train one (nec "
            "pretrain --init MODEL --trainable decoder), or pass --proxy features"
        )
    if config.decoder_target != "features":
        if start:
            raise InputError("pixels cannot be compared where only the tokens of blocks are given")
        return pixel_targets(config, patches(config, images))
    if "teacher" not in weights:
        raise InputError('features are compared with a teacher\'s: weights need "teacher"')
    teacher = {"encoder": merge(weights["teacher"], weights["encoder"])}
    y = jax.lax.stop_gradient(latents(config, teacher, images, start=start))
    scale = FeatureScale(config.embedding_width)
    return jnp.asarray(scale.apply({"params": weights["decoder"]["target"]}, y))


def distortion(
    config: ModelConfig,
    weights: Weights,
    y_hat: Float[Array, "b n d"],
    goal: Float[Array, "b m e"],
    grid: tuple[int, int],
    kept: Int32[Array, "b k"] | None,
    masked: Float[Array, "b t"],
) -> Float[Array, ""]:
    """Mean squared error of the decoder's prediction from y_hat: a scalar.

    Pixels: over the hidden patches, as in MAE, or over all if none is hidden. Features: over all
    tokens and channels, hidden or not.
    """
    predicted = reconstruct(config, weights, y_hat, grid, kept)
    if config.decoder_target == "features":
        return jnp.mean((predicted - goal) ** 2)
    return masked_mse(predicted, goal, masked)


def latents(
    config: ModelConfig,
    weights: Weights,
    images: Num[Array, " b *image"],
    kept: Int32[Array, "b k"] | None = None,
    start: int = 0,
) -> Float[Array, "b n d"]:
    """Images [B, H, W, C] in input units -> y [B, (1 +) T, D], the tokens that are coded.

    With `start`, pass the result of `prefix` in place of images.
    """
    x = images.astype(jnp.float32) if start else patches(config, images)
    grid = grid_of(config, images, start)
    y: Any = Encoder(config).apply({"params": weights["encoder"]}, x, grid, kept, start)
    return coded(config, y)


def prefix(
    config: ModelConfig, weights: Weights, images: Num[Array, "b h w c"], stop: int
) -> Float[Array, "b n d"]:
    """Images [B, H, W, C] -> all tokens after `stop` blocks, [B, n, width]."""
    x, grid = patches(config, images), grid_of(config, images)
    tokens: Any = Encoder(config).apply({"params": weights["encoder"]}, x, grid, stop=stop)
    return tokens


def reconstruct(
    config: ModelConfig,
    weights: Weights,
    tokens: Float[Array, "b n d"],
    grid: tuple[int, int],
    kept: Int32[Array, "b k"] | None = None,
) -> Float[Array, "b m e"]:
    """Decoded tokens of whole or masked images -> the prediction of `Decoder`."""
    predicted: Any = Decoder(config).apply({"params": weights["decoder"]}, tokens, grid, kept)
    return predicted
