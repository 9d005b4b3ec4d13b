"""The transform of `coder.transform` in JAX operations, for use under `jit` and in training."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from coder import TransformCodec
from coder.bands import parts
from coder.transform import Transform, cosines

_EXACT = jax.lax.Precision.HIGHEST


def forward(transform: Transform, y: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Embeddings float32 [..., n, D] -> coefficients [..., n, K], as `Transform.forward`."""
    first, mean, scale = _units(transform, y.shape[-2])
    c = jnp.matmul((y - mean) / scale, transform.analysis, precision=_EXACT)
    return _over_places(transform, c, grid, first, inverse=False)


def inverse(transform: Transform, c: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Coefficients float32 [..., n, K] -> embeddings [..., n, D], as `Transform.inverse`."""
    first, mean, scale = _units(transform, c.shape[-2])
    tokens = _over_places(transform, c, grid, first, inverse=True)
    rows = transform.basis * transform.norms[:, None]
    return jnp.matmul(tokens, rows, precision=_EXACT) * scale + mean


def rounded(codec: TransformCodec, y: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """What a codec makes of embeddings float32 [..., n, D]: decoded from their symbols."""
    zone, rounding, shift = codec.cells(grid)
    c = forward(codec.transform, y, grid)
    size = jnp.abs(c) / np.float32(codec.step)
    m = jnp.where(size < zone, 0.0, jnp.floor(size + rounding))
    c_hat = jnp.sign(c) * jnp.where(m > 0, m - shift, 0.0) * np.float32(codec.step)
    return inverse(codec.transform, c_hat, grid)


def _units(
    transform: Transform, tokens: int
) -> tuple[int, NDArray[np.float32], NDArray[np.float32]]:
    """How many class tokens there are; the mean and the scale of each token, [n, D] each."""
    first = int(transform.class_mean is not None)
    mean, scale = (np.repeat(part[None], tokens, 0) for part in (transform.mean, transform.scale))
    if transform.class_mean is not None:
        mean[0], scale[0] = transform.class_mean, transform.class_scale
    return first, mean, scale


def _over_places(
    transform: Transform, c: jax.Array, grid: tuple[int, int], first: int, *, inverse: bool
) -> jax.Array:
    """`coder.transform.over_blocks` of all but the class token."""
    if not transform.spatial or grid == (1, 1):
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
