"""The network of `coder.refiner` in JAX, for heads and for programs that run on a device.

The arrays of a refiner at one quality, with C components and H hidden units:

    mean, scale, offset [D]   token [D, H]   basis [D, C]   context [C, H]   bias [H]   out [H, D]
    gain []
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coder import Refiner
from coder.codecs import OneQualityCodec
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
    found = {"mean": (d,), "scale": (d,), "token": (d, h), "basis": (d, c), "context": (c, h)}
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
        h += _product(_product(_neighbourhood(u, grid), held["basis"]), held["context"])
    change = _product(jnp.maximum(h, 0), held["out"]) + held["offset"]
    y = tokens + held["gain"] * held["scale"] * change
    return jnp.concatenate([y_hat[..., :first, :], y], axis=-2)


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    return jnp.matmul(x, matrix, precision=_EXACT)


def _neighbourhood(u: Float[Array, "*b t d"], grid: tuple[int, int]) -> Float[Array, "*b t d"]:
    """`coder.refiner.neighbourhood` of many embeddings."""
    rows = u.reshape(*u.shape[:-2], *grid, u.shape[-1])
    for axis, side in ((-3, grid[0]), (-2, grid[1])):
        values = jnp.moveaxis(rows, axis, -1)
        padded = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(1, 1)])
        sums = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
        counts = np.convolve(np.ones(side, np.float32), np.ones(3, np.float32))[1:-1]
        rows = jnp.moveaxis(sums / counts, -1, axis)
    return rows.reshape(u.shape)
