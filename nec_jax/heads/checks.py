"""Checks of what a head is fitted to, with errors that say what to do."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder import InputError
from coder.arrays import as_array
from coder.task_heads.head_settings import IGNORE
from nec_jax.models.architecture import ModelConfig


def square_grid(model: ModelConfig, tokens: int) -> tuple[int, int]:
    """The square grid of an embedding with this many tokens, class token included."""
    count = tokens - int(model.code_class_token)
    side = math.isqrt(count)
    if side * side != count:
        raise InputError(f"{count} grid tokens are not a square: pass grid=(height, width)")
    return side, side


def check_targets(
    classes: Sequence[str], targets: ArrayLike, count: int, masks: bool, name: str
) -> NDArray[np.int32]:
    """Labels [N] or masks [N, H, W] (255 = ignored, which becomes -1) as int32.

    Raises:
      InputError: another shape or type, an index that is no class, masked values, or no target to
        learn from.
    """
    t = as_array(targets, name)
    form = "masks [N, H, W]" if masks else "labels [N]"
    if t.ndim != (3 if masks else 1) or len(t) != count or t.size == 0:
        raise InputError(f"{name} has shape {t.shape}: pass {form}, one for each of {count}")
    if not np.issubdtype(t.dtype, np.integer):
        raise InputError(
            f"{name} is {t.dtype}: pass class indices as integers, places in {tuple(classes[:3])}"
            + " ..." * (len(classes) > 3)
        )
    valid = t != IGNORE if masks else np.ones(t.shape, bool)
    if not valid.any():
        raise InputError(f"every pixel of {name} is {IGNORE} (ignored): nothing to learn from")
    low, high = t[valid].min(), t[valid].max()
    if low < 0 or high >= len(classes):
        wrong = valid & ((t < 0) | (t >= len(classes)))
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"{name} ranges from {low} to {high}: {len(classes)} classes have the indices "
            f"0 to {len(classes) - 1}"
            + (f", and {IGNORE} is ignored" if masks else "")
            + f"; {int(wrong.sum())} have another, the first at {first}"
        )
    return np.where(valid, t.astype(np.int32), -1)
