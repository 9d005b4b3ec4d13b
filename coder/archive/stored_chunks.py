"""`StoredChunks`: the bytes of single chunks of an array in shards, whose indices are kept."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync

from coder.archive import zarr_nodes
from coder.errors import FileError

Place = tuple[int, ...]
"""The numbers of a chunk, or of a shard, along the axes of an array."""
EMPTY = 2**64 - 1
"""The offset of a chunk that a shard does not hold."""
_AT_ONCE = 16  # requests to the store
_MOSTLY = 8  # a shard is read as a whole if one chunk of so many is asked for
_INDICES = 256  # shards whose indices are kept


class _NotStored(Exception):
    """A shard that is not in the store."""


class StoredChunks:
    """The stored bytes of the chunks of an array in shards.

    A chunk costs two requests, its shard's index and itself; one, if the index was read before.
    """

    def __init__(self, array: zarr.Array, what: str):
        """Keep an array to read from.

        Args:
          array: an array whose only codec is `sharding_indexed`, with its index at the end.
          what: what the array belongs to, "archive" or "scene", in errors.
        """
        assert array.shards is not None
        self._array, self._remedy = array, f"copy the {what} again"
        sides = zip(array.shards, array.chunks, strict=True)
        self._per_shard = tuple(shard // chunk for shard, chunk in sides)
        self._count = math.prod(self._per_shard)
        self._index = lru_cache(_INDICES)(self._read_index)

    def read(self, places: Iterable[Place]) -> dict[Place, bytes]:
        """The bytes of the chunks at these places; those that are not stored are left out.

        Raises:
          FileError: the index of a shard is cut short or damaged.
          StoreError: (an OSError) an object store failed.
        """
        inside: dict[Place, dict[Place, int]] = {}  # by shard: the chunks, and their numbers in it
        for place in places:
            pairs = [divmod(one, n) for one, n in zip(place, self._per_shard, strict=True)]
            number = 0
            for (_, within), n in zip(pairs, self._per_shard, strict=True):
                number = number * n + within
            inside.setdefault(tuple(shard for shard, _ in pairs), {})[place] = number
        whole = [s for s, some in inside.items() if len(some) * _MOSTLY >= self._count]
        data = dict(zip(whole, self._get([(s, None) for s in whole]), strict=True))
        found: dict[Place, bytes] = {}
        wanted: dict[Place, tuple[Place, ByteRequest]] = {}
        for shard, some in inside.items():
            content = data.get(shard)
            try:
                if content is not None:
                    index = self._parsed(shard, content)
                elif shard in data:
                    raise _NotStored
                else:
                    index = self._index(shard)
            except _NotStored:
                continue
            for place, number in some.items():
                offset, length = map(int, index[number])
                if offset == EMPTY:
                    continue
                if content is not None:
                    found[place] = content[offset : offset + length]
                else:
                    wanted[place] = shard, RangeByteRequest(offset, offset + length)
        parts = zip(wanted, self._get(list(wanted.values())), strict=True)
        return found | {place: part for place, part in parts if part is not None}

    def shard_of(self, place: Place) -> str:
        """The key of the shard of a chunk."""
        shard = tuple(one // n for one, n in zip(place, self._per_shard, strict=True))
        return zarr_nodes.key(self._array, shard)

    def is_lost(self, place: Place) -> bool:
        """Whether the shard of a chunk is not stored."""
        return not sync(self._array.store_path.store.exists(self.shard_of(place)))

    def _read_index(self, shard: Place) -> NDArray[np.uint64]:
        """The index of a shard. Raises _NotStored, which is not kept."""
        data = self._get([(shard, SuffixByteRequest(16 * self._count + 4))])[0]
        if data is None:
            raise _NotStored
        return self._parsed(shard, data)

    def _parsed(self, shard: Place, data: bytes) -> NDArray[np.uint64]:
        return index_of(data, self._count, zarr_nodes.key(self._array, shard), self._remedy)

    def _get(self, wanted: Sequence[tuple[Place, ByteRequest | None]]) -> list[bytes | None]:
        """Parts of shards; None for one that is not stored."""

        async def get(shard: Place, part: ByteRequest | None) -> bytes | None:
            key = zarr_nodes.key(self._array, shard)
            found = await self._array.store_path.store.get(key, default_buffer_prototype(), part)
            return None if found is None else found.to_bytes()

        with zarr_nodes.settled():
            return list(sync(concurrent_map(list(wanted), get, limit=_AT_ONCE)))


def index_of(data: bytes, size: int, name: str, remedy: str) -> NDArray[np.uint64]:
    """The offset and length [chunks, 2] of each chunk of a shard: `EMPTY` where there is none.

    Args:
      data: the shard, or its end.
      size: chunks per shard.
      name: the key of the shard.
      remedy: what to do about damage.

    Raises FileError: the index is not at the end, since the shard was cut short or damaged.
    """
    index, checksum = data[-(16 * size + 4) : -4], data[-4:]
    if len(index) != 16 * size or google_crc32c.value(index).to_bytes(4, "little") != checksum:
        raise FileError(f"{name} is cut short or damaged: {remedy}")
    return np.frombuffer(index, "<u8").reshape(size, 2)
