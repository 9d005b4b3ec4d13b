import constriction
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coder import CorruptBlob, Tables
from coder.ans import SymbolCoder, length_weights
from coder.tables import quantise_pmf

INT32 = np.iinfo(np.int32)


def integer_ans(pushes):
    """Words of (weights, index) pairs, pushed in this order: 64-bit state, 32-bit words, integers
    only. What the coder must agree with, whatever its library does with floats."""
    state, words = 0, []
    for weights, index in pushes:
        w = int(weights[index])
        start = int(np.sum(weights[:index], dtype=np.int64))
        if state >= w << 40:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // w) << 24 | (state % w + start)
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return words


def random_table(rng, size):
    return quantise_pmf(rng.gamma(rng.choice([0.02, 0.3, 5.0]), size=size) + 1e-12)


@pytest.mark.parametrize("sizes", [(2, 3, 4, 5, 7), (17, 100, 255, 256, 257), (1000, 4096, 5000)])
def test_words_are_those_of_an_integer_ans(sizes):
    rng = np.random.default_rng(sum(sizes))
    tables_weights = [random_table(rng, size) for size in sizes]
    tables = Tables(np.full(len(sizes), -3), np.array(sizes), np.concatenate(tables_weights))
    # No escapes here: every entry but the last, evenly, so that rare weights are met.
    symbols = np.stack([rng.integers(-3, size - 4, 60) for size in sizes]).astype(np.int32)
    layout = np.arange(len(sizes), dtype=np.int32)
    words = SymbolCoder(tables).encode([(layout, symbols)])
    pushes = [
        (tables_weights[k], s + 3) for k in layout[::-1] for s in reversed(symbols[k].tolist())
    ]
    assert words.tolist() == integer_ans(pushes)


def test_every_table_size_is_used_exactly():
    rng = np.random.default_rng(0)
    for size in [*range(2, 300), *rng.integers(300, 5000, 30), 1 << 16]:
        weights = random_table(rng, size)
        coder = SymbolCoder(Tables(np.array([0]), np.array([size]), weights))
        symbols = rng.integers(0, size - 1, (1, 12), dtype=np.int32)
        pushes = [(weights, s) for s in reversed(symbols[0].tolist())]
        words = coder.encode([(np.zeros(1, np.int32), symbols)])
        assert words.tolist() == integer_ans(pushes), size


def test_reading_order_is_the_documented_one():
    tables = Tables.from_pmfs([(0, [0.5, 0.25], 0.25), (-1, [0.125, 0.75], 0.125)])
    first = (np.array([1, 0], np.int32), np.array([[-1], [7]], np.int32))
    second = (np.array([0], np.int32), np.array([[0, -3, 1, 2]], np.int32))
    w0, w1 = tables.weights_of(0), tables.weights_of(1)
    # Escapes in reading order: 7 (excess 5 above: v = 11), -3 (2 below: v = 4), 2 (0 above: 1).
    length = length_weights()

    def bits(n):
        return np.full(1 << n, 1 << (24 - n))

    reads = [(w1, 0), (w0, 2), (w0, 0), (w0, 2), (w0, 1), (w0, 2)]
    reads += [(length, 4), (length, 3), (length, 1)]
    reads += [(bits(2), 0), (bits(3), 0b011)]
    words = SymbolCoder(tables).encode([first, second])
    assert words.tolist() == integer_ans(reads[::-1])


def test_long_escapes_are_read_in_chunks_from_the_lowest():
    tables = Tables.from_pmfs([(0, [0.5], 0.5)])
    v = 2 * 123_456_789 + 1
    low = v - (1 << 27)
    reads = [(tables.weights_of(0), 1), (length_weights(), 28)]
    for shift, bits in ((0, 8), (8, 8), (16, 8), (24, 3)):
        reads.append((np.full(1 << bits, 1 << (24 - bits)), low >> shift & ((1 << bits) - 1)))
    symbols = np.array([[1 + 123_456_789]], np.int32)
    words = SymbolCoder(tables).encode([(np.zeros(1, np.int32), symbols)])
    assert words.tolist() == integer_ans(reads[::-1])


