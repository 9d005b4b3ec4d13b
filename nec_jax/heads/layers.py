"""The layers of the heads: attention pooling and the convolutional segmenter (arXiv 2403.17886)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from nec_jax.models.vit import Mlp, layer_norm

_INIT = nn.initializers.xavier_uniform()


class _Projection(nn.Module):
    """The kernel [D, D] and bias [D] of a dense layer that is never applied as such."""

    width: int

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "d d"], Float[Array, " d"]]:
        kernel = self.param("kernel", _INIT, (self.width, self.width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        return kernel, bias


class AttentionPool(nn.Module):
    """Attention of one learned query over the tokens.

    The layer and its parameters are timm's AttentionPoolLatent: x = proj(attention(q(latent),
    k(y), v(y))), then x + mlp(norm(x)). With a single query both projections of the tokens
    collapse, exactly, so that a token costs 2 D `heads` products instead of 2 D^2:

        logits:  q_h . (W_k,h y_t + b_k,h) = (W_k,h^T q_h) . y_t + a constant in t
        values:  sum_t a_t (W_v,h y_t + b_v,h) = W_v,h (sum_t a_t y_t) + b_v,h
    """

    heads: int
    mlp_ratio: int = 4

    @nn.compact
    def __call__(self, y: Float[Array, "b t d"]) -> Float[Array, "b d"]:  # noqa: D102
        b, _, d = y.shape
        split = (d, self.heads, d // self.heads)
        init = nn.initializers.truncated_normal(d**-0.5)
        latent = self.param("latent", init, (d,), jnp.float32)
        query = nn.Dense(d, name="q", kernel_init=_INIT)(latent).reshape(split[1:])
        # The bias of the keys shifts all logits alike, which softmax ignores; kept for its
        # place in the layer's parameters.
        key_kernel, _ = _Projection(d, name="k")()
        value_kernel, value_bias = _Projection(d, name="v")()
        direction = jnp.einsum("dhe,he->dh", key_kernel.reshape(split), query) * split[2] ** -0.5
        attention = jax.nn.softmax(y @ direction, axis=1)
        pooled = jnp.einsum("bth,btd->bhd", attention, y)
        x = jnp.einsum("bhd,dhe->bhe", pooled, value_kernel.reshape(split)).reshape(b, d)
        x = nn.Dense(d, name="proj", kernel_init=_INIT)(x + value_bias)
        return x + Mlp(self.mlp_ratio * d, name="mlp")(layer_norm("norm")(x))


def pixel_shuffle(x: Num[Array, "b h w c"]) -> Num[Array, "b h*2 w*2 c//4"]:
    """Four channels become 2 x 2 pixels (Shi 2016)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


class ConvSegmenter(nn.Module):
    """Token grids to logits at four times their resolution.

    A 3x3 convolution to half the channels, six residual blocks with a skip around them all, two
    pixel-shuffle stages, and an FCN head (3x3, norm, 1x1). Each stage halves the channels, so that
    all stages cost the same. Norms are over the channels of a position: a prediction depends on no
    other image and on no running statistics.
    """

    classes: int

    @nn.compact
    def __call__(self, y: Float[Array, "b h w d"]) -> Float[Array, "b h*4 w*4 k"]:  # noqa: D102
        def conv(features: int, name: str) -> nn.Conv:
            return nn.Conv(features, (3, 3), name=name, kernel_init=nn.initializers.he_normal())

        width = y.shape[-1] // 2
        start = x = nn.relu(layer_norm("norm_in")(conv(width, "conv_in")(y)))
        for i in range(6):
            h = nn.relu(layer_norm(f"norm_{i}a")(conv(width, f"conv_{i}a")(x)))
            x = nn.relu(x + layer_norm(f"norm_{i}b")(conv(width, f"conv_{i}b")(h)))
        x = x + start
        for i in range(2):
            width = max(1, width // 2)
            x = nn.relu(pixel_shuffle(conv(4 * width, f"up_{i}")(x)))
        x = nn.relu(layer_norm("norm_out")(conv(width, "conv_out")(x)))
        return nn.Dense(self.classes, name="classifier", kernel_init=_INIT)(x)


class Head(nn.Module):
    """Grid tokens [B, T, D] -> logits: [B, K]; for masks [B, h, w, K], or [B, 4h, 4w, K]."""

    kind: str
    classes: int
    grid: tuple[int, int]
    heads: int
    mlp_ratio: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "b t d"]) -> Float[Array, " b *place k"]:  # noqa: D102
        if self.kind == "conv":
            grid = tokens.reshape(len(tokens), *self.grid, -1)
            return ConvSegmenter(self.classes, name="segmenter")(grid)
        if self.kind == "attention":
            pooled = AttentionPool(self.heads, self.mlp_ratio, name="pool")(tokens)
        elif self.kind == "token-linear":
            pooled = tokens.reshape(len(tokens), *self.grid, -1)
        else:
            pooled = tokens.mean(axis=1)
        return nn.Dense(self.classes, name="classifier", kernel_init=_INIT)(pooled)
