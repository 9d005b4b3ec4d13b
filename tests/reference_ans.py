"""The entropy coder again, in plain integers and loops: what the real one must agree with.

Nothing here calls the coder's own code or a float; `reads` follows the documented reading order
and returns what a decoder reads as (name, weights, index).
"""

from math import comb

ONE = 1 << 24


def integer_ans(pushes):
    """Words of (.., weights, index), pushed in this order: 64-bit state, 32-bit words."""
    state, words = 0, []
    for *_, weights, index in pushes:
        w, start = int(weights[index]), sum(map(int, weights[:index]))
        if state >= w << 40:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // w) << 24 | (state % w + start)
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return words


def uniform(n):
    """The weights of constriction's uniform model."""
    return [ONE // n] * (n - 1) + [ONE - ONE // n * (n - 1)]


def count_table(e, length):
    """How many of `length` tokens are events of weight e."""
    floors = [
        comb(length, k) * e**k * (ONE - e) ** max(0, length - k) // ONE ** (length - 1)
        for k in range(15)
    ]
    events = [max(1, f) for f in floors[1:]] + [max(1, ONE - sum(floors))]
    return [ONE - sum(events), *events]


def half_table(length, count, left):
    """How many of `count` events of a segment are among its first `left` tokens."""
    weights = []
    for i in range(left + 1):
        ways = comb(left, i) * comb(length - left, count - i) if i <= count else 0
        weights.append(max(1, ways * ONE // comb(length, count)))
    weights[weights.index(max(weights))] += ONE - sum(weights)
    return weights


def length_table():
    """Bit lengths of escaped values."""
    weights = [0, *(max(1, 1 << (23 - k)) if k <= 23 else 1 for k in range(1, 35))]
    weights[0] = ONE - sum(weights)
    return weights


def escape_reads(values):
    """The two passes over escaped values."""
    result = [("bit length", length_table(), v.bit_length()) for v in values]
    for shift in range(0, 33, 8):
        for bits in range(1, 9):
            for v in values:
                if min(8, v.bit_length() - 1 - shift) == bits:
                    chunk = (v & ~(1 << (v.bit_length() - 1))) >> shift & ((1 << bits) - 1)
                    result.append((f"{bits} bits", uniform(1 << bits), chunk))
    return result


class Table:
    """One stored table, as plain integers."""

    def __init__(self, minimum, weights):
        self.minimum = int(minimum)
        self.weights = [int(w) for w in weights]
        self.escape = len(self.weights) - 1
        self.mode = self.weights.index(max(self.weights[:-1]))
        self.event = ONE - self.weights[self.mode]
        self.sparse = self.event <= 1 << 19

    def index(self, symbol):
        """Index of a symbol, and its escaped value or None."""
        i = symbol - self.minimum
        if 0 <= i < self.escape:
            return i, None
        return self.escape, (2 * (-i - 1) if i < 0 else 2 * (i - self.escape) + 1)

    def without_mode(self):
        """The table of an event."""
        rest = [w * ONE // self.event for k, w in enumerate(self.weights) if k != self.mode]
        rest[rest.index(max(rest))] += ONE - sum(rest)
        return rest


def reads(blocks):
    """Everything a decoder reads of blocks of rows of (Table, list of symbols)."""
    counts, extra, segments, escapes, event_reads, dense_reads = [], [], [], [], [], []
    sparse = [[(t, s) for t, s in block if t.sparse] for block in blocks]
    for rows in sparse:
        lengths = [len(symbols) for _, symbols in rows]
        starts = [(r, s, 64) for r, n in enumerate(lengths) for s in range(0, n - n % 64, 64)]
        starts += [(r, n - n % 64, n % 64) for r, n in enumerate(lengths) if n % 64]
        for r, start, length in starts:
            table, symbols = rows[r]
            flags = [table.index(s)[0] != table.mode for s in symbols[start : start + length]]
            counts.append(("count", count_table(table.event, length), min(15, sum(flags))))
            if sum(flags) >= 15 and length > 15:
                extra.append(("count - 15", uniform(length - 14), sum(flags) - 15))
            if any(flags):
                segments.append(flags)
    result = counts + extra
    for left in (32, 16):
        narrow = [f for f in segments if len(f) <= left]
        wide = [f for f in segments if len(f) > left]
        result += [(f"first {left}", half_table(len(f), sum(f), left), sum(f[:left])) for f in wide]
        segments = narrow + [f[:left] for f in wide] + [f[left:] for f in wide]
        segments = [f for f in segments if any(f)]
    for flags in segments:
        ways = comb(len(flags), sum(flags))
        if ways > 1:
            # Combinatorial number system: events at p1 < p2 < ... rank comb(p1, 1) + comb(p2, 2) ..
            where = [p for p, event in enumerate(flags) if event]
            rank = sum(comb(p, k) for k, p in enumerate(where, 1))
            result.append(("pattern", uniform(ways), rank))
    for rows in sparse:
        for table, symbols in rows:
            for i, v in map(table.index, symbols):
                if i != table.mode and len(table.weights) > 2:
                    event_reads.append(("event", table.without_mode(), i - (i > table.mode)))
                if v is not None:
                    escapes.append(v)
    for block in blocks:
        for table, symbols in block:
            if not table.sparse:
                for i, v in map(table.index, symbols):
                    dense_reads.append(("symbol", table.weights, i))
                    if v is not None:
                        escapes.append(v)
    return result + event_reads + dense_reads + escape_reads(escapes)
