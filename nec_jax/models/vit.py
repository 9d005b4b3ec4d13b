"""The vision transformer: blocks, positions and the encoder (Dosovitskiy 2021, He 2022).

One encoder for MAE, CLIP (Radford 2021), DINOv2 (Oquab 2023) and related models: they differ in
data (`ModelConfig`), not in code.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Num

from coder.task_heads.head_layers import EPSILON, sincos_positions
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.dense_layer import FLOAT32, Dense


def patchify(images: Num[Array, "b h w c"], patch: int) -> Num[Array, "b t p"]:
    """Images -> their patches, row by row; p = patch * patch * c."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * c)


def unpatchify(
    patches: Num[Array, "b t p"], grid: tuple[int, int], patch: int
) -> Num[Array, "b h w c"]:
    """The inverse of `patchify`."""
    b, gh, gw = patches.shape[0], *grid
    x = patches.reshape(b, gh, gw, patch, patch, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, gh * patch, gw * patch, -1)


def layer_norm(name: str, epsilon: float = EPSILON) -> nn.LayerNorm:
    """A LayerNorm, by default with the epsilon of MAE."""
    # Not E[x^2] - E[x]^2: in float32 it is too imprecise for tokens with outlier channels.
    return nn.LayerNorm(epsilon=epsilon, name=name, use_fast_variance=False)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    heads: int
    precision: str = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:  # noqa: D102
        b, n, d = x.shape
        qkv = Dense(3 * d, precision=self.precision, name="qkv")(x)
        x = attend(qkv.reshape(b, n, 3, self.heads, d // self.heads), self.precision)
        return Dense(d, precision=self.precision, name="proj")(x.reshape(b, n, d))


def attend(qkv: Float[Array, "b n 3 heads d"], precision: str) -> Float[Array, "b n heads d"]:
    """Scaled dot-product attention.

    The softmax is float32 at any precision.
    """
    if precision == "bfloat16":
        return _attend_fused(qkv)
    matmul = functools.partial(jnp.matmul, precision=precision)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each [B, heads, N, D]
    logits = matmul(q * q.shape[-1] ** -0.5, k.swapaxes(-1, -2))
    # The softmax is normalised after the product with v, where there is less to divide.
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    x = matmul(weights, v) / jnp.sum(weights, axis=-1, keepdims=True)
    return x.transpose(0, 2, 1, 3)


def _attend_fused(qkv: Float[Array, "b n 3 heads d"]) -> Float[Array, "b n heads d"]:
    """`attend` by cuDNN's flash attention, for GPUs that support it."""
    if not _on_gpu() or qkv.shape[-1] % 8:
        return jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0), implementation="xla")
    b, n = qkv.shape[:2]
    even = jnp.pad(qkv, [(0, 0), (0, n % 2), (0, 0), (0, 0), (0, 0)])  # as its gradient needs it
    lengths = jnp.full(b, n, jnp.int32) if n % 2 else None
    return jax.nn.dot_product_attention(
        *jnp.moveaxis(even, 2, 0),
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )[:, :n]


def _on_gpu() -> bool:
    """Whether the traced program will run on a GPU: JAX's first device, or the user's default."""
    config: Any = jax.config
    chosen = config.jax_default_device
    platform = getattr(chosen, "platform", chosen) or jax.default_backend()
    return platform in ("gpu", "cuda")


class Mlp(nn.Module):
    """Two dense layers with an activation (see `ModelConfig`) between them."""

    hidden: int
    activation: str = "gelu"
    precision: str = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:  # noqa: D102
        h = Dense(self.hidden, precision=self.precision, name="fc1")(x)
        if self.activation == "quick-gelu":
            h = h * nn.sigmoid(1.702 * h)
        else:
            h = nn.gelu(h, approximate=self.activation == "gelu-tanh")
        return Dense(x.shape[-1], precision=self.precision, name="fc2")(h)


class Block(nn.Module):
    """A pre-norm transformer block: float32 [B, N, D] -> [B, N, D].

    The residual sums and the norms are float32 at any precision.
    """

    heads: int
    mlp_ratio: int = 4
    activation: str = "gelu"
    epsilon: float = EPSILON
    layer_scale: bool = False
    precision: str = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:  # noqa: D102
        def scaled(part: jax.Array, name: str) -> jax.Array:
            if not self.layer_scale:
                return part
            return part * self.param(name, nn.initializers.ones, (x.shape[-1],), jnp.float32)

        h = layer_norm("norm1", self.epsilon)(x)
        x = x + scaled(Attention(self.heads, self.precision, name="attn")(h), "scale1")
        h = layer_norm("norm2", self.epsilon)(x)
        mlp = Mlp(self.mlp_ratio * x.shape[-1], self.activation, self.precision, name="mlp")
        return x + scaled(mlp(h), "scale2")


class Encoder(nn.Module):
    """Patches -> tokens, class token first; or only some of the blocks (`start`, `stop`)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        grid: tuple[int, int],
        kept: Int32[Array, "b k"] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Float[Array, "b m e"]:
        """Encode all patches, or those that masking keeps.

        Args:
          x: float32 [B, T, patch_dim], all normalised patches of the grid; or, if `start` is not 0,
            the result of a call with `stop=start`.
          grid: height and width of the grid, T = height * width.
          kept: int32 [B, K], indices of the visible patches; None for all.
          start: number of blocks that `x` has passed, at most the first of `embedding_blocks`.
          stop: number of blocks after which to stop; None for all, and the final norm.

        Returns:
          float32 [B, (1 +) K, embedding_width], after the final norm; with `stop`
          [B, (1 +) registers + K, width].
        """
        c = self.config
        passed = [x if start else self._tokens(x, grid, kept)]  # the tokens after each block
        settings = c.heads, c.mlp_ratio, c.activation, c.epsilon, c.layer_scale, c.precision
        for i in range(start, c.depth if stop is None else stop):
            passed.append(Block(*settings, name=f"block_{i}")(passed[-1]))
        if stop is not None:
            return passed[-1]
        norm = layer_norm("norm", c.epsilon)
        taken = [norm(passed[block - start]) for block in c.embedding_blocks or (c.depth,)]
        y = jnp.concatenate(taken, axis=-1)
        first = int(c.class_token)
        return jnp.delete(y, slice(first, first + c.registers), axis=1) if c.registers else y

    def _tokens(
        self,
        patches: Float[Array, "b t p"],
        grid: tuple[int, int],
        kept: Int32[Array, "b k"] | None,
    ) -> Float[Array, "b n d"]:
        c = self.config
        if c.positions == "learned":
            side = c.image_size // c.patch
            init = nn.initializers.normal(0.02)
            positions = self.param("positions", init, (side * side, c.width), jnp.float32)
        else:
            positions = jnp.asarray(sincos_positions(grid, c.width))
        if kept is not None:
            patches = jnp.take_along_axis(patches, kept[..., None], axis=1)
            positions = positions[kept]
        embed = Dense(c.width, c.patch_bias, precision=c.precision, name="patch_embed")
        x = embed(patches) + positions
        # The class token has no position here: a checkpoint's is added to the token on import.
        extra = [("class_token", int(c.class_token)), ("registers", c.registers)]
        for name, count in reversed(extra):
            if count:
                shape = (c.width,) if name == "class_token" else (count, c.width)
                token = self.param(name, nn.initializers.normal(0.02), shape, jnp.float32)
                token = jnp.broadcast_to(token, (x.shape[0], count, c.width))
                x = jnp.concatenate([token, x], axis=1)
        return layer_norm("pre_norm", c.epsilon)(x) if c.pre_norm else x
