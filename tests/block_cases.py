"""Blocks of symbols [T, R] through `RowCoder`, whose symbols are in rows, and tables."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coder import Tables
from coder.entropy import RowCoder, quantise_pmf


class BlockCoder:
    """Codes blocks [T, R]; the layout [R] of a block gives the table of each column."""

    def __init__(self, tables: Tables, layouts: Sequence[NDArray]):
        self.tables, self.layouts = tables, layouts

    def of(self, tokens: Sequence[int]) -> RowCoder:
        rows = [layout.size for layout in self.layouts]
        return RowCoder(
            self.tables, np.concatenate(list(self.layouts)), np.repeat(tokens, rows), rows
        )

    def encode(self, blocks: Sequence[NDArray]) -> NDArray[np.uint32]:
        return self.of([len(q) for q in blocks]).encode(flat(blocks))

    def decode(self, words: NDArray, tokens: Sequence[int]) -> list[NDArray[np.int32]]:
        symbols = self.of(tokens).decode(words)
        ends = np.cumsum([n * layout.size for n, layout in zip(tokens, self.layouts, strict=True)])
        parts = np.split(symbols, ends[:-1])
        return [part.reshape(-1, n).T for part, n in zip(parts, tokens, strict=True)]

    def ideal_bits(self, blocks: Sequence[NDArray]) -> float:
        return self.of([len(q) for q in blocks]).ideal_bits(flat(blocks))


def flat(blocks: Sequence[NDArray]) -> NDArray[np.int32]:
    return np.concatenate([q.T.ravel() for q in blocks])


def random_table(rng: np.random.Generator, size: int) -> NDArray[np.uint32]:
    """The integer weights [size] of a table that is even or almost all one symbol."""
    return quantise_pmf(rng.gamma(rng.choice([0.02, 0.3, 5.0]), size=size) + 1e-12)
