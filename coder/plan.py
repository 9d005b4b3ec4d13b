"""How the coefficients of a grid are coded: in which order, and under which tables."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder.layout import NOT_CODED
from coder.rows import RowCoder
from coder.tables import Tables

# Beyond the usual bits: the lesser of twice them and one a coefficient; 256 for frame and chance.
_TIMES, _BITS, _CHANCE = 2.0, 1.0, 256


class Plan(NamedTuple):
    """How the coefficients [n, K] of a grid are coded, counted through in C order.

    Attributes:
      order: int32 [S], those that are coded: table by table, in their order.
      table: uint8 [S], the table of each.
      coder: codes them, one row a table.
      most_bits: of a blob; embeddings like those that the tables are for seldom need more.
    """

    order: NDArray[np.int32]
    table: NDArray[np.uint8]
    coder: RowCoder
    most_bits: float


def make_plan(table: NDArray[np.uint8], tables: Tables) -> Plan:
    """The plan for coefficients whose tables are uint8 [n * K]."""
    order = np.argsort(table, kind="stable").astype(np.int32)
    counts = np.bincount(table, minlength=NOT_CODED + 1)[:NOT_CODED]
    used = np.flatnonzero(counts)
    order = order[: counts.sum()]
    coder = RowCoder(tables, used.astype(np.int32), counts[used])
    usual = float(sum(counts[k] * _entropy(tables.pmf(k)) for k in used.tolist()))
    most = usual + min(_TIMES * usual, _BITS * order.size) + _CHANCE
    return Plan(order, table[order], coder, most)


def _entropy(pmf: NDArray[np.float64]) -> float:
    return float(-(pmf * np.log2(pmf)).sum())
