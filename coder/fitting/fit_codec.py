"""`fit`: make a codec for any embeddings from a sample of them, without a model or training."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import as_array, check_whole, is_number, warn_of_integers
from coder.codecs import NOT_CODED, QualityLadder, renumbered
from coder.errors import CodecError, InputError, UnusualEmbedding
from coder.fitting import histograms
from coder.fitting.sample import HOLES, MOST_SAMPLES, Batch, Sample
from coder.fitting.stated_error import DEFAULT, HeldOut, MaxError
from coder.fitting.table_choice import Prices, choose
from coder.transform import BANDS, LARGEST, Transform, family

MAX_QUALITIES = 40
"""Upper bound on the qualities of a fitted codec, which has as many as its embeddings need."""
_STEPS = 64.0 * 2.0 ** (-np.arange(MAX_QUALITIES) / 2)  # in standard deviations of a channel
_EXPLAINED = (
    0.05,
    0.997,
)  # part of the variance, at the lowest quality and at least at the highest
_OF_A_MODEL = 0.8  # part of the variance that the default quality explains
_HEAVIEST = 1 << 16  # maximum weight of a class token; the histograms end there
_FEW = 100  # most of the variance in a hundredth of the tokens, or in a single one, is unusual ...
_FEWEST = 20  # ... if there are at least this many
_MISSING = "masked, NaN, or the nodata value"
_LOST = 0.05  # standard deviations: the error of the highest quality
_INT8 = 127  # levels on each side of zero
_FOLDS = 4
_MOST_EMBEDDINGS = 1 << 60
# A component of vectors whose deviation is less (in steps) is not coded at low qualities, which
# explain less than this part of the variance.
_LEAST, _LOW = 0.7, 0.95
_AGAIN = 8  # components; the others are found after these are rounded
_PER_CHANNEL = 32  # vectors; of fewer, the statistics of coefficients are cross-validated

Metric = Literal["standardised", "euclidean"]
METRICS: tuple[Metric, ...] = ("euclidean", "standardised")
_METRIC: Metric = "euclidean"


def fit(
    embeddings: ArrayLike,
    class_tokens: ArrayLike | None = None,
    *,
    metric: Metric | ArrayLike | None = None,
    max_error: str | float | None = None,
    count: int | None = None,
    class_weight: float = 1.0,
    nodata: float | None = None,
    max_samples: int = MOST_SAMPLES,
    max_tokens: int = 1 << 16,
    transform: Transform | None = None,
) -> QualityLadder:
    """Fit a codec of many qualities to embeddings.

    A token is missing if it is masked (`numpy.ma`), holds NaN, or holds `nodata`, in any channel.
    Missing tokens are left out of all statistics. Embeddings to code later must have none.

    One grid, tile or run of vectors of each eight is held out: the error of the codec is measured
    on it (`fit_measured` returns it). If there are fewer than 32 vectors, or fewer than 4 grids or
    tiles, the error is that of the embeddings that it was fitted to.

    Args:
      embeddings: floats: [N, H, W, D], grids of tokens; [H, W, D], one raster of tokens; or [N, D],
        vectors, any number of which may be coded together as a grid of N x 1. Anything that can be
        sliced (an array, a memory map, a Zarr array, a dask array); it is read in parts, twice.
      class_tokens: [N, D], the class token of each grid, coded before the grid; None if there are
        none.
      metric: what the codec counts as error. "euclidean", the default: the squared error as it is,
        as cosine and Euclidean search do. "standardised": the error of each channel in its standard
        deviations. Positive weights [D]: the squared error of channel d counts weights[d] times.
        Class tokens are counted alike, in units of their own deviations.
      max_error: the default quality of the codec becomes the lowest that keeps the error of what
        was held out within this bound: "5%" of relative rms error, or "variance=1%", "worst=20%",
        "cosine=0.999", "recall=0.95" (`coder.fitting.stated_error`). None: the lowest quality that
        loses at most 1 % of the variance, in its metric; the highest if none does.
      count: how many vectors or grids (of a raster: tokens) the codec is for; those that are given
        if None. Components and tables that do not pay for their bytes in the codec are left out,
        which concerns few embeddings only.
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
      A codec whose qualities begin at 5 % of the variance explained. They end where the error, in
      the codec's metric, is as small as that of int8 with one scale per channel (the largest
      magnitude is 127), and at least 99.7 % of the variance are explained. The step of each is
      1/sqrt(2) of the step before it.
      For a channel that hardly varies, "standardised" counts in a thousandth of the median
      channel's deviation.

    Warns (`UnusualEmbedding`) of NaN that neither a mask nor `nodata` marks as missing; of most of
    the variance in a hundredth of the tokens, which may be unmarked missing data; and of integers,
    which may have lost a scale.

    Raises:
      InputError: another shape, not floats, infinity, or no variation in float32; grids larger
        than `max_tokens`, or whose tokens are mostly missing; embeddings that do not fit the
        transform; a class weight that is not positive, or that has no effect; a metric that is
        none, or one beside a transform; a bound that no quality keeps.
    """
    sample = _opened(embeddings, class_tokens, nodata, max_samples, max_tokens, class_weight)
    return _fit(sample, metric, max_error, count, class_weight, transform, max_tokens)[0]


def fit_measured(
    embeddings: ArrayLike,
    class_tokens: ArrayLike | None = None,
    *,
    metric: Metric | ArrayLike | None = None,
    max_error: str | float | None = None,
    count: int | None = None,
    class_weight: float = 1.0,
    nodata: float | None = None,
    max_samples: int = MOST_SAMPLES,
    max_tokens: int = 1 << 16,
    transform: Transform | None = None,
) -> tuple[QualityLadder, HeldOut]:
    """`fit`, and what was held out, to measure the error of any quality.

    Args and errors are those of `fit`. `held_out.error(codec.at(quality))` is the error.
    """
    sample = _opened(embeddings, class_tokens, nodata, max_samples, max_tokens, class_weight)
    return _fit(sample, metric, max_error, count, class_weight, transform, max_tokens)


def fit_for_model(
    embeddings: ArrayLike,
    class_tokens: ArrayLike | None = None,
    *,
    class_weight: float = 1.0,
    transform: Transform | None = None,
) -> QualityLadder:
    """A codec for the embeddings of a model in training, which chooses its default quality itself.

    All embeddings are fitted to, and errors are standardised. The qualities end where 99.7 % of the
    variance are explained; the default one explains 80 %. Args and errors are those of `fit`.
    """
    max_tokens = 1 << 16
    sample = _opened(embeddings, class_tokens, None, MOST_SAMPLES, max_tokens, class_weight)
    _check_transform(sample, transform, class_weight)
    transforms = [transform] if transform else _transforms(sample, "standardised", class_weight)
    counted = _count(sample, transforms)
    codec, explained = _ladder(counted, transforms[0], max_tokens)
    _warn(sample, counted, stacklevel=3)
    chosen = np.count_nonzero(np.array(explained) < _OF_A_MODEL)
    return replace(codec, quality=min(chosen, codec.num_qualities - 1))


def _opened(
    embeddings: ArrayLike,
    class_tokens: ArrayLike | None,
    nodata: float | None,
    max_samples: int,
    max_tokens: int,
    class_weight: float,
) -> Sample:
    """The sample of the embeddings, if a codec of `max_tokens` can code them."""
    if not (is_number(class_weight) and 0 < class_weight <= _HEAVIEST):
        raise InputError(
            f"class_weight is {class_weight!r}: give a positive number of tokens, at most "
            f"{_HEAVIEST}"
        )
    max_tokens = check_whole("max_tokens", max_tokens)
    sample = Sample(embeddings, class_tokens, nodata, max_samples)
    if sample.tokens > max_tokens:
        raise InputError(
            f"grids of {sample.tokens} tokens, and max_tokens is {max_tokens}: the codec could not "
            "code them; raise max_tokens, or cut the grids"
        )
    return sample


def _check_transform(sample: Sample, transform: Transform | None, class_weight: float) -> None:
    if class_weight != 1 and (not sample.class_tokens or transform is not None):
        raise InputError("class_weight goes with class tokens, and without a transform")
    if transform is not None:
        sample.check_fits(transform, "transform")


def _fit(
    sample: Sample,
    metric: Metric | ArrayLike | None,
    max_error: str | float | None,
    count: int | None,
    class_weight: float,
    transform: Transform | None,
    max_tokens: int,
) -> tuple[QualityLadder, HeldOut]:
    _check_transform(sample, transform, class_weight)
    if transform is not None and metric is not None:
        raise InputError("the transform has a metric of its own: leave metric out")
    weights = _checked_metric(metric, sample.channels)
    bound = None if max_error is None else MaxError.of(max_error)
    whole = (
        sample.whole
        if count is None
        else check_whole("count", count, 1, _MOST_EMBEDDINGS) * sample.tokens
    )
    sample.hold_out()
    transforms = (
        [transform] if transform else _transforms(sample, weights, class_weight, again=_AGAIN)
    )
    counted = _count(sample, transforms)
    # The same part of all embeddings counts as of those that were read.
    times = whole * counted.present / counted.read / counted.tokens
    codec, _ = _ladder(counted, transforms[0], max_tokens, times)
    _warn(sample, counted, stacklevel=4)
    held = HeldOut(counted.measured, "held-out" if sample.held_out else "fitted")
    if not held.vectors:  # all that was held out is missing
        sample.limit()
        held = HeldOut(sample.batches(), "fitted")
    if bound is not None:
        return replace(codec, quality=held.quality_for(codec, bound)), held
    best = codec.num_qualities - 1
    # What was held out may all be the same: then nothing says which quality is enough.
    if held.error(codec.at(best), recall=False).variance_lost is None:
        return replace(codec, quality=best), held
    lowest = held.lowest_quality(codec, MaxError.of(DEFAULT))
    return replace(codec, quality=best if lowest is None else lowest), held


class _Counted(NamedTuple):
    """What the sample says of its coefficients.

    Attributes:
      histograms: int64 [K, columns, BINS], of those that are fitted to.
      squares: the sum of their squares.
      of_int8: what int8 with one scale per channel would lose of them.
      read, present, tokens: tokens of the grids: those read, those of them in blocks that count,
        and those of these that are fitted to.
      energies: of tokens and of class tokens, as `_energies` finds them.
      measured: what is held out; all, if nothing is.
    """

    histograms: NDArray[np.int64]
    squares: float
    of_int8: float
    read: int
    present: int
    tokens: int
    energies: tuple[NDArray[np.float32], NDArray[np.float32]]
    measured: list[Batch]


def _count(sample: Sample, transforms: list[Transform]) -> _Counted:
    """Count the coefficients of the sample, those of a fold by the transform without it."""
    transform, *folds = transforms
    counts = np.zeros((transform.components, transform.width, histograms.BINS), np.int64)
    squares, tokens, images = 0.0, 0, 0
    present, energies, measured = 0, ([], []), []
    largest = np.zeros((2, transform.channels))
    for batch in sample.batches(looking=True):
        for kept, more in zip(energies, _energies(transform, batch), strict=True):
            kept.append(more)
        held = sample.is_held_out(batch.units)
        first = batch.first
        present += int(batch.counted[:, first:].sum())
        if held.any() or not sample.held_out:
            measured.append(batch.only(held) if sample.held_out else batch)
        for fold, part in _folded(batch, held, max(1, len(folds))):
            own = folds[fold] if folds else transform
            columns = own.columns(part.grid)
            y = part.y.astype(np.float32, copy=False)
            c = np.stack([own.forward(one, part.grid) for one in y])
            one_by_one = zip(c[:, None], part.counted, strict=True)
            for grids, counted in [(c, slice(None))] if part.counted.all() else one_by_one:
                squares += float(np.square(grids[:, counted], dtype=np.float64).sum())
                histograms.add(counts, grids[:, counted], columns[counted])
            tokens += int(part.counted[:, first:].sum())
            images += int(part.counted[:, :first].sum())
            for place, found in ((slice(first, None), largest[0]), (slice(first), largest[1])):
                values = np.abs(y[:, place][part.there[:, place]])
                np.maximum(found, values.max(0, initial=0), out=found)
    _check_counts(counts, squares, sample)
    tokens_and_class = np.concatenate(energies[0]), np.concatenate(energies[1])
    rounding = np.square(largest / _INT8) / 12
    of_int8 = tokens * float((rounding[0] / np.square(transform.scale, dtype=np.float64)).sum())
    if transform.class_scale is not None:
        own = rounding[1] / np.square(transform.class_scale, dtype=np.float64)
        of_int8 += images * float(own.sum())
    found = present, tokens, tokens_and_class, measured
    return _Counted(counts, squares, of_int8, sample.vectors, *found)


def _folded(batch: Batch, held: NDArray[np.bool_], folds: int) -> Iterator[tuple[int, Batch]]:
    """What is fitted to, by folds; a fold may have nothing."""
    for fold in range(folds):
        chosen = ~held & (batch.units % folds == fold)
        if chosen.any():
            yield fold, batch.only(chosen)


def _ladder(
    counted: _Counted, transform: Transform, max_tokens: int, times: float | None = None
) -> tuple[QualityLadder, list[float]]:
    """The codec, and the part of the variance that each quality explains.

    With `times`, how many times as many embeddings there are as those that were counted, the bytes
    of the codec count too, and the ladder goes on until int8's error is matched.
    """
    counts, squares = counted.histograms, counted.squares
    sources = _sources(counts)
    tables, shifts = family()
    prices = None
    if times is not None:
        prices = Prices.of(tables, transform.channels, transform.width, times)
    # Where a component is zero in most vectors and large in a few, decoded neighbours lie apart.
    search = times is not None and not transform.spatial and np.ptp(transform.scale) == 0
    # As `choose` sees them: what is lost is smaller than the rounding to bins.
    binned = float(counts.sum((0, 1)) @ np.square(histograms.CENTRES))
    steps, layouts, explained = [], [], []
    for step in _STEPS:
        if steps and times is not None and step <= transform.finest_step:
            break
        layout, saved = choose(counts, step, tables, shifts, prices, _LEAST if search else 0.0)
        if search and saved >= _LOW * squares:
            layout, saved = choose(counts, step, tables, shifts, prices)
        part = saved / squares
        if part < _EXPLAINED[0]:
            continue
        steps.append(step)
        layouts.append(layout[:, sources])
        explained.append(part)
        enough = times is None or binned - saved <= counted.of_int8
        if part >= _EXPLAINED[1] and enough:
            break
    if not steps:
        raise InputError(
            "the embeddings are far smaller or larger than the transform's: are they of one model, "
            "in the same units?"
        )
    layout = np.stack(layouts)
    used = np.unique(layout[layout != NOT_CODED])
    rest = tables.only(used), shifts[used], max_tokens
    return QualityLadder(transform, np.array(steps), renumbered(layout, used), *rest), explained


def _warn(sample: Sample, counted: _Counted, *, stacklevel: int) -> None:
    """Issue the warnings of `fit`."""
    stacklevel += 1
    sample.warn_of_unnamed(stacklevel=stacklevel)
    for dtype in dict.fromkeys(sample.dtypes.values()):
        warn_of_integers(dtype, stacklevel=stacklevel - 1)
    tokens, class_tokens = counted.energies
    few = _warn_of_few(tokens, "tokens", stacklevel=stacklevel)
    if not (_warn_of_few(class_tokens, "class tokens", stacklevel=stacklevel) or few):
        sample.warn_of_marks(stacklevel=stacklevel)


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
    first = part.first
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


def _checked_metric(
    metric: Metric | ArrayLike | None, channels: int
) -> Metric | NDArray[np.float64]:
    """The metric, or weights float64 [D]. Raises InputError for anything else."""
    if metric is None:
        return _METRIC
    if isinstance(metric, str):
        if metric not in METRICS:
            raise InputError(f"metric is {metric!r}: give {' or '.join(METRICS)}, or weights")
        return metric
    weights = as_array(metric, "weights of a metric")
    if weights.shape != (channels,) or weights.dtype.kind not in "fiu":
        raise InputError(
            f"weights of shape {weights.shape} as the metric of {channels} channels: give a number "
            "for each channel"
        )
    weights = weights.astype(np.float64)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise InputError("weights of a metric must be positive and finite: leave channels out")
    return weights


class _Moments:
    """Sums over tokens around a centre, from which their mean and covariance follow."""

    def __init__(self, channels: int):
        self.sums, self.tokens = np.zeros(channels), 0
        self.products = np.zeros((channels, channels))

    def add(self, y: NDArray[np.float64]) -> None:
        """Add tokens [n, D], less the centre."""
        self.sums += y.sum(0)
        self.products += y.T @ y
        self.tokens += len(y)

    def plus(self, other: Self, times: int = 1) -> "_Moments":
        """The moments with those of other tokens, or (-1) without them."""
        both = _Moments(self.sums.size)
        both.sums = self.sums + times * other.sums
        both.products = self.products + times * other.products
        both.tokens = self.tokens + times * other.tokens
        return both

    @property
    def mean(self) -> NDArray[np.float64]:
        """[D]."""
        return self.sums / self.tokens

    @property
    def covariance(self) -> NDArray[np.float64]:
        """[D, D]."""
        return self.products / self.tokens - np.outer(self.mean, self.mean)


def _transforms(
    sample: Sample,
    metric: Metric | NDArray[np.float64],
    class_weight: float,
    *,
    again: int = 0,
) -> list[Transform]:
    """The transform of means, scales and principal components, in one pass over the sample.

    If there are few vectors, the transforms without each of the folds follow it. Few vectors seem
    to have most of their variance in the components that were fitted to them; those of a fold show
    what remains for others.
    """
    d = sample.channels
    centre: NDArray[np.float64] | None = None
    folds = _FOLDS if sample.held_out and sample.vectors < _PER_CHANNEL * d else 1
    moments, lost = [_Moments(d) for _ in range(folds)], np.zeros(d)
    of_class, images = np.zeros((2, d)), 0
    for batch in sample.batches():
        first = batch.first
        for fold, part in _folded(batch, sample.is_held_out(batch.units), folds):
            y = part.y.astype(np.float64)  # so that neither large values nor tiny ones are lost
            tokens = y[:, first:][part.there[:, first:]]
            if not len(tokens):
                continue
            if part.y.dtype != np.float32:
                lost += np.square(tokens - tokens.astype(np.float32)).sum(0)
            if centre is None:
                centre = np.asarray(tokens.mean(0))
            tokens -= centre
            moments[fold].add(tokens)
            if first:
                own = y[part.there[:, 0], 0] - centre
                of_class += own.sum(0), np.square(own).sum(0)
                images += len(own)
    if centre is None:
        raise InputError(f"all tokens are missing ({_MISSING}): there is nothing to fit")
    whole = _Moments(d)
    for one in moments:
        whole = whole.plus(one)
    scale = _scale(metric, np.diag(whole.covariance))
    if scale is None and whole.tokens == 1:
        raise InputError("one vector alone is too few to fit a codec to: give more of them")
    if scale is None:
        raise InputError("the embeddings are all the same: there is nothing to fit")
    _check_precision(np.sqrt(lost / whole.tokens), whole.mean + centre, scale)
    class_mean = class_scale = None
    if sample.class_tokens:
        if not images:
            raise InputError("all class tokens are missing: fit the grids without them")
        class_mean, squares = of_class / images
        class_scale = _scale(metric, squares - class_mean**2)
        class_scale = (scale if class_scale is None else class_scale) / np.sqrt(class_weight)
        class_mean = (class_mean + centre).astype(np.float32)
        class_scale = class_scale.astype(np.float32)
    others = [whole.plus(one, -1) for one in moments] if folds > 1 else []
    found = []
    for one in [whole, *(others if all(one.tokens for one in others) else [])]:
        rows, norms = _basis(one.covariance / np.outer(scale, scale), again=again)
        try:
            found.append(
                Transform(
                    (one.mean + centre).astype(np.float32),
                    scale.astype(np.float32),
                    rows,
                    norms,
                    class_mean,
                    class_scale,
                    spatial=sample.spatial,
                )
            )
        except CodecError as error:
            remedy = f"multiply them by a constant first ({error})"
            if scale.max() > 1:
                remedy = (
                    f"is {_extreme(sample)} among them a mark of missing data? Name it with "
                    f"nodata, exactly, or mask it; if it is none, {remedy}"
                )
            raise InputError(
                f"embeddings with standard deviations of {scale.min():.3g} to {scale.max():.3g}: "
                f"{remedy}"
            ) from error
    return found


def _basis(
    covariance: NDArray[np.float64], *, again: int = 0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Principal components, largest first, as rows int8 [D, D] and the value of a unit in each.

    What the rounding of a large component leaves of it would spread over all the small ones. So
    after the first `again` rows, the components of what those rows leave are found.
    """
    _, vectors = np.linalg.eigh(covariance)
    rows, norms = _rounded(vectors.T[::-1])
    if not again < len(rows):
        return rows, norms
    first, _ = np.linalg.qr((rows[:again] * norms[:again, None]).T.astype(np.float64))
    rest = np.eye(len(rows)) - first @ first.T
    # Below all others, the directions of the first rows come last.
    left = rest @ covariance @ rest - np.trace(covariance) * (first @ first.T)
    _, vectors = np.linalg.eigh(left)
    more, more_norms = _rounded(vectors.T[::-1][: len(rows) - again])
    return np.concatenate([rows[:again], more]), np.concatenate([norms[:again], more_norms])


def _rounded(rows: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    norms = np.abs(rows).max(1) / 127
    return np.rint(rows / norms[:, None]).astype(np.int8), norms.astype(np.float32)


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


def _scale(
    metric: Metric | NDArray[np.float64], variances: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """The unit of error of each channel [D], such that the mean variance is about 1.

    Deviations are bounded below so that a nearly constant channel is not magnified. None if all are
    zero.
    """
    scale = np.sqrt(np.maximum(variances, 0))
    if not scale.max() > 0:
        return None
    if isinstance(metric, str):
        if metric == "standardised":
            return np.maximum(scale, 1e-3 * np.median(scale[scale > 0]))
        metric = np.ones(scale.size)
    # Largest first, so that no square leaves float64.
    largest = scale.max()
    weights = metric / metric.max()
    return largest * np.sqrt(np.mean(weights * np.square(scale / largest)) / weights)
