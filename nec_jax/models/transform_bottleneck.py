"""The transform of `coder.transform.klt` in JAX, and the bottleneck that trains through it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num
from numpy.typing import NDArray
from scipy.linalg import block_diag

from coder import InputError, TransformCodec
from coder.transform import BANDS, KAPPA, MARGIN, Transform, bands_of_grid, cosines, parts
from nec_jax.models.rounding import Rounding, soft_round
from nec_jax.models.weight_tree import Weights

ROUNDING, SHIFT = 0.4, 0.05
"""In training, in steps: what to add to magnitudes before rounding them down, and what to subtract
from them to decode them."""
RATE_ALPHA = 3.0
"""Sharpness of the soft rounding that the rate is measured of."""
_EXACT = jax.lax.Precision.HIGHEST
_SMALLEST = -60.0  # logarithm of a probability
_LEAST_SCALE = 1e-3  # minimum scale of a Laplacian, in steps


def arrays(transform: Transform) -> Weights:
    """A transform as a tree of arrays, which checkpoints and devices take."""
    held = {"mean": transform.mean, "scale": transform.scale, "analysis": transform.analysis}
    held["basis"] = transform.basis * transform.norms[:, None]
    if transform.class_mean is not None:
        held |= {"class_mean": transform.class_mean, "class_scale": transform.class_scale}
    return {name: jnp.asarray(value, jnp.float32) for name, value in held.items()}


def forward(
    held: Weights, y: Float[Array, "... n d"], grid: tuple[int, int], *, spatial: bool = True
) -> Float[Array, "... n k"]:
    """Embeddings -> coefficients, as `Transform.forward`."""
    first, mean, scale = _units(held, y.shape[-2])
    c = jnp.matmul((y - mean) / scale, held["analysis"], precision=_EXACT)
    return _over_places(c, grid, first, inverse=False) if spatial else c


def inverse(
    held: Weights, c: Float[Array, "... n k"], grid: tuple[int, int], *, spatial: bool = True
) -> Float[Array, "... n d"]:
    """Coefficients -> embeddings, as `Transform.inverse`."""
    first, mean, scale = _units(held, c.shape[-2])
    tokens = _over_places(c, grid, first, inverse=True) if spatial else c
    return jnp.matmul(tokens, held["basis"], precision=_EXACT) * scale + mean


def rounded(
    codec: TransformCodec, y: Float[Array, "... n d"], grid: tuple[int, int]
) -> Float[Array, "... n d"]:
    """Quantise and decode embeddings as a codec does."""
    held, spatial = arrays(codec.transform), codec.transform.spatial
    zone, rounding, shift = codec.cells(grid)
    c = forward(held, y, grid, spatial=spatial)
    size = jnp.abs(c) / np.float32(codec.step)
    m = jnp.where(size < zone, 0.0, jnp.floor(size + rounding))
    c_hat = jnp.sign(c) * jnp.where(m > 0, m - shift, 0.0) * np.float32(codec.step)
    return inverse(held, c_hat, grid, spatial=spatial)


def bottleneck(
    weights: Weights,
    y: Float[Array, "b n d"],
    grid: tuple[int, int],
    rounding: Rounding,
    keys: Key[Array, " b"] | None = None,
    alpha: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, "b n d"], Float[Array, "b n k"]]:
    """`nec_jax.models.bottleneck.bottleneck` on the coefficients of a transform, in steps.

    The density is a Laplacian for each component and band, with a learned scale. Rounding has a
    dead zone. `straight-through` measures the rate of the rounded coefficients. `noise` and `soft`
    measure the rate of softly rounded coefficients with noise (Agustsson and Theis 2020): noise on
    the coefficients themselves would swamp the many that round to zero.

    Args:
      weights: {"density": {"log_scale": [K, columns]}, "transform": `arrays`, "step": the step of
        validation, "drawn": the smallest and largest step; in training each image draws one}.
    """
    held = weights["transform"]
    scale = jnp.exp(weights["density"]["log_scale"])[:, columns(held, grid)].T
    if rounding == "hard":
        z = forward(held, y, grid) / held["step"]
        seen, bits = _rounded(z, scale)
        return inverse(held, seen * held["step"], grid), bits
    if keys is None:
        raise InputError(f"rounding {rounding!r} draws noise: pass keys")
    step_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    low, high = jnp.log(held["drawn"])
    step = jnp.exp(
        jax.vmap(lambda key: jax.random.uniform(key, (1, 1), y.dtype, low, high))(step_keys)
    )
    z, scale = forward(held, y, grid) / step, scale * held["step"] / step
    if rounding == "straight-through":
        seen, bits = _straight_through(z, scale)
    else:
        one = functools.partial(jax.random.uniform, minval=-0.5, maxval=0.5)
        u = jax.vmap(lambda key: one(key, z.shape[1:], z.dtype))(noise_keys)
        seen = z + u if rounding == "noise" else soft_round(z, alpha)
        bits = laplacian_bits(soft_round(z, RATE_ALPHA) + u, scale)
    return inverse(held, seen * step, grid), bits


def _rounded(
    z: Float[Array, "b n k"], scale: Float[Array, " *b n k"]
) -> tuple[Float[Array, "b n k"], Float[Array, "b n k"]]:
    """The decoded values of coefficients in steps, and their bits."""
    zone = zone_of(scale)
    m = _magnitudes(z, zone)
    return jnp.sign(z) * jnp.where(m > 0, m - SHIFT, 0.0), coded_bits(m, zone, scale)


def _magnitudes(z: jax.Array, zone: jax.Array) -> jax.Array:
    size = jnp.abs(z)
    return jnp.where(size < zone, 0.0, jnp.maximum(jnp.floor(size + ROUNDING), 1.0))


def zone_of(scale: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """Where magnitude 1 begins, in steps, by the rule of `coder.transform.dead_zone`."""
    start = jnp.full_like(scale, (1 - SHIFT) / 2)
    price = coded_bits(1.0, start, scale) - coded_bits(0.0, start, scale)
    first = start + KAPPA * price / (2 * (1 - SHIFT))
    return jax.lax.stop_gradient(jnp.clip(first, MARGIN, 1 - SHIFT - MARGIN))


def coded_bits(m: jax.Array | float, zone: jax.Array, scale: jax.Array) -> jax.Array:
    """Bits of magnitudes, signs included, under a Laplacian with a dead zone.

    Magnitude 1 covers one unit from `zone` on. The density falls as exp(-|x| / scale).
    """
    none = jnp.log(jnp.maximum(1 - jnp.exp(-zone / scale), 1e-9))
    some = jnp.log(0.5) - (zone + m - 1) / scale + jnp.log1p(-jnp.exp(-1 / scale))
    return -jnp.where(m > 0, jnp.maximum(some, _SMALLEST), none) / jnp.log(2.0)


@jax.custom_vjp
def _straight_through(z: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`_rounded` of z and scale [B, n, K], with the gradient of a choice between integers.

    The price of a magnitude is its bits minus those of the next smaller one. A zero gets a gradient
    only if the distortion that a one would save pays for the bits of the one. Otherwise the
    gradients of all coefficients that are rightly zero would make them grow.
    """
    return _rounded(z, scale)


