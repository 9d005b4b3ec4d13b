"""Archives: embeddings of many images as an ordinary Zarr v3 group.

| array | dimensions | stored as |
| --- | --- | --- |
| `embedding` | image, y, x, channel | one blob an image, in shards of many (`sharding_indexed`) |
| `class_token` | image, channel | one blob a shard; only if the codec codes a class token |
| `id` | image | text, a coordinate |
| `label` | image | int32, a coordinate; -1 where there is none |

Whoever writes whole shards, the array `embedding` last, can go on after an interruption where
`written_shards` says, and several can write at once. A blob's framing is 12 bytes, and a shard's
index takes 16 for each image that it has room for: 28 an image, and one for class tokens, where
shards are full (`even_shard`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import zarr
from zarr.core.sync import sync

from coder.errors import InputError
from coder.one_rate import OneRateCodec
from coder.zarr_codec import NecCodec

SHARD = 256


def even_shard(count: int, most: int = SHARD) -> int:
    """Images a shard, `most` at most, so that the last shard is nearly full.

    Raises InputError if there are no images, or shards of none.
    """
    if count < 1 or most < 1:
        raise InputError(f"{count} images in shards of {most}: give 1 at least of both")
    shards = -(-count // most)
    return -(-count // shards)


def create(
    store: Any,
    codec: OneRateCodec,
    count: int,
    grid: tuple[int, int],
    *,
    shard: int | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> zarr.Group:
    """A new archive in a Zarr store or path; its arrays are written by assignment.

    Args:
      store: what zarr opens; there must be nothing in it.
      codec: of one rate; may code a class token or not.
      count: images.
      grid: tokens (height, width) of every image.
      shard: images a shard, the least that a writer should write; None is `even_shard(count)`.
      attributes: what else the archive should say of itself (JSON).

    Raises:
      InputError: no images, shards of none, or more tokens in a grid, or images in a shard of class
        tokens, than the codec takes; nothing is made.
      zarr.errors.ContainsGroupError: there is one in the store.
    """
    even = even_shard(count, SHARD if shard is None else shard)
    shard = shard or even
    for_grid, for_class = codec.split()
    height, width = grid
    # Before anything is made: the store of an archive has to be empty.
    if height * width > codec.max_tokens:
        raise InputError(
            f"a grid of {height} x {width}: this codec takes {codec.max_tokens} tokens"
        )
    if for_class is not None and shard > codec.max_tokens:
        raise InputError(
            f"the class tokens of a shard of {shard} images are one blob, and this codec takes "
            f"{codec.max_tokens} tokens: give a smaller shard"
        )
    # xarray reads this, and makes id and label coordinates.
    group = zarr.create_group(store, attributes={**(attributes or {}), "coordinates": "id label"})

    def add(name: str, dimensions: Sequence[str], shape: Sequence[int], **settings) -> None:
        group.create_array(
            name,
            shape=(count, *shape),
            chunks=settings.pop("chunks", (shard, *shape)),
            dimension_names=("image", *dimensions),
            **settings,
        )

    add("id", (), (), dtype=str)
    add("label", (), (), dtype="int32", fill_value=-1)
    floats = {"dtype": "float32", "fill_value": 0.0, "compressors": None}
    shape = (height, width, codec.channels)
    whole = {"chunks": (1, *shape), "shards": (shard, *shape), "serializer": NecCodec(for_grid)}
    add("embedding", ("y", "x", "channel"), shape, **floats, **whole)
    if for_class is not None:
        add("class_token", ("channel",), shape[2:], **floats, serializer=NecCodec(for_class))
    return group


def written_shards(array: zarr.Array) -> set[int]:
    """Which shards of an array's first dimension are in its store."""
    metadata = array.metadata
    size = (array.shards or array.chunks)[0]
    rest = (0,) * (array.ndim - 1)

    async def present() -> set[int]:
        names = {
            i: metadata.encode_chunk_key((i, *rest)) for i in range(-(-array.shape[0] // size))
        }
        return {i for i, name in names.items() if await (array.store_path / name).exists()}

    return sync(present())
