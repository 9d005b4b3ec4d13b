"""Laws of symbols outside their table, and of words that no encoder wrote."""

import numpy as np
import pytest
from block_cases import BlockCoder, random_table
from hypothesis import given
from hypothesis import strategies as st
from reference_ans import Table, escape_reads, integer_ans, length_table, reads, uniform

from coder import CorruptBlob, Tables
from coder.entropy.escape import length_weights
from coder.entropy.integer_models import AnsCoder

INT32 = np.iinfo(np.int32)


def reference_words(tables, layouts, blocks):
    plain = [Table(low, tables.weights_of(k)) for k, low in enumerate(tables.minimum)]
    rows = [
        [(plain[k], column.tolist()) for k, column in zip(layout, q.T, strict=True)]
        for layout, q in zip(layouts, blocks, strict=True)
    ]
    return integer_ans(reads(rows)[::-1])


@pytest.mark.parametrize("sizes", [(2, 3, 4, 5, 7), (17, 100, 255, 256, 257), (1000, 4096, 5000)])
def test_words_are_those_of_an_integer_ans(sizes):
    rng = np.random.default_rng(sum(sizes))
    tables_weights = [random_table(rng, size) for size in sizes]
    tables = Tables(np.full(len(sizes), -3), np.array(sizes), np.concatenate(tables_weights))
    symbols = np.stack([rng.integers(-5, size + 2, 60) for size in sizes], 1).astype(np.int32)
    layout = np.arange(len(sizes), dtype=np.int32)
    words = BlockCoder(tables, [layout]).encode([symbols])
    assert words.tolist() == reference_words(tables, [layout], [symbols])


def test_long_escapes_are_read_in_chunks_from_the_lowest():
    v = 2 * 123_456_789 + 1
    low = v - (1 << 27)
    expected = [("bit length", length_table(), 28)]
    for shift, bits in ((0, 8), (8, 8), (16, 8), (24, 3)):
        chunk = low >> shift & ((1 << bits) - 1)
        expected.append((f"{bits} bits", uniform(1 << bits), chunk))
    assert escape_reads([v]) == expected
    tables = Tables.from_pmfs([(0, [0.5], 0.5)])
    words = BlockCoder(tables, [np.zeros(1, np.int32)]).encode(
        [np.array([[1 + 123_456_789]], np.int32)]
    )
    assert words.tolist() == integer_ans([*expected[::-1], ([1 << 23, 1 << 23], 1)])


def test_length_weights_are_a_table():
    weights = length_weights()
    assert weights.tolist() == length_table()
    assert weights.sum() == 1 << 24
    assert weights[1] == 1 << 22
    assert weights[34] == 1


@st.composite
def any_symbols(draw, modes=(INT32.min, 0, 5)):
    edges = st.sampled_from([INT32.min, INT32.min + 1, -1, 0, 1, INT32.max - 1, INT32.max])
    value = edges | st.integers(-20, 20) | st.integers(INT32.min, INT32.max)
    rows = draw(st.integers(1, 4))
    tokens = draw(st.integers(1, 6) | st.sampled_from([15, 16, 17, 33, 63, 64, 65, 100, 130]))
    block = np.empty((tokens, rows), np.int32)
    block[:] = draw(st.lists(st.sampled_from(modes), min_size=rows, max_size=rows))
    places = st.tuples(st.integers(0, tokens - 1), st.integers(0, rows - 1))
    for place, symbol in draw(st.lists(st.tuples(places, value), max_size=40)):
        block[place] = symbol
    return block


EDGE_TABLES = Tables.from_pmfs(
    [
        (INT32.min, [1.0], 0.0),
        (INT32.max - 2, [0.5, 0.25], 0.25),
        (-3, np.ones(7) / 8, 0.125),
        (5, [0.0], 1.0),
        (-1, [0.005, 0.98, 0.01], 0.005),
        (-1, [1e-4, 1 - 2e-4], 1e-4),
        (5, [1.0], 0.0),
    ]
)


@given(st.data(), any_symbols(), any_symbols())
def test_any_int32_round_trips_through_any_table(data, first, second):
    tables = st.integers(0, len(EDGE_TABLES) - 1)
    blocks = [first, second]
    layouts = [
        np.array([data.draw(tables) for _ in range(block.shape[1])], np.int32) for block in blocks
    ]
    coder = BlockCoder(EDGE_TABLES, layouts)
    words = coder.encode(blocks)
    assert words.tolist() == reference_words(EDGE_TABLES, layouts, blocks)
    decoded = coder.decode(words, [len(block) for block in blocks])
    for block, result in zip(blocks, decoded, strict=True):
        np.testing.assert_array_equal(result, block)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=8), st.integers(1, 70))
def test_random_words_decode_to_int32_or_fail_as_corrupt(words, count):
    coder = BlockCoder(EDGE_TABLES, [np.arange(len(EDGE_TABLES), dtype=np.int32)])
    data = np.array(words, np.uint32)
    try:
        blocks = coder.decode(data, [count])
    except CorruptBlob:
        return
    np.testing.assert_array_equal(coder.encode(blocks), data)


def test_an_escape_beyond_int32_is_corrupt():
    tables = Tables.from_pmfs([(0, [0.5], 0.5)])
    pushes = [([1 << 23, 1 << 23], 1), (length_table(), 34)]
    pushes += [(uniform(256), 5)] * 4 + [(uniform(2), 1)]
    words = np.array(integer_ans(pushes[::-1]), np.uint32)
    with pytest.raises(CorruptBlob, match="outside int32"):
        BlockCoder(tables, [np.zeros(1, np.int32)]).decode(words, [1])


def test_leftover_and_zero_words_are_corrupt():
    tables = Tables.from_pmfs([(0, [0.5], 0.5)])
    coder = BlockCoder(tables, [np.zeros(1, np.int32)])
    for words in ([1, 2, 3], [5, 0]):
        with pytest.raises(CorruptBlob, match="damaged payload"):
            coder.decode(np.array(words, np.uint32), [2])


def test_coder_calls_do_not_grow_with_escapes(monkeypatch):
    # Escapes that cost next to nothing: a loop over them would make a short blob slow to decode.
    calls = []

    class Counting:
        def __init__(self, words):
            self._ans = AnsCoder(words)

        def decode(self, *arguments):
            calls.append(arguments)
            return self._ans.decode(*arguments)

        def is_empty(self):
            return self._ans.is_empty()

    tables = Tables(np.array([0]), np.array([2]), np.array([1, (1 << 24) - 1]))
    coder = BlockCoder(tables, [np.zeros(1, np.int32)])
    symbols = np.full((100_000, 1), -1, np.int32)
    symbols[::1000, 0] = np.arange(100) ** 4
    words = coder.encode([symbols])
    monkeypatch.setattr("coder.entropy.row_coder.AnsCoder", Counting)
    (decoded,) = coder.decode(words, [len(symbols)])
    np.testing.assert_array_equal(decoded, symbols)
    assert len(calls) <= 1 + 1 + 5 * 8
