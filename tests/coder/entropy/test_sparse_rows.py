"""Rows that are nearly always one symbol: the derived tables, and what they cost."""

from math import comb

import numpy as np
import pytest
from block_cases import BlockCoder
from hypothesis import given
from hypothesis import strategies as st
from reference_ans import ONE, count_table, half_table

from coder import CorruptBlob, Tables
from coder.entropy import sparse_tables
from coder.entropy.integer_models import TABLE_EACH, AnsCoder
from coder.entropy.sparse_positions import Reader, segments_of, walk


def bits(words):
    return 32 * len(words)


@given(st.integers(1, sparse_tables.MAX_EVENT_WEIGHT), st.integers(1, 64))
def test_count_tables_are_binomial(event, length):
    weights = sparse_tables.count_weights(event, length)
    assert list(weights) == count_table(event, length)
    assert sum(weights) == ONE
    assert min(weights) >= 1
    exact = [
        comb(length, k) * (event / ONE) ** k * (1 - event / ONE) ** (length - k)
        for k in range(min(15, length + 1))
    ]
    np.testing.assert_allclose(np.array(weights[: len(exact)]) / ONE, exact, atol=20 / ONE)


@pytest.mark.parametrize("left", sparse_tables.HALVES)
def test_halves_are_hypergeometric(left):
    for length in (left + 1, left + 5, 2 * left):
        tables = sparse_tables.split_weights(length, left) + 1
        assert (tables.sum(1) == ONE).all()
        assert tables.min() >= 1
        for count in (0, 1, 2, length // 2, length):
            assert tables[count].tolist() == half_table(length, count, left)


def test_event_tables_leave_the_mode_out():
    weights = np.array([5, ONE - 5 - 40 - 11, 40, 11], np.uint32)
    result = sparse_tables.event_weights(weights, 1)
    assert result.sum() == ONE
    np.testing.assert_allclose(result / ONE, np.array([5, 40, 11]) / 56, atol=3 / ONE)


def test_patterns_and_ranks_are_inverse():
    patterns = np.arange(1 << 16).astype(np.uint16)
    counts = np.bitwise_count(patterns).astype(np.int64)
    ranks = sparse_tables.rank_of(patterns)
    np.testing.assert_array_equal(sparse_tables.pattern_of(counts, ranks), patterns)
    for length in (1, 3, 15, 16):
        short = patterns < 1 << length
        assert (ranks[short] < sparse_tables.BINOMIAL[length, counts[short]]).all()
    # Combinatorial number system, the event at token p that is the k-th counting comb(p, k).
    assert sparse_tables.rank_of(np.array([0b1000_0010_0001], np.uint16))[0] == 0 + comb(
        5, 2
    ) + comb(11, 3)


@pytest.mark.parametrize("event", [1, 1 << 8, 1 << 14, 1 << 18, 1 << 19])
def test_sparse_rows_cost_what_one_symbol_a_token_would(event):
    rng = np.random.default_rng(event)
    rows, tokens = 400, 197
    weights = [event // 3, ONE - event, event - event // 3] if event > 2 else [ONE - event, event]
    weights = np.array(weights, np.uint32)
    tables = Tables(np.array([0]), np.array([weights.size]), weights)
    coder = BlockCoder(tables, [np.zeros(rows, np.int32)])
    symbols = rng.choice(weights.size, (tokens, rows), p=weights / ONE).astype(np.int32)
    cost = bits(coder.encode([symbols]))
    ideal = coder.ideal_bits([symbols])
    assert 0.999 * ideal - 32 <= cost <= 1.001 * ideal + 64


def test_events_in_clusters_cost_no_more_than_one_symbol_a_token_would():
    # A channel that is quiet in most images and busy in this one: far from the table.
    tables = Tables.from_pmfs([(0, [2**-14, 1 - 2**-13], 2**-14)])
    coder = BlockCoder(tables, [np.zeros(40, np.int32)])
    for busy in (0.1, 0.3, 0.7, 1.0):
        symbols = 1 - (np.random.default_rng(1).random((196, 40)) < busy).astype(np.int32)
        assert bits(coder.encode([symbols])) <= coder.ideal_bits([symbols])


def test_impossible_counts_are_corrupt():
    def segments(length):
        return segments_of(np.array([1 << 19]), np.array([length]), np.array([0]))

    for length, count in ((1, 2), (7, 15), (14, 15)):
        ans = AnsCoder()
        tables = np.array([sparse_tables.count_weights(1 << 19, length)]) - 1.0
        ans.encode_reverse(np.array([count], np.int32), TABLE_EACH, tables)
        with pytest.raises(CorruptBlob, match="more events than tokens"):
            walk(Reader(ans), segments(length))
    # One event in 64 tokens, two of it in the first half; then one in 33, none in the first 32.
    for length, first in ((64, 2), (33, 2)):
        ans = AnsCoder()
        halves = sparse_tables.split_weights(length, 32)[[1]]
        ans.encode_reverse(np.array([first], np.int32), TABLE_EACH, halves)
        tables = np.array([sparse_tables.count_weights(1 << 19, length)]) - 1.0
        ans.encode_reverse(np.array([1], np.int32), TABLE_EACH, tables)
        with pytest.raises(CorruptBlob, match="half a segment"):
            walk(Reader(ans), segments(length))
