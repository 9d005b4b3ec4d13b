"""Embeddings with something to learn in them, for the tests of the heads."""

import numpy as np
from numpy.typing import NDArray

from nec_jax import NecParams, heads

CLASSES = ("farm", "forest", "water")
MASK_SIDE = 32

Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]


def labelled(seed: int, count: int, tokens: int = 17) -> Labelled:
    """Embeddings [count, tokens, 48] whose label shows in some tokens of the grid alone."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    directions = np.random.default_rng(99).normal(size=(len(CLASSES), 48))
    y = rng.normal(size=(count, tokens, 48)) * np.linspace(0.1, 2, 48) + np.linspace(-1, 1, 48)
    y[:, -6:] += 0.5 * directions[labels][:, None]
    return y.astype(np.float32), labels


def masked(seed: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Embeddings [count, 17, 48] and masks [count, 32, 32] made of one class a token."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, len(CLASSES), (count, 16))
    directions = np.random.default_rng(99).normal(size=(len(CLASSES), 48))
    y = rng.normal(size=(count, 17, 48))
    y[:, 1:] += 2 * directions[cells]
    side = MASK_SIDE // 4
    masks = cells.reshape(count, 4, 4).repeat(side, 1).repeat(side, 2)
    return y.astype(np.float32), masks.astype(np.uint8)


def quick(params: NecParams, kind: heads.Kind, seed: int = 0, **options) -> heads.HeadParams:
    """A head trained for a moment."""
    y, targets = masked(0, 16) if kind in ("conv", "token-linear") else labelled(0, 32)
    defaults = {"classes": CLASSES, "epochs": 1, "batch": 8, "seed": seed}
    return heads.fit(params, y, targets, kind=kind, **defaults | options)
