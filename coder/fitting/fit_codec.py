"""`fit`: make a codec for any embeddings from a sample of them, without a model or training."""

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import check_whole, is_number, warn_of_integers
from coder.codecs import NOT_CODED, QualityLadder, renumbered
from coder.errors import CodecError, InputError, UnusualEmbedding
from coder.fitting import histograms
from coder.fitting.sample import HOLES, Batch, Sample
from coder.fitting.table_choice import choose
from coder.transform import BANDS, LARGEST, Transform, family

MAX_QUALITIES = 40
"""Upper bound on the qualities of a fitted codec, which has as many as its embeddings need."""
_STEPS = 64.0 * 2.0 ** (-np.arange(MAX_QUALITIES) / 2)  # in standard deviations of a channel
_EXPLAINED = (0.05, 0.997)  # part of the variance, at the lowest quality and at the highest
_DEFAULT = 0.8
_HEAVIEST = 1 << 16  # maximum weight of a class token; the histograms end there
_FEW = 100  # most of the variance in a hundredth of the tokens, or in a single one, is unusual ...
_FEWEST = 20  # ... if there are at least this many
_MISSING = "masked, NaN, or the nodata value"
_LOST = 0.05  # standard deviations: the error of the highest quality


def fit(
    embeddings: ArrayLike,
    class_tokens: ArrayLike | None = None,
    *,
    class_weight: float = 1.0,
    nodata: float | None = None,
    max_samples: int = 4096,
    max_tokens: int = 1 << 16,
    transform: Transform | None = None,
) -> QualityLadder:
    """Fit a codec of many qualities to embeddings.

    A token is missing if it is masked (`numpy.ma`), holds NaN, or holds `nodata`, in any channel.
    Missing tokens are left out of all statistics. Embeddings to code later must have none.

    Args:
      embeddings: floats: [N, H, W, D], grids of tokens; [H, W, D], one raster of tokens; or [N, D],
        vectors, any number of which may be coded together as a grid of N x 1. Anything that can be
        sliced (an array, a memory map, a Zarr array, a dask array); it is read in parts, twice.
      class_tokens: [N, D], the class token of each grid, coded before the grid; None if there are
        none.
      class_weight: the weight of a class token in squared error, in tokens of the grid; at most
        65536. The mean over a grid of n tokens has errors of 1/sqrt(n): with a weight of n the
        class token is coded as finely.
      nodata: the value that marks missing data, in the dtype of the embeddings.
      max_samples: maximum number of grids to read, evenly spread; of a raster, of tiles of 16 x 64
        tokens; of vectors, of runs of 256.
      max_tokens: maximum number of tokens in a grid that the codec codes.
      transform: a transform to keep, such as that of another codec: only steps and tables are
        fitted.

    Returns:
      A codec whose qualities go from 5 % of the variance explained to 99.7 %. The step of each is
      1/sqrt(2) of the step before it. Errors are measured in standard deviations of their channel.
      For a channel that hardly varies, the unit is a thousandth of the median channel's deviation.

    Warns (`UnusualEmbedding`) of NaN that neither a mask nor `nodata` marks as missing; of most of
    the variance in a hundredth of the tokens, which may be unmarked missing data; and of integers,
    which may have lost a scale.

    Raises:
      InputError: another shape, not floats, infinity, or no variation in float32; grids larger
        than `max_tokens`, or whose tokens are mostly missing; embeddings that do not fit the
        transform; a class weight that is not positive, or that has no effect.
    """
    if not (is_number(class_weight) and 0 < class_weight <= _HEAVIEST):
        raise InputError(
            f"class_weight is {class_weight!r}: give a positive number of tokens, at most "
            f"{_HEAVIEST}"
        )
    if class_weight != 1 and (class_tokens is None or transform is not None):
        raise InputError("class_weight goes with class tokens, and without a transform")
    max_tokens = check_whole("max_tokens", max_tokens)
    sample = Sample(embeddings, class_tokens, nodata, max_samples)
    if sample.tokens > max_tokens:
        raise InputError(
            f"grids of {sample.tokens} tokens, and max_tokens is {max_tokens}: the codec could not "
            "code them; raise max_tokens, or cut the grids"
        )
    if transform is None:
        transform = _transform(sample, class_weight)
    sample.check_fits(transform, "transform")
    counts = np.zeros((transform.components, transform.width, histograms.BINS), np.int64)
    squares, energies = 0.0, ([], [])
    for part in sample.batches(looking=True):
        columns = transform.columns(part.grid)
        y = part.y.astype(np.float32, copy=False)
        c = np.stack([transform.forward(one, part.grid) for one in y])
        one_by_one = zip(c[:, None], part.counted, strict=True)
        for grids, counted in [(c, slice(None))] if part.counted.all() else one_by_one:
            squares += float(np.square(grids[:, counted], dtype=np.float64).sum())
            histograms.add(counts, grids[:, counted], columns[counted])
        for held, more in zip(energies, _energies(transform, part), strict=True):
            held.append(more)
    _check_counts(counts, squares, sample)
    sources = _sources(counts)
    tables, shifts = family()
    steps, layouts, chosen = [], [], 0
    for step in _STEPS:
        layout, saved = choose(counts, step, tables, shifts)
        explained = saved / squares
        if explained < _EXPLAINED[0]:
            continue
        chosen += explained < _DEFAULT
        steps.append(step)
        layouts.append(layout[:, sources])
        if explained >= _EXPLAINED[1]:
            break
    if not steps:
        raise InputError(
            "the embeddings are far smaller or larger than the transform's: are they of one model, "
            "in the same units?"
        )
    sample.warn_of_unnamed(stacklevel=3)
    for dtype in dict.fromkeys(sample.dtypes.values()):
        warn_of_integers(dtype, stacklevel=2)
    few = _warn_of_few(np.concatenate(energies[0]), "tokens", stacklevel=3)
    if not (_warn_of_few(np.concatenate(energies[1]), "class tokens", stacklevel=3) or few):
        sample.warn_of_marks(stacklevel=3)
    layout = np.stack(layouts)
    used = np.unique(layout[layout != NOT_CODED])
    rest = tables.only(used), shifts[used], max_tokens, min(chosen, len(steps) - 1)
    return QualityLadder(transform, np.array(steps), renumbered(layout, used), *rest)


