"""`Scene`: the embeddings of a georeferenced scene, read when they are asked for."""

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync

from coder.archive import refiner_array, zarr_nodes
from coder.archive.stored_chunks import StoredChunks
from coder.archive.zarr_codec import NecCodec, nec_codec, refined
from coder.arrays import is_whole
from coder.codecs import OneQualityCodec
from coder.errors import BlobError, FileError, InputError
from coder.scenes import scene_layout as layout
from coder.scenes.scene_grid import SceneGrid

_AT_ONCE = 16  # requests to the store
_KEPT = 256  # chunks of `valid` and `coverage`, of the cells of a shard each


class Scene:
    """The embeddings of a scene, float32 [(time,) y, x, channel], read by cells or by the map.

    ```python
    scene = coder.open_scene("scene.zarr")
    y = scene.at(13.4, 52.5)  # float32 [channel]: the cell that holds a point, in map units
    rows, columns = scene.grid.window((13, 52, 14, 53))  # west, south, east, north
    y = scene.read(rows, columns)  # float32 [h, w, channel]; NaN where there is no embedding
    ```

    Opening costs one request, and one cell two: a shard's index, which is kept, and a chunk of
    16 x 16 cells.

    Attributes:
        group: the scene's Zarr group.
        grid: where its cells lie.
        levels: 1, and the factors of the overviews.
        codec: the codec of the embeddings.
        facts: the attributes of the group.
        times: datetime64[us] in UTC; None if the scene has no dimension `time`.
    """

    def __init__(self, store: Any, *, refine: bool = False):
        """Open a complete scene.

        Args:
            store: a path, a URL, a Zarr store or an open group.
            refine: bring embeddings closer to those that were encoded, by the scene's refiner.

        Raises:
            StoreError: (an OSError) an object store failed; so does any later reading.
            FileError: no scene, one that is being written, or a damaged one.
            InputError: refine, and the scene has no refiner.
        """
        path = zarr_nodes.local_path(store)
        # Absolute: a process that it is sent to may work in another folder.
        self._store = store if path is None else path.absolute()
        node = zarr_nodes.open_node(store, with_copies=True)
        with zarr_nodes.about_store(node.store):
            state = layout.state_of(node) if isinstance(node, zarr.Group) else None
            if state is None:
                raise FileError("is no scene: an archive of images is opened by coder.open")
            assert isinstance(node, zarr.Group)
            if state["state"] == "writing":
                raise FileError("is still being written, or was stopped: run `nec encode` again")
            # The copies of a complete scene are of the same moment as its record.
            self._members, self.group = node, zarr_nodes.without_copies(node)
            self.grid, self._state = layout.grid_of(node), state
            self._array = lru_cache(self._opened)
            self.levels = layout.levels_in(node, self.grid)
            embedding = self._array("embedding", 1)
            codec = nec_codec(embedding)
            if codec is None or embedding.shards is None:
                raise FileError("its embeddings are not coded by nec in shards: read them by zarr")
            self.codec: OneQualityCodec = codec
            self._refiner = refiner_array.read_refiner(self.group) if refine else None
            self.facts: dict[str, Any] = node.attrs.asdict()
            self.times: NDArray[np.datetime64] | None = None
            if embedding.ndim == 4:
                self.times = self._read_times()
        self._chunks, self._is_stored = lru_cache(self._stored), lru_cache(self._recorded)
        self._kept: dict[str, Buffer] = {}  # replaced, never changed: threads read it

    def __reduce__(self):
        return _opened, (self._store, self.is_refined)

    def __repr__(self) -> str:
        height, width = self.grid.shape
        return f"<Scene {height} x {width} cells of {self.codec.channels} channels>"

    @property
    def is_refined(self) -> bool:
        """Whether embeddings are refined while they are read."""
        return self._refiner is not None

    @property
    def channel_names(self) -> list[str] | None:
        """The names of the channels, if the embeddings' own file had some."""
        source = self.facts.get("nec_source")
        names = source.get("bands") if isinstance(source, dict) else None
        if not isinstance(names, list) or len(names) != self.codec.channels:
            return None
        return [str(name) for name in names]

    def grid_at(self, level: int = 1) -> SceneGrid:
        """The grid of an overview. Raises InputError if there is none of this factor."""
        self._check(level, None, is_time_needed=False)
        return self.grid if level == 1 else self.grid.coarser(level)

    def read(
        self,
        rows: slice = slice(None),
        columns: slice = slice(None),
        *,
        level: int = 1,
        time: int | None = None,
    ) -> NDArray[np.float32]:
        """Decode a window, float32 [h, w, channel]; NaN where a cell has no embedding.

        Args:
            rows, columns: slices without a step.
            level: the factor of an overview; 1 for the cells themselves.
            time: the number of a time, if the scene has times.

        Raises:
            InputError: no such window, level or time.
            FileError: a shard is lost or damaged; `nec verify` says where.
            BlobError: a chunk is damaged.
        """
        self._check(level, time)
        array = self._array("embedding", level)
        top, bottom, left, right = _window(rows, columns, self.grid_at(level).shape)
        result = np.full((bottom - top, right - left, self.codec.channels), np.nan, np.float32)
        if not result.size:
            return result
        valid = self.valid(rows, columns, level=level, time=time)
        high, wide = array.chunks[-3:-1]
        corners = [
            (i, j)
            for i in range(top // high, -(-bottom // high))
            for j in range(left // wide, -(-right // wide))
        ]
        for (i, j), y in self._decoded(level, time, corners):
            rows_here = slice(max(top, i * high), min(bottom, (i + 1) * high))
            columns_here = slice(max(left, j * wide), min(right, (j + 1) * wide))
            inner = _moved(rows_here, -i * high), _moved(columns_here, -j * wide)
            result[_moved(rows_here, -top), _moved(columns_here, -left)] = y[inner]
        there = ~np.isnan(result[..., 0])
        if (there != valid).any():
            row, column = np.argwhere(there != valid)[0] + (top, left)
            raise FileError(
                f"the cell at row {row}, column {column} is "
                + ("valid, and has no embedding" if not there[row - top, column - left] else "not "
                   "valid, and has an embedding")
                + f" ({array.path}): `nec verify` says more",
                str(self.group.store_path),
            )  # fmt: skip
        return result

    def valid(
        self,
        rows: slice = slice(None),
        columns: slice = slice(None),
        *,
        level: int = 1,
        time: int | None = None,
    ) -> NDArray[np.bool_]:
        """Which cells of a window have an embedding: bool [h, w]. Raises as `read`."""
        return self._of_cells("valid", rows, columns, level, time)

    def coverage(
        self,
        rows: slice = slice(None),
        columns: slice = slice(None),
        *,
        level: int = 1,
        time: int | None = None,
    ) -> NDArray[np.uint8]:
        """Percent of each cell's pixels that are valid: uint8 [h, w]. Raises as `read`."""
        return self._of_cells("coverage", rows, columns, level, time)

    def at(self, x: float, y: float, *, time: int | None = None) -> NDArray[np.float32]:
        """The embedding of the cell that holds a point: float32 [channel].

        Args:
            x, y: the point, in map units.
            time: the number of a time, if the scene has times.

        Raises as `read`; InputError, too, if the point lies outside or its cell has no embedding.
        """
        self._check(1, time)
        row, column = self.grid.cell(x, y)
        high, wide = self._array("embedding", 1).chunks[-3:-1]
        place = (row // high, column // wide)
        found = dict(self._decoded(1, time, [place])).get(place)
        vector = None if found is None else found[row % high, column % wide]
        if vector is None or np.isnan(vector).any():
            self.read(slice(row, row + 1), slice(column, column + 1), time=time)  # lost, perhaps
            raise InputError(f"the cell at ({x:g}, {y:g}) has no embedding: there is no data")
        return vector

    def _of_cells(
        self, name: str, rows: slice, columns: slice, level: int, time: int | None
    ) -> NDArray[Any]:
        self._check(level, time)
        top, bottom, left, right = _window(rows, columns, self.grid_at(level).shape)
        lead = () if time is None else (time,)
        array = self._array(name, level)
        with zarr_nodes.about_store(self.group.store):
            try:
                sizes = (array.shards or array.chunks)[-2:]
                ranges = (
                    range(start // size, -(-stop // size))
                    for start, stop, size in zip((top, left), (bottom, right), sizes, strict=True)
                )
                places = ((*lead, *place) for place in itertools.product(*ranges))
                stored = self._whole([zarr_nodes.key(array, place) for place in places])
                region = (*lead, slice(top, bottom), slice(left, right))
                return zarr_nodes.read(zarr_nodes.held(array, stored), region)
            except (FileError, OSError):
                raise
            except Exception as error:  # whatever any codec raises is damage here
                raise FileError(
                    f"{array.path} is damaged ({error}): `nec verify` says where"
                ) from (error)

    def _whole(self, keys: Sequence[str]) -> dict[str, Buffer]:
        """Whole objects of the store, of which some are kept. Raises FileError: one is lost."""
        kept, store = self._kept, self.group.store_path.store
        new = [(key,) for key in keys if key not in kept]

        async def get(key: str) -> Buffer:
            found = await store.get(key, default_buffer_prototype())
            if found is None:  # zarr would read zeros
                raise FileError(f"{key} is lost: `nec verify` says more")
            return found

        with zarr_nodes.settled():
            found = sync(concurrent_map(new, get, limit=_AT_ONCE))
        read = {key: one for (key,), one in zip(new, found, strict=True)}
        self._kept = read if len(kept) + len(read) > _KEPT else kept | read
        return {key: read[key] if key in read else kept[key] for key in keys}

    def _check(self, level: int, time: int | None, is_time_needed: bool = True) -> None:
        if level not in self.levels:
            there = ", ".join(map(str, self.levels))
            raise InputError(f"no overview of factor {level!r}: there are {there}")
        if not is_time_needed:
            return
        if self.times is None and time is not None:
            raise InputError("the scene has no times: leave the time out")
        if self.times is None:
            return
        if not is_whole(time) or not 0 <= int(time or 0) < len(self.times):
            raise InputError(
                f"time is {time!r}: the scene has {len(self.times)} times, give the number of one"
            )

    def _opened(self, name: str, level: int) -> zarr.Array:
        with zarr_nodes.about_store(self.group.store):
            array = layout.array_in(self._members, f"{layout.path_of(level)}/{name}".lstrip("/"))
            layout.check_shape(array, self.grid.coarser(level), self._state)
        return array

    def _read_times(self) -> NDArray[np.datetime64]:
        try:
            times = zarr_nodes.read(self._array("time", 1)).astype("datetime64[us]")
        except (FileError, OSError):
            raise
        except Exception as error:  # whatever any codec raises is damage here
            raise FileError(f"time is damaged ({error}): `nec verify` says where") from error
        if np.isnat(times).any():
            raise FileError("time is lost: `nec verify` says more")
        return times

    def _decoded(
        self, level: int, time: int | None, corners: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], NDArray[np.float32]]]:
        """The chunks [h, w, D] with these numbers, one by one; without those that are not stored.

        A chunk without any valid cell is not stored, nor is one that is lost: `valid` says which.
        """
        array, lead = self._array("embedding", level), () if time is None else (time,)
        shape, codec, is_stored = array.chunks[-3:], NecCodec(self.codec), self._is_stored(level)
        assert array.shards is not None
        high, wide = (a // b for a, b in zip(array.shards[-3:-1], shape[:2], strict=True))
        places = [(*lead, i, j, 0) for i, j in corners if is_stored[(*lead, i // high, j // wide)]]
        with zarr_nodes.about_store(self.group.store):
            blobs = self._chunks(level).read(places)
            for (*_, i, j, _), blob in blobs.items():
                try:
                    y = codec.decoded(blob, shape, np.nan).reshape(shape)
                except BlobError as error:
                    raise type(error)(f"{array.path}, chunk {(i, j)}: {error}") from error
                if self._refiner is not None:
                    y = refined(y, self.codec, self._refiner, np.nan)
                yield (i, j), y

    def _recorded(self, level: int) -> NDArray[np.bool_]:
        """Which shards of embeddings are stored, [(time,) y, x], by the scene's record."""
        array = self._array("embedding", level)
        assert array.shards is not None
        sides = zip(array.shape[:-1], array.shards[:-1], strict=True)
        shape = tuple(-(-side // part) for side, part in sides)
        path = f"{layout.path_of(level)}/embedding".lstrip("/")
        return layout.are_stored(self.group, path, shape)

    def _stored(self, level: int) -> StoredChunks:
        return StoredChunks(self._array("embedding", level), "scene")


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _window(rows: slice, columns: slice, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """First and last row, and column, of a window. Raises InputError: a slice with a step."""
    found = []
    for one, side in zip((rows, columns), shape, strict=True):
        if not isinstance(one, slice) or one.step not in (None, 1):
            raise InputError(f"{one!r}: give rows and columns as slices without a step")
        start, stop, _ = one.indices(side)
        found += [start, max(start, stop)]
    return tuple(found)  # type: ignore[return-value]


def _opened(store: Any, refine: bool) -> Scene:
    return Scene(store, refine=refine)
