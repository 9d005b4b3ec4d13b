"""Bjontegaard's delta between two curves of bytes and scores, with intervals of a paired bootstrap.

The delta (ITU-T VCEG-M33, 2001) is the mean difference of the logarithms of two rates (bytes per
image) over the scores that both curves reach. A point counts only if no cheaper point of its curve
scores as well. Between points, the logarithm of the rate is interpolated by a monotone piecewise
cubic. An error is compared by its logarithm, as in the PSNR of the original. Images are resampled
with replacement, the same ones for both curves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from train.studies.scores import Scores

_SAMPLES = 200  # points in the range of scores that two curves share
_MISSING = 0.05  # part of the resamples without a delta, above which there is no interval
NONE = "-"
Points = tuple[NDArray[np.float64], NDArray[np.float64]]  # log bytes, and scores


@dataclass(frozen=True)
class Rated:
    """Bytes and score, or error, of each point of a curve; of N images, or of their means (N = 1).

    Attributes:
      sizes: float64 [P, N].
      scores: of P heads; or errors [P, N].
    """

    sizes: NDArray[np.float64]
    scores: Sequence[Scores] | NDArray[np.float64]

    def points(self, times: NDArray[np.int64]) -> Points:
        """Log bytes and scores [P], with each image counted `times` [N]."""
        rates = np.log(self.sizes @ times / times.sum())
        if isinstance(self.scores, np.ndarray):
            values = -10 * np.log10(self.scores @ times / times.sum())
        else:
            values = np.array([one.percent(times).mean() for one in self.scores])
        return rates, values

    def front(self, times: NDArray[np.int64]) -> Points:
        """Of the points those that no cheaper one equals, both increasing."""
        points = self.points(times)
        return taken(points, on_front(points))


def on_front(points: Points) -> NDArray[np.intp]:
    """The points that no cheaper one equals in score, by rising rate."""
    rates, values = points
    order = np.lexsort((-values, rates))
    values = values[order]
    best = np.concatenate([[-np.inf], np.maximum.accumulate(values)[:-1]])
    return order[values > best]


def taken(points: Points, which: NDArray[np.intp]) -> Points:
    """Some of the points."""
    rates, values = points
    return rates[which], values[which]


def delta(
    reference: tuple[NDArray, NDArray], other: tuple[NDArray, NDArray], low: float, high: float
) -> float:
    """Mean log ratio of bytes over the scores that both have and the reference has in a range."""
    (rates, values), (_, others) = reference, other
    if len(values) < 2 or len(others) < 2:
        return np.nan
    ends = np.interp(np.clip([low, high], rates[0], rates[-1]), rates, values)
    first, last = max(ends[0], others[0]), min(ends[1], others[-1])
    if not first < last:
        return np.nan
    at = np.linspace(first, last, _SAMPLES)
    return float(np.mean(rates_at(other, at) - rates_at(reference, at)))


def rates_at(front: tuple[NDArray, NDArray], at: NDArray) -> NDArray[np.float64]:
    """Log bytes of a curve at scores; NaN beyond it."""
    rates, values = front
    if len(values) < 2:
        return np.where(at == values[0], rates[0], np.nan)
    return PchipInterpolator(values, rates, extrapolate=False)(at)


def interval(logs: Sequence[float] | NDArray) -> str:
    """The first in percent, and the interval that 95 % of the others lie in."""
    if not np.isfinite(logs[0]):
        return NONE
    percent = 100 * np.expm1(np.asarray(logs))
    drawn = percent[1:][np.isfinite(percent[1:])]
    if len(drawn) < max(1, (1 - _MISSING) * (len(percent) - 1)):
        return f"{round(percent[0]):+d} %"
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{round(percent[0]):+d} % ({round(low):+d} to {round(high):+d})"


def resamples(images: int, count: int) -> list[NDArray[np.int64]]:
    """How often each image counts: once, then in each of `count` draws with replacement."""
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(images, np.full(images, 1 / images), count)
    return [np.ones(images, np.int64), *(drawn if images > 1 else [])]
