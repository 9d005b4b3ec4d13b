"""Entropy coding: rows of integers <-> 32-bit words, under integer probability tables.

`tables` has `Tables`, the integer probabilities, and makes them from floats. `row_coder` has
`RowCoder`, which codes rows of symbols, each with its table, and the order of the payload.
`sparse_tables` and `sparse_positions` serve rows that are almost always one symbol. `escape` codes
symbols outside their table.
`integer_models` is the only use of constriction. All arithmetic is in integers: the same on any
machine. The learned density is in `nec_jax.models.density`.
"""

from coder.entropy.integer_models import PRECISION
from coder.entropy.row_coder import RowCoder
from coder.entropy.tables import Tables, pmf_from_counts, quantise_pmf

__all__ = [
    "PRECISION",
    "RowCoder",
    "Tables",
    "pmf_from_counts",
    "quantise_pmf",
]
