"""`fit`: a codec for anybody's embeddings, from a sample of them. No model, no training."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder import histograms
from coder.bands import BANDS, LARGEST
from coder.errors import InputError
from coder.family import family
from coder.ladder import choose
from coder.layout import NOT_CODED, renumbered
from coder.quantise import as_floats
from coder.rate_ladder import RateLadder
from coder.transform import Transform

_BATCH = 1 << 23  # values that are looked at together
_TILE = (LARGEST, 4 * LARGEST)  # of a raster, tokens
_STEPS = 64.0 * 2.0 ** (-np.arange(40) / 2)  # in standard deviations of a channel
_EXPLAINED = (0.05, 0.997)  # of the variance, by the smallest rate and by the largest
_DEFAULT = 0.8


def fit(
    embeddings: ArrayLike,
    class_tokens: ArrayLike | None = None,
    *,
    class_weight: float = 1.0,
    most: int = 4096,
    max_tokens: int = 1 << 16,
    transform: Transform | None = None,
) -> RateLadder:
    """Fit a codec of many rates.

    Args:
      embeddings: floats, of a shape [N, H, W, D], grids of tokens; [H, W, D], one raster of them;
        or [N, D], vectors, any number of which may be coded together as a grid of N x 1. Whatever
        can be sliced will do (a memory map, a Zarr array): it is read in parts, twice.
      class_tokens: [N, D], a class token for each grid, if there are any; coded before the grid.
      class_weight: how many tokens of the grid a class token counts as, in squared error. The mean
        of a grid of n tokens has errors of 1/sqrt(n); with a weight of n the class token is coded
        as finely.
      most: how many grids, evenly spread, to look at; or tiles of a raster, 16 x 64 tokens; or runs
        of 256 vectors.
      max_tokens: the largest grid that the codec will code.
      transform: that of another codec, which stays as it is: steps and tables alone are fitted.

    Returns:
      A codec of the rates from 5 % of the variance explained to 99.7 %, each with a step that is
      1/sqrt(2) of the one before. An error counts in standard deviations of its channel; one that
      hardly varies, in thousandths of the median channel's.

    Raises:
      InputError: another shape, no floats, NaN or infinity, or nothing that varies; embeddings of
        another kind than the transform's; a weight that is not positive and finite, or has no use.
    """
    if not 0 < class_weight < np.inf:
        raise InputError(f"class_weight is {class_weight}: give a positive number of tokens")
    if class_weight != 1 and (class_tokens is None or transform is not None):
        raise InputError("class_weight goes with class tokens, and without a transform")
    sample = _Sample(embeddings, class_tokens, most)
    if transform is None:
        transform = _transform(sample, class_weight)
    kind = (sample.channels, sample.spatial, class_tokens is not None)
    if kind != (transform.channels, transform.spatial, transform.class_mean is not None):
        raise InputError(
            f"the transform is of {transform.channels} channels, the embeddings have "
            f"{sample.channels}; or only one of them has a grid, or a class token"
        )
    counts = histograms.empty(transform.components, transform.width)
    squares = 0.0
    for y, grid in sample.batches():
        c = np.stack([transform.forward(one, grid) for one in y])
        squares += float(np.square(c, dtype=np.float64).sum())
        histograms.add(counts, c, transform.columns(grid))
    sources = _sources(counts)
    tables, shifts = family()
    steps, layouts, chosen = [], [], 0
    for step in _STEPS:
        found = choose(counts, step, tables, shifts)
        explained = found.saved / squares
        if explained < _EXPLAINED[0]:
            continue
        chosen += explained < _DEFAULT
        steps.append(step)
        layouts.append(found.layout[:, sources])
        if explained >= _EXPLAINED[1]:
            break
    layout = np.stack(layouts)
    used = np.unique(layout[layout != NOT_CODED])
    return RateLadder(
        transform,
        np.array(steps),
        renumbered(layout, used),
        tables.only(used),
        shifts[used],
        max_tokens,
        min(chosen, len(steps) - 1),
    )


def _sources(counts: NDArray[np.int64]) -> NDArray[np.intp]:
    """For each column of a layout, the one whose tables it gets: itself, or for a band that no
    block of the sample has the nearest that some have, the lower of two."""
    seen = np.flatnonzero(counts.any((0, 2)))
    columns = np.arange(counts.shape[1])
    bands = seen[seen < BANDS]
    nearest = bands[np.abs(bands - columns[:, None]).argmin(1)]
    return np.where(np.isin(columns, seen), columns, nearest)


class _Sample:
    """Embeddings in batches of one grid: float32 [B, n, D] and (h, w)."""

    def __init__(self, embeddings: Any, class_tokens: Any, most: int):
        if not hasattr(embeddings, "shape"):
            embeddings = np.asarray(embeddings)
        shape = embeddings.shape
        if most < 1:
            raise InputError(f"most is {most}: look at one grid at least")
        if len(shape) not in (2, 3, 4) or 0 in shape:
            raise InputError(
                f"embeddings of shape {tuple(shape)}: give grids [N, H, W, D], a raster [H, W, D], "
                "or vectors [N, D]"
            )
        if class_tokens is not None:
            if not hasattr(class_tokens, "shape"):
                class_tokens = np.asarray(class_tokens)
            if len(shape) != 4 or class_tokens.shape != (shape[0], shape[-1]):
                raise InputError(
                    f"class tokens of shape {tuple(class_tokens.shape)}: give one for each of the "
                    f"grids, of shape {tuple(shape)}"
                )
        self._embeddings, self._class, self._most = embeddings, class_tokens, most
        self.channels = shape[-1]
        self.spatial = len(shape) > 2

    def batches(self) -> Iterator[tuple[NDArray[np.float32], tuple[int, int]]]:
        """All of the sample, in the same order each time."""
        shape = self._embeddings.shape
        if len(shape) == 3:
            yield from self._tiles()
            return
        unit = 1 if self.spatial else LARGEST**2
        runs = _spread(-(-shape[0] // unit), self._most)
        size = max(1, _BATCH // (unit * int(np.prod(shape[1:]))))
        for some in np.array_split(runs, -(-len(runs) // size)):
            # As few slices, which everything can read, as there are gaps.
            parts = np.split(some, np.flatnonzero(np.diff(some) > 1) + 1)
            spans = [slice(int(p[0]) * unit, (int(p[-1]) + 1) * unit) for p in parts]
            rows = np.concatenate([self._checked(self._embeddings[span]) for span in spans])
            if not self.spatial:  # one after another, as they may be coded
                yield rows[None], (len(rows), 1)
                continue
            rows = rows.reshape(len(rows), -1, self.channels)
            if self._class is not None:
                tokens = np.concatenate([self._checked(self._class[span]) for span in spans])
                rows = np.concatenate([tokens[:, None], rows], axis=1)
            yield rows, shape[1:3]

    def _tiles(self) -> Iterator[tuple[NDArray[np.float32], tuple[int, int]]]:
        sides = self._embeddings.shape[:2]
        down, across = (-(-side // tile) for side, tile in zip(sides, _TILE, strict=True))
        for number in _spread(down * across, self._most):
            top, left = divmod(int(number), across)
            rows, columns = (
                slice(k * t, (k + 1) * t) for k, t in zip((top, left), _TILE, strict=True)
            )
            tile = self._checked(self._embeddings[rows, columns])
            yield tile.reshape(1, -1, self.channels), tile.shape[:2]

    @staticmethod
    def _checked(values: Any) -> NDArray[np.float32]:
        floats = as_floats(np.asarray(values))
        if not np.isfinite(floats).all():
            raise InputError("embeddings hold NaN or infinity: leave those out first")
        return floats


def _spread(count: int, most: int) -> NDArray[np.intp]:
    """At most so many of 0 .. count - 1, evenly spread."""
    some = min(count, most)
    return np.arange(some) * count // some


def _transform(sample: _Sample, class_weight: float) -> Transform:
    """Means, deviations and principal components, in one pass."""
    d = sample.channels
    centre: NDArray[np.float64] | None = None
    sums, products, tokens = np.zeros(d), np.zeros((d, d)), 0
    of_class, images = np.zeros((2, d)), 0
    for y, grid in sample.batches():
        y = y.astype(np.float64)  # so that neither large values nor tiny ones are lost
        if centre is None:
            centre = np.asarray(y.reshape(-1, d).mean(0))
        y -= centre
        first = y.shape[1] - grid[0] * grid[1]
        part = y[:, first:].reshape(-1, d)
        sums += part.sum(0)
        products += part.T @ part
        tokens += len(part)
        if first:
            of_class += y[:, 0].sum(0), np.square(y[:, 0]).sum(0)
            images += len(y)
    assert centre is not None
    mean = sums / tokens
    covariance = products / tokens - np.outer(mean, mean)
    scale = _deviations(np.diag(covariance))
    if scale is None:
        raise InputError("the embeddings are all the same: there is nothing to fit")
    _, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    rows = vectors.T[::-1]
    norms = np.abs(rows).max(1) / 127
    class_mean = class_scale = None
    if images:
        class_mean, squares = of_class / images
        class_scale = _deviations(squares - class_mean**2)
        class_scale = (scale if class_scale is None else class_scale) / np.sqrt(class_weight)
        class_mean = (class_mean + centre).astype(np.float32)
    return Transform(
        (mean + centre).astype(np.float32),
        scale.astype(np.float32),
        np.rint(rows / norms[:, None]).astype(np.int8),
        norms.astype(np.float32),
        class_mean,
        None if class_scale is None else class_scale.astype(np.float32),
        spatial=sample.spatial,
    )


def _deviations(variances: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Of each channel; one that hardly moves is not blown up. None if all are zero."""
    scale = np.sqrt(np.maximum(variances, 0))
    if not scale.max() > 0:
        return None
    return np.maximum(scale, 1e-3 * np.median(scale[scale > 0]))