def _sources(counts: NDArray[np.int64]) -> NDArray[np.intp]:
    """For each column of a layout, the column to take its tables from.

    That is itself; or, for a band that no block of the sample has, the nearest band that some
    block has, the lower of two.
    """
    seen = np.flatnonzero(counts.any((0, 2)))
    columns = np.arange(counts.shape[1])
    bands = seen[seen < BANDS]
    nearest = bands[np.abs(bands - columns[:, None]).argmin(1)]
    return np.where(np.isin(columns, seen), columns, nearest)


def _check_counts(counts: NDArray[np.int64], squares: float, sample: Sample) -> None:
    """Raise InputError if the counts are too few to choose tables by."""
    if not counts[:, :BANDS].any():
        raise InputError(
            f"tokens are missing in more than {HOLES:.0%} of every block of {LARGEST} x {LARGEST} "
            "that was looked at: fit the others as vectors, [N, D]"
            if sample.spatial
            else f"all tokens are missing ({_MISSING}): there is nothing to fit"
        )
    if counts.shape[1] > BANDS and not counts[:, BANDS].any():
        raise InputError("all class tokens are missing: fit the grids without them")
    if not squares > 0:
        raise InputError("the embeddings are all the same: there is nothing to fit")


def _energies(transform: Transform, part: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Squared deviations of the tokens that are there, in units of each channel's; and of class
    tokens."""
    first = part.y.shape[1] - part.grid[0] * part.grid[1]
    found = []
    for place, mean, scale in (
        (slice(first, None), transform.mean, transform.scale),
        (slice(first), transform.class_mean, transform.class_scale),
    ):
        y = part.y[:, place][part.there[:, place]].astype(np.float32)
        if mean is not None and scale is not None:
            with np.errstate(over="ignore"):
                y = (y - mean) / scale
        found.append(np.einsum("td,td->t", y, y))
    return found[0], found[1]


def _warn_of_few(energies: NDArray[np.float32], what: str, *, stacklevel: int) -> bool:
    if energies.size < _FEWEST:
        return False
    few = max(1, energies.size // _FEW)
    largest = np.sort(np.partition(energies, -few)[-few:])[::-1]
    sums, whole = np.cumsum(largest, dtype=np.float64), energies.sum(dtype=np.float64)
    if not sums[-1] > 0.5 * whole:  # the whole is 0 where all class tokens are the same
        return False
    shares = sums / whole
    # Count the tokens that stand out, not all that were examined.
    alike = np.count_nonzero(largest > largest[0] / 10)
    count = max(1 + int(np.argmax(shares > 0.5)), alike)
    warnings.warn(
        f"{count} of {energies.size} {what} carry {shares[count - 1]:.0%} of the variance: are "
        "they missing data? Name it with nodata, or mask it",
        UnusualEmbedding,
        stacklevel=stacklevel,
    )
    return True


def _transform(sample: Sample, class_weight: float) -> Transform:
    """The transform of means, deviations and principal components, in one pass over the sample."""
    d = sample.channels
    centre: NDArray[np.float64] | None = None
    sums, products, tokens = np.zeros(d), np.zeros((d, d)), 0
    lost = np.zeros(d)
    of_class, images = np.zeros((2, d)), 0
    for batch in sample.batches():
        y = batch.y.astype(np.float64)  # so that neither large values nor tiny ones are lost
        first = y.shape[1] - batch.grid[0] * batch.grid[1]
        part = y[:, first:][batch.there[:, first:]]
        if not len(part):
            continue
        if batch.y.dtype != np.float32:
            lost += np.square(part - part.astype(np.float32)).sum(0)
        if centre is None:
            centre = np.asarray(part.mean(0))
        part -= centre
        sums += part.sum(0)
        products += part.T @ part
        tokens += len(part)
        if first:
            own = y[batch.there[:, 0], 0] - centre
            of_class += own.sum(0), np.square(own).sum(0)
            images += len(own)
    if centre is None:
        raise InputError(f"all tokens are missing ({_MISSING}): there is nothing to fit")
    mean = sums / tokens
    covariance = products / tokens - np.outer(mean, mean)
    scale = _deviations(np.diag(covariance))
    if scale is None:
        raise InputError("the embeddings are all the same: there is nothing to fit")
    _check_precision(np.sqrt(lost / tokens), mean + centre, scale)
    _, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    rows = vectors.T[::-1]
    norms = np.abs(rows).max(1) / 127
    class_mean = class_scale = None
    if sample.class_tokens:
        if not images:
            raise InputError("all class tokens are missing: fit the grids without them")
        class_mean, squares = of_class / images
        class_scale = _deviations(squares - class_mean**2)
        class_scale = (scale if class_scale is None else class_scale) / np.sqrt(class_weight)
        class_mean = (class_mean + centre).astype(np.float32)
    try:
        return Transform(
            (mean + centre).astype(np.float32),
            scale.astype(np.float32),
            np.rint(rows / norms[:, None]).astype(np.int8),
            norms.astype(np.float32),
            class_mean,
            None if class_scale is None else class_scale.astype(np.float32),
            spatial=sample.spatial,
        )
    except CodecError as error:
        remedy = f"multiply them by a constant first ({error})"
        if scale.max() > 1:
            remedy = (
                f"is {_extreme(sample)} among them a mark of missing data? Name it with nodata, "
                f"exactly, or mask it; if it is none, {remedy}"
            )
        raise InputError(
            f"embeddings with standard deviations of {scale.min():.3g} to {scale.max():.3g}: "
            f"{remedy}"
        ) from error


def _extreme(sample: Sample) -> np.floating:
    """The value of the largest magnitude in the sample."""
    parts = (batch.y[batch.there] for batch in sample.batches())
    values = [part.flat[np.abs(part).argmax()] for part in parts if part.size]
    return values[int(np.abs(values).argmax())]


def _check_precision(
    lost: NDArray[np.float64], mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> None:
    """Raise InputError if float32, the dtype of decoded values, cannot hold the variation."""
    d = int((lost / scale).argmax())
    if lost[d] > _LOST * scale[d]:
        raise InputError(
            f"channel {d} varies by {scale[d]:.3g} around {mean[d]:.6g}, beyond float32's "
            "precision, in which embeddings are coded: subtract a constant first"
        )


def _deviations(variances: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The deviation of each channel, bounded below so that a nearly constant one is not magnified.

    None if all are zero.
    """
    scale = np.sqrt(np.maximum(variances, 0))
    if not scale.max() > 0:
        return None
    return np.maximum(scale, 1e-3 * np.median(scale[scale > 0]))
