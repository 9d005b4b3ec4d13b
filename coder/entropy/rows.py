"""Rows of unequal lengths, each with a table of its own <-> 32-bit words.

The reading order is that of `coder.entropy.ans`, of one block whose rows have lengths of their own:
counts of all segments of 64 symbols, row by row; counts of what is left of each row; halves;
patterns; events; dense rows; escaped values.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from coder.entropy import escape, sparse
from coder.entropy.ans import open_words
from coder.entropy.events import SparseRows
from coder.entropy.integer_models import AnsCoder, model
from coder.entropy.places import Places, Reader, Rows, Writer, walk
from coder.entropy.tables import PRECISION, Tables
from coder.errors import CorruptBlob

_BITS = np.arange(sparse.LEAF, dtype=np.uint16)


class RowCoder:
    """Code symbols int32 [S]: those of R rows, one row after another.

    Guarantees are those of `ans.SymbolCoder`.

    Args:
      tables: the tables.
      which: int32 [R], the table of each row.
      lengths: int64 [R], symbols of each row, at least 1.
    """

    def __init__(self, tables: Tables, which: NDArray[np.int32], lengths: NDArray[np.int64]):
        self._tables = tables
        self._which, self._lengths = which, lengths
        self._events = SparseRows(tables, which)
        ends = np.cumsum(lengths)
        spans = [slice(int(e - n), int(e)) for e, n in zip(ends, lengths, strict=True)]
        rare = self._events.columns
        pieces = sparse.leaves(lengths[rare])
        self._first = np.cumsum(pieces) - pieces  # of every sparse row, its first piece of 16
        self._pieces = int(pieces.sum())
        self._walk = (_Ragged(tables, which[rare], lengths[rare], self._first), 0)
        self._starts = (ends - lengths)[rare]
        modes = self._events.modes[rare].tolist()
        self._sparse = [(spans[r], mode) for r, mode in zip(rare, modes, strict=True)]
        dense = np.setdiff1d(np.arange(which.size), rare)
        models = {k: model(tables.weights_of(k)) for k in np.unique(which[dense]).tolist()}
        self._dense = [(spans[r], int(which[r]), models[int(which[r])]) for r in dense]

    def encode(self, symbols: NDArray[np.int32]) -> NDArray[np.uint32]:
        """Symbols int32 [S] -> words uint32 [W]; the last is not 0, W may be 0."""
        found = [np.flatnonzero(symbols[span] != mode) for span, mode in self._sparse]
        row = np.repeat(np.arange(len(found)), [some.size for some in found])
        within = np.concatenate([np.zeros(0, np.int64), *found])
        place = self._first[row] * sparse.LEAF + within
        piece, start = np.unique(place >> 4, return_index=True)
        bits = np.uint16(1) << (place & 15).astype(np.uint16)
        pattern = np.bitwise_or.reduceat(bits, start) if start.size else bits
        writer = Writer(Places(piece, pattern), self._pieces)
        walk(writer, [self._walk])
        indices, escaped = self._events.indices(row, symbols[self._starts[row] + within])
        values, rows = [escaped], []
        for span, k, table in self._dense:
            index = symbols[span] - self._tables.minimum[k]
            last = self._tables.sizes[k] - 1
            # Below the table, or so far above it that the difference wrapped: huge as unsigned.
            outside = np.flatnonzero(index.view(np.uint32) >= last.view(np.uint32))
            if outside.size:
                values.append(self._values(symbols[span][outside], k))
                index[outside] = last
            rows.append((index, table))
        ans = AnsCoder()
        # A stack: what the decoder reads last is pushed first.
        escape.push(ans, np.concatenate(values))
        for index, table in reversed(rows):
            ans.encode_reverse(index, table)
        self._events.push(ans, row, indices)
        writer.push(ans)
        return ans.get_compressed()

    def decode(self, words: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Words -> symbols int32 [S]. Raises CorruptBlob if they are not `encode`'s."""
        ans = open_words(words)
        places = walk(Reader(ans), [self._walk])
        which, bit = np.nonzero((places.pattern[:, None] >> _BITS) & 1)
        piece = places.piece[which]
        row = np.searchsorted(self._first, piece, side="right") - 1
        at = self._starts[row] + (piece - self._first[row]) * sparse.LEAF + bit
        events, escapes = self._events.symbols(row, self._events.pop(ans, row))
        symbols = np.empty(int(self._lengths.sum()), np.int32)
        for span, mode in self._sparse:
            symbols[span] = mode
        outside = [escapes]
        for span, k, table in self._dense:
            index = ans.decode(table, span.stop - span.start)
            outside.append(np.flatnonzero(index == self._tables.sizes[k] - 1))
            symbols[span] = index + self._tables.minimum[k]
        counts = [some.size for some in outside]
        values = np.split(escape.pop(ans, sum(counts)), np.cumsum(counts)[:-1])
        # Decoding past the end raises no error, but leaves a state that no encoder starts from.
        if not ans.is_empty():
            raise CorruptBlob("damaged payload: it does not end where its symbols end")
        self._events.restore(row, events, escapes, values[0])
        symbols[at] = events
        for (span, k, _), some, own in zip(self._dense, outside[1:], values[1:], strict=True):
            if some.size:
                low, size = self._limits(k, some.size)
                symbols[span][some] = escape.symbols_of(own, low, size)
        return symbols

    def ideal_bits(self, symbols: NDArray[np.int32]) -> float:
        """The information content of the symbols under the tables, escaped values included."""
        entry_bits = PRECISION - np.log2(self._tables.weights)
        total = 0.0
        for part, k in self._parts(symbols):
            low, last = int(self._tables.minimum[k]), int(self._tables.sizes[k]) - 1
            index = part.astype(np.int64) - low
            outside = (index < 0) | (index >= last)
            index = np.where(outside, last, index) + self._tables.starts[k]
            total += float(entry_bits[index].sum())
            total += escape.ideal_bits(self._values(part[outside], k))
        return total

    def _parts(self, symbols: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int32], int]]:
        ends = np.cumsum(self._lengths).tolist()
        starts = [0, *ends[:-1]]
        for start, end, k in zip(starts, ends, self._which.tolist(), strict=False):
            yield symbols[start:end], k

    def _limits(self, k: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return np.full(count, self._tables.minimum[k]), np.full(count, self._tables.sizes[k])

    def _values(self, symbols: NDArray[np.int32], k: int) -> NDArray[np.int64]:
        return escape.values_of(symbols, *self._limits(k, symbols.size))


class _Ragged(Rows):
    """Sparse rows of lengths [R] whose first pieces are `first` [R]."""

    def __init__(
        self,
        tables: Tables,
        which: NDArray[np.int32],
        lengths: NDArray[np.int64],
        first: NDArray[np.int64],
    ):
        weights = sparse.ONE - tables.mode_weights[which].astype(np.int64)
        super().__init__(weights)
        full, rest = np.divmod(lengths, sparse.SEGMENT)
        row = np.repeat(np.arange(which.size), full)
        nth = np.arange(row.size) - np.repeat(np.cumsum(full) - full, full)
        step = sparse.SEGMENT // sparse.LEAF
        self._segments = []
        if row.size:
            wide = self._count_tables(sparse.SEGMENT)
            self._segments.append(
                (first[row] + step * nth, np.full(row.size, sparse.SEGMENT), wide[row])
            )
        left = np.flatnonzero(rest)
        if left.size:
            pairs = zip(weights[left].tolist(), rest[left].tolist(), strict=True)
            tables_left = np.array([sparse.count_weights(*pair) for pair in pairs], np.float64) - 1
            self._segments.append((first[left] + step * full[left], rest[left], tables_left))

    def segments(self, tokens: int) -> list[tuple[NDArray, NDArray, NDArray]]:
        """As of rows of one length."""
        return self._segments
