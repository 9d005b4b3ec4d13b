"""Symbols <-> 32-bit words by asymmetric numeral systems (Duda 2015, arXiv 1311.2540).

The coder is constriction's `AnsCoder` (64-bit state, 32-bit words, 24-bit probabilities).

**Reading order.** Blocks one after another; in a block row by row; in a row symbol by symbol.
Every symbol is coded as its index in its row's table (`symbol - minimum`, or the last index,
the escape). After all blocks come the escaped values, in the order in which their escapes were
read. An escaped value is `v = 2 * excess + side`: side 0 is below the table with
`excess = minimum - 1 - symbol`, side 1 above with `excess = symbol - (minimum + size - 1)`.

1. The bit lengths k of all v, with a fixed table of 35 entries (k = 0 .. 34): weight
   max(1, 2^(23-k)) for k >= 1, and entry 0 has the rest of 2^24.
2. The k - 1 bits below each v's leading one, in chunks, least significant first: chunk j is bits
   8j .. min(8j + 8, k - 1) - 1. For j = 0 .. 4, for n = 1 .. 8: the j-th chunks of exactly n bits,
   of all escapes that have one, each with the uniform table of 2^n entries.

So the number of coder calls does not grow with the number of escapes, and hostile bytes cannot
make decoding slow.
"""

from collections.abc import Iterator, Sequence

import constriction
import numpy as np
from numpy.typing import NDArray

from coder.errors import CorruptBlob
from coder.tables import PRECISION, Tables

Layout = NDArray[np.int32]
"""int32 [R]: the table that codes each row of a block."""
Block = tuple[Layout, NDArray[np.int32]]
"""A layout and the symbols int32 [R, T] that it codes: row r has table layout[r]."""

# Attributes set by constriction's binary, not modules: neither `from` imports nor stubs exist.
_AnsCoder = constriction.stream.stack.AnsCoder  # pyright: ignore[reportAttributeAccessIssue]
_Categorical = constriction.stream.model.Categorical  # pyright: ignore[reportAttributeAccessIssue]

_CHUNK_BITS = 8
_LENGTHS = 35
_INT32 = np.iinfo(np.int32)


def _model(weights: NDArray):
    # Handed w - 1, constriction's own conversion to fixed point has a scale of exactly 1 and adds
    # the 1 back; handed w / 2^24 it misses w for many table sizes.
    return _Categorical(weights.astype(np.float64) - 1.0, perfect=False)


def length_weights() -> NDArray[np.int64]:
    """[35]: the weights of the bit length of an escaped value."""
    weights = np.maximum(1, (1 << 23) >> np.arange(_LENGTHS, dtype=np.int64))
    weights[0] = (1 << PRECISION) - weights[1:].sum()
    return weights


def _chunks(lengths: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.intp]]]:
    """(shift, bits, which escapes) of every group of equal chunks, in reading order."""
    for shift in range(0, _LENGTHS - 2, _CHUNK_BITS):
        sizes = np.minimum(_CHUNK_BITS, lengths - 1 - shift)
        for bits in range(1, _CHUNK_BITS + 1):
            which = np.flatnonzero(sizes == bits)
            if which.size:
                yield shift, bits, which


