"""Write embeddings as a plain Zarr array that is coded by `nec`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from coder.archive import manifest, zarr_nodes
from coder.archive.zarr_codec import NecCodec
from coder.codecs import OneQualityCodec
from coder.embedding_files.chunk_parts import aimed, checked_part, chunks_of
from coder.errors import InputError

SHARD = 256  # chunks in a shard


def write_array(
    path: Path,
    y: Any,
    codec: OneQualityCodec,
    nodata: float | None,
    attributes: Mapping[str, Any],
) -> int:
    """Write embeddings [N, H, W, D], [H, W, D] or [N, D] as a Zarr array, part by part.

    Missing tokens are NaN. A chunk in which all are missing is not stored, and listed in an
    attribute: any other chunk that is not there was lost.

    Args:
      path: an empty folder.
      y: the embeddings.
      codec: without class token.
      nodata: the number that marks missing data.
      attributes: further attributes, as JSON.

    Returns the number of missing tokens. Raises InputError as `checked_part`, or if all are.
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
        fill_value=np.nan,  # no embedding is, so that every chunk with one is stored
        attributes={**attributes, zarr_nodes.WHOLE: True},
    )
    missing, empty = 0, set()
    across = [-(-side // width) for side, width in zip(y.shape[1:], shards[1:], strict=True)]
    with zarr_nodes.settled():
        for row, start in enumerate(range(0, y.shape[0], shards[0])):
            rows = slice(start, min(start + shards[0], y.shape[0]))
            part = checked_part(y, rows, nodata)
            gone = np.isnan(part[..., 0])
            missing += int(gone.sum())
            if gone.any():
                first = row * int(np.prod(across))
                for number, at in enumerate(np.ndindex(*across)):
                    own = tuple(
                        slice(w * i, w * (i + 1))
                        for i, w in zip(at[:-1], shards[1:-1], strict=True)
                    )
                    if gone[(slice(None), *own)].all():
                        empty.add(first + number)
            array[rows] = part if codec.refiner is None else aimed(part, codec, chunks)
    if missing * y.shape[-1] == np.prod(y.shape):
        raise InputError("all tokens are missing: there is nothing to code")
    if empty:
        array.attrs.update({zarr_nodes.EMPTY: manifest.ranges_of(empty)})
    return missing
