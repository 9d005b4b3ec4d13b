"""What a caller writes into a result, or into an array of a codec, changes no later result."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import transform_cases
from coder_cases import laplace_embeddings, small_codec

import coder
from coder.entropy import sparse_tables
from coder.transform import cosines, distributions, frequencies

GRID = (4, 3)


def _case(kind: str) -> tuple[coder.EmbeddingCodec, np.ndarray]:
    if kind == "scalar":
        return small_codec(), laplace_embeddings(1, 2, 13, np.array([0.1, 1, 30]))
    ladder = transform_cases.ladder(True)
    y = transform_cases.smooth_embeddings(3, 2, GRID).reshape(2, -1, transform_cases.CHANNELS)
    y = np.concatenate([transform_cases.class_tokens(3, 2)[:, None], y], axis=1)
    return (ladder if kind == "ladder" else ladder.at(ladder.num_qualities // 2)), y


def arrays_of(value: Any) -> Iterator[np.ndarray]:
    """All arrays that attributes lead to."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from arrays_of(part)
    elif type(value).__module__.startswith("coder."):
        for name in dir(value):
            if not name.startswith("_"):
                part = getattr(value, name)
                if not callable(part):
                    yield from arrays_of(part)


def results_of(codec: coder.EmbeddingCodec, y: np.ndarray) -> list[Any]:
    one = codec.at()
    q = one.quantise(y, GRID)
    blob = one.encode(y[0], GRID)
    found = [q, one.dequantise(q, GRID), codec.decode(blob), codec.decode_symbols(blob)]
    found += [blob, one.estimate_bits(q[0], GRID), one.to_parts()[0], one.split()]
    for k in range(len(one.tables)):
        found += [one.tables.weights_of(k), one.tables.pmf(k)]
    if isinstance(one, coder.TransformCodec):
        found += [one.cells(GRID), one.transform.columns(GRID), one.transform.to_tensors()]
    found += [
        frequencies.bands_of_grid(*GRID),
        frequencies.bands_of_block(*GRID),
        cosines(4),
        cosines(3),
    ]
    found += [sparse_tables.split_weights(12, 4), distributions.member(1.0, 0.7), codec]
    return found


@pytest.mark.parametrize("kind", ["scalar", "transform", "ladder"])
def test_what_is_written_into_a_result_changes_no_other(kind: str) -> None:
    codec, y = _case(kind)
    before, given = [codec.encode(one, GRID) for one in y], y.copy()
    decoded = [codec.decode(blob) for blob in before]
    for array in arrays_of(results_of(codec, y)):
        if array.flags.writeable:
            array[...] = 77
    fresh = coder.from_bytes(codec.to_bytes())
    for later in (codec, fresh):
        assert [later.encode(one, GRID) for one in y] == before
        np.testing.assert_array_equal([later.decode(blob) for blob in before], decoded)
    np.testing.assert_array_equal(y, given)
