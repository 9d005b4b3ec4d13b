"""The blocks of a grid of tokens, and the bands of frequencies of a block's coefficients.

A decoder finds the table of a coefficient by these rules, so they use integers only.

**Blocks.** A side of n tokens is cut in ceil(n / 16) parts that differ by one token at most, longer
ones first; a block is a part of the height by a part of the width. So tables that were fitted on
one grid fit any other: no coefficient's variance grows with the grid.

**Bands.** Coefficient (i, j) of a block of h x w has the frequency f = sqrt((i / h)^2 + (j / w)^2);
its band is the number of edges in `EDGES` that 32 f reaches, and 0 for i = j = 0 alone.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coder.arrays import read_only

LARGEST = 16
"""The longest side of a block, tokens."""

EDGES = (1, 3, 5, 8, 12, 17, 24)
"""Where bands begin, in 32nds of a cycle per two tokens."""

BANDS = len(EDGES) + 1


def parts(side: int) -> list[int]:
    """The parts of a side, tokens each."""
    count = -(-side // LARGEST)
    return [side // count + (k < side % count) for k in range(count)]


@lru_cache(256)
def spans(side: int) -> tuple[slice, ...]:
    """The parts of a side, as slices."""
    ends = np.cumsum([0, *parts(side)]).tolist()
    return tuple(slice(start, end) for start, end in pairwise(ends))


@lru_cache(256)
def bands_of_block(height: int, width: int) -> NDArray[np.uint8]:
    """The band of each coefficient of one block [h, w]."""
    i, j = np.ogrid[:height, :width]
    # (32 f)^2 >= edge^2, without fractions; at most 32^2 * 2 * 16^4, far below 2^63.
    frequency = 1024 * ((i * width) ** 2 + (j * height) ** 2)
    edges = np.array(EDGES, np.int64) ** 2 * (height * width) ** 2
    found = (frequency[..., None] >= edges).sum(-1)
    return read_only(np.maximum(found, frequency > 0).astype(np.uint8))


@lru_cache(64)
def bands_of_grid(height: int, width: int) -> NDArray[np.uint8]:
    """The band of each coefficient of a grid [h, w], at the place of its block's tokens."""
    rows = [np.hstack([bands_of_block(h, w) for w in parts(width)]) for h in parts(height)]
    return read_only(np.vstack(rows))
