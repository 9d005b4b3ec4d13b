"""The transform of `coder.transform` in JAX, and the bottleneck that trains through it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from coder import InputError, TransformCodec
from coder.bands import BANDS, bands_of_grid, parts
from coder.transform import Transform, cosines
from nec_jax.rounding import Rounding, soft_round

ZONE, SHIFT = 0.6, 0.05
"""In training: where magnitude 1 begins, and what is taken from magnitudes, of a step."""
RATE_ALPHA = 3.0
"""Sharpness of the soft rounding whose rate is measured."""
Weights = Any  # see `nec_jax.nec`
_EXACT = jax.lax.Precision.HIGHEST
_SMALLEST = -60.0  # logarithm of a probability
_LEAST_SCALE = 1e-3  # of a Laplacian, in steps


def arrays(transform: Transform) -> Weights:
    """A transform of grids as a tree of arrays, that checkpoints and devices take."""
    held = {"mean": transform.mean, "scale": transform.scale, "analysis": transform.analysis}
    held["basis"] = transform.basis * transform.norms[:, None]
    if transform.class_mean is not None:
        held |= {"class_mean": transform.class_mean, "class_scale": transform.class_scale}
    return {name: jnp.asarray(value, jnp.float32) for name, value in held.items()}


def forward(
    held: Weights, y: jax.Array, grid: tuple[int, int], *, spatial: bool = True
) -> jax.Array:
    """Embeddings float32 [..., n, D] -> coefficients [..., n, K], as `Transform.forward`."""
    first, mean, scale = _units(held, y.shape[-2])
    c = jnp.matmul((y - mean) / scale, held["analysis"], precision=_EXACT)
    return _over_places(c, grid, first, inverse=False) if spatial else c


def inverse(
    held: Weights, c: jax.Array, grid: tuple[int, int], *, spatial: bool = True
) -> jax.Array:
    """Coefficients float32 [..., n, K] -> embeddings [..., n, D], as `Transform.inverse`."""
    first, mean, scale = _units(held, c.shape[-2])
    tokens = _over_places(c, grid, first, inverse=True) if spatial else c
    return jnp.matmul(tokens, held["basis"], precision=_EXACT) * scale + mean


def rounded(codec: TransformCodec, y: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """What a codec makes of embeddings float32 [..., n, D]: decoded from their symbols."""
    held, spatial = arrays(codec.transform), codec.transform.spatial
    zone, rounding, shift = codec.cells(grid)
    c = forward(held, y, grid, spatial=spatial)
    size = jnp.abs(c) / np.float32(codec.step)
    m = jnp.where(size < zone, 0.0, jnp.floor(size + rounding))
    c_hat = jnp.sign(c) * jnp.where(m > 0, m - shift, 0.0) * np.float32(codec.step)
    return inverse(held, c_hat, grid, spatial=spatial)


def bottleneck(
    weights: Weights,
    y: jax.Array,
    grid: tuple[int, int],
    rounding: Rounding,
    keys: jax.Array | None = None,
    alpha: jax.Array | float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """`nec_jax.bottleneck.bottleneck` on the coefficients of a transform, in steps.

    Their density is a Laplacian for each component and band, of a scale that is learned. What is
    rounded has a dead zone. Noise of a whole step would swamp the many coefficients that rounding
    sets to zero: the rate is that of softly rounded ones with noise (Agustsson and Theis 2020).

    Args:
      weights: {"density": {"log_scale": [K, columns]}, "transform": `arrays` and "step"}.
    """
    held = weights["transform"]
    z = forward(held, y, grid) / held["step"]
    scale = jnp.exp(weights["density"]["log_scale"])[:, columns(held, grid)].T
    m = jnp.floor(jnp.abs(z) + (1 - ZONE))
    coded = jnp.sign(z) * jnp.where(m > 0, m - SHIFT, 0.0)
    if rounding == "hard":
        seen, bits = coded, laplacian_bits(m, scale)
    else:
        if keys is None:
            raise InputError(f"rounding {rounding!r} draws noise: pass keys")
        noise = functools.partial(jax.random.uniform, shape=z.shape[1:], minval=-0.5, maxval=0.5)
        u = jax.vmap(noise)(keys)
        seen = {
            "noise": lambda: z + u,
            "straight-through": lambda: jnp.where(m > 0, z + jax.lax.stop_gradient(coded - z), 0.0),
            "soft": lambda: soft_round(z, alpha),
        }[rounding]()
        import os

        kind = os.environ.get("RATE", "soft")
        if kind == "soft":
            bits = laplacian_bits(soft_round(z, RATE_ALPHA) + u, scale)
        elif kind == "hard":
            ste = z + jax.lax.stop_gradient(jnp.sign(z) * m - z)
            bits = laplacian_bits(jnp.where(m > 0, ste, 0.0), scale)
        elif kind == "soft12":
            bits = laplacian_bits(soft_round(z, 12.0), scale)
    return inverse(held, seen * held["step"], grid), bits


def initial(
    transform: Transform, step: float, y: NDArray[np.float32], grid: tuple[int, int]
) -> Weights:
    """The weights of `bottleneck` for embeddings like y [N, n, D]: Laplacians of their spread."""
    held = arrays(transform) | {"step": jnp.float32(step)}
    which = columns(held, grid)
    spread = np.mean([np.abs(transform.forward(one, grid)) for one in y], axis=0) / step  # [n, K]
    scale = np.full((transform.width, transform.components), 1.0, np.float32)
    for column in np.unique(which):
        scale[column] = spread[which == column].mean(0)
    log_scale = jnp.log(jnp.maximum(scale.T, _LEAST_SCALE))
    return {"density": {"log_scale": log_scale}, "transform": held}


def blank(channels: int, *, class_token: bool) -> Weights:
    """A tree of the shapes of `initial`'s, for all components of so many channels."""
    vectors = ["mean", "scale", *(["class_mean", "class_scale"] if class_token else [])]
    held = {name: jnp.zeros(channels) for name in vectors}
    held |= {name: jnp.zeros((channels, channels)) for name in ("analysis", "basis")}
    density = {"log_scale": jnp.zeros((channels, BANDS + class_token))}
    return {"density": density, "transform": held | {"step": jnp.float32(1)}}


