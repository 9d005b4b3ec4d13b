"""The table choice: for each kind of coefficient and each step, the table that costs least.

For the coefficients of one component in one band, with magnitudes x, a table costs

    sum of  KAPPA * bits(m) + (x / step - point(m))^2 - (x / step)^2

where m is the magnitude that its encoder chooses. Not coding them costs 0: that is chosen where no
table costs less.

A codec also stores a row for each component that it codes, and each table that it uses. For few
embeddings these bytes weigh more than what they save. So what a component saves in all embeddings
must exceed the price of its row, at KAPPA per bit, and the same holds for a table.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder.codecs import NOT_CODED
from coder.entropy import PRECISION, Tables
from coder.fitting import histograms
from coder.transform import KAPPA, cells_of

_MORE_BITS = 0.5  # per coefficient than a table's entropy


class Prices(NamedTuple):
    """What the parts of a codec cost, in the units of the costs of the counted coefficients.

    Attributes:
      component: a row of the basis, and all else that is stored of a component.
      tables: [T], each table.
    """

    component: float
    tables: NDArray[np.float64]

    @classmethod
    def of(cls, tables: Tables, channels: int, columns: int, times: float) -> "Prices":
        """The prices for `times` as many embeddings as those that were counted."""
        per_byte = 8 * KAPPA / times
        # int8 row, float32 norm, layout; uint32 weights, int32 minimum and size, float32 shift.
        table = 4 * tables.sizes.astype(np.float64) + 12
        return cls(per_byte * (channels + 4 + columns), per_byte * table)


def choose(
    counts: NDArray[np.int64],
    step: float,
    tables: Tables,
    shifts: NDArray[np.float32],
    prices: Prices | None = None,
    least: float = 0.0,
) -> tuple[NDArray[np.uint8], float]:
    """Choose the best table for each component and column of `counts` [K, columns, BINS].

    Args:
      counts: how many coefficients have which magnitude.
      step: the step of the quality.
      tables, shifts: those to choose from.
      prices: of the parts of the codec; None if they do not count.
      least: components are not coded that have a smaller root mean square, in steps.

    Returns:
      The layout uint8 [K, columns] at this step, and the squared error that coding saves, in the
      units of the coefficients.
    """
    x = histograms.CENTRES / step
    bits, saved = _per_magnitude(x, tables, shifts)
    flat = counts.reshape(-1, counts.shape[-1]).astype(np.float64)
    cost = flat @ (KAPPA * bits - saved).T
    cost[flat @ x**2 < least**2 * flat.sum(1)] = np.inf
    if prices is not None:
        cost[_is_unusual(flat, bits, tables, cost.argmin(1))] = np.inf
        cost = _worth_their_bytes(cost.reshape(*counts.shape[:-1], -1), prices)
    best = cost.argmin(1)
    coded = cost.min(1) < 0
    layout = np.where(coded, best, NOT_CODED).astype(np.uint8)
    own, which = flat[coded], best[coded]
    error = float((own * saved[which]).sum()) * step**2
    return layout.reshape(counts.shape[:-1]), error


def _is_unusual(
    flat: NDArray[np.float64], bits: NDArray[np.float64], tables: Tables, best: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Where [R, T] coefficients [R, BINS] need far more bits than a table is made for.

    An encoder would warn of them. The best table is always usual.
    """
    entropies = [float(-(p * np.log2(p)).sum()) for p in map(tables.pmf, range(len(tables)))]
    usual = np.array([one + min(one, _MORE_BITS) for one in entropies])
    unusual = flat @ bits.T > flat.sum(1)[:, None] * usual
    unusual[np.arange(len(best)), best] = False
    return unusual


def _worth_their_bytes(cost: NDArray[np.float64], prices: Prices) -> NDArray[np.float64]:
    """The costs [K, columns, T] as [K * columns, T]; infinite where a codec must not store a part.

    Tables are added one by one, that which saves most beside its price first; then each is dropped
    that saves less than its price beside the others. All tables stay if their total costs less. A
    component is coded if it saves more than its price with the tables that are stored.
    """
    count = cost.shape[-1]

    def total(best: NDArray[np.float64]) -> NDArray[np.float64]:
        """The cost of components, and their prices, given that of each column [K, columns, ..]."""
        return np.minimum(best.sum(1) + prices.component, 0).sum(0)

    def of(tables: NDArray[np.bool_]) -> float:
        best = cost[..., tables].min(-1, initial=0)
        return float(total(best)) + prices.tables[tables].sum()

    kept, best = np.zeros(count, bool), np.zeros(cost.shape[:2])
    while not kept.all():
        totals = total(np.minimum(best[..., None], cost)) + prices.tables
        totals[kept] = np.inf
        table = int(totals.argmin())
        if not totals[table] < total(best):
            break
        kept[table] = True
        best = np.minimum(best, cost[..., table])
    for table in np.flatnonzero(kept):
        others = kept.copy()
        others[table] = False
        if of(others) < of(kept):
            kept = others
    nearest = np.bincount(cost.argmin(-1)[cost.min(-1) < 0], minlength=count) > 0
    kept = nearest if of(nearest) < of(kept) else kept
    chosen = np.where(kept, cost, np.inf)
    savings = -chosen.min(-1, initial=0).sum(1)
    chosen[savings <= prices.component] = np.inf
    return chosen.reshape(-1, count)


def _per_magnitude(
    x: NDArray[np.float64], tables: Tables, shifts: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits, and squared error saved, of magnitudes x [M] in steps under each table: [T, M] each."""
    bits, saved = np.empty((len(tables), x.size)), np.empty((len(tables), x.size))
    for k in range(len(tables)):
        shift = float(shifts[k])
        first, rounding = cells_of(tables, k, shift)
        m = np.where(x < first, 0, np.floor(x + rounding)).astype(np.int64)
        weights, low = tables.weights_of(k), int(tables.minimum[k])
        index = np.minimum(m - low, len(weights) - 1)
        # An escaped magnitude costs about twice the bits of its distance from the table.
        escaped = np.maximum(m + low, 0)
        bits[k] = PRECISION - np.log2(weights[index]) + 2 * np.log2(2.0 * escaped + 1)
        saved[k] = x**2 - (x - np.where(m > 0, m - shift, 0)) ** 2
    return bits, saved
