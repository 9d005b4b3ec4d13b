"""The places of events in sparse rows: counts, halves, patterns. `sparse_tables` has the rules.

**Reading order.** Rows of all blocks, in order, are cut in segments.

1. Counts. Block by block: the segments of 64 tokens, row by row; then the rest of each row.
   After all blocks, for each segment that said "15 or more", in the same order: `count - 15`,
   uniform below `length - 14` (if that is 1, nothing is read).
2. Halves. Segments without events are dropped. Twice, for 32 and then for 16 tokens: of each
   segment longer than that, in order, the events in its first 32 (16) tokens. The new list is the
   segments that were short enough, then all first parts, then all second parts; those without
   events are dropped.
3. Patterns. For each segment left, in order: its pattern's rank, uniform below
   `binomial(length, count)` (if that is 1, nothing is read).

One walk serves both directions: a `Reader` decodes each number, a `Writer` knows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coder.entropy import sparse_tables
from coder.entropy.integer_models import TABLE_EACH, UNIFORM
from coder.errors import CorruptBlob

_MANY = sparse_tables.COUNTS - 1
_PIECES = sparse_tables.SEGMENT // sparse_tables.LEAF


@dataclass(frozen=True)
class Places:
    """Pieces of at most 16 tokens that hold events.

    A row has ceil(T / 16) pieces; they are numbered through the rows of all blocks.

    Attributes:
      piece: int64 [P], the pieces' numbers, ascending.
      pattern: uint16 [P], never 0; bit j is set if token j of the piece is an event.
    """

    piece: NDArray[np.int64]
    pattern: NDArray[np.uint16]


class Reader:
    """Decodes the numbers of a walk."""

    def __init__(self, ans):
        self._ans = ans

    def counts(self, piece: NDArray, length: NDArray, tables: NDArray) -> NDArray[np.int32]:
        """Events [S] in `length` tokens from each piece on; float64 [S, n]: weights less 1."""
        return self._ans.decode(TABLE_EACH, tables)

    def excess(self, piece: NDArray, length: NDArray, sizes: NDArray) -> NDArray[np.int32]:
        """Events [S] beyond 15, each uniform below its size."""
        return self._ans.decode(UNIFORM, sizes)

    def ranks(self, piece: NDArray, sizes: NDArray) -> NDArray[np.int32]:
        """The ranks [S] of the pieces' patterns, each uniform below its size."""
        return self._ans.decode(UNIFORM, sizes)


class Writer:
    """Computes the numbers of a walk, and keeps them to push them in reverse."""

    def __init__(self, places: Places, pieces: int):
        self._places = places
        events = np.zeros(pieces + 1, np.int64)
        events[places.piece + 1] = np.bitwise_count(places.pattern)
        self._before = np.cumsum(events)
        self._kept = []

    def counts(self, piece: NDArray, length: NDArray, tables: NDArray) -> NDArray[np.int32]:
        """As the reader's."""
        numbers = np.minimum(self._within(piece, length), tables.shape[1] - 1)
        return self._keep(TABLE_EACH, tables, numbers)

    def excess(self, piece: NDArray, length: NDArray, sizes: NDArray) -> NDArray[np.int32]:
        """As the reader's."""
        return self._keep(UNIFORM, sizes, self._within(piece, length) - _MANY)

    def ranks(self, piece: NDArray, sizes: NDArray) -> NDArray[np.int32]:
        """As the reader's."""
        known = np.searchsorted(self._places.piece, piece)
        return self._keep(UNIFORM, sizes, sparse_tables.rank_of(self._places.pattern[known]))

    def push(self, ans) -> None:
        """Codes all of them."""
        for numbers, family, parameters in reversed(self._kept):
            ans.encode_reverse(numbers, family, parameters)

    def _within(self, piece: NDArray, length: NDArray) -> NDArray[np.int64]:
        return self._before[piece + sparse_tables.leaves(length)] - self._before[piece]

    def _keep(self, family, parameters: NDArray, numbers: NDArray) -> NDArray[np.int32]:
        numbers = numbers.astype(np.int32, copy=False)
        self._kept.append((numbers, family, parameters))
        return numbers


