"""Write embeddings as a plain Zarr array that is coded by `nec`."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from coder.archive import zarr_nodes
from coder.archive.zarr_codec import NecCodec
from coder.arrays import as_floats, refuse, with_mask
from coder.codecs import OneQualityCodec
from coder.fitting import missing_tokens

VECTORS = 256  # in a chunk
TILE = 64  # side of a raster's chunks, tokens
SHARD = 256  # chunks in a shard


def write_array(path: Path, y: Any, codec: OneQualityCodec, nodata: float | None) -> None:
    """Write embeddings [N, H, W, D], [H, W, D] or [N, D] as a Zarr array, part by part.

    Raises InputError for tokens that are missing (see `coder.fit`) or infinite; says where.
    """
    chunks = chunks_of(y.shape)
    shards = (min(SHARD, y.shape[0]), *y.shape[1:]) if y.ndim == 4 else chunks
    array = zarr.create_array(
        path,
        shape=y.shape,
        dtype="float32",
        chunks=chunks,
        shards=None if shards == chunks else shards,
        serializer=NecCodec(codec),
        compressors=None,
        fill_value=np.nan,  # no embedding is, so that every chunk is stored
        attributes={zarr_nodes.WHOLE: True},
    )
    with zarr_nodes.settled():
        for start in range(0, y.shape[0], shards[0]):
            part = checked_part(y, start, start + shards[0], nodata)
            array[start : start + shards[0]] = (
                part if codec.refiner is None else _aimed(part, codec, chunks)
            )


def _aimed(y: np.ndarray, codec: OneQualityCodec, chunks: tuple[int, ...]) -> np.ndarray:
    """Embeddings of whole chunks, moved so that coding them is best for readers that refine."""
    aimed = np.empty(y.shape, np.float32)
    parts = [
        [slice(start, start + width) for start in range(0, side, width)]
        for side, width in zip(y.shape, chunks, strict=True)
    ]
    for place in itertools.product(*parts):
        one = y[place]
        grid = math.prod(one.shape[:-2]), one.shape[-2]
        aimed[place] = codec.aim(one.reshape(-1, y.shape[-1]), grid).reshape(one.shape)
    return aimed


def chunks_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The chunk shape for an array of embeddings; each chunk becomes one blob."""
    if len(shape) == 4:
        return (1, *shape[1:])
    if len(shape) == 3:
        return (*(min(TILE, side) for side in shape[:2]), shape[2])
    return (min(VECTORS, shape[0]), shape[1])


def checked_part(y: Any, start: int, stop: int, nodata: float | None) -> np.ndarray:
    """Rows of an array as float32. Raises InputError that says where the first missing token is."""
    values = with_mask(y[start:stop])
    floats = as_floats(np.ma.getdata(values))
    remedy = "an array has no missing tokens: fill them, or leave them out"
    refuse(
        missing_tokens(values, nodata),
        "tokens",
        "missing (NaN, or nodata)",
        remedy=remedy,
        start=(start,),
    )
    bad = np.isinf(floats)
    refuse(bad, "values", "infinite in float32", np.ma.getdata(values), remedy, (start,))
    return floats
