"""Entropy coding: rows of integers <-> 32-bit words, under integer probability tables.

`tables` has `Tables`, the integer probabilities, and makes them of floats. `ans` has `SymbolCoder`,
which codes blocks of tokens, each channel with its table, and the order of the payload; `rows` has
`RowCoder`, for rows of unequal lengths. `sparse`, `places` and `events` code rows that are almost
always one symbol; `escape` codes symbols outside their table. `integer_models` is the only use of
constriction. All is exact integers, the same on any machine. The learned density is elsewhere: in
`nec_jax.models.density`.
"""

from coder.entropy.ans import SymbolCoder
from coder.entropy.rows import RowCoder
from coder.entropy.tables import PRECISION, Tables, pmf_from_counts, quantise_pmf

__all__ = [
    "PRECISION",
    "RowCoder",
    "SymbolCoder",
    "Tables",
    "pmf_from_counts",
    "quantise_pmf",
]
