"""Writing parts of chunks: what would change decoded values is warned of or refused."""

import functools
import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import zarr
from coder_cases import fitted_codec
from transform_cases import CHANNELS, ladder, smooth_embeddings, smooth_tiles
from zarr.storage import MemoryStore

from coder import (
    CodecError,
    LossyWrite,
    fit,
)
from coder.archive.zarr_codec import NecCodec
from coder.transform import frequencies


def rastered(codec, shape, chunks, *, shards=None, fill_value=0.0, **settings) -> Any:
    return zarr.create_array(
        MemoryStore(), shape=(*shape, CHANNELS), chunks=(*chunks, CHANNELS), dtype="float32",
        shards=shards and (*shards, CHANNELS), serializer=NecCodec(codec), fill_value=fill_value,
        **{"compressors": None, **settings},
    )  # fmt: skip


@pytest.mark.parametrize("fill_value", [0.0, np.nan])
@pytest.mark.parametrize(
    "settings",
    [{}, {"shards": (64, 64)}, {"compressors": "auto"}],
    ids=["plain", "shards", "compressed"],
)
@pytest.mark.parametrize(
    ("first", "second", "lossy"),
    [
        # A part of a block, wherever it lies.
        (np.s_[:, :], np.s_[0:8, 0:16], True),
        (np.s_[:, :], np.s_[3, 5], True),
        (np.s_[:, :], np.s_[20:44, 0:16], True),
        (np.s_[0:8, 0:16], np.s_[8:16, 0:16], True),
        # Blocks of 16 rows become blocks of 10.
        (np.s_[0:16, 0:16], np.s_[16:20, 0:16], True),
        # Some channels, of everything or of whole blocks.
        (np.s_[:, :], np.s_[:, :, 3], True),
        (np.s_[:, :], np.s_[16:32, 0:16, 2:9], True),
        (np.s_[:, :], np.s_[:, :, :], False),
        # Whole chunks, whole blocks, and what is appended at block borders.
        (np.s_[:, :], np.s_[:, :], False),
        (np.s_[:, :], np.s_[32:64, 0:32], False),
        (np.s_[:, :], np.s_[0:16, 16:32], False),
        (np.s_[0:16, 0:16], np.s_[16:32, 0:16], False),
        (np.s_[0:32, 0:32], np.s_[32:64, 0:32], False),
        (np.s_[0:32, 0:16], np.s_[0:32, 16:32], False),
        (np.s_[0:64, 0:32], np.s_[0:64, 32:40], False),
    ],
)
def test_a_write_that_cuts_a_block_warns(first, second, lossy, settings, fill_value):
    array = rastered(ladder().at(8), (64, 64), (32, 32), fill_value=fill_value, **settings)
    y = smooth_tiles(64, 64)[0]
    array[first] = y[first]
    before = array[:]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        array[second] = y[second] + 5
    assert [w.category for w in caught] == [LossyWrite] * len(caught)
    assert bool(caught) == lossy
    # It warns if, and only if, what was not written has changed.
    kept = np.ones(y.shape, bool)
    kept[second] = False
    there = kept & ~np.isnan(before) & (before != 0)
    change = np.abs(array[:] - before)[there].max(initial=0)
    assert (change > 1e-3) == lossy


def test_writing_a_part_of_what_was_read_does_not_warn():
    array = rastered(ladder().at(8), (40, 40), (32, 32))
    array[:] = smooth_tiles(40, 40)[0]
    read = array[:]
    array[3:9, 5:37] = read[3:9, 5:37]
    np.testing.assert_array_equal(array[:], read)


def test_a_write_that_cuts_a_block_is_refused_on_demand():
    array = rastered(ladder().at(8), (16, 16), (16, 16))
    array[:] = y = smooth_tiles(16, 16)[0]
    read = array[:]
    with pytest.raises(LossyWrite, match=r"changed \d+ tokens beside it.*Write .* whole chunks"):
        array[0:8] = y[0:8] + 1
    np.testing.assert_array_equal(array[:], read)