def test_length_weights_are_a_table():
    weights = length_weights()
    assert weights.size == 35
    assert weights.sum() == 1 << 24
    assert weights[1] == 1 << 22
    assert weights[34] == 1


@st.composite
def any_symbols(draw):
    edges = st.sampled_from([INT32.min, INT32.min + 1, -1, 0, 1, INT32.max - 1, INT32.max])
    value = edges | st.integers(-20, 20) | st.integers(INT32.min, INT32.max)
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    flat = draw(st.lists(value, min_size=rows * columns, max_size=rows * columns))
    return np.array(flat, np.int32).reshape(rows, columns)


EDGE_TABLES = Tables.from_pmfs(
    [
        (INT32.min, [1.0], 0.0),
        (INT32.max - 2, [0.5, 0.25], 0.25),
        (-3, np.ones(7) / 8, 0.125),
        (5, [0.0], 1.0),
    ]
)


@given(st.data(), any_symbols(), any_symbols())
def test_any_int32_round_trips_through_any_table(data, first, second):
    tables = st.integers(0, len(EDGE_TABLES) - 1)
    blocks = [
        (np.array([data.draw(tables) for _ in block], np.int32), block) for block in (first, second)
    ]
    coder = SymbolCoder(EDGE_TABLES)
    words = coder.encode(blocks)
    assert words.size == 0 or words[-1] != 0
    decoded = coder.decode(words, [(layout, block.shape[1]) for layout, block in blocks])
    for (_, block), result in zip(blocks, decoded, strict=True):
        np.testing.assert_array_equal(result, block)
    assert words.size * 32 <= 1.01 * coder.ideal_bits(blocks) + 64


@given(st.lists(st.integers(0, 2**32 - 1), max_size=8), st.integers(1, 30))
def test_random_words_decode_to_int32_or_fail_as_corrupt(words, count):
    coder = SymbolCoder(EDGE_TABLES)
    layout = np.arange(4, dtype=np.int32)
    data = np.array(words, np.uint32)
    try:
        (symbols,) = coder.decode(data, [(layout, count)])
    except CorruptBlob:
        return
    np.testing.assert_array_equal(coder.encode([(layout, symbols)]), data)


def test_an_escape_beyond_int32_is_corrupt():
    tables = Tables.from_pmfs([(0, [0.5], 0.5)])
    reads = [(tables.weights_of(0), 1), (length_weights(), 34)]
    reads += [(np.full(256, 1 << 16), 5)] * 4 + [(np.full(2, 1 << 23), 1)]
    words = np.array(integer_ans(reads[::-1]), np.uint32)
    with pytest.raises(CorruptBlob, match="outside int32"):
        SymbolCoder(tables).decode(words, [(np.zeros(1, np.int32), 1)])


def test_leftover_and_zero_words_are_corrupt():
    tables = Tables.from_pmfs([(0, [0.5], 0.5)])
    layout = np.zeros(1, np.int32)
    coder = SymbolCoder(tables)
    for words in ([1, 2, 3], [5, 0]):
        with pytest.raises(CorruptBlob, match="damaged payload"):
            coder.decode(np.array(words, np.uint32), [(layout, 2)])


def test_coder_calls_do_not_grow_with_escapes(monkeypatch):
    # Escapes that cost next to nothing: a loop over them would make a short blob slow to decode.
    calls = []

    class Counting:
        def __init__(self, words):
            self._ans = constriction.stream.stack.AnsCoder(words)  # type: ignore

        def decode(self, *arguments):
            calls.append(arguments)
            return self._ans.decode(*arguments)

        def is_empty(self):
            return self._ans.is_empty()

    coder = SymbolCoder(Tables(np.array([0]), np.array([2]), np.array([1, (1 << 24) - 1])))
    layout = np.zeros(1, np.int32)
    symbols = np.full((1, 100_000), -1, np.int32)
    symbols[0, ::1000] = np.arange(100) ** 4
    words = coder.encode([(layout, symbols)])
    monkeypatch.setattr("coder.ans._AnsCoder", Counting)
    (decoded,) = coder.decode(words, [(layout, symbols.size)])
    np.testing.assert_array_equal(decoded, symbols)
    assert len(calls) <= 1 + 1 + 5 * 8
