"""The network of `coder.refiner` in JAX, for heads and for programs that run on a device.

The arrays of a refiner at one quality, with C components and H hidden units:

    mean, scale, offset [D]   token [D, H]   basis [D, C]   context [2 C, H]   bias [H]   out [H, D]
    gain []
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coder import Refiner
from coder.codecs import OneQualityCodec
from coder.refiner import RADII
from nec_jax.models.weight_tree import Weights

_SHARED = ("mean", "scale", "token", "basis", "context", "out", "offset")  # by all qualities
_EXACT = jax.lax.Precision.HIGHEST


def arrays(refiner: Refiner, index: int) -> Weights:
    """A refiner at the quality of this index as a tree of float32 arrays."""
    held = {name: getattr(refiner, name) for name in _SHARED}
    held |= {"bias": refiner.bias[index], "gain": refiner.gains[index]}
    return {name: jnp.asarray(value, jnp.float32) for name, value in held.items()}


def arrays_of(codec: OneQualityCodec) -> Weights:
    """The `arrays` of the refiner of a codec, at the codec's quality."""
    assert codec.refiner is not None
    return arrays(codec.refiner, codec.refiner.codecs[codec.fingerprint.hex()])


def shapes(channels: int, hidden: int, components: int) -> Weights:
    """The shapes of `arrays`."""
    d, h, c = channels, hidden, components
    found = {"mean": (d,), "scale": (d,), "token": (d, h), "basis": (d, c)}
    found["context"] = (len(RADII) * c, h)
    found |= {"bias": (h,), "out": (h, d), "offset": (d,), "gain": ()}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in found.items()}


def refined(
    held: Weights, y_hat: Float[Array, "*b n d"], grid: tuple[int, int]
) -> Float[Array, "*b n d"]:
    """Refine decoded embeddings [..., n, D], as `Refiner.refine`; a class token stays as it is."""
    first = y_hat.shape[-2] - grid[0] * grid[1]
    tokens = y_hat[..., first:, :]
    u = (tokens - held["mean"]) / held["scale"]
    h = _product(u, held["token"]) + held["bias"]
    if held["basis"].size:
        h += _product(_surroundings(_product(u, held["basis"]), grid), held["context"])
    change = _product(jnp.maximum(h, 0), held["out"]) + held["offset"]
    y = jnp.where(held["gain"] == 0, tokens, tokens + held["gain"] * held["scale"] * change)
    return jnp.concatenate([y_hat[..., :first, :], y], axis=-2)


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
