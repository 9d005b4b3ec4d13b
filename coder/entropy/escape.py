"""Symbols outside their table, written out in full.

An escaped value is `v = 2 * excess + side`: side 0 is below the table with
`excess = minimum - 1 - symbol`, side 1 above with `excess = symbol - (minimum + size - 1)`.

1. The bit lengths k of all v, with a fixed table of 35 entries (k = 0 .. 34): weight
   max(1, 2^(23-k)) for k >= 1, and entry 0 has the rest of 2^24.
2. The k - 1 bits below each v's leading one, in chunks, least significant first: chunk j is bits
   8j .. min(8j + 8, k - 1) - 1. For j = 0 .. 4, for n = 1 .. 8: the j-th chunks of exactly n bits,
   of all escapes that have one, each with the uniform table of 2^n entries.

So the number of coder calls does not grow with the number of escapes, and hostile bytes cannot
make decoding slow.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from coder.entropy.integer_models import model
from coder.entropy.tables import PRECISION
from coder.errors import CorruptBlob

_CHUNK_BITS = 8
_LENGTHS = 35
_INT32 = np.iinfo(np.int32)
Limits = NDArray[np.int32] | np.int32


def length_weights() -> NDArray[np.int64]:
    """[35]: the weights of the bit length of an escaped value."""
    weights = np.maximum(1, (1 << 23) >> np.arange(_LENGTHS, dtype=np.int64))
    weights[0] = (1 << PRECISION) - weights[1:].sum()
    return weights


_LENGTH_MODEL = model(length_weights())
_CHUNK_MODELS = {n: model(np.full(1 << n, 1 << (PRECISION - n))) for n in range(1, _CHUNK_BITS + 1)}


def values_of(symbols: NDArray[np.int32], minimum: Limits, size: Limits) -> NDArray[np.int64]:
    """v [E] of symbols [E] that are outside their tables (minimum and size [E], or of all)."""
    # int64 first, in which no difference of two int32 wraps.
    above = symbols.astype(np.int64) - minimum - (size - 1)
    below = minimum.astype(np.int64) - 1 - symbols
    return np.where(below >= 0, 2 * below, 2 * above + 1)


def symbols_of(values: NDArray[np.int64], minimum: Limits, size: Limits) -> NDArray[np.int32]:
    """The inverse. Raises CorruptBlob for a symbol beyond int32."""
    low, excess = minimum.astype(np.int64), values >> 1
    symbols = np.where(values & 1, low + size - 1 + excess, low - 1 - excess)
    if symbols.size and (symbols.min() < _INT32.min or symbols.max() > _INT32.max):
        raise CorruptBlob("damaged payload: an escaped symbol is outside int32")
    return symbols.astype(np.int32)


def push(ans, values: NDArray[np.int64]) -> None:
    """Codes v [E]; the first thing pushed is the last that is read."""
    if not values.size:
        return
    lengths = _bit_lengths(values)
    for shift, bits, which in reversed(list(_chunks(lengths))):
        chunk = (values[which] >> shift) & ((1 << bits) - 1)
        ans.encode_reverse(chunk.astype(np.int32), _CHUNK_MODELS[bits])
    ans.encode_reverse(lengths.astype(np.int32), _LENGTH_MODEL)


def pop(ans, count: int) -> NDArray[np.int64]:
    """Decodes v [count]."""
    if not count:
        return np.zeros(0, np.int64)
    lengths = ans.decode(_LENGTH_MODEL, count).astype(np.int64)
    values = np.where(lengths > 0, 1 << np.maximum(lengths - 1, 0), 0)
    for shift, bits, which in _chunks(lengths):
        chunk = ans.decode(_CHUNK_MODELS[bits], which.size).astype(np.int64)
        values[which] |= chunk << shift
    return values


def pop_last(ans, counts: list[int]) -> list[NDArray[np.int64]]:
    """Decode v of several parts [count each], the last of a payload.

    Raises CorruptBlob if more follows.
    """
    values = np.split(pop(ans, sum(counts)), np.cumsum(counts)[:-1])
    # Decoding past the end raises no error, but leaves a state that no encoder starts from.
    if not ans.is_empty():
        raise CorruptBlob("damaged payload: it does not end where its symbols end")
    return values


def ideal_bits(values: NDArray[np.int64]) -> float:
    """Information content of v [E]."""
    lengths = _bit_lengths(values)
    cost = PRECISION - np.log2(length_weights())
    return float(cost[lengths].sum() + np.maximum(lengths - 1, 0).sum())


def _chunks(lengths: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.intp]]]:
    """(shift, bits, which escapes) of every group of equal chunks, in reading order."""
    for shift in range(0, _LENGTHS - 2, _CHUNK_BITS):
        sizes = np.minimum(_CHUNK_BITS, lengths - 1 - shift)
        for bits in range(1, _CHUNK_BITS + 1):
            which = np.flatnonzero(sizes == bits)
            if which.size:
                yield shift, bits, which


def _bit_lengths(values: NDArray[np.int64]) -> NDArray[np.int64]:
    # Exact: the values lie far below 2^53.
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)
