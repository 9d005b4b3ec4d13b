"""The masked autoencoder's other half: random masking, decoder and loss (He 2022)."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key

from coder import InputError
from coder.task_heads.head_layers import sincos_positions
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.dense_layer import Dense
from nec_jax.models.vit import Block, layer_norm


def random_masking(
    keys: Key[Array, " b"], tokens: int, ratio: float
) -> tuple[Int32[Array, "b k"], Float[Array, "b {tokens}"]]:
    """Choose the visible patches of each image, uniformly without replacement.

    Args:
      keys: random keys [B], one per image.
      ratio: part of the patches to hide, 0 <= ratio < 1; `int(tokens * (1 - ratio))` are kept.

    Returns:
      kept: int32 [B, K], indices of the visible patches, in random order, as in MAE.
      masked: float32 [B, tokens], 1 where a patch is hidden.
    """
    count = int(tokens * (1 - ratio))
    if not 0 < count <= tokens:
        raise InputError(f"mask ratio {ratio} keeps {count} of {tokens} tokens: keep at least one")
    draw = functools.partial(jax.random.uniform, shape=(tokens,), dtype=jnp.float32)
    kept = jnp.argsort(jax.vmap(draw)(keys), axis=1)[:, :count].astype(jnp.int32)
    images = jnp.arange(len(keys))[:, None]
    masked = jnp.ones((len(keys), tokens), jnp.float32).at[images, kept].set(0.0)
    return kept, masked


def place(
    tokens: Float[Array, "b n d"], kept: Int32[Array, "b k"], count: int, filler: Float[Array, " d"]
) -> Float[Array, "b m d"]:
    """Put tokens [B, (1 +) K, D] in their places in [B, (1 +) count, D], `filler` [D] elsewhere."""
    b, n, d = tokens.shape
    first = n - kept.shape[1]  # the class token stays where it is
    full = jnp.broadcast_to(filler, (b, count, d))
    full = full.at[jnp.arange(b)[:, None], kept].set(tokens[:, first:])
    return jnp.concatenate([tokens[:, :first], full], axis=1)


class DecoderStem(nn.Module):
    """Project encoder tokens to the decoder's width, at their places in the grid.

    Hidden patches become the mask token. Heads `with_decoder` use this part and the first block.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n d"],
        grid: tuple[int, int],
        kept: Int32[Array, "b k"] | None = None,
    ) -> Float[Array, "b m e"]:
        """[B, (1 +) K, embedding_width] -> [B, (1 +) T, decoder_width]; `kept` as in `Encoder`."""
        c = self.config
        init, start, count = nn.initializers.normal(0.02), int(c.code_class_token), math.prod(grid)
        mask_token = self.param("mask_token", init, (c.decoder_width,), jnp.float32)
        x = Dense(c.decoder_width, precision=c.precision, name="embed")(tokens)
        if kept is not None:
            x = place(x, kept, count, mask_token)
        if c.decoder_positions == "learned":
            shape = (start + count, c.decoder_width)
            return x + self.param("positions", init, shape, jnp.float32)
        return x + np.pad(sincos_positions(grid, c.decoder_width), [(start, 0), (0, 0)])


class Decoder(nn.Module):
    """Decoded tokens -> the prediction that `config.decoder_target` names."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n d"],
        grid: tuple[int, int],
        kept: Int32[Array, "b k"] | None = None,
    ) -> Float[Array, "b m e"]:
        """Tokens [B, (1 +) K, embedding_width] of whole or masked images -> float32 predictions.

        Returns:
          Pixels [B, T, patch_dim], normalised as the target; or features
          [B, (1 +) T, embedding_width], in units of their standard deviations.
        """
        c = self.config
        x = DecoderStem(c, name="stem")(tokens, grid, kept)
        block = functools.partial(
            Block, c.decoder_heads, c.mlp_ratio, epsilon=c.epsilon, precision=c.precision
        )
        for i in range(c.decoder_depth):
            x = block(name=f"block_{i}")(x)
        x = layer_norm("norm", c.epsilon)(x)
        if c.decoder_target == "features":
            # Starts as the identity: the prediction is the decoded embedding plus a correction.
            skip = FeatureScale(c.embedding_width, name="target")(tokens)
            if kept is not None:
                skip = place(skip, kept, math.prod(grid), jnp.zeros(c.embedding_width, jnp.float32))
            zeros = nn.initializers.zeros
            pred = Dense(c.embedding_width, kernel_init=zeros, precision=c.precision, name="pred")
            return skip + pred(x)
        pred = Dense(c.patch_dim, precision=c.precision, name="pred")
        return pred(x[:, int(c.code_class_token) :]).astype(jnp.float32)


class FeatureScale(nn.Module):
    """Standardise embeddings by constants: mean and deviation of each channel of the target."""

    channels: int

    @nn.compact
    def __call__(self, y: Float[Array, "b n d"]) -> Float[Array, "b n d"]:  # noqa: D102
        mean = self.param("mean", nn.initializers.zeros, (self.channels,), jnp.float32)
        std = self.param("std", nn.initializers.ones, (self.channels,), jnp.float32)
        # Constants of the data, which no optimiser may change.
        return (y - jax.lax.stop_gradient(mean)) / jax.lax.stop_gradient(std)


def pixel_targets(config: ModelConfig, patches: Float[Array, "b t p"]) -> Float[Array, "b t p"]:
    """Patches [B, T, patch_dim], normalised by band -> the target of a decoder of pixels.

    `normalised-pixels`: each patch minus its mean, over its deviation, as MAE's norm_pix_loss (He
    2022, table 1d; the variance is the unbiased one, plus 1e-6).
    """
    if config.decoder_target != "normalised-pixels":
        return patches
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    return (patches - mean) / jnp.sqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + 1e-6)


def masked_mse(
    predicted: Float[Array, "b t p"], targets: Float[Array, "b t p"], masked: Float[Array, "b t"]
) -> Float[Array, ""]:
    """Mean squared error over hidden patches (over all of them when none is hidden).

    Both are [B, T, patch_dim], `masked` [B, T] is 1 where a patch is hidden.
    """
    per_patch = jnp.mean((predicted - targets) ** 2, axis=-1)
    weight = jnp.where(jnp.sum(masked) > 0, masked, jnp.ones_like(masked))
    return jnp.sum(per_patch * weight) / jnp.sum(weight)
