"""Codecs for few embeddings: their own bytes count, and for many nothing changes."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transform_cases import smooth_embeddings

import coder
from coder import InputError

MANY = 1 << 40
CHANNELS = 48


@cache
def vectors(count: int) -> NDArray[np.float32]:
    """[count, 48]: variances over four orders of magnitude, heavy tails."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(CHANNELS, CHANNELS)) * np.arange(1, CHANNELS + 1) ** -1.2
    return (rng.laplace(size=(count, CHANNELS)) @ mixing.T).astype(np.float32)


def totals(codec: coder.QualityLadder, y: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
    """Bytes of codec and payload together, and squared errors, of each quality."""
    grid, sizes, errors = (len(y), 1), [], []
    for quality in range(codec.num_qualities):
        one = codec.at(quality)
        q = one.quantise(y, grid)
        sizes.append(one.codec_bytes + one.estimate_bits(q, grid) / 8)
        errors.append(float(np.square(one.dequantise(q, grid) - y).sum()))
    return np.array(sizes), np.array(errors)


@pytest.mark.parametrize("count", [100, 417, 2000, 50_000])
def test_codec_and_payload_are_never_larger_at_equal_error(count):
    y = vectors(count)
    (sizes, errors), (others, other_errors) = (
        totals(coder.fit(y, count=number), y) for number in (None, MANY)
    )
    low = max(errors.min(), other_errors.min())
    high = min(errors.max(), other_errors.max())
    at = np.linspace(np.log(low), np.log(high), 20)
    ours, theirs = (
        np.exp(np.interp(at, np.log(error[::-1]), np.log(size[::-1])))
        for size, error in ((sizes, errors), (others, other_errors))
    )
    assert (ours < 1.01 * theirs).all()
    saved = 1 - ours / theirs
    if count <= 417:
        assert saved.mean() > 0.1
    if count == 50_000:
        assert np.abs(saved).max() < 0.05


def test_for_many_embeddings_nothing_is_left_out():
    y = vectors(2000)
    assert coder.fit(y, count=MANY) == coder.fit(y, count=1 << 50)
    ladders = [coder.fit(y, count=count) for count in (20, MANY)]
    few, many = (one.at(int(np.abs(one.steps - 0.5).argmin())) for one in ladders)
    assert few.step == many.step
    assert few.symbols_per_token < many.symbols_per_token
    assert len(few.tables) < len(many.tables)


@pytest.mark.parametrize("shape", ["grids", "raster"])
def test_the_count_is_of_grids_or_of_tokens(shape):
    y = smooth_embeddings(1, 60)
    y = y if shape == "grids" else y.reshape(60, -1, y.shape[-1])
    number = len(y) if shape == "grids" else y.shape[0] * y.shape[1]
    assert coder.fit(y, count=number) == coder.fit(y)


@pytest.mark.parametrize("count", [0, -1, 1.5, "x"])
def test_a_count_that_is_none_is_refused(count: Any):
    with pytest.raises(InputError, match="count is "):
        coder.fit(vectors(100), count=count)
