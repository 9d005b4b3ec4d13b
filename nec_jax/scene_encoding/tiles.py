"""Windows of a scene -> the latents of a region of its cells.

A cell is one patch of the encoder. What the encoder says of a cell depends on where in the window
it is, so embeddings of windows side by side jump where they meet (docs/results/scenes.md). Here
windows overlap, and a cell's latent is the weighted mean of what all its windows say. Windows have
fixed places in the scene, and missing pixels are filled from the window's own: a latent depends
neither on the region that is asked for nor on the other windows of its batch.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from coder import InputError
from nec_jax.api import check_images, latents_of
from nec_jax.jax_defaults import jax_defaults
from nec_jax.model_file import NecParams
from nec_jax.models.architecture import ModelConfig

T = TypeVar("T")

LEAST_COVERAGE = 50  # percent of valid pixels that a cell with a latent has
_ATTENTION = 1 << 30  # bytes; twice that is needed at once

# (row, column, height, width), in pixels and possibly beyond the scene -> values [h, w, C], and
# which pixels are valid [h, w].
Read = Callable[[int, int, int, int], tuple[NDArray, NDArray[np.bool_]]]


def windows_of(config: ModelConfig, side: int | None, halo: int | None) -> tuple[int, int]:
    """Side and halo of windows in cells: as given, or that of training images and a quarter of it.

    With a halo of a quarter each cell is in four windows, and the encoder runs four times as often
    as without one.

    Raises InputError: windows that the model does not take, too large or without a core.
    """
    side = config.image_size // config.patch if side is None else side
    halo = side // 4 if halo is None else halo
    core_of(config, side, halo)
    largest = largest_side(config)
    if side > largest:
        raise InputError(
            f"windows of {side * config.patch} x {side * config.patch} px: attention over all of "
            f"their cells takes too much memory; give --image-size {largest * config.patch} or less"
        )
    return side, halo


def largest_side(config: ModelConfig) -> int:
    """The side of the largest windows, in cells; never less than that of training images.

    The weights of attention, of a batch in one block, have at most `_ATTENTION` bytes.
    """
    tokens = math.isqrt(_ATTENTION // (4 * config.coding_batch * config.heads))
    others = config.class_token + config.registers
    return max(config.image_size // config.patch, math.isqrt(max(0, tokens - others)))


@jax_defaults()
def region_latents(
    params: NecParams,
    read: Read,
    shape: tuple[int, int],
    rows: slice,
    columns: slice,
    *,
    side: int,
    halo: int,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The latents of a region of a scene's cells, before quantisation, without class token.

    A window is a core of `side - 2 halo` cells square, and `halo` cells around it. The cores tile
    the scene from its first cell on. A window whose core has no cell with a latent is not encoded.

    Pixels are read in strips, one row of windows each. A thread reads the next strip while the
    encoder computes.

    Args:
      params: the model; batches have its `coding_batch` windows.
      read: as `RasterScene.read`. It is called in another thread, and never twice at a time.
      shape: height and width of the scene, pixels. If the patch does not divide them, the last
        cells lie partly beyond the scene, and have missing pixels there.
      rows, columns: the region, in cells of the scene.
      side: side of the windows, cells.
      halo: half of what neighbouring windows overlap, cells. 0 for windows that do not.

    Returns:
      Latents float32 [h, w, D], NaN for a cell whose coverage is below 50. And the coverage uint8
      [h, w]: percent of a cell's pixels that are valid, rounded down, but at least 1 if any is.

    Raises:
      InputError: windows without a core or that the model does not take, a region that is empty or
        not within the scene, or pixels that the model does not take.
    """
    config = params.config
    core = core_of(config, side, halo)
    scene_rows, scene_columns = (-(-length // config.patch) for length in shape)
    top, bottom = _ends(rows, scene_rows, "rows")
    left, right = _ends(columns, scene_columns, "columns")
    strips = _cores(top, bottom, scene_rows, core, halo)
    across = _cores(left, right, scene_columns, core, halo)
    coverage = np.zeros((bottom - top, right - left), np.uint8)
    y = np.zeros((*coverage.shape, config.embedding_width), np.float32)
    weights = np.zeros(coverage.shape, np.float32)
    waiting: deque[tuple[int, int]] = deque()  # first cells of windows, in the region

    def read_strip(row: int) -> tuple[int, NDArray, NDArray[np.bool_]]:
        height, width = side * config.patch, (len(across) * core + 2 * halo) * config.patch
        corner = (row * core - halo) * config.patch, (across.start * core - halo) * config.patch
        image, valid = read(*corner, height, width)
        if image.shape[:2] != (height, width) or valid.shape != (height, width):
            raise InputError(
                f"a strip of {height} x {width} px was read as {image.shape}, and which pixels are "
                f"valid as {valid.shape}: read must return [h, w, C] and bool [h, w]"
            )
        if valid.dtype != np.bool_:
            raise InputError(f"which pixels are valid was read as {valid.dtype}: it must be bool")
        return row, image, valid

    def windows() -> Iterator[NDArray]:
        for row, image, valid in _ahead(read_strip, strips):
            percent = _percent(valid, config.patch)
            corner = row * core - halo - top, across.start * core - halo - left
            whole, part = _overlap(coverage.shape, percent.shape, corner)
            coverage[whole] = percent[part]
            for first in range(0, len(across) * core, core):
                inner = np.s_[halo : halo + core, first + halo : first + halo + core]
                if (percent[inner] >= LEAST_COVERAGE).any():
                    pixels = np.s_[:, first * config.patch : (first + side) * config.patch]
                    waiting.append((corner[0], corner[1] + first))
                    yield fill_missing(image[pixels], valid[pixels])

    def batches() -> Iterator[NDArray]:
        pending = windows()
        while some := list(islice(pending, config.coding_batch)):
            yield check_images(config, np.stack(some))[0]

    weight = window_weight(side, halo)
    for batch in latents_of(params, batches()):
        for tokens in batch:
            grid = tokens[int(config.code_class_token) :].reshape(side, side, -1)
            whole, part = _overlap(coverage.shape, grid.shape, waiting.popleft())
            y[whole] += weight[part][..., None] * grid[part]
            weights[whole] += weight[part]
    has_latent = coverage >= LEAST_COVERAGE
    y /= np.where(has_latent, weights, 1)[..., None]
    y[~has_latent] = np.nan
    return y, coverage


def window_weight(side: int, halo: int) -> NDArray[np.float32]:
    """Weights of a window's cells [side, side], raised cosines where it overlaps its neighbours.

    Their sum over all windows is 1 if no cell is in more than two along an axis.
    """
    ramp = (np.arange(side) + 0.5) / max(2 * halo, 0.5)
    line = np.sin(np.pi / 2 * np.minimum(1, np.minimum(ramp, ramp[::-1]))) ** 2
    return np.outer(line, line).astype(np.float32)


def fill_missing(image: NDArray, valid: NDArray[np.bool_]) -> NDArray:
    """An image [h, w, C] whose missing pixels mirror the valid ones, at the nearest valid pixel.

    What this mirror cannot reach is filled in the same way from what it has filled. At least one
    pixel must be valid.
    """
    while not valid.all():
        nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
        assert nearest is not None
        rows, columns = 2 * nearest - np.indices(valid.shape)
        height, width = valid.shape
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        seen = inside & valid[rows.clip(0, height - 1), columns.clip(0, width - 1)]
        if (seen == valid).all():  # valid pixels are too few to have a mirror image
            return image[tuple(nearest)]
        image = image[np.where(seen, rows, nearest[0]), np.where(seen, columns, nearest[1])]
        valid = seen
    return image


def core_of(config: ModelConfig, side: int, halo: int) -> int:
    """The side of a window's core, cells; refuses windows without one, or of a wrong size."""
    config.grid(side * config.patch, side * config.patch)
    if halo < 0 or side <= 2 * halo:
        raise InputError(
            f"windows of {side} x {side} cells with a halo of {halo}: the halo must be at least 0 "
            "and less than half the side, so that a core is left"
        )
    return side - 2 * halo


def _ends(part: slice, count: int, name: str) -> tuple[int, int]:
    """First and last + 1 of a slice of cells."""
    start = 0 if part.start is None else part.start
    stop = count if part.stop is None else part.stop
    if part.step not in (None, 1) or not 0 <= start < stop <= count:
        raise InputError(
            f"{name} {start}:{stop} of a scene that has {count}: give at least one, from 0 to "
            f"{count}, without a step"
        )
    return start, stop


def _percent(valid: NDArray[np.bool_], patch: int) -> NDArray[np.uint8]:
    """Coverage of cells [h, w] from valid pixels [h * patch, w * patch]; 0 only if none is."""
    height, width = valid.shape[0] // patch, valid.shape[1] // patch
    count = valid.reshape(height, patch, width, patch).sum((1, 3))
    return np.where(count > 0, np.maximum(100 * count // patch**2, 1), 0).astype(np.uint8)


def _cores(start: int, stop: int, count: int, core: int, halo: int) -> range:
    """Along an axis of `count` cells: the cores whose windows have cells from `start` to `stop`."""
    return range(max(0, (start - halo) // core), min(-(-count // core), -(-(stop + halo) // core)))


def _overlap(
    whole: tuple[int, ...], part: tuple[int, ...], corner: tuple[int, int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The cells of a whole that a part covers, and those of the part; its first is at `corner`."""
    starts, stops = np.maximum(corner, 0), np.minimum(np.add(corner, part[:2]), whole[:2])
    return (
        tuple(map(slice, starts, stops)),
        tuple(map(slice, starts - corner, stops - corner)),
    )


def _ahead(function: Callable[[int], T], items: Iterable[int]) -> Iterator[T]:
    """The results for the items, in order; a thread computes one ahead."""
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[T] | None = None
        for item in items:
            before, waiting = waiting, pool.submit(function, item)
            if before is not None:
                yield before.result()
        if waiting is not None:
            yield waiting.result()
