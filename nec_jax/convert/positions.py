"""Positions of checkpoints: whether they are the fixed ones, and how each project resizes them."""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coder import FileError
from coder.task_heads.head_layers import sincos_positions

# bicubic: torch's `interpolate(size=...)`, as MAE and transformers do. antialiased: the same with
# `antialias=True` (timm, open_clip, DINOv2 with registers). dinov2: `interpolate(scale_factor=
# (side + 0.1) / old)`, as DINOv2's own code without registers. sequence: bicubic along the
# flattened grid, as transformers does in ViTMAE's decoder.
Resizing = Literal["bicubic", "antialiased", "dinov2", "sequence"]
_SINCOS_TOLERANCE = 1e-5


def grid_side(count: int, name: str) -> int:
    """The side of a square grid of `count` positions.

    Raises:
      FileError: not a square: several frames, or an image that is not square.
    """
    side = math.isqrt(count)
    if side * side != count:
        raise FileError(
            f"{name} holds {count} positions beside the class token's, which is not a square grid: "
            "only single square images are supported, not several frames of time"
        )
    return side


def frames(positions: NDArray[np.float32]) -> int:
    """The number of frames in positions [T, D]: each frame equals the first plus a constant.

    Prithvi's fixed positions are like this: four frames of 14 x 14, as many as one of 28 x 28.
    """
    for count in range(2, len(positions)):
        size = len(positions) // count
        # If size is count, rows of one frame differ by a constant as well.
        if len(positions) % count or math.isqrt(size) ** 2 != size or size in (1, count):
            continue
        shifts = positions.reshape(count, size, -1) - positions[:size]
        if np.ptp(shifts, axis=1).max() <= _SINCOS_TOLERANCE:
            return count
    return 1


def are_sincos(positions: NDArray[np.float32]) -> bool:
    """Whether positions [T, D] of a square grid are the fixed 2-d sin-cos ones."""
    side, width = math.isqrt(len(positions)), positions.shape[1]
    if width % 4:
        return False
    expected = sincos_positions((side, side), width)
    return bool(np.allclose(positions, expected, rtol=0, atol=_SINCOS_TOLERANCE))


def resize(positions: NDArray[np.float32], side: int, how: Resizing) -> NDArray[np.float32]:
    """Resize positions [g * g, D] of a square grid to [side * side, D], as `how` names.

    Cubic convolution (Keys 1981) with torch's constants: a = -0.75, or -0.5 where antialiased.
    """
    if how == "sequence":
        matrix = _weights(len(positions), side * side, "bicubic")
        return (matrix @ positions.astype(np.float64)).astype(np.float32)
    old = math.isqrt(len(positions))
    rows = _weights(old, side, how)
    grid = positions.reshape(old, old, -1).astype(np.float64)
    out = np.einsum("ai,bj,ijd->abd", rows, rows, grid)
    return out.reshape(side * side, -1).astype(np.float32)


def _weights(old: int, new: int, how: Resizing) -> NDArray[np.float64]:
    """[new, old]: the weight of each old position in each new one."""
    scale = old / (new + 0.1) if how == "dinov2" else old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    matrix = np.zeros((new, old))
    for row, centre in enumerate(centres):
        if how == "antialiased":
            weights = _cubic((np.arange(old) - centre) / max(scale, 1.0), -0.5)
            matrix[row] = weights / weights.sum()
        else:
            taps = math.floor(centre) + np.arange(-1, 3)
            weights = _cubic(taps - centre, -0.75)
            np.add.at(matrix[row], np.clip(taps, 0, old - 1), weights)
    return matrix


def _cubic(x: NDArray[np.floating], a: float) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
