"""Rows that are almost always one symbol, coded at almost no cost per token.

A table whose most likely symbol (its *mode*) has a weight of at least 2^24 - 2^19 makes its rows
*sparse*. Every other symbol in such a row is an *event*; each token is one with the probability
`e / 2^24`, `e = 2^24 - weight of the mode`. What is coded is how many events there are, then where,
then which. Under a static table that costs the same bits as one symbol per token, because

    P(pattern of L tokens) = P(count) * P(pattern | count),   the second being uniform.

Rows are cut in segments of 64 tokens; the rest of a row, if any, is one more. A segment's count is
a symbol of `count_weights`; wide segments are halved (`split_weights`) until 16 tokens are left,
whose pattern is a number below binomial(length, count). All of it is integers that follow from the
stored tables by the rules below; no table depends on how many tokens an embedding has.
"""

import math
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from coder.arrays import read_only
from coder.entropy.integer_models import PRECISION

ONE = 1 << PRECISION
SEGMENT = 64
LEAF = 16
COUNTS = 16
"""Entries of a count table: 0 to 14 events, and 15 or more."""
MAX_EVENT_WEIGHT = 1 << (PRECISION - 5)
HALVES = (SEGMENT // 2, SEGMENT // 4)
"""Segments longer than 32 tokens are cut at 32, then those longer than 16 at 16."""

BINOMIAL = np.array([[math.comb(n, k) for k in range(LEAF + 1)] for n in range(LEAF + 1)], np.int32)
"""[17, 17]: patterns of n tokens that have k events."""


@lru_cache(1 << 14)
def count_weights(event_weight: int, length: int) -> tuple[int, ...]:
    """The table of a segment's count: entries 0 .. 14 and "15 or more", sum 2^24.

    Entry k, 1 <= k <= 14: `floor(binomial(length, k) e^k m^(length - k) / 2^(24 (length - 1)))`
    with `e` the event's weight and `m = 2^24 - e`. Entry 15: 2^24 less the floors of 0 .. 14.
    All of 1 .. 15 are at least 1; entry 0 has the rest of 2^24.

    Args:
      event_weight: e, 1 to 2^19.
      length: tokens, 1 to 64.
    """
    e, m = event_weight, ONE - event_weight
    shift = PRECISION * (length - 1)
    floors = [
        (math.comb(length, k) * e**k * m ** (length - k)) >> shift if k <= length else 0
        for k in range(COUNTS - 1)
    ]
    events = [max(1, value) for value in (*floors[1:], ONE - sum(floors))]
    return (ONE - sum(events), *events)


@cache
def split_weights(length: int, left: int) -> NDArray[np.float64]:
    """[length + 1, left + 1]: for each count of a segment, the table of its first `left` tokens'.

    Entry i of row c: `floor(binomial(left, i) binomial(length - left, c - i) 2^24 /
    binomial(length, c))`, at least 1; what is missing to 2^24 (or too much) goes to the first of
    the largest entries. Ready for constriction: every weight less 1, as float64.
    """
    table = np.empty((length + 1, left + 1))
    for count in range(length + 1):
        total = math.comb(length, count)
        weights = [
            max(1, (math.comb(left, i) * math.comb(length - left, count - i) << PRECISION) // total)
            if i <= count
            else 1
            for i in range(left + 1)
        ]
        weights[weights.index(max(weights))] += ONE - sum(weights)
        table[count] = weights
    return read_only(table - 1)


def event_weights(weights: NDArray[np.uint32], mode: int) -> NDArray[np.int64]:
    """[n] -> [n - 1]: the table of a symbol that is known not to be the mode.

    `floor(weight * 2^24 / e)` of each, in order; what is missing to 2^24 goes to the first of the
    largest.
    """
    others = np.delete(weights.astype(np.int64), mode)
    result = others * ONE // others.sum()
    result[np.argmax(result)] += ONE - result.sum()
    return result


@cache
def _ordered_patterns() -> NDArray[np.uint16]:
    """[2^16]: all patterns of 16 bits, by number of ones, then by value."""
    values = np.arange(1 << LEAF)
    order = np.argsort(np.bitwise_count(values), kind="stable")
    return read_only(values[order].astype(np.uint16))


@cache
def _ranks() -> NDArray[np.uint16]:
    """[2^16]: how many patterns with as many ones are smaller."""
    ranks = np.empty(1 << LEAF, np.int64)
    ranks[_ordered_patterns()] = np.arange(1 << LEAF)
    first = _FIRST[np.bitwise_count(np.arange(1 << LEAF))]
    return read_only((ranks - first).astype(np.uint16))


_FIRST = np.concatenate([[0], np.cumsum(BINOMIAL[LEAF], dtype=np.int64)])


def rank_of(patterns: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Bit j is token j; the rank of a pattern among those with as many events."""
    return _ranks()[patterns].astype(np.int32)


def pattern_of(counts: NDArray[np.int64], ranks: NDArray[np.int32]) -> NDArray[np.uint16]:
    """The inverse: a rank below binomial(length, count) gives a pattern of `length` bits."""
    return _ordered_patterns()[_FIRST[counts] + ranks]


def leaves(tokens):
    """Pieces of at most 16 tokens in so many tokens, an integer or an array."""
    return (tokens + LEAF - 1) >> 4