@pytest.mark.parametrize(
    ("sides", "borders"),
    [
        (
            (40, 40),
            r"of 40 x 40 tokens begin at 0, 14, 27 of the height and 0, 14, 27 of the width",
        ),
        ((16, 33), r"of 16 x 33 tokens begin at 0 of the height and 0, 11, 22 of the width"),
        ((90, 9), r"begin at 0, 15, 30, 45, \.\. of the height and 0 of the width"),
    ],
)
def test_what_it_advises_loses_nothing(sides, borders):
    """Blocks do not end at 16 where a side is no multiple of it."""
    array = rastered(ladder().at(8), sides, sides)
    array[:] = y = smooth_tiles(*sides)[0]
    with pytest.raises(LossyWrite, match=borders):
        array[1, 1] = y[1, 1] + 5
    starts = [[0, *np.cumsum(frequencies.parts(side))] for side in sides]
    for top, bottom in itertools.pairwise(starts[0]):
        for left, right in itertools.pairwise(starts[1]):
            array[top:bottom, left:right] = y[top:bottom, left:right] + 5  # warnings are errors


@pytest.mark.filterwarnings("ignore::coder.UnusualEmbedding")
def test_channels_that_are_written_one_by_one_warn_of_those_written_before():
    rows = smooth_embeddings(1, 40).reshape(-1, CHANNELS)
    for codec in (ladder().at(8), fit(rows).at(8)):  # one without blocks
        array = rastered(codec, (16, 16), (16, 16))
        y = smooth_tiles(16, 16)[0]
        first = rf"{CHANNELS - 1} of {CHANNELS} channels have the fill value, 0, in all tokens"
        with pytest.warns(LossyWrite, match=first):
            array[..., 0] = y[..., 0]
        with pytest.warns(LossyWrite, match=r"changed \d+ tokens beside it or in other channels"):
            array[..., 1] = y[..., 1]


def test_a_whole_chunk_with_channels_of_nothing_but_zeros_does_not_warn():
    y = smooth_tiles(16, 16)[0].copy()
    y[..., : CHANNELS // 2 - 1] = 0
    array = rastered(ladder().at(8), (16, 16), (16, 16))
    array[:] = y
    y[...] = 0
    array[:] = y  # not stored
    array[0, 0] = 1  # a token is no channel


def test_a_codec_without_a_transform_loses_nothing():
    array = rastered(fitted_codec(smooth_tiles(16, 16), class_token=False), (16, 16), (16, 16))
    array[:] = y = smooth_tiles(16, 16)[0]
    array[0:8] = y[0:8] + 1
    array[3, 5] = y[3, 5]
    array[..., 1] = y[..., 1] + 1


def test_what_lies_beyond_the_edge_may_not_lie_between_tokens():
    codec = fit(smooth_embeddings(1, 200)).at(12)
    made = functools.partial(
        zarr.create_array, shape=(3, 6, 5, CHANNELS), dtype="float32", compressors=None,
        serializer=NecCodec(codec), fill_value=0.0,
    )  # fmt: skip
    with pytest.raises(CodecError, match="between rows of the array"):
        made(MemoryStore(), chunks=(2, 4, 5, CHANNELS))
    for chunks in ((1, 4, 5), (2, 3, 5), (2, 6, 4)):
        made(MemoryStore(), chunks=(*chunks, CHANNELS))


def test_chunks_in_shards_that_end_beyond_the_array_are_named_when_written():
    """zarr asks no codec about the sides of chunks inside shards when it makes an array."""
    y = smooth_embeddings(3, 4, (8, 8))
    cause = r"in order. If the array ends after 2 x 2 x [23] tokens of the chunk: .* \(2, 3, 3, 1"
    array = rastered(ladder().at(8), (4, 8, 8), (2, 3, 3), shards=(2, 9, 9))
    with pytest.warns(LossyWrite, match=cause):
        array[:] = y
    # NaN is left out, wherever it lies.
    array = rastered(ladder().at(8), (4, 8, 8), (2, 3, 3), shards=(2, 9, 9), fill_value=np.nan)
    y[0, 2, 2] = np.nan
    array[:] = y
    np.testing.assert_array_equal(np.isnan(array[:]), np.isnan(y))


def test_tokens_that_were_not_written_before_others_are_warned_of():
    """Under a number as fill value they are coded like others, and read as other numbers."""
    codec = fit(smooth_embeddings(1, 60)).at()
    y = smooth_embeddings(2, 1)[0]
    height, width = y.shape[:2]

    def new():
        return zarr.create_array(
            MemoryStore(),
            shape=y.shape,
            chunks=y.shape,
            dtype="float32",
            serializer=NecCodec(codec),
            compressors=None,
            fill_value=0.0,
        )

    with pytest.warns(LossyWrite, match=f"{2 * width} tokens of a chunk have its fill value, 0"):
        new()[2:] = y[2:]
    array = new()
    array[: height - 2] = y[: height - 2]  # in order: what is not written is at the end
    assert not np.asarray(array[height - 2 :]).any()
