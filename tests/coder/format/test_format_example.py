"""The worked example in docs/format.md is what the code does; run this file to write it."""

import re
import sys

import numpy as np
from folders import ROOT
from reference_ans import Table, integer_ans, reads

from coder import ScalarCodec, Tables

PAGE = ROOT / "docs" / "format.md"
BLOCK = re.compile(r"(?<=format_example.py -->\n```\n).*?(?=```\n<!-- end)", re.S)
SYMBOLS = np.array([[0, 5], [-1, 5], [3, 6], [1, 5]], np.int32)


def codec() -> ScalarCodec:
    tables = Tables.from_pmfs([(-1, [0.25, 0.5, 0.125], 0.125), (4, [2**-7, 1 - 2**-6], 2**-7)])
    return ScalarCodec(np.array([0.5, -1]), np.array([0.25, 2]), tables, np.array([0, 1]))


def example() -> str:
    """The text between the page's marks."""
    example_codec = codec()
    blob = example_codec.encode_symbols(SYMBOLS, (2, 2))
    lines = []
    for name, value in (*example_codec.to_parts()[0].items(), ("symbols", SYMBOLS.tolist())):
        lines.append(f"{name:12} {' '.join(map(str, value))}")
    lines.append(f"content      {example_codec.to_parts()[1]}".replace("'", '"'))
    lines += [f"fingerprint  {example_codec.fingerprint.hex()}", "", "blob:"]
    fields = [(1, "version 1, no class token"), (4, "fingerprint"), (1, "quality 0")]
    fields += [(1, "height 2"), (1, "width 2"), (len(blob) - 12, "payload"), (4, "CRC-32")]
    at = 0
    for size, meaning in fields:
        lines.append(f"  {blob[at : at + size].hex(' '):24} {meaning}")
        at += size
    tables = example_codec.tables
    rows = [
        (Table(tables.minimum[k], tables.weights_of(k)), SYMBOLS[:, k].tolist()) for k in range(2)
    ]
    steps = reads([rows])
    words = integer_ans(steps[::-1])
    lines += ["", f"words, last first: {' '.join(f'{word:08x}' for word in words[::-1])}", ""]
    lines += ["read          weight of it   index   state before       state after"]
    state, stack = 0, list(words)
    while state < 1 << 32 and stack:
        state = state << 32 | stack.pop()
    for name, weights, index in steps:
        before = state
        start = sum(weights[:index])
        assert start <= state % (1 << 24) < start + weights[index]
        state = (state >> 24) * weights[index] + state % (1 << 24) - start
        while state < 1 << 32 and stack:
            state = state << 32 | stack.pop()
        lines.append(f"{name:12} {weights[index]:13,d} {index:7} {before:16x} {state:16x}")
    assert state == 0
    assert not stack
    return "\n".join(lines) + "\n"


def test_the_page_shows_what_the_code_does():
    assert BLOCK.findall(PAGE.read_text()) == [example()]


if __name__ == "__main__":
    page = PAGE.read_text()
    if not BLOCK.search(page):
        sys.exit(f"{PAGE} has lost the marks around its example")
    PAGE.write_text(BLOCK.sub(lambda _: example(), page))
