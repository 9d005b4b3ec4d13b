"""Windows of a scene -> the latents of a region of its cells.

A cell is one patch of the encoder. Windows of `side` x `side` cells overlap; of each only the core
is kept, the cells that are at least `halo` cells from its border. So every kept cell was encoded
with its surroundings, and embeddings do not jump where windows meet (docs/results/scenes.md). Cores
tile the scene from its first cell on, and a window is filled from its own pixels alone: a cell's
latent depends neither on the region that is asked for nor on the other windows of its batch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

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

# (row, column, height, width), in pixels and possibly beyond the scene -> values [h, w, C], and
# which pixels are valid [h, w].
Read = Callable[[int, int, int, int], tuple[NDArray, NDArray[np.bool_]]]


class _Core(NamedTuple):
    row: int  # of its first cell in the scene
    column: int
    has_latent: NDArray[np.bool_]  # [core, core]


def default_windows(config: ModelConfig) -> tuple[int, int]:
    """Side and halo of the windows that a model encodes best, in cells: see docs/results/scenes.md.

    TODO
    """
    side = config.image_size // config.patch
    return side, side // 4


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

    Pixels are read in strips, one row of windows each; a thread reads the next strip while the
    encoder computes. Missing pixels (not valid, or beyond the scene) take the value of the nearest
    valid pixel of their window. A window is not encoded if no cell of its core has a latent.

    Args:
      params: the model; batches have its `coding_batch` windows.
      read: as `RasterScene.read`.
      shape: height and width of the scene, pixels. If the patch does not divide them, the last
        cells lie partly beyond the scene, and have missing pixels there.
      rows, columns: the region, in cells of the scene.
      side: side of the encoder's windows, cells.
      halo: cells at each side of a window that are not kept; 0 for windows that do not overlap.

    Returns:
      Latents float32 [h, w, D], NaN for a cell whose coverage is below 50. And the coverage uint8
      [h, w]: percent of a cell's pixels that are valid, rounded down, but at least 1 if any is.

    Raises:
      InputError: windows without a core or that the model does not take, a region that is empty or
        not within the scene, or pixels that the model does not take.
    """
    config = params.config
    core = _core_of(config, side, halo)
    cells = tuple(-(-length // config.patch) for length in shape)
    top, bottom = _ends(rows, cells[0], "rows")
    left, right = _ends(columns, cells[1], "columns")
    y = np.full((bottom - top, right - left, config.embedding_width), np.nan, np.float32)
    coverage = np.zeros(y.shape[:2], np.uint8)
    first = left // core  # of the columns of cores
    count = -(-right // core) - first

    def read_strip(row: int) -> tuple[int, NDArray, NDArray[np.bool_]]:
        height, width = side * config.patch, (count * core + 2 * halo) * config.patch
        corner = (row * core - halo) * config.patch, (first * core - halo) * config.patch
        image, valid = read(*corner, height, width)
        if image.shape[:2] != (height, width) or valid.shape != (height, width):
            raise InputError(
                f"a strip of {height} x {width} px was read as {image.shape}, and which pixels are "
                f"valid as {valid.shape}: read must return [h, w, C] and bool [h, w]"
            )
        return row * core, image, valid

    def windows() -> Iterator[tuple[_Core, NDArray]]:
        for row, image, valid in _ahead(read_strip, range(top // core, -(-bottom // core))):
            percent = _percent(valid, config.patch)[halo : halo + core, halo : -halo or None]
            _put(coverage, percent, (row - top, first * core - left))
            for i in range(count):
                kept = percent[:, i * core : (i + 1) * core] >= LEAST_COVERAGE
                if kept.any():
                    start = i * core * config.patch
                    part = np.s_[:, start : start + side * config.patch]
                    filled = fill_missing(image[part], valid[part])
                    yield _Core(row, (first + i) * core, kept), filled

    waiting: deque[_Core] = deque()

    def batches() -> Iterator[NDArray]:
        images = []
        for place, image in windows():
            waiting.append(place)
            images.append(image)
            if len(images) == config.coding_batch:
                yield check_images(config, np.stack(images))[0]
                images = []
        if images:
            yield check_images(config, np.stack(images))[0]

    for batch in latents_of(params, batches()):
        for tokens in batch:
            place = waiting.popleft()
            grid = tokens[int(config.code_class_token) :].reshape(side, side, -1)
            part = grid[halo : halo + core, halo : halo + core]
            part = np.where(place.has_latent[..., None], part, np.nan)
            _put(y, part, (place.row - top, place.column - left))
    return y, coverage


def fill_missing(image: NDArray, valid: NDArray[np.bool_]) -> NDArray:
    """An image [h, w, C] whose missing pixels have the value of the nearest one that is valid.

    At least one must be valid.
    """
    if valid.all():
        return image
    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    assert nearest is not None
    return image[tuple(nearest)]


def _core_of(config: ModelConfig, side: int, halo: int) -> int:
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


def _put(whole: NDArray, part: NDArray, corner: tuple[int, int]) -> None:
    """Write the cells of `part` that lie in `whole`; `corner` is its first cell there."""
    inside, taken = [], []
    for start, length, end in zip(corner, part.shape, whole.shape, strict=False):
        inside.append(slice(max(start, 0), min(start + length, end)))
        taken.append(slice(max(-start, 0), min(length, end - start)))
    whole[tuple(inside)] = part[tuple(taken)]


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
