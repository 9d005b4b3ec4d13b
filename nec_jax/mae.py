"""The masked autoencoder's other half: random masking, decoder and loss (He 2022)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from coder import InputError
from nec_jax.config import ModelConfig
from nec_jax.vit import Block, layer_norm, sincos_positions


def random_masking(
    key: jax.Array, batch: int, tokens: int, ratio: float
) -> tuple[jax.Array, jax.Array]:
    """Choose the visible patches of each image, uniformly without replacement.

    Args:
      key: randomness.
      ratio: part of the patches to hide, 0 <= ratio < 1; `int(tokens * (1 - ratio))` are kept.

    Returns:
      kept: int32 [batch, K], indices of the visible patches, in random order as in MAE.
      masked: float32 [batch, tokens], 1 where a patch is hidden.
    """
    count = int(tokens * (1 - ratio))
    if not 0 < count <= tokens:
        raise InputError(f"mask ratio {ratio} keeps {count} of {tokens} tokens: keep one at least")
    order = jnp.argsort(jax.random.uniform(key, (batch, tokens)), axis=1)
    kept = order[:, :count]
    masked = jnp.ones((batch, tokens)).at[jnp.arange(batch)[:, None], kept].set(0.0)
    return kept, masked


class DecoderStem(nn.Module):
    """Tokens of the encoder -> the decoder's width, at their places in the grid.

    Hidden patches become the mask token. Heads use this part and the first block as well.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array, grid: tuple[int, int], kept: jax.Array | None = None
    ) -> jax.Array:
        """[B, (1 +) K, width] -> [B, (1 +) T, decoder_width]; see `Encoder` for `kept`."""
        c = self.config
        dense = nn.Dense(
            c.decoder_width, name="embed", kernel_init=nn.initializers.xavier_uniform()
        )
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (c.decoder_width,))
        x = dense(tokens)
        start = 1 if c.code_class_token else 0
        head, x = x[:, :start], x[:, start:]
        if kept is not None:
            b, t = x.shape[0], grid[0] * grid[1]
            full = jnp.broadcast_to(mask_token, (b, t, c.decoder_width))
            x = full.at[jnp.arange(b)[:, None], kept].set(x)
        x = x + sincos_positions(grid, c.decoder_width)
        return jnp.concatenate([head, x], axis=1)


class Decoder(nn.Module):
    """Decoded tokens -> pixels of every patch."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array, grid: tuple[int, int], kept: jax.Array | None = None
    ) -> jax.Array:
        """[B, (1 +) K, width] -> float32 [B, T, patch_dim], normalised pixels."""
        c = self.config
        x = DecoderStem(c, name="stem")(tokens, grid, kept)
        for i in range(c.decoder_depth):
            x = Block(c.decoder_heads, c.mlp_ratio, name=f"block_{i}")(x)
        x = layer_norm("norm")(x)[:, 1 if c.code_class_token else 0 :]
        return nn.Dense(c.patch_dim, name="pred", kernel_init=nn.initializers.xavier_uniform())(x)


def masked_mse(predicted: jax.Array, patches: jax.Array, masked: jax.Array) -> jax.Array:
    """Mean squared error over hidden patches (over all of them when none is hidden).

    Patches are [B, T, patch_dim] normalised pixels, not normalised further (the paper's setting).
    """
    per_patch = jnp.mean((predicted - patches) ** 2, axis=-1)
    weight = jnp.where(jnp.sum(masked) > 0, masked, jnp.ones_like(masked))
    return jnp.sum(per_patch * weight) / jnp.sum(weight)
