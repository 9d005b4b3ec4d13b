"""Symbols <-> 32-bit words by asymmetric numeral systems (Duda 2015, arXiv 1311.2540).

The coder is constriction's `AnsCoder` (64-bit state, 32-bit words, 24-bit probabilities).

**Reading order.** A block is T tokens of R rows (a row is one channel's symbols); its layout says
which table codes each row. A row is sparse or dense by its table alone (`coder.entropy.sparse`).

1. Where the events of all sparse rows are (`coder.entropy.places`).
2. Which symbols they are, with tables that know it is not the mode (`sparse.event_weights`;
   nothing is read where one symbol is left): block by block, row by row, token by token.
3. Dense rows: block by block, row by row, token by token.
4. Escaped values (`coder.entropy.escape`), in the order in which 2 and 3 met their escapes.

A symbol is coded as its index in its table: `symbol - minimum`, or the last index, the escape.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coder.entropy import escape, sparse
from coder.entropy.events import SparseRows, expand
from coder.entropy.integer_models import AnsCoder, model
from coder.entropy.places import Places, Reader, Writer, walk
from coder.entropy.tables import PRECISION, Tables
from coder.errors import CorruptBlob

Layout = NDArray[np.int32]
"""int32 [R]: the table that codes each row of a block."""


class SymbolCoder:
    """Code blocks of symbols with given tables and layouts; models are built once, here.

    Guarantees: any int32 round-trips through any table. The words are those of an integer ANS with
    exactly the stored weights, and those that `coder.entropy.sparse` derives from them. Time and
    memory of `decode` are proportional to the number of symbols asked for, whatever the words.
    """

    def __init__(self, tables: Tables, layouts: Sequence[Layout]):
        self._tables = tables
        self._layouts = layouts
        self._sparse = [SparseRows(tables, layout) for layout in layouts]
        self._dense = [
            _DenseRows(tables, layout, rows)
            for layout, rows in zip(layouts, self._sparse, strict=True)
        ]

    def encode(self, blocks: Sequence[NDArray[np.int32]]) -> NDArray[np.uint32]:
        """Symbols int32 [T, R] of each block -> words uint32 [W]; the last is not 0, W may be 0."""
        found = [rows.find(q) for rows, q in zip(self._sparse, blocks, strict=True)]
        starts = self._starts([len(q) for q in blocks])
        places = Places(
            np.concatenate([p.piece + s for (p, _, _), s in zip(found, starts, strict=False)]),
            np.concatenate([p.pattern for p, _, _ in found]),
        )
        writer = Writer(places, starts[-1])
        walk(writer, [rows.block(len(q)) for rows, q in zip(self._sparse, blocks, strict=True)])
        events = [
            (rows, row, *rows.indices(row, symbols))
            for rows, (_, row, symbols) in zip(self._sparse, found, strict=True)
        ]
        dense = [(rows, *rows.indices(q)) for rows, q in zip(self._dense, blocks, strict=True)]
        ans = AnsCoder()
        # A stack: what the decoder reads last is pushed first.
        escape.push(ans, np.concatenate([part[-1] for part in (*events, *dense)]))
        for rows, indices, _ in reversed(dense):
            rows.push(ans, indices)
        for rows, row, indices, _ in reversed(events):
            rows.push(ans, row, indices)
        writer.push(ans)
        return ans.get_compressed()

    def decode(self, words: NDArray[np.uint32], tokens: Sequence[int]) -> list[NDArray[np.int32]]:
        """Words, and T of each block -> the symbols int32 [T, R] of each.

        Raises:
          CorruptBlob: the words are not what `encode` makes of blocks of these shapes.
        """
        ans = open_words(words)
        blocks = [rows.block(t) for rows, t in zip(self._sparse, tokens, strict=True)]
        places = walk(Reader(ans), blocks)
        starts = self._starts(tokens)
        ends = np.searchsorted(places.piece, starts).tolist()
        events = []
        for i, rows in enumerate(self._sparse):
            here = slice(ends[i], ends[i + 1])
            own = Places(places.piece[here] - starts[i], places.pattern[here])
            row, token = expand(own, sparse.leaves(tokens[i]))
            events.append((row, token, *rows.symbols(row, rows.pop(ans, row))))
        dense = [rows.pop(ans, t) for rows, t in zip(self._dense, tokens, strict=True)]
        counts = [which.size for *_, which in events] + [which.size for _, which in dense]
        values = escape.pop_last(ans, counts)
        result = []
        for i, (rows, (row, token, symbols, escapes)) in enumerate(
            zip(self._sparse, events, strict=True)
        ):
            rows.restore(row, symbols, escapes, values[i])
            q = self._dense[i].symbols(*dense[i], values[len(events) + i])
            q[token, rows.columns[row]] = symbols
            result.append(q)
        return result

    def ideal_bits(self, blocks: Sequence[NDArray[np.int32]]) -> float:
        """The information content of the symbols under the tables, escaped values included."""
        return sum(
            ideal_bits(self._tables, layout, symbols)
            for layout, symbols in zip(self._layouts, blocks, strict=True)
        )

    def _starts(self, tokens: Sequence[int]) -> list[int]:
        """The first piece of each block, and the end."""
        pieces = [rows.pieces(t) for rows, t in zip(self._sparse, tokens, strict=True)]
        return np.cumsum([0, *pieces]).tolist()


def open_words(words: NDArray[np.uint32]):
    """A coder that reads words. Raises CorruptBlob if no encoder wrote them."""
    try:
        return AnsCoder(words)
    except ValueError as error:
        raise CorruptBlob(f"damaged payload: {error}") from error


def ideal_bits(tables: Tables, which: NDArray[np.int32], symbols: NDArray[np.int32]) -> float:
    """The information content of symbols, each under the table that `which`, of their shape or
    broadcast to it, has for it; escaped values included.
    """
    low, size = tables.minimum[which], tables.sizes[which]
    index = symbols.astype(np.int64) - low
    outside = (index < 0) | (index >= size - 1)
    index = np.where(outside, size - 1, index) + tables.starts[which]
    bits = float((PRECISION - np.log2(tables.weights))[index].sum())
    low, size = (np.broadcast_to(part, symbols.shape)[outside] for part in (low, size))
    return bits + escape.ideal_bits(escape.values_of(symbols[outside], low, size))


class _DenseRows:
    """Rows that are coded one symbol per token."""

    def __init__(self, tables: Tables, layout: Layout, sparse_rows: SparseRows):
        others = sparse_rows.columns
        columns = np.delete(np.arange(layout.size), others)
        models = {k: model(tables.weights_of(k)) for k in np.unique(layout[columns]).tolist()}
        self._models = [models[k] for k in layout[columns].tolist()]
        self._modes = sparse_rows.modes
        # Few rows are copied out; many stay among the others, whose symbols are then not used.
        self._few = 2 * columns.size < layout.size
        self._columns = columns
        self._others = others[: 0 if self._few else others.size]
        self._rows = np.arange(columns.size) if self._few else columns
        used = columns if self._few else np.arange(layout.size)
        self._low = np.where(np.isin(used, others), self._modes[used], tables.minimum[layout[used]])
        self._last = tables.sizes[layout[used]] - 1

    def indices(self, symbols: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Symbols [T, R] -> table indices [S, T] of the rows, and the escaped values [E]."""
        indices = _transposed(symbols[:, self._columns] if self._few else symbols)
        indices -= self._low[:, None]
        # As unsigned, a negative index is huge, and so is one that wrapped because the symbol is
        # far above the table.
        outside = indices.view(np.uint32) >= self._last[:, None].view(np.uint32)
        outside[self._others] = False
        if not outside.any():
            return indices, np.zeros(0, np.int64)
        row, token = np.nonzero(outside)
        low, last = self._low[row], self._last[row]
        values = escape.values_of(indices[row, token] + low, low, last + 1)
        indices[row, token] = last
        return indices, values

    def push(self, ans, indices: NDArray[np.int32]) -> None:
        """Codes indices [S, T]."""
        # One symbol per row, as for a class token: plain integers are the fastest call.
        rows = indices[:, 0].tolist() if indices.shape[1] == 1 else list(indices)
        for row, table in zip(self._rows[::-1].tolist(), reversed(self._models), strict=True):
            ans.encode_reverse(rows[row], table)

    def pop(self, ans, count: int) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
        """Decode indices [S, T], and the flat positions of those that are escapes."""
        if count == 1:
            indices = np.zeros((self._low.size, 1), np.int32)
            indices[self._rows, 0] = [ans.decode(table) for table in self._models]
        else:
            rows = [np.zeros(count, np.int32)] * self._low.size
            for row, table in zip(self._rows.tolist(), self._models, strict=True):
                rows[row] = ans.decode(table, count)
            indices = np.concatenate([*rows, np.zeros(0, np.int32)]).reshape(-1, count)
        escaped = indices == self._last[:, None]
        escaped[self._others] = False
        return indices, np.flatnonzero(escaped)

    def symbols(
        self, indices: NDArray[np.int32], escapes: NDArray[np.intp], values: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """The result of `pop` and the escaped values -> symbols [T, R]; other rows get their mode.

        Raises CorruptBlob for a symbol beyond int32.
        """
        if escapes.size:
            row = escapes // indices.shape[1]
            low = self._low[row]
            symbols = escape.symbols_of(values, low, self._last[row] + 1)
            indices.reshape(-1)[escapes] = symbols - low
        indices += self._low[:, None]
        if not self._few:
            return _transposed(indices)
        symbols = np.empty((indices.shape[1], self._modes.size), np.int32)
        symbols[:] = self._modes
        symbols[:, self._columns] = indices.T
        return symbols


def _transposed(matrix: NDArray[np.int32]) -> NDArray[np.int32]:
    """A C-ordered copy of the transpose, in strips: twice as fast as NumPy's own."""
    result = np.empty(matrix.shape[::-1], np.int32)
    for start in range(0, len(matrix), 32):
        result[:, start : start + 32] = matrix[start : start + 32].T
    return result