Segments = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""First piece [S], length [S] and count table (less 1) [S, 16]; they are read at once."""


def segments_of(
    events: NDArray[np.int64], lengths: NDArray[np.int64], first: NDArray[np.int64]
) -> list[Segments]:
    """The segments of the sparse rows of a block: those of 64 tokens, then the rest of each row.

    Args:
      events: int64 [R], the weights of the rows' events.
      lengths: int64 [R], tokens of each row.
      first: int64 [R], the first piece of each row.
    """
    full, rest = np.divmod(lengths, sparse_tables.SEGMENT)
    row = np.repeat(np.arange(events.size), full)
    nth = np.arange(row.size) - np.repeat(np.cumsum(full) - full, full)
    left = np.flatnonzero(rest)
    found = []
    if row.size:
        wide = _count_tables(events, np.full(events.size, sparse_tables.SEGMENT))
        lengths_64 = np.full(row.size, sparse_tables.SEGMENT)
        found.append((first[row] + _PIECES * nth, lengths_64, wide[row]))
    if left.size:
        tables = _count_tables(events[left], rest[left])
        found.append((first[left] + _PIECES * full[left], rest[left], tables))
    return found


def _count_tables(events: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    pairs = zip(events.tolist(), lengths.tolist(), strict=True)
    return np.array([sparse_tables.count_weights(*pair) for pair in pairs], np.float64) - 1


def walk(source: Reader | Writer, segments: Sequence[Segments]) -> Places:
    """Read or write the places of events in the segments of all blocks.

    Raises:
      CorruptBlob: a count that its segment cannot have.
    """
    piece, length, count = _alive(*_counts(source, segments))
    if not piece.size:
        return Places(piece, np.zeros(0, np.uint16))
    for left in sparse_tables.HALVES:
        wide = length > left
        if not wide.any():
            continue
        whole, tokens, events = piece[wide], length[wide], count[wide]
        parts = np.full(whole.size, left)
        first = source.counts(whole, parts, _split_tables(tokens, events, left))
        second = events - first
        if second.min() < 0 or (second > tokens - left).any():
            raise CorruptBlob("damaged payload: more events than tokens in half a segment")
        piece, length, count = _alive(
            np.concatenate([piece[~wide], whole, whole + left // sparse_tables.LEAF]),
            np.concatenate([length[~wide], parts, tokens - left]),
            np.concatenate([count[~wide], first, second]),
        )
    sizes = sparse_tables.BINOMIAL[length, count]
    ranks = np.zeros(count.size, np.int32)
    free = np.flatnonzero(sizes > 1)
    if free.size:
        ranks[free] = source.ranks(piece[free], sizes[free])
    order = np.argsort(piece)
    return Places(piece[order], sparse_tables.pattern_of(count[order], ranks[order]))


def _counts(
    source: Reader | Writer, segments: Sequence[Segments]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """First piece, length and events of every segment, in reading order."""
    parts = [(np.zeros(0, np.int64),) * 3]
    for piece, length, tables in segments:
        count = source.counts(piece, length, tables)
        parts.append((piece, length, count.astype(np.int64)))
    piece, length, count = (np.concatenate(part) for part in zip(*parts, strict=True))
    many = np.flatnonzero(count == _MANY)
    if many.size:
        free = many[length[many] > _MANY]
        if free.size:
            sizes = (length[free] - _MANY + 1).astype(np.int32)
            count[free] += source.excess(piece[free], length[free], sizes)
    if (count > length).any():
        raise CorruptBlob("damaged payload: more events than tokens in a segment")
    return piece, length, count


def _alive(piece: NDArray, length: NDArray, count: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    some = np.flatnonzero(count)
    return piece[some], length[some], count[some]


def _split_tables(length: NDArray, count: NDArray, left: int) -> NDArray[np.float64]:
    if (length == length[0]).all():
        return sparse_tables.split_weights(int(length[0]), left)[count]
    tables = np.empty((length.size, left + 1))
    for size in np.unique(length).tolist():
        same = length == size
        tables[same] = sparse_tables.split_weights(size, left)[count[same]]
    return tables
