"""Tokens that are missing in a grid: numbers in their place that add little to its coefficients."""

import itertools

import numpy as np
from numpy.typing import NDArray

from coder.transform.frequencies import spans


def filled(y: NDArray[np.floating], there: NDArray[np.bool_]) -> NDArray[np.floating]:
    """A grid whose holes hold means of their neighbours, from the rim in, block by block.

    Holes of a block without any token hold the mean of the grid.

    Args:
      y: [h, w, D]; anything where tokens are missing.
      there: [h, w], which tokens are not; at least one.
    """
    if there.all():
        return y
    result = np.where(there[..., None], y, 0)
    mean = y[there].mean(0, dtype=np.float64)
    for place in itertools.product(*map(spans, there.shape)):
        block = there[place]
        if not block.any():
            result[place] = mean
        elif not block.all():
            result[place] = _filled(result[place], block)
    return result


def _filled(y: NDArray[np.floating], there: NDArray[np.bool_]) -> NDArray[np.floating]:
    """A block [h, w, D] whose holes, which are zeros, are filled."""
    y, there = y.astype(np.float64), there.copy()
    height, width = there.shape
    while not there.all():
        sums, count = np.zeros_like(y), np.zeros(there.shape)
        values, known = np.pad(y, [(1, 1), (1, 1), (0, 0)]), np.pad(there, 1)
        for place in np.ndindex(3, 3):
            around = tuple(slice(i, i + n) for i, n in zip(place, (height, width), strict=True))
            sums += values[around]
            count += known[around]
        rim = ~there & (count > 0)
        y[rim] = sums[rim] / count[rim][:, None]
        there |= rim
    return y
