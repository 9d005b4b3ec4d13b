"""coder.fit on arrays that dask computes: the codec of the NumPy array, from its sample alone."""

from typing import Any, cast

import dask.array as da
import numpy as np
import pytest
from dask import config
from dask.local import get_sync
from transform_cases import CHANNELS, class_tokens, smooth_embeddings

import coder
from coder import InputError
from coder.fitting import sample

ARRAYS = {
    "grids": smooth_embeddings(1, 120),
    "raster": smooth_embeddings(1, 1, (40, 300))[0],
    "vectors": smooth_embeddings(1, 40, (16, 16)).reshape(-1, CHANNELS),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", ARRAYS)
def test_a_dask_array_gives_the_codec_of_the_array(shape, masked):
    y = ARRAYS[shape]
    if masked:
        holes = np.random.default_rng(0).random(y.shape[:-1]) < 0.05
        y = np.ma.masked_array(y, np.repeat(holes[..., None], CHANNELS, -1))
    chunks: Any = (7, *(-1,) * (y.ndim - 1))
    codec = coder.fit(da.from_array(y, chunks=chunks))
    assert codec.to_bytes() == coder.fit(y).to_bytes()


def test_only_the_chunks_of_the_sample_are_computed_a_batch_at_once(monkeypatch):
    y, tokens = smooth_embeddings(1, 200), class_tokens(1, 200)
    monkeypatch.setattr(sample, "_BATCH", 10 * y[0].size)
    computed, calls = [], []

    def made(block_id: tuple[int, ...]) -> np.ndarray:
        computed.append(block_id[0])
        return y[2 * block_id[0] : 2 * block_id[0] + 2]

    def get(*given: Any, **more: Any) -> Any:
        calls.append(1)
        return get_sync(*given, **more)

    lazy = da.map_blocks(made, chunks=((2,) * 100, *((n,) for n in y.shape[1:])), dtype="f4")
    with config.set(scheduler=get):
        codec = coder.fit(lazy, da.from_array(tokens, chunks=cast(Any, (50, -1))), max_samples=20)
    assert codec == coder.fit(y, tokens, max_samples=20)
    # Twice, in two batches; grids and class tokens apart.
    assert sorted(computed) == sorted([*range(0, 100, 5)] * 2)
    assert len(calls) == 2 * 2 * 2


def test_a_dask_array_of_unknown_length_is_refused():
    y = da.from_array(ARRAYS["vectors"])
    with pytest.raises(InputError, match="call compute_chunk_sizes"):
        coder.fit(y[y[:, 0] > 0])
