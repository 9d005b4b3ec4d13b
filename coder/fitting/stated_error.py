"""The error of coding, as numbers, on embeddings that the fit of the codec did not see.

For embeddings y [N, D] and decoded ones y_hat, with the mean of y over the N:

    relative rms error    sqrt(sum |y_hat - y|^2 / sum |y - mean|^2)
    variance lost         sum |(y_hat - y) / scale|^2 / sum |(y - mean) / scale|^2
    worst vector          max |y_hat - y| / sqrt(sum |y - mean|^2 / N)
    mean cosine           mean of y_hat . y / (|y_hat| |y|)
    recall@10             the part of the ten nearest neighbours by cosine that are found again

`scale` is the codec's unit of error of each channel. If it is one number for all channels, the
relative rms error is the square root of the variance lost. Neighbours are looked for among a pool
of at most 4,096 vectors, for at most 1,024 of them, the vector itself left out; queries and pool
are both decoded. Vectors of zeros have no cosine, and are left out of both.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import as_array, as_floats, check_finite
from coder.codecs import OneQualityCodec, QualityLadder, TransformCodec
from coder.errors import InputError
from coder.fitting.sample import Batch, Sample

NEIGHBOURS = 10
POOL = 4096
QUERIES = 1024
DEFAULT = "variance=1%"
"""The bound on the error of the default quality of a fitted codec."""
_AT_ONCE, _BLOCK = 256, 4096  # queries, and vectors, that are looked at together
_RUN = 256  # vectors that are coded together
_REFINED = 64  # grids, or runs of vectors, that are coded for readers that refine, which is slow
_SAME = 1e-9  # cosines that differ by less are equal
_ROUNDING = 1e-14  # variances below this part of the squared mean are float32's rounding

_Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
MeasuredOn = Literal["held-out", "fitted", "encoded"]
_VECTORS = {
    "held-out": "held-out vectors",
    "fitted": "vectors, those that it was fitted to, since there are few",
    "encoded": "vectors, evenly spread over those that are encoded",
}


@dataclass(frozen=True)
class StatedError:
    """The error of coding. What is not defined is None, as a relative error of equal vectors.

    Attributes:
      relative_rms, variance_lost, worst, mean_cosine, recall_at_10: as the module defines them.
        With class tokens, the variance lost is that of the grids and of them together, as the
        codec counts them; the others are of the grids.
      vectors: the number of vectors that were measured.
      pool: the number of vectors among which neighbours were looked for.
      metric: "euclidean" if the codec has one unit of error for all channels; else "per channel".
      measured_on: "held-out", what the fit did not see; "fitted", what it saw, since there was
        little; or "encoded", a part of what is encoded with a codec that exists.
    """

    relative_rms: float | None
    variance_lost: float | None
    worst: float | None
    mean_cosine: float | None
    recall_at_10: float | None
    vectors: int
    pool: int
    metric: str = "euclidean"
    measured_on: MeasuredOn = "held-out"

    def __str__(self) -> str:
        channels = "" if self.metric == "euclidean" else " (per channel)"
        parts = (
            ("relative rms error {}", _percent(self.relative_rms)),
            (f"{{}} of the variance lost{channels}", _percent(self.variance_lost)),
            ("worst vector {}", _percent(self.worst)),
            ("mean cosine {}", _cosine(self.mean_cosine)),
            ("recall@10 {}", None if self.recall_at_10 is None else self._recall),
        )
        known = [text.format(value) for text, value in parts if value is not None]
        return f"{', '.join(known)}; {self.vectors:,} {_VECTORS[self.measured_on]}"

    @property
    def _recall(self) -> str:
        return f"{self.recall_at_10:.2f} among {self.pool:,}"

    @classmethod
    def from_json(cls, data: Any) -> "StatedError | None":
        """The error that a file states (`to_json`); None if it states none that is known."""
        try:
            error = cls(**data)
            str(error)
        except (TypeError, ValueError, KeyError, OverflowError):
            return None
        return error

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON holds them."""
        return asdict(self)


