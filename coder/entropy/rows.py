"""Symbols <-> 32-bit words by asymmetric numeral systems (Duda 2015, arXiv 1311.2540).

The coder is constriction's `AnsCoder` (64-bit state, 32-bit words, 24-bit probabilities). A row is
a run of symbols that one table codes. A block is a number of rows. A row is sparse or dense by its
table alone (`coder.entropy.sparse`).

**Reading order.**

1. Where the events of all sparse rows are (`coder.entropy.places`).
2. Which symbols they are, with tables that know it is not the mode (`sparse.event_weights`;
   nothing is read where one symbol is left): row by row, from left to right.
3. Dense rows, symbol by symbol.
4. Escaped values (`coder.entropy.escape`), in the order in which 2 and 3 met their escapes.

A symbol is coded as its index in its table: `symbol - minimum`, or the last index, the escape.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder.entropy import escape, sparse
from coder.entropy.integer_models import PRECISION, AnsCoder
from coder.entropy.places import Places, Reader, Writer, segments_of, walk
from coder.entropy.tables import Tables
from coder.errors import CorruptBlob

_BITS = np.arange(sparse.LEAF, dtype=np.uint16)


class _Group(NamedTuple):
    """Consecutive rows of one length, whose symbols form a matrix [rows, length].

    Attributes:
      symbols: where they are among the symbols of all rows.
      length: symbols of a row.
      rare, dense: the sparse and the dense rows, by their place in the group.
      first: number of the first sparse row.
      table: int32 [rows], the table of each.
      models: those of the dense rows.
    """

    symbols: slice
    length: int
    rare: Any
    dense: Any
    first: int
    table: NDArray[np.int32]
    models: list[Any]

    def of(self, symbols: NDArray[np.int32]) -> NDArray[np.int32]:
        return symbols[self.symbols].reshape(-1, self.length)


class RowCoder:
    """Code symbols int32 [S]: those of R rows, one row after another.

    Guarantees: any int32 round-trips through any table. The words are those of an integer ANS with
    exactly the stored weights, and those that `coder.entropy.sparse` derives from them. Time and
    memory of `decode` are proportional to S, whatever the words.

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
        self._tables = tables
        ends = np.cumsum(lengths)
        self._size = int(ends[-1])
        is_rare = tables.event_weights[which] <= sparse.MAX_EVENT_WEIGHT
        rare = np.flatnonzero(is_rare)
        self._rare_table = which[rare]
        self._starts = (ends - lengths)[rare]
        pieces = sparse.leaves(lengths[rare])
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
        self._groups, start = [], 0
        for length, group in groupby(lengths.tolist()):
            end = start + len(list(group))
            part = is_rare[start:end]
            some, others = np.flatnonzero(part), np.flatnonzero(~part)
            span = slice(int(ends[start]) - length, int(ends[end - 1]))
            self._groups.append(
                _Group(
                    span,
                    length,
                    slice(None) if part.all() else some,  # a view of the matrix, not a copy
                    slice(None) if others.size == part.size else others,
                    int(np.searchsorted(rare, start)),
                    which[start:end],
                    [tables.model(k) for k in which[start:end][others].tolist()],
                )
            )
            start = end

    def encode(self, symbols: NDArray[np.int32]) -> NDArray[np.uint32]:
        """Symbols int32 [S] -> words uint32 [W]; the last is not 0, W may be 0."""
        row, within = self._events(symbols)
        place = self._first[row] * sparse.LEAF + within
        piece = place >> 4
        new = np.flatnonzero(np.diff(piece, prepend=-1))
        bits = np.uint16(1) << (place & 15).astype(np.uint16)
        pattern = np.bitwise_or.reduceat(bits, new) if new.size else bits
        writer = Writer(Places(piece[new], pattern), self._pieces)
        walk(writer, self._segments)
        indices, escaped = self._event_indices(row, symbols[self._starts[row] + within])
        values, dense = [escaped], []
        for group in self._groups:
            index, outside = self._indices(group, symbols)
            values.append(outside)
            dense.append(index)
        ans = AnsCoder()
        # A stack: what the decoder reads last is pushed first.
        escape.push(ans, np.concatenate(values))
        for group, index in zip(reversed(self._groups), reversed(dense), strict=True):
            # One symbol per row, as for a class token: plain integers are the fastest call.
            rows = index[:, 0].tolist() if group.length == 1 else index
            for one, model in zip(rows[::-1], reversed(group.models), strict=True):
                ans.encode_reverse(one, model)
        numbers = indices.tolist()
        for table, start, end in reversed(self._runs(row)):
            ans.encode_reverse(numbers[start] if end - start == 1 else indices[start:end], table)
        writer.push(ans)
        return ans.get_compressed()

    def decode(self, words: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Words -> symbols int32 [S].

        Raises:
          CorruptBlob: the words are not what `encode` makes of rows of these lengths.
        """
        ans = open_words(words)
        places = walk(Reader(ans), self._segments)
        which, bit = np.nonzero((places.pattern[:, None] >> _BITS) & 1)
        piece = places.piece[which]
        row = np.searchsorted(self._first, piece, side="right") - 1
        at = self._starts[row] + (piece - self._first[row]) * sparse.LEAF + bit
        indices = np.zeros(row.size, np.int32)
        for table, start, end in self._runs(row):
            one = end - start == 1
            indices[start:end] = ans.decode(table) if one else ans.decode(table, end - start)
        minimum, size, mode = self._limits(self._rare_table[row])
        indices += indices >= mode
        events, escapes = minimum + indices, np.flatnonzero(indices == size - 1)
        symbols = np.empty(self._size, np.int32)
        outside = [self._read(ans, group, symbols) for group in self._groups]
        counts = [escapes.size, *(places.size for places, _ in outside)]
        values = np.split(escape.pop(ans, sum(counts)), np.cumsum(counts)[:-1])
        # Decoding past the end raises no error, but leaves a state that no encoder starts from.
        if not ans.is_empty():
            raise CorruptBlob("damaged payload: it does not end where its symbols end")
        if escapes.size:
            events[escapes] = escape.symbols_of(values[0], minimum[escapes], size[escapes])
        symbols[at] = events
        for (found, table), own in zip(outside, values[1:], strict=True):
            if found.size:
                symbols[found] = escape.symbols_of(own, *self._limits(table)[:2])
        return symbols

    def ideal_bits(self, symbols: NDArray[np.int32]) -> float:
        """The information content of the symbols under the tables, escaped values included."""
        entry_bits = PRECISION - np.log2(self._tables.weights)
        total = 0.0
        for group in self._groups:
            part = group.of(symbols)
            low, size, _ = (x[:, None] for x in self._limits(group.table))
            index = part.astype(np.int64) - low
            outside = (index < 0) | (index >= size - 1)
            index = np.where(outside, size - 1, index) + self._tables.starts[group.table][:, None]
            total += float(entry_bits[index].sum())
            row, _ = np.nonzero(outside)
            total += escape.ideal_bits(escape.values_of(part[outside], low[row, 0], size[row, 0]))
        return total

    def _limits(self, table: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Minimum, size and index of the mode of tables."""
        tables = self._tables
        return tables.minimum[table], tables.sizes[table], tables.modes[table]

    def _events(self, symbols: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sparse row [E] and place in it [E] of every event, in order."""
        rows, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for group in self._groups:
            minimum, _, mode = self._limits(group.table[group.rare])
            differs = group.of(symbols)[group.rare] != (minimum + mode)[:, None]
            row, place = np.divmod(np.flatnonzero(differs), group.length)
            rows.append(row + group.first)
            places.append(place)
        return np.concatenate(rows), np.concatenate(places)

    def _event_indices(
        self, row: NDArray[np.int64], symbols: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Of events [E]: indices in tables without the mode, and the escaped values [F]."""
        minimum, size, mode = self._limits(self._rare_table[row])
        index = symbols - minimum
        # Below the table, or so far above it that the difference wrapped: huge as unsigned.
        outside = np.flatnonzero(index.view(np.uint32) >= size.view(np.uint32) - 1)
        index[outside] = size[outside] - 1
        escaped = escape.values_of(symbols[outside], minimum[outside], size[outside])
        return index - (index > mode), escaped

    def _indices(
        self, group: _Group, symbols: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Of a group's dense rows: table indices [rows, length], and the escaped values."""
        low, size, _ = self._limits(group.table[group.dense])
        part = group.of(symbols)[group.dense]
        index = part - low[:, None]
        outside = index.view(np.uint32) >= (size - 1).view(np.uint32)[:, None]
        if not outside.any():
            return index, np.zeros(0, np.int64)
        row, _ = np.nonzero(outside)
        values = escape.values_of(part[outside], low[row], size[row])
        index[outside] = size[row] - 1
        return index, values

    def _read(
        self, ans: Any, group: _Group, symbols: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Decode a group's dense rows, and set the others to their mode.

        Returns:
          Where escapes are among all symbols, and their tables.
        """
        matrix, length = group.of(symbols), group.length
        minimum, _, mode = self._limits(group.table[group.rare])
        matrix[group.rare] = (minimum + mode)[:, None]
        table = group.table[group.dense]
        if not table.size:
            return np.zeros(0, np.int64), table
        if length == 1:
            index = np.array([[ans.decode(model)] for model in group.models], np.int32)
        else:
            index = np.concatenate([ans.decode(model, length) for model in group.models])
            index = index.reshape(-1, length)
        low, size, _ = self._limits(table)
        found = np.flatnonzero(index == (size - 1)[:, None])
        matrix[group.dense] = index + low[:, None]
        row, place = np.divmod(found, length)
        rows = np.arange(len(matrix))[group.dense]
        return group.symbols.start + rows[row] * length + place, table[row]

    def _runs(self, row: NDArray[np.int64]) -> list[tuple[Any, int, int]]:
        """(model, start, end) of every run of equal rows that has more than one symbol left."""
        if not row.size:
            return []
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), row.size]
        tables = self._rare_table[row[edges[:-1]]].tolist()
        models = map(self._tables.event_model, tables)
        runs = zip(models, edges[:-1], edges[1:], strict=True)
        return [run for run in runs if run[0] is not None]


def open_words(words: NDArray[np.uint32]):
    """A coder that reads words. Raises CorruptBlob if no encoder wrote them."""
    try:
        return AnsCoder(words)
    except ValueError as error:
        raise CorruptBlob(f"damaged payload: {error}") from error
