"""Correlated embeddings, and a codec fitted on some of them."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

import coder
from coder.fitting import fit_for_model

GRID = (6, 6)
CHANNELS = 12


def smooth_embeddings(seed: int, images: int, grid: tuple[int, int] = GRID) -> NDArray[np.float32]:
    """[images, h, w, 12]: neighbours alike, channels mixtures of a few, heavy tails, own means."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(CHANNELS, CHANNELS)) * 0.7 ** np.arange(CHANNELS)
    walks = rng.laplace(size=(images, *grid, CHANNELS)).cumsum(1).cumsum(2)
    noise = 0.3 * rng.laplace(size=(images, *grid, CHANNELS))
    return ((walks / 3 + noise) @ mixing.T + np.arange(CHANNELS)).astype(np.float32)


def class_tokens(seed: int, images: int) -> NDArray[np.float32]:
    """[images, 12]: of another mean and spread."""
    rng = np.random.default_rng(seed)
    return (3 * rng.normal(size=(images, CHANNELS)) - np.arange(CHANNELS)).astype(np.float32)


@cache
def ladder(with_class_token: bool = False) -> coder.QualityLadder:
    """Fitted on 200 embeddings."""
    tokens = class_tokens(1, 200) if with_class_token else None
    return fit_for_model(smooth_embeddings(1, 200), tokens)


def embeddings(with_class_token: bool, count: int = 12, seed: int = 2) -> NDArray[np.float32]:
    """[count, n, 12] that no codec was fitted on."""
    y = smooth_embeddings(seed, count).reshape(count, -1, CHANNELS)
    if not with_class_token:
        return y
    return np.concatenate([class_tokens(seed, count)[:, None], y], axis=1)


def smooth_tiles(height: int, width: int) -> np.ndarray:
    """[1, height, width, D]: of tiles, for walks lead too far on long sides."""
    down, right = -(-height // 8), -(-width // 8)
    tiles = smooth_embeddings(3, down * right, (8, 8)).reshape(down, right, 8, 8, CHANNELS)
    whole = tiles.swapaxes(1, 2).reshape(8 * down, 8 * right, CHANNELS)
    return whole[None, :height, :width]
