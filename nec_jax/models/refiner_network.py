"""The network of `coder.refiner` in JAX, for heads and for programs that run on a device.

The arrays of a refiner at one quality, with k components seen, C of them also around a token, m
components predicted, and H hidden units:

    mean, scale [D]   seen [D, k]   into [k + 2 C, H]   bias [H]   out [H, m]   offset [m]
    predicted [m, D]   gain []
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coder import Refiner
from coder.codecs import OneQualityCodec
from coder.refiner import RADII, network_shapes
from nec_jax.models.weight_tree import Weights

_EXACT = jax.lax.Precision.HIGHEST


def arrays(refiner: Refiner, index: int) -> Weights:
    """A refiner at the quality of this index as a tree of float32 arrays."""
    held = refiner.at(index)._asdict() | {"mean": refiner.mean, "scale": refiner.scale}
    return {name: jnp.asarray(value, jnp.float32) for name, value in held.items()}


def arrays_of(codec: OneQualityCodec) -> Weights:
    """The `arrays` of the refiner of a codec, at the codec's quality."""
    assert codec.refiner is not None
    return arrays(codec.refiner, codec.refiner.codecs[codec.fingerprint.hex()])


def shapes(channels: int, held: dict[str, np.ndarray]) -> Weights:
    """The shapes of `arrays`, as `coder.refiner.network_shapes`."""
    found = network_shapes(channels, held)
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in found.items()}


def refined(
    held: Weights, y_hat: Float[Array, "*b n d"], grid: tuple[int, int]
) -> Float[Array, "*b n d"]:
    """Refine decoded embeddings [..., n, D], as `Refiner.refine`; a class token stays as it is."""
    first = y_hat.shape[-2] - grid[0] * grid[1]
    tokens = y_hat[..., first:, :]
    change = held["scale"] * _change(held, (tokens - held["mean"]) / held["scale"], grid)
    y = jnp.where(held["gain"] == 0, tokens, tokens + change)
    return jnp.concatenate([y_hat[..., :first, :], y], axis=-2)


def aim(
    held: Weights, y: Float[Array, "*b n d"], y_hat: Float[Array, "*b n d"], grid: tuple[int, int]
) -> tuple[Float[Array, "*b n d"], Float[Array, "*b 1 1"]]:
    """Move the decoded embeddings of y so that refining them comes closer, as `Refiner.aim`."""
    first = y_hat.shape[-2] - grid[0] * grid[1]
    u, goal = ((x[..., first:, :] - held["mean"]) / held["scale"] for x in (y_hat, y))

    def squares(u: Float[Array, "*b t d"]) -> tuple[Float[Array, ""], Float[Array, "*b 1 1"]]:
        error = jnp.sum(jnp.square(u + _change(held, u, grid) - goal), (-2, -1), keepdims=True)
        return jnp.sum(error) / 2, error

    step, error = jax.grad(squares, has_aux=True)(u)
    moved = (u - step) * held["scale"] + held["mean"]
    moved = jnp.where(held["gain"] == 0, y[..., first:, :], moved)
    return jnp.concatenate([y[..., :first, :], moved], axis=-2), error


def _change(
    held: Weights, u: Float[Array, "*b t d"], grid: tuple[int, int]
) -> Float[Array, "*b t d"]:
    """What refining adds to the tokens of a grid, in units of `scale`."""
    c = _product(u, held["seen"])
    near = (len(held["into"]) - c.shape[-1]) // len(RADII)
    around = _surroundings(c[..., :near], grid)
    h = _product(jnp.concatenate([c, around], -1), held["into"]) + held["bias"]
    p = held["gain"] * (_product(jax.nn.relu(h), held["out"]) + held["offset"])
    return _product(p, held["predicted"])


def _product(x: jax.Array, matrix: jax.Array | np.ndarray) -> jax.Array:
    return jnp.matmul(x, matrix, precision=_EXACT)


def _surroundings(values: Float[Array, "*b t c"], grid: tuple[int, int]) -> Float[Array, "*b t e"]:
    """`coder.refiner.surroundings` of many embeddings."""
    placed = values.reshape(*values.shape[:-2], *grid, values.shape[-1])
    found = []
    for radius in RADII:
        means = placed
        for axis, side in ((-3, grid[0]), (-2, grid[1])):
            near = np.abs(np.subtract.outer(np.arange(side), np.arange(side))) <= radius
            weights = (near / near.sum(1, keepdims=True)).astype(np.float32)
            means = jnp.moveaxis(_product(jnp.moveaxis(means, axis, -1), weights.T), -1, axis)
        found.append(means)
    return jnp.concatenate(found, axis=-1).reshape(*values.shape[:-1], -1)
