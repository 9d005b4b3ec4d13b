"""Integer probability tables: made once from floats, then shipped; no decoder rebuilds them.

A table codes the symbols `minimum .. minimum + size - 2` and, as its last entry, an escape for
every other int32. Its entries are integer weights w >= 1 that sum to 2^24; entry i costs
`24 - log2(w_i)` bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import as_array, immutable, read_only
from coder.entropy import sparse_tables
from coder.entropy.integer_models import PRECISION, model
from coder.errors import CodecError
from coder.lazy_attribute import lazy_attribute

MAX_SIZE = 1 << 16
"""Maximum number of entries of a table, escape included; bounds the memory of a hostile file."""

_INT32 = np.iinfo(np.int32)


def quantise_pmf(pmf: ArrayLike) -> NDArray[np.uint32]:
    """Probabilities [n] -> integer weights [n], each >= 1, that sum to exactly 2^24.

    Entries below one unit get weight 1. The others share the rest in proportion, rounded by largest
    remainder, so that the rounding changes no weight by more than one unit. `pmf` need not be
    normalised.

    Raises:
      CodecError: n outside 2 .. 2^16, a negative or non-finite entry, or a sum of zero.
    """
    p = as_array(pmf, "a pmf").astype(np.float64)
    if p.ndim != 1 or not 2 <= p.size <= MAX_SIZE:
        raise CodecError(f"a pmf of shape {p.shape}: give 2 to {MAX_SIZE} probabilities")
    if not np.isfinite(p).all() or (p < 0).any() or not 0 < p.sum() < np.inf:
        raise CodecError("a pmf must be finite and non-negative, with a positive, finite sum")
    p = p / p.max()
    weights = np.ones(p.size, np.int64)
    share = np.ones(p.size, bool)
    while True:
        budget = (1 << PRECISION) - int((~share).sum())
        ideal = p * (budget / p[share].sum())
        small = share & (ideal < 1)
        if not small.any():
            break
        # Raising these to 1 takes weight from the rest, which may push more of them below 1.
        share &= ~small
    weights[share] = np.floor(ideal[share])
    missing = (1 << PRECISION) - int(weights.sum())
    remainder = np.where(share, ideal - weights, -1.0)
    # Stable: equal remainders must not depend on the sorting algorithm of a NumPy version.
    weights[np.argsort(-remainder, kind="stable")[:missing]] += 1
    return weights.astype(np.uint32)


def pmf_from_counts(
    symbols: ArrayLike,
    prior_minimum: int,
    prior_pmf: ArrayLike,
    strength: float = 1.0,
    tail_mass: float = 1e-6,
    dead_after: int = 256,
) -> tuple[int, NDArray[np.float64], float]:
    """Recalibrate one table: observed symbols, smoothed by a learned density.

    The posterior mean of a Dirichlet prior: (counts + strength * prior) / (N + strength).
    The ends of the range are trimmed as long as the dropped mass stays within `tail_mass`, half on
    each side; it goes to the escape. Observed symbols are kept, unless the range would exceed
    2^16 - 1 symbols: then the window with the most mass is kept.

    Args:
      symbols: integers [N], what this table codes in the calibration data; N may be 0.
      prior_minimum: the symbol of `prior_pmf[0]`.
      prior_pmf: probabilities [n]; 1 minus their sum is the prior's escape.
      strength: the weight of the prior, in symbols (> 0).
      tail_mass: the maximum probability that trimming may move to the escape.
      dead_after: the N from which a single observed value means a dead channel. Its table is that
        value and the escape with the smallest weight. Below this N, too little is known.

    Returns:
      (minimum, pmf [m], escape probability), what `Tables.from_pmfs` takes.

    Raises:
      CodecError: symbols that are not integers in int32, a prior that is not a pmf.
    """
    observed = as_array(symbols, "symbols").ravel()
    prior = as_array(prior_pmf, "a prior").astype(np.float64)
    if observed.size and observed.dtype.kind not in "iu":
        raise CodecError(f"symbols are {observed.dtype}: quantise first")
    if prior.ndim != 1 or not 1 <= prior.size < MAX_SIZE or not np.isfinite(prior).all():
        raise CodecError(f"a prior of shape {prior.shape}: give 1 to {MAX_SIZE - 1} finite values")
    if (prior < 0).any() or not prior.sum() <= 1 + 1e-6:
        raise CodecError("the prior must be non-negative and sum to at most 1")
    if not (0 < strength < np.inf and 0 <= tail_mass < 1):
        raise CodecError(f"strength {strength} must be > 0 and tail mass {tail_mass} in [0, 1)")
    values, counts = np.unique(observed.astype(np.int64), return_counts=True)
    if values.size == 1 and observed.size >= dead_after:
        return int(values[0]), np.ones(1), 0.0

    # Sparse until the range is known to be small: outliers may lie 2^32 apart.
    support = prior_minimum + np.arange(prior.size, dtype=np.int64)
    points, where = np.unique(np.concatenate([support, values]), return_inverse=True)
    mass = np.bincount(where, np.concatenate([strength * prior, counts]))
    mass /= observed.size + strength
    kept = np.isin(points, values)
    first = int(np.argmax(kept | (np.cumsum(mass) > tail_mass / 2)))
    last = points.size - 1 - int(np.argmax(kept[::-1] | (np.cumsum(mass[::-1]) > tail_mass / 2)))
    if first > last:  # a prior that is all escape, and nothing observed
        first = last = int(np.argmax(mass))
    points, mass = points[first : last + 1], mass[first : last + 1]
    if points[-1] - points[0] >= MAX_SIZE - 1:
        ends = np.searchsorted(points, points + MAX_SIZE - 1)
        below = np.concatenate([[0.0], np.cumsum(mass)])
        start = int(np.argmax(below[ends] - below[:-1]))
        points, mass = points[start : ends[start]], mass[start : ends[start]]
    pmf = np.zeros(int(points[-1] - points[0]) + 1)
    pmf[points - points[0]] = mass
    return int(points[0]), pmf, max(0.0, 1.0 - float(pmf.sum()))


@dataclass(frozen=True, eq=False)
class Tables:
    """K tables, one after another.

    Attributes:
      minimum: int32 [K], the smallest symbol in each table.
      sizes: int32 [K], entries of each table, the escape (its last) included; 2 to 2^16.
      weights: uint32 [sum(sizes)], each >= 1; those of one table sum to 2^24.

    Raises:
      CodecError: any of the above does not hold, or a symbol would leave int32.
    """

    minimum: NDArray[np.int32]
    sizes: NDArray[np.int32]
    weights: NDArray[np.uint32]
    TENSORS = ("minimum", "sizes", "weights")  # in a file

    def __post_init__(self) -> None:
        for name, dtype in zip(self.TENSORS, ("<i4", "<i4", "<u4"), strict=True):
            object.__setattr__(self, name, immutable(f"tables: {name}", getattr(self, name), dtype))
        if self.minimum.shape != self.sizes.shape:
            raise CodecError(f"{self.minimum.size} table minima but {self.sizes.size} sizes")
        if self.sizes.min() < 2 or self.sizes.max() > MAX_SIZE:
            raise CodecError(f"a table must have 2 to {MAX_SIZE} entries")
        if int(self.sizes.sum(dtype=np.int64)) != self.weights.size:
            raise CodecError(f"tables: {self.weights.size} weights, sizes say {self.sizes.sum()}")
        if (self.minimum.astype(np.int64) + self.sizes - 1).max() > _INT32.max:
            raise CodecError("a table ends beyond the largest int32")
        if self.weights.min() < 1:
            raise CodecError("a table holds a weight of zero: every entry needs at least 1")
        sums = np.add.reduceat(self.weights.astype(np.int64), self.starts)
        if (sums != 1 << PRECISION).any():
            bad = int(np.argmax(sums != 1 << PRECISION))
            raise CodecError(f"table {bad} sums to {sums[bad]}: make it with quantise_pmf")

    @classmethod
    def from_pmfs(cls, pmfs: Sequence[tuple[int, ArrayLike, float]]) -> "Tables":
        """Tables from (minimum, probabilities [m] of minimum .. minimum + m - 1, of the escape)."""
        rows = [quantise_pmf(np.append(as_array(pmf, "a pmf"), escape)) for _, pmf, escape in pmfs]
        if not rows:
            raise CodecError("no tables: give one pmf at least")
        minimum = np.array([low for low, _, _ in pmfs])
        return cls(minimum, np.array([row.size for row in rows]), np.concatenate(rows))

    def to_tensors(self) -> dict[str, NDArray]:
        """The tensors that a file stores, as `Tables` takes them."""
        return {name: getattr(self, name) for name in self.TENSORS}

    def __len__(self) -> int:
        return self.sizes.size

    @lazy_attribute
    def starts(self) -> NDArray[np.int64]:
        """[K]: where each table begins in `weights`."""
        return read_only(np.cumsum(self.sizes, dtype=np.int64) - self.sizes)

    @lazy_attribute
    def modes(self) -> NDArray[np.int32]:
        """[K]: the index of each table's largest weight, its first if there are several, the
        escape aside."""
        modes = [int(np.argmax(self.weights_of(k)[:-1])) for k in range(len(self))]
        return read_only(np.array(modes, "<i4"))

    @lazy_attribute
    def mode_weights(self) -> NDArray[np.uint32]:
        """[K]: the weights of the modes."""
        return read_only(self.weights[self.starts + self.modes])

    @lazy_attribute
    def event_weights(self) -> NDArray[np.int64]:
        """[K]: the weight of all entries but the mode."""
        return read_only((1 << PRECISION) - self.mode_weights.astype(np.int64))

    def model(self, k: int) -> Any:
        """constriction's model of table k."""
        if k not in self._models:
            self._models[k] = model(self.weights_of(k))
        return self._models[k]

    def event_model(self, k: int) -> Any:
        """The model of a symbol of table k that is not its mode; None if one symbol is left."""
        if ~k not in self._models:
            weights = sparse_tables.event_weights(self.weights_of(k), int(self.modes[k]))
            self._models[~k] = model(weights) if weights.size > 1 else None
        return self._models[~k]

    @lazy_attribute
    def _models(self) -> dict[int, Any]:
        """By k, and by ~k those of events."""
        return {}

    def weights_of(self, k: int) -> NDArray[np.uint32]:
        """The weights [sizes[k]] of table k, escape last."""
        return self.weights[self.starts[k] : self.starts[k] + self.sizes[k]]

    def only(self, which: NDArray[np.integer]) -> "Tables":
        """Some of the tables, in this order."""
        weights = [self.weights_of(int(k)) for k in which]
        return Tables(self.minimum[which], self.sizes[which], np.concatenate(weights))

    def pmf(self, k: int) -> NDArray[np.float64]:
        """The probabilities [sizes[k]] that table k really codes with, escape last."""
        return self.weights_of(k) / float(1 << PRECISION)
