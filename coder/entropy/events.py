"""The sparse rows of a block: which tokens differ from the mode, and their symbols."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder.entropy import escape, sparse
from coder.entropy.integer_models import model
from coder.entropy.places import Places, Segments, segments_of
from coder.entropy.tables import Tables

_CERTAIN = object()  # in place of a model: one symbol is left


class SparseRows:
    """The rows of a block [T, R] whose tables are sparse.

    Attributes:
      columns: int64 [S], which of the R rows.
      modes: int32 [R], the mode of every row, dense ones too.
      weights: int64 [S], the weight of an event of each row.
    """

    def __init__(self, tables: Tables, layout: NDArray[np.int32]):
        self.modes = (tables.minimum + tables.modes)[layout]
        events = sparse.ONE - tables.mode_weights[layout].astype(np.int64)
        self._sparse = events <= sparse.MAX_EVENT_WEIGHT
        self.columns = np.flatnonzero(self._sparse)
        self._position = np.cumsum(self._sparse) - 1
        self.weights = events[self.columns]
        self._kept: tuple[int, Segments] = (0, [])
        self._table = layout[self.columns]
        self._tables = tables
        self._models: list = [None] * self.columns.size

    def pieces(self, tokens: int) -> int:
        """The number of pieces of all rows, of so many tokens each."""
        return self.columns.size * sparse.leaves(tokens)

    def block(self, tokens: int) -> tuple[Segments, int]:
        """What `places.walk` takes, for rows of so many tokens each."""
        kept, segments = self._kept
        if tokens != kept:
            rows = np.arange(self.columns.size)
            lengths = np.full(rows.size, tokens)
            segments = segments_of(self.weights, lengths, rows * sparse.leaves(tokens))
            # Embeddings of one codec mostly have one grid. One assignment: threads may share this.
            self._kept = (tokens, segments)
        return segments, self.pieces(tokens)

    def find(
        self, symbols: NDArray[np.int32]
    ) -> tuple[Places, NDArray[np.int64], NDArray[np.int32]]:
        """Symbols [T, R] -> the places of events; and for each [E] its row of S and its symbol."""
        if 2 * self.columns.size < self.modes.size:
            differs = symbols[:, self.columns] != self.modes[self.columns]
            alive = np.flatnonzero(differs.any(0))
            position = alive
        else:
            differs = symbols != self.modes
            alive = np.flatnonzero(differs.any(0) & self._sparse)
            position = self._position[alive]
        bits = np.zeros((alive.size, sparse.LEAF * sparse.leaves(len(symbols))), bool)
        bits[:, : len(symbols)] = differs.T[alive]
        patterns = np.packbits(bits, axis=1, bitorder="little").view("<u2").astype(np.uint16)
        which, part = np.nonzero(patterns)
        row = position[which]
        places = Places(row * patterns.shape[1] + part, patterns[which, part])
        row, token = expand(places, patterns.shape[1])
        return places, row, symbols[token, self.columns[row]]

    def indices(
        self, row: NDArray[np.int64], symbols: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Of events [E]: indices in tables without the mode, and the escaped values [F]."""
        minimum, size, mode = self._of(row)
        index = symbols - minimum
        # Below the table, or so far above it that the difference wrapped: huge as unsigned.
        outside = np.flatnonzero(index.view(np.uint32) >= size.view(np.uint32) - 1)
        index[outside] = size[outside] - 1
        escaped = escape.values_of(symbols[outside], minimum[outside], size[outside])
        return index - (index > mode), escaped

    def symbols(
        self, row: NDArray[np.int64], indices: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
        """The inverse, except for escapes: symbols [E], and which of them are escapes [F]."""
        minimum, size, mode = self._of(row)
        index = indices + (indices >= mode)
        return minimum + index, np.flatnonzero(index == size - 1)

    def restore(
        self,
        row: NDArray[np.int64],
        symbols: NDArray[np.int32],
        which: NDArray[np.intp],
        values: NDArray[np.int64],
    ) -> None:
        """Writes escaped values [F] into `symbols`. Raises CorruptBlob beyond int32."""
        minimum, size, _ = self._of(row[which])
        symbols[which] = escape.symbols_of(values, minimum, size)

    def push(self, ans, row: NDArray[np.int64], indices: NDArray[np.int32]) -> None:
        """Codes indices [E] of events, which `row` orders."""
        numbers = indices.tolist()
        for table, start, end in reversed(self._runs(row)):
            # A plain integer is the fastest call.
            symbols = numbers[start] if end - start == 1 else indices[start:end]
            ans.encode_reverse(symbols, table)

    def pop(self, ans, row: NDArray[np.int64]) -> NDArray[np.int32]:
        """Decodes the indices [E] of events in these rows."""
        indices = np.zeros(row.size, np.int32)
        for table, start, end in self._runs(row):
            one = end - start == 1
            indices[start:end] = ans.decode(table) if one else ans.decode(table, end - start)
        return indices

    def _runs(self, row: NDArray[np.int64]) -> list[tuple[Any, int, int]]:
        """(model, start, end) of every run of equal rows that has more than one symbol left."""
        if not row.size:
            return []
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), row.size]
        models = [self._model(which) for which in row[edges[:-1]].tolist()]
        runs = zip(models, edges[:-1], edges[1:], strict=True)
        return [run for run in runs if run[0] is not _CERTAIN]

    def _of(self, row: NDArray[np.int64]):
        table = self._table[row]
        return self._tables.minimum[table], self._tables.sizes[table], self._tables.modes[table]

    def _model(self, row: int) -> Any:
        found = self._models[row]
        if found is None:
            k = int(self._table[row])
            weights = sparse.event_weights(self._tables.weights_of(k), int(self._tables.modes[k]))
            found = self._models[row] = model(weights) if weights.size > 1 else _CERTAIN
        return found


def expand(places: Places, pieces: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and token [E] of every event, in order; each row has `pieces` pieces."""
    piece, token = places.events()
    row, part = np.divmod(piece, pieces)
    return row, part * sparse.LEAF + token
