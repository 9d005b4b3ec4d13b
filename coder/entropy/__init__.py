"""Entropy coding: rows of integers <-> 32-bit words, under integer probability tables.

`Tables` are the probabilities. `SymbolCoder` codes blocks of tokens, each channel under its table;
`RowCoder` codes rows of unequal lengths. Everything is exact integers: any machine reads the same.
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