def columns(held: Weights, grid: tuple[int, int]) -> NDArray[np.int64]:
    """The column of `log_scale` for each token [n]: its band, or the class token's."""
    bands = bands_of_grid(*grid).ravel().astype(np.int64)
    return np.concatenate([[BANDS], bands]) if "class_mean" in held else bands


def laplacian_bits(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Bits of unit bins around x under a Laplacian, whose density falls as exp(-|x| / scale)."""
    x = jnp.abs(x)
    inside = 1 - (jnp.exp(-(0.5 + x) / scale) + jnp.exp(-jnp.maximum(0.5 - x, 0) / scale)) / 2
    outside = jnp.log(0.5) - (x - 0.5) / scale + jnp.log1p(-jnp.exp(-1 / scale))
    log_prob = jnp.where(
        x < 0.5, jnp.log(jnp.maximum(inside, 1e-9)), jnp.maximum(outside, _SMALLEST)
    )
    return -log_prob / jnp.log(2.0)


def _units(held: Weights, tokens: int) -> tuple[int, jax.Array, jax.Array]:
    """How many class tokens there are; the mean and the scale of each token, [n, D] each."""
    first = int("class_mean" in held)
    parts = []
    for name in ("mean", "scale"):
        part = jnp.broadcast_to(held[name], (tokens, held[name].size))
        parts.append(part.at[0].set(held[f"class_{name}"]) if first else part)
    return first, *parts


def _over_places(c: jax.Array, grid: tuple[int, int], first: int, *, inverse: bool) -> jax.Array:
    """`coder.transform.over_blocks` of all but the class token."""
    if grid == (1, 1):
        return c
    tokens = c[..., first:, :]
    values = tokens.reshape(*tokens.shape[:-2], *grid, tokens.shape[-1])
    for axis, side in ((-3, grid[0]), (-2, grid[1])):
        matrix = np.zeros((side, side), np.float32)
        start = 0
        for part in parts(side):
            block = cosines(part)
            matrix[start : start + part, start : start + part] = block.T if inverse else block
            start += part
        moved = jnp.moveaxis(values, axis, -1)
        values = jnp.moveaxis(jnp.matmul(moved, matrix.T, precision=_EXACT), -1, axis)
    return jnp.concatenate([c[..., :first, :], values.reshape(tokens.shape)], axis=-2)
