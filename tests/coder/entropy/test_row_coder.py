"""Laws of rows of unequal lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_ans import Table, integer_ans, reads

from coder import CorruptBlob, Tables
from coder.entropy import RowCoder

TABLES = Tables.from_pmfs(
    [
        (-1, [0.2, 0.5, 0.2], 0.1),
        (-2, [1e-4, 1e-3, 0.997, 1e-3, 1e-4], 1e-5),
        (0, [1 - 1e-5], 1e-5),
        (-1, [5e-3, 0.98, 5e-3], 1e-4),
    ]
)


def rows_of(seed, which, lengths, busy=0.02):
    """Symbols of all rows: the mode mostly, now and then another, in or outside the table."""
    rng = np.random.default_rng(seed)
    symbols = np.zeros(sum(lengths), np.int32)
    some = rng.random(symbols.size) < busy
    symbols[some] = rng.choice([-1, 1, -2, 2, 5, -70000, 2**31 - 1, -(2**31)], some.sum())
    return symbols


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300)), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_words_are_those_of_an_integer_ans_and_decode_to_the_symbols(rows, seed, busy):
    which, lengths = (list(part) for part in zip(*rows, strict=True))
    coder = RowCoder(TABLES, np.array(which, np.int32), np.array(lengths))
    symbols = rows_of(seed, which, lengths, busy)
    words = coder.encode(symbols)
    plain = [Table(low, TABLES.weights_of(k)) for k, low in enumerate(TABLES.minimum)]
    parts = np.split(symbols, np.cumsum(lengths)[:-1])
    steps = reads([[(plain[k], part.tolist()) for k, part in zip(which, parts, strict=True)]])
    assert words.tolist() == integer_ans(steps[::-1])
    np.testing.assert_array_equal(coder.decode(words), symbols)


def test_words_cost_the_information_of_the_symbols():
    lengths = [40000, 9000, 100]
    coder = RowCoder(TABLES, np.array([1, 0, 3], np.int32), np.array(lengths))
    rng = np.random.default_rng(0)
    parts = [
        rng.choice(len(p) - 1, n, p=p[:-1] / p[:-1].sum()).astype(np.int32) + TABLES.minimum[k]
        for k, n in zip([1, 0, 3], lengths, strict=True)
        for p in [TABLES.pmf(k)]
    ]
    symbols = np.concatenate(parts).astype(np.int32)
    ideal = coder.ideal_bits(symbols)
    assert ideal <= 32 * coder.encode(symbols).size <= 1.001 * ideal + 64


@pytest.mark.parametrize("seed", range(5))
def test_other_words_are_corrupt_or_decode_to_symbols_of_those_words(seed):
    coder = RowCoder(TABLES, np.array([1, 3, 0], np.int32), np.array([200, 70, 5]))
    rng = np.random.default_rng(seed)
    for count in (0, 1, 3, 20):
        words = rng.integers(1, 2**32, count, dtype=np.uint64).astype(np.uint32)
        try:
            symbols = coder.decode(words)
        except CorruptBlob:
            continue
        np.testing.assert_array_equal(coder.encode(symbols), words)


@pytest.mark.parametrize("large", [False, True])
def test_no_rows_and_long_rows(large, monkeypatch):
    """Nothing to code costs no word; what is not kept for each symbol is made again."""
    if large:
        monkeypatch.setattr("coder.entropy.row_coder._LARGE", 10)
    none = RowCoder(TABLES, np.zeros(0, np.int32), np.zeros(0, np.int64))
    assert none.encode(np.zeros(0, np.int32)).size == 0
    assert none.decode(np.zeros(0, np.uint32)).size == 0
    assert none.ideal_bits(np.zeros(0, np.int32)) == 0
    lengths = [300, 1, 70]
    coder = RowCoder(TABLES, np.array([1, 2, 0], np.int32), np.array(lengths))
    assert (coder._kept is None) == large
    symbols = rows_of(0, [1, 2, 0], lengths, 0.3)
    np.testing.assert_array_equal(coder.decode(coder.encode(symbols)), symbols)
