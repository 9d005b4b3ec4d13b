"""The layers of heads in NumPy: float32 arrays, and weights by the paths that files name.

They compute what `nec_jax.heads.layers` and the blocks of `nec_jax.models.vit` compute. `Weights`
are all tensors of a head; `name` is the path of a layer in it, such as "head/pool/norm".
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Weights = Mapping[str, Floats]
EPSILON = 1e-6  # of LayerNorms, as in MAE


def sincos_positions(grid: tuple[int, int], width: int) -> Floats:
    """Fixed 2-d sin-cos position embedding of a token grid.

    Half of the channels encode the column and half the row, each as sines, then cosines, of
    geometrically spaced frequencies (He 2022, as released: column first).

    Returns:
      float32 [grid_h * grid_w, width].
    """
    frequencies = 1.0 / 10000.0 ** (np.arange(width // 4) / (width / 4))
    rows, cols = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [np.outer(axis.reshape(-1), frequencies) for axis in (cols, rows)]
    parts = [f(a) for a in angles for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def dense(weights: Weights, name: str, x: Floats) -> Floats:
    """[..., i] -> [..., o]."""
    return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]


def layer_norm(weights: Weights, name: str, x: Floats, epsilon: float = EPSILON) -> Floats:
    """Normalise over the last axis."""
    x = x - x.mean(-1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(epsilon))
    return x * weights[f"{name}/scale"] + weights[f"{name}/bias"]


def softmax(x: Floats, axis: int) -> Floats:
    """Probabilities along an axis."""
    x = np.exp(x - x.max(axis, keepdims=True))
    x /= x.sum(axis, keepdims=True)
    return x


def gelu(x: Floats) -> Floats:
    """The exact GELU, x times the normal distribution function."""
    half = np.float32(0.5)
    return half * x * (1 + erf(np.sqrt(half) * x))


def erf(x: Floats) -> Floats:
    """The error function, to 5e-7 (Abramowitz and Stegun 1964, 7.1.26)."""
    size = np.minimum(np.abs(x), 6)  # from where on it is 1 in float32
    t = 1 / (1 + np.float32(0.3275911) * size)
    series = np.zeros_like(x)
    for a in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(a)) * t
    return np.copysign(1 - series * np.exp(-size * size), x)


def mlp(weights: Weights, name: str, x: Floats) -> Floats:
    """Two dense layers with a GELU between them."""
    return dense(weights, f"{name}/fc2", gelu(dense(weights, f"{name}/fc1", x)))


def block(weights: Weights, name: str, x: Floats, heads: int, epsilon: float) -> Floats:
    """A pre-norm transformer block: [B, n, D] -> [B, n, D]."""
    b, n, d = x.shape
    qkv = dense(weights, f"{name}/attn/qkv", layer_norm(weights, f"{name}/norm1", x, epsilon))
    q, k, v = qkv.reshape(b, n, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
    attention = softmax(q * np.float32((d // heads) ** -0.5) @ k.swapaxes(2, 3), axis=-1)
    attended = (attention @ v).transpose(0, 2, 1, 3).reshape(b, n, d)
    x = x + dense(weights, f"{name}/attn/proj", attended)
    return x + mlp(weights, f"{name}/mlp", layer_norm(weights, f"{name}/norm2", x, epsilon))


def attention_pool(weights: Weights, name: str, y: Floats, heads: int) -> Floats:
    """Attention of one learned query over the tokens: [B, t, D] -> [B, D].

    With a single query the projections of the tokens collapse: see `nec_jax.heads.layers`.
    """
    b, _, d = y.shape
    split = (d, heads, d // heads)
    query = dense(weights, f"{name}/q", weights[f"{name}/latent"]).reshape(split[1:])
    keys, values = (weights[f"{name}/{part}/kernel"].reshape(split) for part in "kv")
    direction = np.einsum("dhe,he->dh", keys, query) * np.float32(split[2] ** -0.5)
    attention = softmax(y @ direction, axis=1)
    pooled = attention.swapaxes(1, 2) @ y  # [B, heads, D]
    x = np.einsum("bhd,dhe->bhe", pooled, values, optimize=True).reshape(b, d)
    x = dense(weights, f"{name}/proj", x + weights[f"{name}/v/bias"])
    return x + mlp(weights, f"{name}/mlp", layer_norm(weights, f"{name}/norm", x))


def segmenter(weights: Weights, name: str, y: Floats) -> Floats:
    """Token grids [B, h, w, D] -> features [B, 4 h, 4 w, D / 8]; see `nec_jax.heads.layers`."""

    def conv(x: Floats, place: str) -> Floats:
        return convolution(weights, f"{name}/{place}", x)

    def normed(x: Floats, place: str) -> Floats:
        return layer_norm(weights, f"{name}/norm_{place}", conv(x, f"conv_{place}"))

    start = x = relu(normed(y, "in"))
    for i in range(6):
        x = relu(x + normed(relu(normed(x, f"{i}a")), f"{i}b"))
    x = x + start
    for i in range(2):
        x = relu(pixel_shuffle(conv(x, f"up_{i}")))
    return relu(normed(x, "out"))


def relu(x: Floats) -> Floats:
    """The positive part."""
    return np.maximum(x, 0)


def convolution(weights: Weights, name: str, x: Floats) -> Floats:
    """A 3 x 3 convolution [B, h, w, i] -> [B, h, w, o], with zeros around the grid."""
    kernel, (_, h, w, _) = weights[f"{name}/kernel"], x.shape
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    total = np.empty((*x.shape[:3], kernel.shape[3]), x.dtype)
    total[...] = weights[f"{name}/bias"]
    for row, column in np.ndindex(3, 3):
        total += padded[:, row : row + h, column : column + w] @ kernel[row, column]
    return total


def pixel_shuffle(x: Floats) -> Floats:
    """Four channels become 2 x 2 pixels (Shi 2016): [B, h, w, c] -> [B, 2 h, 2 w, c / 4]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def resized(x: Floats, size: tuple[int, int]) -> Floats:
    """Resize [B, h, w, c] bilinearly, antialiased, as `jax.image.resize`."""
    b, h, w, c = x.shape
    x = (_bilinear(h, size[0]) @ x.reshape(b, h, w * c)).reshape(b, size[0], w, c)
    return _bilinear(w, size[1]) @ x


def _bilinear(side: int, new: int) -> Floats:
    """[new, side]: the weights of old places for each new one, which lie on the same length."""
    centres = (np.arange(new)[:, None] + 0.5) * side / new - 0.5
    reach = max(side / new, 1)  # of the triangle: wider if the result is smaller
    found = np.maximum(0, 1 - np.abs(centres - np.arange(side)) / reach)
    return (found / found.sum(1, keepdims=True)).astype(np.float32)
