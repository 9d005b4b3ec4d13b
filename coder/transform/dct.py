"""The DCT-II over the blocks of a grid, and matrix products that start no threads."""

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from coder.arrays import read_only
from coder.transform.frequencies import spans

_ALONE = 1 << 18  # multiplications; OpenBLAS: SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD
_ROWS, _DEEP = 16, 256  # rows per piece, and its maximum inner side; others are slower


def over_blocks(
    values: NDArray[np.float32], grid: tuple[int, int], *, inverse: bool
) -> NDArray[np.float32]:
    """The DCT-II of each block of a grid, or its inverse: float32 [h * w, K] -> the same shape."""
    height, width = grid
    if height == width == 1:
        return values
    source = values.reshape(height, width, -1)
    result = np.empty_like(source)
    for place in itertools.product(spans(height), spans(width)):
        h, w, channels = source[place].shape
        rows, columns = cosines(h), cosines(w)
        if inverse:
            rows, columns = rows.T, columns.T
        block = product(rows, source[place].reshape(h, -1))
        result[place] = product(columns, block.reshape(h, w, channels))
    return result.reshape(values.shape)


@lru_cache(64)
def cosines(side: int) -> NDArray[np.float32]:
    """The orthonormal DCT-II of `side` values, as a matrix [side, side]: frequencies first."""
    k, place = np.ogrid[:side, :side]
    matrix = np.cos(np.pi * k * (2 * place + 1) / (2 * side)) * np.sqrt(2 / side)
    matrix[0] = np.sqrt(1 / side)
    return read_only(matrix.astype(np.float32))


def product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """a [m, k] @ b [..., k, n], on this thread alone.

    OpenBLAS, which NumPy's wheels contain, starts threads for products larger than `_ALONE`. On
    embeddings, threads gain little, and wait for one another where cores are busy. So large
    products are computed in pieces. OpenBLAS's own limit on threads would hold for the whole
    process.
    """
    (m, k), n = a.shape, b.shape[-1]
    if min(m, n) < 2:  # for vectors, BLAS has other limits; this is NumPy's own loop
        return np.einsum("mk,...kn->...mn", a, b)
    if m * k * n <= _ALONE:
        return a @ b
    if k > _DEEP:
        half = k // 2
        result = product(a[:, :half], b[..., :half, :])
        result += product(a[:, half:], b[..., half:, :])
        return result
    rows = min(m, _ROWS)
    columns = _ALONE // (rows * k)  # maximum per piece
    result = np.empty((*b.shape[:-2], m, n), np.float32)
    whole = m - m % rows
    pieces = a[:whole].reshape(-1, rows, k)
    edges = np.linspace(0, n, -(-n // columns) + 1).astype(int)  # even, so that none is a vector
    for left, right in itertools.pairwise(edges):
        out = result[..., :whole, left:right]
        np.matmul(
            pieces,
            b[..., None, :, left:right],
            out=out.reshape(*out.shape[:-2], -1, rows, right - left),
        )
    if whole < m:
        result[..., whole:, :] = product(a[whole:], b)
    return result
