"""The table choice: for each kind of coefficient and each step, the table that costs least.

For the coefficients of one component in one band, with magnitudes x, a table costs

    sum of  KAPPA * bits(m) + (x / step - point(m))^2 - (x / step)^2

where m is the magnitude that its encoder chooses. Not coding them costs 0: that is chosen where no
table costs less.
"""

import numpy as np
from numpy.typing import NDArray

from coder.codecs import NOT_CODED
from coder.entropy import PRECISION, Tables
from coder.fitting import histograms
from coder.transform import KAPPA, cells_of


def choose(
    counts: NDArray[np.int64], step: float, tables: Tables, shifts: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], float]:
    """Choose the best table for each component and column of `counts` [K, columns, BINS].

    Returns:
      The layout uint8 [K, columns] at this step, and the squared error that coding saves, in the
      units of the coefficients.
    """
    x = histograms.CENTRES / step
    bits, saved = _per_magnitude(x, tables, shifts)
    flat = counts.reshape(-1, counts.shape[-1]).astype(np.float64)
    cost = flat @ (KAPPA * bits - saved).T
    best = cost.argmin(1)
    coded = cost.min(1) < 0
    layout = np.where(coded, best, NOT_CODED).astype(np.uint8)
    own, which = flat[coded], best[coded]
    error = float((own * saved[which]).sum()) * step**2
    return layout.reshape(counts.shape[:-1]), error


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