class SymbolCoder:
    """Codes blocks of symbols with given tables; constriction's models are built once, here.

    Guarantees: any int32 round-trips through any table; the words are those of an integer ANS
    with exactly `tables.weights`; `decode` takes time and memory in proportion to the symbols
    asked for, whatever the words.
    """

    def __init__(self, tables: Tables):
        self._tables = tables
        self._models = [_model(tables.weights_of(k)) for k in range(len(tables))]
        self._length_model = _model(length_weights())
        self._uniform = {
            n: _model(np.full(1 << n, 1 << (PRECISION - n))) for n in range(1, _CHUNK_BITS + 1)
        }

    def encode(self, blocks: Sequence[Block]) -> NDArray[np.uint32]:
        """Blocks -> words uint32 [W]; the last word is never 0, W may be 0."""
        coded = [self._indices(layout, symbols) for layout, symbols in blocks]
        ans = _AnsCoder()
        # A stack: the last that the decoder reads is pushed first.
        self._push_escapes(ans, np.concatenate([v for _, v in coded]))
        for (layout, _), (indices, _) in zip(reversed(blocks), reversed(coded), strict=True):
            models = [self._models[k] for k in layout.tolist()]
            # One symbol a row, as of a class token: plain integers are the fastest call.
            rows = indices[:, 0].tolist() if indices.shape[1] == 1 else indices
            for row, model in zip(reversed(rows), reversed(models), strict=True):
                ans.encode_reverse(row, model)
        return ans.get_compressed()

    def decode(
        self, words: NDArray[np.uint32], shapes: Sequence[tuple[Layout, int]]
    ) -> list[NDArray[np.int32]]:
        """Words and (layout [R], T) of each block -> the symbols int32 [R, T] of each.

        Raises:
          CorruptBlob: the words are not what `encode` makes of blocks of these shapes.
        """
        try:
            ans = _AnsCoder(words)
        except ValueError as error:
            raise CorruptBlob(f"damaged payload: {error}") from error
        coded = []
        for layout, count in shapes:
            models = [self._models[k] for k in layout.tolist()]
            if count == 1:
                indices = np.array([ans.decode(model) for model in models], np.int32)[:, None]
            else:
                indices = np.empty((len(models), count), np.int32)
                for row, model in enumerate(models):
                    indices[row] = ans.decode(model, count)
            coded.append(indices)
        escaped = [
            indices == self._tables.sizes[layout][:, None] - 1
            for indices, (layout, _) in zip(coded, shapes, strict=True)
        ]
        values = self._pop_escapes(ans, sum(int(mask.sum()) for mask in escaped))
        # Decoding past the end raises nothing, it leaves a state that no encoder started from.
        if not ans.is_empty():
            raise CorruptBlob("damaged payload: it does not end where its symbols end")
        for indices, mask, (layout, _) in zip(coded, escaped, shapes, strict=True):
            indices += self._tables.minimum[layout][:, None]
            if mask.any():
                own, values = np.split(values, [int(mask.sum())])
                self._restore(indices, mask, layout, own)
        return coded

    def ideal_bits(self, blocks: Sequence[Block]) -> float:
        """The information content of the symbols under the tables, escaped values included."""
        entry_bits = PRECISION - np.log2(self._tables.weights)
        length_bits = PRECISION - np.log2(length_weights())
        total = 0.0
        for layout, symbols in blocks:
            indices, escapes = self._indices(layout, symbols)
            total += float(entry_bits[self._tables.starts[layout][:, None] + indices].sum())
            lengths = _bit_lengths(escapes)
            total += float(length_bits[lengths].sum() + np.maximum(lengths - 1, 0).sum())
        return total

    def _indices(
        self, layout: Layout, symbols: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Table indices [R, T] of the symbols, and v [E] of those that escape."""
        low = self._tables.minimum[layout][:, None]
        escape = self._tables.sizes[layout][:, None] - 1
        # C order and int32, as constriction reads it; a difference that wraps is replaced below.
        indices = np.subtract(symbols, low, order="C", dtype=np.int32)
        outside = (symbols < low) | (symbols >= low + escape)
        if not outside.any():
            return indices, np.zeros(0, np.int64)
        rows = np.nonzero(outside)[0]
        value = np.ascontiguousarray(symbols)[outside].astype(np.int64)
        # `value` first: int64, in which no difference of two int32 wraps.
        below = -(value - low[rows, 0]) - 1
        above = value - low[rows, 0] - escape[rows, 0]
        indices[outside] = escape[rows, 0]
        return indices, np.where(below >= 0, 2 * below, 2 * above + 1)

    def _restore(
        self,
        symbols: NDArray[np.int32],
        mask: NDArray[np.bool_],
        layout: Layout,
        escapes: NDArray[np.int64],
    ) -> None:
        """Writes the escaped values into `symbols` [R, T] where `mask` says."""
        tables = layout[np.nonzero(mask)[0]]
        low = self._tables.minimum[tables].astype(np.int64)
        excess = escapes >> 1
        value = np.where(
            escapes & 1, low + self._tables.sizes[tables] - 1 + excess, low - 1 - excess
        )
        if value.min() < _INT32.min or value.max() > _INT32.max:
            raise CorruptBlob("damaged payload: an escaped symbol is outside int32")
        symbols[mask] = value

    def _push_escapes(self, ans, escapes: NDArray[np.int64]) -> None:
        if not escapes.size:
            return
        lengths = _bit_lengths(escapes)
        for shift, bits, which in reversed(list(_chunks(lengths))):
            chunk = (escapes[which] >> shift) & ((1 << bits) - 1)
            ans.encode_reverse(chunk.astype(np.int32), self._uniform[bits])
        ans.encode_reverse(lengths.astype(np.int32), self._length_model)

    def _pop_escapes(self, ans, count: int) -> NDArray[np.int64]:
        lengths = ans.decode(self._length_model, count).astype(np.int64)
        values = np.where(lengths > 0, 1 << np.maximum(lengths - 1, 0), 0)
        for shift, bits, which in _chunks(lengths):
            chunk = ans.decode(self._uniform[bits], which.size).astype(np.int64)
            values[which] |= chunk << shift
        return values


def _bit_lengths(values: NDArray[np.int64]) -> NDArray[np.int64]:
    # Exact: the values lie far below 2^53.
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)