class MaxError(NamedTuple):
    """A bound on the error: of the term `name` of `StatedError`, from above, or from below."""

    name: str
    value: float

    @classmethod
    def of(cls, given: "str | float | MaxError", option: str = "max_error") -> "MaxError":
        """The bound that a text or number gives.

        Args:
          given: "5%" or 0.05 for the relative rms error; "variance=1%", "worst=20%",
            "cosine=0.999" and "recall=0.95" for the others.
          option: its name, for errors.

        Raises InputError for anything else, and for bounds that nothing or everything keeps.
        """
        if isinstance(given, MaxError):
            return given
        term, equals, number = str(given).rpartition("=")
        name = _TERMS.get(term.strip() if equals else "rms")
        try:
            value = float(number.strip().removesuffix("%"))
        except ValueError:
            value = math.nan
        if name is None or math.isnan(value):
            raise InputError(
                f"{option} is {given!r}: give a percentage for the relative rms error, such as 5%; "
                "or variance=1%, worst=20%, cosine=0.999 or recall=0.95"
            )
        value /= 100 if number.strip().endswith("%") else 1
        if not 0 < value < (math.inf if name == "worst" else 1):
            raise InputError(
                f"{option} is {given}: give a part above 0 and below 1, such as 0.05, or a "
                "percentage, such as 5%"
            )
        return cls(name, value)

    def is_kept_by(self, error: StatedError) -> bool:
        """Whether an error is within the bound. Raises InputError if it is not defined."""
        value = getattr(error, self.name)
        if value is None:
            raise InputError(
                f"{_WORDS[self.name]} is not defined for these embeddings, of which "
                f"{error.vectors} were measured: bound another term, or name a quality"
            )
        return value >= self.value if self.name in _FROM_BELOW else value <= self.value


_TERMS = {
    "rms": "relative_rms",
    "variance": "variance_lost",
    "worst": "worst",
    "cosine": "mean_cosine",
    "recall": "recall_at_10",
}
_FROM_BELOW = ("mean_cosine", "recall_at_10")
_WORDS = {
    "relative_rms": "the relative rms error",
    "variance_lost": "the part of the variance that is lost",
    "worst": "the error of the worst vector",
    "mean_cosine": "the mean cosine",
    "recall_at_10": "recall@10",
}


def measure(
    y: ArrayLike,
    y_hat: ArrayLike,
    *,
    scale: NDArray[np.float32] | None = None,
    measured_on: MeasuredOn = "held-out",
) -> StatedError:
    """The error of decoded embeddings y_hat [N, D] of embeddings y [N, D].

    Args:
      y, y_hat: floats without missing values.
      scale: the unit of error of each channel [D]; None counts errors as they are.
      measured_on: what y is, for those who read the error.

    Raises InputError for other shapes, and values that are missing or infinite.
    """
    values, decoded = (as_floats(as_array(one)) for one in (y, y_hat))
    if values.ndim != 2 or values.shape != decoded.shape or not values.size:
        raise InputError(
            f"embeddings of shape {values.shape} and decoded ones of {decoded.shape}: give two "
            "arrays [N, D]"
        )
    for one in (values, decoded):
        check_finite(one, one)
    return _measured(values, decoded, scale, np.zeros(2), measured_on)


class _Piece(NamedTuple):
    """Tokens [n] that are coded together: embeddings, which of them count, and their grid."""

    y: NDArray[np.float32]
    there: NDArray[np.bool_]
    grid: tuple[int, int]