def _gradients(
    held: tuple[jax.Array, jax.Array], of: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (z, scale), (of_seen, of_bits) = held, of
    zone = zone_of(scale)
    m = _magnitudes(z, zone)
    here, backward = jax.vjp(functools.partial(coded_bits, m, zone), scale)
    price = of_bits * jnp.abs(here - coded_bits(jnp.where(m > 0, m - 1, 1.0), zone, scale))
    of_zero = jnp.sign(of_seen) * jnp.maximum(jnp.abs(of_seen) - price, 0.0)
    return jnp.where(m > 0, of_seen + jnp.sign(z) * price, of_zero), *backward(of_bits)


_straight_through.defvjp(lambda z, scale: (_rounded(z, scale), (z, scale)), _gradients)


def spread_of(
    transform: Transform, y: NDArray[np.float32], grid: tuple[int, int]
) -> NDArray[np.float32]:
    """Mean magnitudes [K, columns] of the coefficients of y [N, n, D]; NaN in empty columns."""
    sizes = np.mean([np.abs(transform.forward(one, grid)) for one in y], axis=0)  # [n, K]
    which = transform.columns(grid)
    spread = np.full((transform.width, transform.components), np.nan, np.float32)
    for column in np.unique(which):
        spread[column] = sizes[which == column].mean(0)
    return spread.T


def initial(
    transform: Transform,
    step: float,
    spread: NDArray[np.float32],
    drawn: tuple[float, float] | None = None,
) -> Weights:
    """The weights of `bottleneck`: Laplacians with the spread that `spread_of` measured.

    Training uses `step`, or draws steps between those of `drawn`, uniformly in the logarithm.
    """
    held = arrays(transform) | {"step": jnp.float32(step)}
    held["drawn"] = jnp.asarray(drawn or (step, step), jnp.float32)
    scale = np.nan_to_num(spread / step, nan=1.0)
    log_scale = jnp.log(jnp.asarray(np.maximum(scale, _LEAST_SCALE), jnp.float32))
    return {"density": {"log_scale": log_scale}, "transform": held}


def blank(channels: int, *, class_token: bool) -> Weights:
    """A tree with the shapes of `initial`, for all components of `channels` channels."""
    vectors = ["mean", "scale", *(["class_mean", "class_scale"] if class_token else [])]
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    held = {name: zeros(channels) for name in vectors}
    held |= {name: zeros((channels, channels)) for name in ("analysis", "basis")}
    density = {"log_scale": zeros((channels, BANDS + class_token))}
    held |= {"step": jnp.float32(1), "drawn": jnp.ones(2, jnp.float32)}
    return {"density": density, "transform": held}


def columns(held: Weights, grid: tuple[int, int]) -> NDArray[np.int64]:
    """The column of `log_scale` for each token [n]: its band, or the class token's."""
    bands = bands_of_grid(*grid).ravel().astype(np.int64)
    return np.concatenate([[BANDS], bands]) if "class_mean" in held else bands


def laplacian_bits(
    x: Num[Array, " *#shape"], scale: Float[Array, " *#shape"]
) -> Float[Array, " *#shape"]:
    """Bits of unit bins around x under a Laplacian, whose density falls as exp(-|x| / scale)."""
    x = jnp.abs(x)
    inside = 1 - (jnp.exp(-(0.5 + x) / scale) + jnp.exp(-jnp.maximum(0.5 - x, 0) / scale)) / 2
    outside = jnp.log(0.5) - (x - 0.5) / scale + jnp.log1p(-jnp.exp(-1 / scale))
    log_prob = jnp.where(
        x < 0.5, jnp.log(jnp.maximum(inside, 1e-9)), jnp.maximum(outside, _SMALLEST)
    )
    return -log_prob / jnp.log(2.0)


def _units(held: Weights, tokens: int) -> tuple[int, jax.Array, jax.Array]:
    """The number of class tokens; the mean and the scale of each token, [n, D] each."""
    first = int("class_mean" in held)
    parts = []
    for name in ("mean", "scale"):
        part = jnp.broadcast_to(held[name], (tokens, held[name].size))
        parts.append(part.at[0].set(held[f"class_{name}"]) if first else part)
    return first, *parts


def _over_places(c: jax.Array, grid: tuple[int, int], first: int, *, inverse: bool) -> jax.Array:
    """`coder.transform.dct.over_blocks` for all tokens but the class token."""
    if grid == (1, 1):
        return c
    tokens = c[..., first:, :]
    values = tokens.reshape(*tokens.shape[:-2], *grid, tokens.shape[-1])
    for axis, side in ((-3, grid[0]), (-2, grid[1])):
        matrix = np.asarray(block_diag(*map(cosines, parts(side))))
        moved = jnp.moveaxis(values, axis, -1)
        product = jnp.matmul(moved, matrix if inverse else matrix.T, precision=_EXACT)
        values = jnp.moveaxis(product, -1, axis)
    return jnp.concatenate([c[..., :first, :], values.reshape(tokens.shape)], axis=-2)
