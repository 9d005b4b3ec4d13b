"""`StoredChunks`: the bytes of single chunks of an array in shards, whose indices are kept."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
_GAP = 1 << 16  # bytes between two chunks of a shard, at most, that one request reads with them


class StoredChunks:
    """The stored bytes of the chunks of an array in shards.

    A chunk costs two requests, its shard's index and itself; one, if the index was read before.
    Chunks that lie close to one another in a shard cost one request together.
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
        self._kept: dict[Place, NDArray[np.uint64]] = {}  # replaced, never changed: threads read it

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
        indices = self._indices([shard for shard in inside if shard not in data])
        found: dict[Place, bytes] = {}
        spans: list[_Span] = []
        for shard, some in inside.items():
            content = data.get(shard)
            index = indices.get(shard) if content is None else self._parsed(shard, content)
            if index is None:
                continue
            parts: dict[Place, tuple[int, int]] = {}
            for place, number in some.items():
                start, length = map(int, index[number])
                if start != EMPTY:
                    parts[place] = start, length
            if content is None:
                spans += _spans(shard, parts)
            else:
                found |= {place: content[start : start + n] for place, (start, n) in parts.items()}
        ranges = [(span.shard, RangeByteRequest(span.start, span.stop)) for span in spans]
        for span, content in zip(spans, self._get(ranges), strict=True):
            if content is not None:
                for place, (start, n) in span.parts.items():
                    found[place] = content[start - span.start : start - span.start + n]
        return found

    def shard_of(self, place: Place) -> str:
        """The key of the shard of a chunk."""
        shard = tuple(one // n for one, n in zip(place, self._per_shard, strict=True))
        return zarr_nodes.key(self._array, shard)

    def is_lost(self, place: Place) -> bool:
        """Whether the shard of a chunk is not stored."""
        return not sync(self._array.store_path.store.exists(self.shard_of(place)))

    def _indices(self, shards: Sequence[Place]) -> dict[Place, NDArray[np.uint64]]:
        """The indices of shards; none, and none kept, of a shard that is not stored."""
        kept = self._kept
        found = {shard: kept[shard] for shard in shards if shard in kept}
        new = [shard for shard in shards if shard not in found]
        if not new:
            return found
        size = 16 * self._count + 4
        data = self._get([(shard, SuffixByteRequest(size)) for shard in new])
        read = {s: self._parsed(s, d) for s, d in zip(new, data, strict=True) if d is not None}
        self._kept = read if len(kept) + len(read) > _INDICES else kept | read
        return found | read

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


@dataclass
class _Span:
    """Chunks of a shard that one request reads: the offset and length of each.

    Attributes:
      start, stop: what is read of the shard, bytes.
    """

    shard: Place
    start: int
    stop: int
    parts: dict[Place, tuple[int, int]]


def _spans(shard: Place, parts: dict[Place, tuple[int, int]]) -> list[_Span]:
    """The chunks of a shard, those with at most `_GAP` bytes between them together."""
    spans: list[_Span] = []
    for place, (start, length) in sorted(parts.items(), key=lambda part: part[1]):
        if not spans or start > spans[-1].stop + _GAP:
            spans.append(_Span(shard, start, start + length, {}))
        spans[-1].stop = max(spans[-1].stop, start + length)
        spans[-1].parts[place] = (start, length)
    return spans


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