class HeldOut:
    """Embeddings to measure the error of codecs on.

    Attributes:
      measured_on: what they are, as in `StatedError`.
    """

    def __init__(self, parts: Iterable[Batch], measured_on: MeasuredOn):
        self._parts = [part._replace(y=part.y.astype(np.float32, copy=False)) for part in parts]
        self.measured_on: MeasuredOn = measured_on

    @classmethod
    def of(
        cls, embeddings: Any, class_tokens: Any = None, *, nodata: float | None = None
    ) -> "HeldOut":
        """An evenly spread part of embeddings, to measure a codec on that exists.

        Args and errors are those of `coder.fit`.
        """
        sample = Sample(embeddings, class_tokens, nodata)
        sample.limit()
        return cls(sample.batches(), "encoded")

    @property
    def vectors(self) -> int:
        """The number of vectors of the grids."""
        return sum(int(part.there[:, part.first :].sum()) for part in self._parts)

    def error(self, codec: OneQualityCodec, *, recall: bool = True) -> StatedError:
        """The error of a codec of one quality; that of refined embeddings, if it has a refiner.

        With `recall` false, recall@10 is left out, which takes longest.
        """
        scale, class_scale = _scales(codec)
        coded = list(self._coded(codec))
        more = np.zeros(2)
        if class_scale is not None and any(len(one[0]) for _, one in coded):
            sums = _sums(*_joined(one for _, one in coded), class_scale)
            more = np.array([sums.lost_in_scale, sums.spread_in_scale])
        whole = _joined(grid for grid, _ in coded)
        return _measured(*whole, scale, more, self.measured_on, recall=recall)

    def class_error(self, codec: OneQualityCodec) -> StatedError:
        """The error of class tokens alone. Raises InputError if none are coded."""
        own = _joined(one for _, one in self._coded(codec))
        if not len(own[0]):
            raise InputError("there are no class tokens to measure the error of")
        return _measured(*own, _scales(codec)[1], np.zeros(2), self.measured_on)

    def bytes_per_vector(self, codec: OneQualityCodec) -> float:
        """Mean bytes of blobs, for each vector of the grids; vectors are coded in runs of 256."""
        size = vectors = 0
        for piece in self._pieces(codec.max_tokens):
            size += len(codec.encode_quietly(piece.y, piece.grid))
            vectors += math.prod(piece.grid)
        return size / vectors

    def quality_for(self, codec: QualityLadder, max_error: str | float | MaxError) -> int:
        """The lowest quality whose error is within a bound (`MaxError.of`).

        The error is taken to be monotone in the quality.

        Raises InputError if there is none; says what the best quality reaches.
        """
        bound = MaxError.of(max_error)
        found = self.lowest_quality(codec, bound)
        if found is None:
            best = codec.num_qualities - 1
            reached = getattr(self.error(codec.at(best)), bound.name)
            side = "at least" if bound.name in _FROM_BELOW else "at most"
            raise InputError(
                f"{_WORDS[bound.name]} is {reached:.6g} at quality {best}, the highest, and "
                f"{side} {bound.value:.8g} is asked for: allow a larger error"
            )
        return found

    def lowest_quality(self, codec: QualityLadder, bound: MaxError) -> int | None:
        """`quality_for`; None if no quality keeps the bound."""
        recall = bound.name == "recall_at_10"
        qualities = range(codec.num_qualities)
        found = bisect_left(
            qualities,
            True,
            key=lambda quality: bound.is_kept_by(self.error(codec.at(quality), recall=recall)),
        )
        return found if found < len(qualities) else None

    def _pieces(self, max_tokens: int) -> Iterator[_Piece]:
        """All tokens, in grids that a codec takes."""
        for part in self._parts:
            height, width = part.grid
            most = min(max_tokens, _RUN) if part.units.ndim == 2 else max_tokens
            across = width if height * width <= most else min(width, math.isqrt(most))
            down = min(height, most // across)
            first = part.first
            tokens = np.arange(height * width).reshape(height, width) + first
            for y, there in zip(part.y, part.there, strict=True):
                for row, column in itertools.product(
                    range(0, height, down), range(0, width, across)
                ):
                    some = tokens[row : row + down, column : column + across]
                    index = np.concatenate([np.arange(first), some.ravel()])
                    yield _Piece(y[index], there[index], cast(Any, some.shape))

    def _coded(self, codec: OneQualityCodec) -> Iterator[tuple[_Pair, _Pair]]:
        """Embeddings and decoded ones of the tokens of grids, and of class tokens."""
        pieces = list(self._pieces(codec.max_tokens))
        if codec.refiner is not None:
            pieces = pieces[:: -(-len(pieces) // _REFINED)]
        for y, there, grid in pieces:
            if codec.refiner is None:
                y_hat = codec.dequantise(codec.quantise(y, grid), grid)
            else:
                q = codec.quantise(codec.aim(y, grid), grid)
                y_hat = codec.refiner.refine(codec.dequantise(q, grid), grid, codec.fingerprint)
            first = len(y) - math.prod(grid)
            kept, own = there.copy(), there.copy()
            kept[:first], own[first:] = False, False
            yield (y[kept], y_hat[kept]), (y[own], y_hat[own])


def metric_of(codec: OneQualityCodec) -> str:
    """The name of a codec's metric, as in `StatedError`."""
    return _metric(_scales(codec)[0])


def _metric(scale: NDArray[np.float32] | None) -> str:
    return "euclidean" if scale is None or np.ptp(scale) == 0 else "per channel"


def _scales(
    codec: OneQualityCodec,
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """The units of error of the channels, of grids and of class tokens."""
    if not isinstance(codec, TransformCodec):
        return None, None
    return codec.transform.scale, codec.transform.class_scale


def _joined(pairs: Iterable[_Pair]) -> _Pair:
    both = list(pairs)
    if not both:
        return np.empty((0, 1), np.float32), np.empty((0, 1), np.float32)
    return np.concatenate([y for y, _ in both]), np.concatenate([y_hat for _, y_hat in both])


class _Sums(NamedTuple):
    """Squared errors of each vector [N]; and sums of squares, as they are and in units of scale."""

    errors: NDArray[np.float64]
    spread: float
    lost_in_scale: float
    spread_in_scale: float


def _sums(y: NDArray, y_hat: NDArray, scale: NDArray | None) -> _Sums:
    mean = y.mean(0, dtype=np.float64)
    weights = np.ones(y.shape[1]) if scale is None else 1 / scale.astype(np.float64) ** 2
    errors, spreads, lost = [], np.zeros(y.shape[1]), np.zeros(y.shape[1])
    for start in range(0, len(y), _BLOCK):
        part = y[start : start + _BLOCK].astype(np.float64)
        squares = np.square(y_hat[start : start + _BLOCK] - part)
        errors.append(squares.sum(1))
        lost += squares.sum(0)
        spreads += np.square(part - mean).sum(0)
    # Equal vectors differ from their mean by what rounding leaves.
    spreads[spreads <= _ROUNDING * np.square(mean) * len(y)] = 0
    return _Sums(
        np.concatenate(errors),
        float(spreads.sum()),
        float(lost @ weights),
        float(spreads @ weights),
    )


def _measured(
    y: NDArray[np.float32],
    y_hat: NDArray[np.float32],
    scale: NDArray[np.float32] | None,
    more: NDArray[np.float64],
    measured_on: MeasuredOn,
    *,
    recall: bool = True,
) -> StatedError:
    """`measure`; `more` are squares to add to those that are lost, and to the spread, in scale."""
    if not len(y):
        nothing = None, None, None, None, None, 0, 0
        return StatedError(*nothing, _metric(scale), measured_on)
    sums = _sums(y, y_hat, scale)
    spread = sums.spread_in_scale + more[1]
    relative = worst = None
    if sums.spread > 0:
        relative = math.sqrt(sums.errors.sum() / sums.spread)
        worst = math.sqrt(sums.errors.max() * len(y) / sums.spread)
    nonzero = np.flatnonzero(y.any(1))
    some = nonzero[np.arange(n := min(POOL, len(nonzero))) * len(nonzero) // max(n, 1)]
    pool = _directions(y[some]), _directions(y_hat[some])
    return StatedError(
        relative_rms=relative,
        variance_lost=(sums.lost_in_scale + more[0]) / spread if spread > 0 else None,
        worst=worst,
        mean_cosine=_mean_cosine(y, y_hat, nonzero),
        recall_at_10=_recall(*pool) if recall else None,
        vectors=len(y),
        pool=len(some),
        metric=_metric(scale),
        measured_on=measured_on,
    )


def _directions(y: NDArray[np.float32]) -> NDArray[np.float64]:
    """Vectors of length 1; those of zeros stay."""
    values = y.astype(np.float64)
    largest = np.abs(values).max(1, keepdims=True, initial=0)
    values /= np.where(largest > 0, largest, 1)  # so that no square leaves float64
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norms > 0, norms, 1)


def _mean_cosine(y: NDArray, y_hat: NDArray, nonzero: NDArray[np.intp]) -> float | None:
    if not len(nonzero):
        return None
    total = 0.0
    for start in range(0, len(nonzero), _BLOCK):
        some = nonzero[start : start + _BLOCK]
        total += float((_directions(y[some]) * _directions(y_hat[some])).sum())
    return total / len(nonzero)


def _recall(y: NDArray[np.float64], y_hat: NDArray[np.float64]) -> float | None:
    """recall@10 of directions [n, D]; None if all others would be neighbours.

    Equally near vectors are neighbours alike: a vector that is found counts if it is as near as the
    tenth.
    """
    n = len(y)
    if n < NEIGHBOURS + 2:
        return None
    queries = np.arange(count := min(QUERIES, n)) * n // count
    found = 0
    for start in range(0, count, _AT_ONCE):
        some = queries[start : start + _AT_ONCE]
        near, nearby = (one[some] @ one.T for one in (y, y_hat))
        for cosines in (near, nearby):
            cosines[np.arange(len(some)), some] = -np.inf
        tenth = np.partition(near, n - NEIGHBOURS, axis=1)[:, n - NEIGHBOURS]
        again = np.argpartition(nearby, n - NEIGHBOURS, axis=1)[:, n - NEIGHBOURS :]
        found += np.count_nonzero(np.take_along_axis(near, again, axis=1) >= tenth[:, None] - _SAME)
    return found / (count * NEIGHBOURS)


def _percent(part: float | None) -> str | None:
    if part is None:
        return None
    return f"{100 * part:.0f} %" if part >= 0.0995 else f"{100 * part:#.2g} %"


def _cosine(cosine: float | None) -> str | None:
    """With two digits of what is missing to 1."""
    if cosine is None:
        return None
    return f"{cosine:.{min(8, max(2, 1 - math.floor(math.log10(max(1 - cosine, 1e-9)))))}f}"
