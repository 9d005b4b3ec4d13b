"""Symbols <-> 32-bit words by asymmetric numeral systems (Duda 2015, arXiv 1311.2540).

The coder is constriction's `AnsCoder` (64-bit state, 32-bit words, 24-bit probabilities). A row is
a run of symbols that one table codes. A block is a number of rows. A row is sparse or dense by its
table alone (`coder.entropy.sparse_tables`).

**Reading order.**

1. Where the events of all sparse rows are (`coder.entropy.sparse_positions`).
2. Which symbols they are, with tables that know it is not the mode (`sparse_tables.event_weights`;
   nothing is read where one symbol is left): row by row, from left to right.
3. Dense rows, symbol by symbol.
4. Escaped values (`coder.entropy.escape`), in the order in which 2 and 3 met their escapes.

A symbol is coded as its index in its table: `symbol - minimum`, or the last index, the escape.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder.entropy import escape, sparse_tables
from coder.entropy.integer_models import PRECISION, AnsCoder
from coder.entropy.sparse_positions import Places, Reader, Writer, segments_of, walk
from coder.entropy.tables import Tables
from coder.errors import CorruptBlob

_BITS = np.arange(sparse_tables.LEAF, dtype=np.uint16)
_LARGE = 1 << 20  # symbols above which arrays with an entry for each are not kept


class _PerSymbol(NamedTuple):
    """For each of S symbols, what its row says.

    Attributes:
      is_dense: bool [S].
      fill: int32 [S], the mode of a sparse row, 0 in a dense one.
      low, last: int32 [S], minimum and last index of a dense row's table; 0 in a sparse one.
    """

    is_dense: NDArray[np.bool_]
    fill: NDArray[np.int32]
    low: NDArray[np.int32]
    last: NDArray[np.int32]


class RowCoder:
    """Code symbols int32 [S]: those of R rows, one row after another.

    Guarantees: any int32 round-trips through any table. The words are those of an integer ANS with
    exactly the stored weights, and those that `coder.entropy.sparse_tables` derives from them. Time
    and memory of `decode` are proportional to S, whatever the words.

    Args:
      tables: the tables; they keep the models that are made of them.
      which: int32 [R], the table of each row.
      lengths: int64 [R], symbols of each row, at least 1.
      blocks: number of rows of each block; None for one block of all rows.
    """

    def __init__(
        self,
        tables: Tables,
        which: NDArray[np.int32],
        lengths: NDArray[np.int64],
        blocks: Sequence[int] | None = None,
    ):
        self._tables, self._which, self._lengths = tables, which, lengths
        ends = np.cumsum(lengths)
        self._is_rare = tables.event_weights[which] <= sparse_tables.MAX_EVENT_WEIGHT
        rare, dense = np.flatnonzero(self._is_rare), np.flatnonzero(~self._is_rare)
        self._rare_table = which[rare]
        self._starts = (ends - lengths)[rare]
        pieces = sparse_tables.leaves(lengths[rare])
        self._first = np.cumsum(pieces) - pieces  # of every sparse row, its first piece of 16
        self._pieces = int(pieces.sum())
        edges = np.searchsorted(rare, np.cumsum([0, *(blocks or [which.size])]))
        events = tables.event_weights[self._rare_table]
        self._segments = [
            segment
            for start, end in pairwise(edges.tolist())
            for segment in segments_of(
                events[start:end], lengths[rare[start:end]], self._first[start:end]
            )
        ]
        models = [tables.model(k) for k in which[dense].tolist()]
        starts = (ends - lengths)[dense].tolist()
        self._dense = list(zip(starts, ends[dense].tolist(), models, strict=True))
        self._kept = None if lengths.sum() > _LARGE else self._make_per_symbol()

    def encode(self, symbols: NDArray[np.int32]) -> NDArray[np.uint32]:
        """Symbols int32 [S] -> words uint32 [W]; the last is not 0, W may be 0."""
        is_dense, fill, low, last = self._kept or self._make_per_symbol()
        at = np.flatnonzero((symbols != fill) & ~is_dense)
        row = np.searchsorted(self._starts, at, side="right") - 1
        place = self._first[row] * sparse_tables.LEAF + at - self._starts[row]
        piece = place >> 4
        new = np.flatnonzero(np.diff(piece, prepend=-1))
        bits = np.uint16(1) << (place & 15).astype(np.uint16)
        pattern = np.bitwise_or.reduceat(bits, new) if new.size else bits
        writer = Writer(Places(piece[new], pattern), self._pieces)
        walk(writer, self._segments)
        events, escaped = self._event_indices(row, symbols[at])
        index = symbols - low
        # Below the table, or so far above it that the difference wrapped: huge as unsigned.
        outside = np.flatnonzero((index.view(np.uint32) >= last.view(np.uint32)) & is_dense)
        values = escape.values_of(symbols[outside], low[outside], last[outside] + 1)
        index[outside] = last[outside]
        ans = AnsCoder()
        # A stack: what the decoder reads last is pushed first.
        escape.push(ans, np.concatenate([escaped, values]))
        for start, end, model in reversed(self._dense):
            # A plain integer is the fastest call.
            ans.encode_reverse(index.item(start) if end - start == 1 else index[start:end], model)
        for start, end, model in reversed(self._runs(row)):
            ans.encode_reverse(events.item(start) if end - start == 1 else events[start:end], model)
        writer.push(ans)
        return ans.get_compressed()

    def decode(self, words: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Words -> symbols int32 [S].

        Raises:
          CorruptBlob: the words are not what `encode` makes of rows of these lengths.
        """
        try:
            ans = AnsCoder(words)
        except ValueError as error:  # no encoder wrote them
            raise CorruptBlob(f"damaged payload: {error}") from error
        places = walk(Reader(ans), self._segments)
        which, bit = np.nonzero((places.pattern[:, None] >> _BITS) & 1)
        piece = places.piece[which]
        row = np.searchsorted(self._first, piece, side="right") - 1
        at = self._starts[row] + (piece - self._first[row]) * sparse_tables.LEAF + bit
        events = np.zeros(row.size, np.int32)
        for start, end, model in self._runs(row):
            one = end - start == 1
            events[start:end] = ans.decode(model) if one else ans.decode(model, end - start)
        minimum, size, mode = self._limits(row)
        events += events >= mode
        escapes = np.flatnonzero(events == size - 1)
        events += minimum
        is_dense, fill, low, last = self._kept or self._make_per_symbol()
        symbols = fill.copy()
        for start, end, model in self._dense:
            if end - start == 1:
                symbols[start] = ans.decode(model)
            else:
                symbols[start:end] = ans.decode(model, end - start)
        outside = np.flatnonzero((symbols == last) & is_dense)
        symbols += low
        values = escape.pop(ans, escapes.size + outside.size)
        # Decoding past the end raises no error, but leaves a state that no encoder starts from.
        if not ans.is_empty():
            raise CorruptBlob("damaged payload: it does not end where its symbols end")
        ours, theirs = values[: escapes.size], values[escapes.size :]
        events[escapes] = escape.symbols_of(ours, minimum[escapes], size[escapes])
        symbols[outside] = escape.symbols_of(theirs, low[outside], last[outside] + 1)
        symbols[at] = events
        return symbols

    def ideal_bits(self, symbols: NDArray[np.int32]) -> float:
        """The information content of the symbols under the tables, escaped values included."""
        tables, which = self._tables, np.repeat(self._which, self._lengths)
        low, size = tables.minimum[which], tables.sizes[which]
        index = symbols.astype(np.int64) - low
        outside = (index < 0) | (index >= size - 1)
        index = np.where(outside, size - 1, index) + tables.starts[which]
        bits = float((PRECISION - np.log2(tables.weights))[index].sum())
        values = escape.values_of(symbols[outside], low[outside], size[outside])
        return bits + escape.ideal_bits(values)

    def _make_per_symbol(self) -> _PerSymbol:
        tables, which, rare = self._tables, self._which, self._is_rare
        return _PerSymbol(
            np.repeat(~rare, self._lengths),
            np.repeat(np.where(rare, (tables.minimum + tables.modes)[which], 0), self._lengths),
            np.repeat(np.where(rare, 0, tables.minimum[which]), self._lengths),
            np.repeat(np.where(rare, 0, tables.sizes[which] - 1), self._lengths),
        )

    def _limits(self, row: NDArray[np.int64]) -> tuple[NDArray, NDArray, NDArray]:
        """Minimum, size and index of the mode of sparse rows' tables."""
        tables, table = self._tables, self._rare_table[row]
        return tables.minimum[table], tables.sizes[table], tables.modes[table]

    def _event_indices(
        self, row: NDArray[np.int64], symbols: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The indices of events [E] in tables without the mode, and their escaped values [F]."""
        minimum, size, mode = self._limits(row)
        index = symbols - minimum
        outside = np.flatnonzero(index.view(np.uint32) >= size.view(np.uint32) - 1)
        index[outside] = size[outside] - 1
        escaped = escape.values_of(symbols[outside], minimum[outside], size[outside])
        return index - (index > mode), escaped

    def _runs(self, row: NDArray[np.int64]) -> list[tuple[int, int, Any]]:
        """(start, end, model) of every run of equal rows that has more than one symbol left."""
        if not row.size:
            return []
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), row.size]
        tables = self._rare_table[row[edges[:-1]]].tolist()
        models = map(self._tables.event_model, tables)
        runs = zip(edges[:-1], edges[1:], models, strict=True)
        return [run for run in runs if run[2] is not None]
