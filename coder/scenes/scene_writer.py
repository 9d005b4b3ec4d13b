"""`SceneWriter`: write a scene shard by shard; opened again, it goes on."""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

from coder import files
from coder.archive import refiner_array, zarr_nodes
from coder.archive.lock import locked
from coder.archive.shards import remove_unfinished
from coder.codecs import OneQualityCodec
from coder.errors import CodecError, FileError, InputError, OutputError, about
from coder.scenes import scene_layout as layout
from coder.scenes.scene_grid import SceneGrid

Part = tuple[slice, slice]
"""Rows and columns of cells."""
_MEMBERS = {*layout.OF_CELLS, layout.OVERVIEWS, refiner_array.GROUP, "zarr.json"}
_MEMBERS |= {"x", "y", "time", "spatial_ref"}


class SceneWriter:
    """Writes the cells of one scene, or of one time of a scene, in parts that are shards.

    ```python
    with SceneWriter("scene.zarr", codec, grid, made={...}, step={...}) as writer:
        for rows, columns in writer.missing():
            writer.write((rows, columns), y, coverage)
        writer.finish()
    ```

    A shard is whole or not there. The lock of the folder is held: one process writes.
    """

    def __init__(
        self,
        out: Path,
        codec: OneQualityCodec,
        grid: SceneGrid,
        *,
        made: Mapping[str, Any],
        step: Mapping[str, Any],
        attributes: Mapping[str, Any] | None = None,
        time: np.datetime64 | None = None,
        has_overviews: bool = True,
    ):
        """Check the arguments; write nothing.

        Args:
            out: folder of the scene, which may be there.
            codec: a codec of one quality, without class token. If it has a refiner, the scene
                gets it.
            grid: where the cells lie.
            made: how the embeddings are made, as JSON. It must be that of a scene that is there.
            step: what is embedded, as JSON. For a time that is there it must be the same.
            attributes: further attributes of the group, as JSON; of a new scene.
            time: the time of the embeddings, in UTC. A scene that is there gets one more time,
                unless it has this one. None: the scene has no dimension `time`.
            has_overviews: whether a new scene gets overviews.

        Raises CodecError: a codec of several qualities, or with a class token.
        """
        if not isinstance(codec, OneQualityCodec) or codec.class_token:
            raise CodecError("a scene has one quality and no class token: codec.at().split()[0]")
        self.codec, self.grid = codec, grid
        self._out, self._made, self._step = Path(out), dict(made), dict(step)
        self._attributes, self._has_overviews = dict(attributes or {}), has_overviews
        self._time = None if time is None else time.astype("datetime64[us]")
        self._name = None if time is None else str(self._time)
        self._has_written = False
        self._stack = ExitStack()
        self._lead: tuple[int, ...] = ()  # the number of the time, if there are times

    def __enter__(self) -> "SceneWriter":
        with self._stack as stack, self._naming():
            stack.enter_context(locked(self._out))
            self.group = self._opened()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the scene in errors of the block that name no file, such as of a full disk."""
        try:
            with about(self._out):
                yield
        except OSError as error:
            if error.filename is None:
                error.filename = str(self._out)
            raise

    @property
    def time_number(self) -> int:
        """The number of the time that is written. Raises IndexError if the scene has none."""
        return self._lead[0]

    def missing(self) -> list[Part]:
        """The parts that are not written, or were lost, row by row."""
        lost = {key for key, _ in layout.lost(self.group)}
        arrays = [self._array(self.group, name) for name in layout.OF_CELLS]
        valid, there = arrays[-1], zarr_nodes.stored(arrays[-1])
        return [
            self._part(valid, place)
            for place in self._places(valid)
            if place not in there or lost & {self._key(array, place) for array in arrays}
        ]

    def valid_count(self) -> int:
        """How many cells that are written, at this time, have an embedding."""
        return int(np.asarray(self._array(self.group, "valid")[self._lead or ...]).sum())

    def discard(self) -> None:
        """Delete what is not finished: the time that was begun, or all of a new scene."""
        state = layout.state_of(self.group) or {}
        if state.get("begun", {}).get("time", "") != self._name:
            return
        if state["steps"]:
            self._forget(self.group)
        else:
            files.delete_folder(self._out)

    def write(self, part: Part, y: NDArray[np.float32], coverage: NDArray[np.uint8]) -> int:
        """Write one of `missing()`. Returns the bytes that it has in the store.

        Args:
            part: rows and columns.
            y: [h, w, D], all NaN where a cell has no embedding.
            coverage: [h, w], percent of each cell's pixels that are valid.

        Raises InputError: another shape, NaN in a part of a cell's channels, or infinity.
        """
        self._has_written = True
        with self._naming():
            self._write(self.group, part, y, coverage, np.asarray(~np.isnan(y).all(-1)))
        arrays = (self._array(self.group, name) for name in layout.OF_CELLS)
        return sum(_stored_bytes(array, self._place(array, part)) for array in arrays)

    def finish(self) -> None:
        """Write the overviews, and mark the scene as complete; one that is complete stays as it is.

        Raises FileError: a part is not written, or a shard of what was complete was changed; the
        message says which.
        """
        with self._naming():
            self._finish()

    def _finish(self) -> None:
        if rest := self.missing():
            raise FileError(f"{len(rest)} parts of the scene are not written", self._out)
        state = layout.state_of(self.group) or {}
        is_begun = state.get("begun", {}).get("time", "") == self._name
        is_writing = state["state"] == "writing"
        if not (is_begun or is_writing or self._has_written or any(layout.lost(self.group))):
            return
        levels = layout.levels_in(self.group, self.grid)
        for below, level in itertools.pairwise(levels):
            self._pool(layout.group_at(self.group, below), layout.group_at(self.group, level))
        sha256 = {
            path: layout.digests_of(self._longer(array))
            for path, array in layout.arrays_of(self.group, levels)
        }
        self._refuse_changes(state.get("sha256", {}), sha256)
        if is_begun:
            state = {**state, "state": "writing"}  # while its arrays grow, one by one
            _record(self.group, state)
            self._make_room()
            # Not in place: the group would write it with whatever it writes next.
            state = {**state, "steps": [*state["steps"], state["begun"]]}
            state.pop("begun")
        # At once: a scene that is complete always has the copies for xarray.
        _record(self.group, {**state, "state": "complete", "sha256": sha256}, self._sources())

    def _sources(self) -> dict[str, Any]:
        """The attribute geoemb:source_data: what is embedded at this time, and at others."""
        own = self._attributes.get(layout.SOURCES, [])
        there: Any = self.group.attrs.get(layout.SOURCES, [])
        sources = list(dict.fromkeys([*there, *own]))
        return {layout.SOURCES: sources} if sources else {}

    def _opened(self) -> zarr.Group:
        """The scene, made if it is not there, with the time to write."""
        out = self._out
        if out.exists() and not zarr_nodes.is_empty(out) and _holds_no_cell(out):
            files.delete_folder(out)
        if not out.exists() or zarr_nodes.is_empty(out):
            state: dict[str, Any] = {"version": layout.VERSION, "state": "writing"}
            state |= {"made": self._made, "steps": []}
            if not self._has_overviews:
                state["overviews"] = False
            attributes = {**self._attributes, layout.ATTRIBUTE: state}
            if self.codec.refiner is not None:
                attributes[refiner_array.ATTRIBUTE] = self.codec.refiner.fingerprint.hex()
            with files.writing_folder(out, overwrite=out.exists()) as folder:
                group = layout.create(
                    folder,
                    self.codec,
                    self.grid,
                    has_times=self._time is not None,
                    attributes=attributes,
                    has_overviews=self._has_overviews,
                )
                if self.codec.refiner is not None:
                    refiner_array.write_array(group, self.codec.refiner)
        remove_unfinished(out)
        node = zarr_nodes.open_node(out)
        if not isinstance(node, zarr.Group) or layout.state_of(node) is None:
            raise OutputError("exists, and is no scene: choose another place, or delete it first")
        group = zarr.open_group(out, mode="r+", use_consolidated=False)
        self._refuse_others(group)
        self._refuse_damage(group)
        self._begin(group)
        return zarr.open_group(out, mode="r+", use_consolidated=False)

    def _refuse_others(self, group: zarr.Group) -> None:
        """Raise InputError if the scene that is there is another than that to write."""
        state = layout.state_of(group) or {}
        there = layout.grid_of(group)
        if there != self.grid:
            raise InputError(
                f"has {_told(there)}, and the scene to write has {_told(self.grid)}: choose "
                "another place for it"
            )
        if (layout.array_in(group, "embedding").ndim == 4) != (self._time is not None):
            has = "no times: leave the time out" if self._time else "times: give that of the scene"
            raise InputError(f"has {has}; or choose another place")
        made: dict[str, Any] = state["made"]
        for name in sorted({*self._made, *made}):
            if made.get(name) != self._made.get(name):
                raise InputError(
                    f"was made with {name} {made.get(name)!r}, and now it is "
                    f"{self._made.get(name)!r}: give the same, or choose another place"
                )
        held, refiner = group.attrs.get(refiner_array.ATTRIBUTE), self.codec.refiner
        if refiner is None and held is not None:
            raise InputError(
                "was begun with a refiner, and now there is none: leave --no-refiner out, or "
                "choose another place"
            )
        if refiner is not None and held != refiner.fingerprint.hex():
            raise InputError(
                "was begun without a refiner, and now there is one: give --no-refiner, or choose "
                "another place"
                if held is None
                else "was begun with another refiner: give the model of before, or choose another "
                "place"
            )

    def _refuse_damage(self, group: zarr.Group) -> None:
        """Raise FileError if a member of the scene that is there cannot be opened, or is wrong."""
        state = layout.state_of(group) or {}
        coordinates = ("x", "y", *(("time",) if self._time else ()))
        for level in layout.levels_in(group, self.grid):
            own = layout.group_at(group, level)
            layout.array_in(own, "spatial_ref")
            for name in (*layout.OF_CELLS, *coordinates):
                layout.check_shape(layout.array_in(own, name), self.grid.coarser(level), state)
        for key, why in layout.misplaced(group):
            raise FileError(f"{key} {why}: {layout.REMEDY}")
        if self.codec.refiner is not None:
            try:
                zarr_nodes.open_node(group.store_path / refiner_array.GROUP)
                refiner_array.read_refiner(group)
            except FileError as error:
                raise FileError(
                    f"{refiner_array.ARRAY} is lost or damaged: {layout.REMEDY}"
                ) from error

    def _begin(self, group: zarr.Group) -> None:
        """Note what is embedded, if that is new. Until it is finished, no reader sees it.

        A time that was begun, and is now left for another or has other files, is deleted.
        """
        state = dict(layout.state_of(group) or {})
        name = self._name
        begun, step = state.get("begun"), {"time": name, **self._step}
        done = {one.get("time"): i for i, one in enumerate(state["steps"])}
        same = state["steps"][done[name]] if name in done else begun
        if same is not None and same != step and (name in done or name is None):
            raise InputError(
                "was written, or begun, with other files or settings for "
                f"{'this scene' if name is None else name} ({', '.join(_differing(same, step))}): "
                "give the same, choose another place, or delete it first"
            )
        is_growing = state["state"] == "writing" and bool(done)
        if begun is not None and begun != step and (name not in done or is_growing):
            warnings.warn(
                f"{self._out}: the embeddings of {begun['time']} were begun, and not complete: "
                "what was written of them is deleted",
                stacklevel=4,
            )
            state, begun = self._forget(group), None
        if self._time is not None:
            self._lead = (done.get(name, len(state["steps"])),)
        if begun is None and name not in done:
            self._refuse_too_many(group)
            _record(group, {**state, "begun": step})

    def _refuse_too_many(self, group: zarr.Group) -> None:
        """Raise InputError if no reader would take the arrays with the time that is written."""
        if zarr_nodes.count(self._array(group, "valid")) > zarr_nodes.MOST_SHARDS:
            raise InputError(
                "cannot have one more time: it would have more than "
                f"{zarr_nodes.MOST_SHARDS:,} shards, which is too many to be read: write this time "
                "to another place"
            )

    def _forget(self, group: zarr.Group) -> dict[str, Any]:
        """Delete what is written of a time that was begun; what was complete is so again.

        Returns the new state.
        """
        state = dict(layout.state_of(group) or {})
        count, store = len(state["steps"]), group.store_path.store
        for level in layout.levels_in(group, self.grid):
            own = layout.group_at(group, level)
            for name in (*layout.OF_CELLS, "time"):
                array = layout.array_in(own, name)
                if array.shape[0] > count:
                    array.resize((count, *array.shape[1:]))
                if name in layout.OF_CELLS:
                    place = zarr_nodes.key(array, (count, *(0,) * (array.ndim - 1)))
                    sync(store.delete_dir("/".join(place.split("/")[: 1 - array.ndim])))
        state.pop("begun", None)
        state["state"] = "complete" if count else "writing"
        _record(group, state)
        return state

    def _make_room(self) -> None:
        """Let the arrays have the time that was written, if they have not."""
        if self._time is None:
            return
        (number,) = self._lead
        for level in layout.levels_in(self.group, self.grid):
            own = layout.group_at(self.group, level)
            for name in (*layout.OF_CELLS, "time"):
                array = layout.array_in(own, name)
                if array.shape[0] <= number:
                    array.resize((number + 1, *array.shape[1:]))
            layout.array_in(own, "time")[number] = self._time.astype(np.int64)

    def _array(self, group: zarr.Group, name: str) -> zarr.Array:
        """An array of a level, with room for the time that is written."""
        return self._longer(layout.array_in(group, name))

    def _longer(self, array: zarr.Array) -> zarr.Array:
        """An array with room for the time that is written, which its metadata do not have yet."""
        if not self._lead or array.shape[0] > self._lead[0]:
            return array
        metadata: Any = replace(array.metadata, shape=(self._lead[0] + 1, *array.shape[1:]))
        return zarr.Array(zarr.AsyncArray(metadata, array.store_path))

    def _places(self, array: zarr.Array) -> list[tuple[int, ...]]:
        """The places of an array's shards, of the time that is written."""
        length = len(self._lead)
        return [place for place in zarr_nodes.places(array) if place[:length] == self._lead]

    def _key(self, array: zarr.Array, place: tuple[int, ...]) -> str:
        """The key of an array's shard at a place of `valid`."""
        return zarr_nodes.key(array, (*place, *(0,) * (array.ndim - len(place))))

    def _write(
        self,
        group: zarr.Group,
        part: Part,
        y: NDArray[np.float32],
        coverage: NDArray[np.uint8],
        valid: NDArray[np.bool_],
    ) -> None:
        """Write a part of a level; `valid` is written last."""
        place: Any = (*self._lead, *part)
        with zarr_nodes.settled():
            if valid.any():
                self._array(group, "embedding")[place] = y
            for name, values in (("coverage", coverage), ("valid", valid)):
                array = self._array(group, name).with_config({"write_empty_chunks": True})
                array[place] = values

    def _pool(self, below: zarr.Group, group: zarr.Group) -> None:
        """Write an overview: means over 2 x 2 cells of the level below."""
        source = {name: self._array(below, name) for name in layout.OF_CELLS}
        height, width = source["valid"].shape[-2:]
        array = self._array(group, "valid")
        for place in self._places(array):
            rows, columns = self._part(array, place)
            h, w = rows.stop - rows.start, columns.stop - columns.start
            total = np.zeros((h, w, self.codec.channels), np.float32)
            count, covered = np.zeros((h, w), np.uint8), np.zeros((h, w), np.uint16)
            for top in range(0, h, layout.CHUNK):  # in strips: a shard below takes 4 times as much
                last = min(h, top + layout.CHUNK)
                start, stop = 2 * (rows.start + top), min(height, 2 * (rows.start + last))
                strip: Any = (
                    *self._lead,
                    slice(start, stop),
                    slice(2 * columns.start, min(width, 2 * columns.stop)),
                )
                y, percent, valid = (np.asarray(source[n][strip]) for n in layout.OF_CELLS)
                for i, j in np.ndindex(2, 2):
                    one = y[i::2, j::2]
                    into = (slice(top, top + one.shape[0]), slice(0, one.shape[1]))
                    total[into] += np.where(valid[i::2, j::2, None], one, 0)
                    count[into] += valid[i::2, j::2]
                    covered[into] += percent[i::2, j::2]
            y = np.where(count[..., None] > 0, total / np.maximum(count, 1)[..., None], np.nan)
            self._write(
                group,
                (rows, columns),
                y.astype(np.float32),
                (np.maximum(covered // 4, covered > 0)).astype(np.uint8),
                count > 0,
            )

    def _refuse_changes(self, before: Mapping[str, str], now: Mapping[str, str]) -> None:
        """Raise FileError if a shard is not that which was finished: it would pass for one."""
        size = len(layout.NOT_STORED)
        for path, text in before.items():
            for i in range(0, len(text), size):
                if now.get(path, "")[i : i + size] != text[i : i + size]:
                    array = self._longer(layout.array_in(self.group, path))
                    key = zarr_nodes.key(array, zarr_nodes.place_at(array, i // size))
                    raise FileError(
                        f"{key} does not hold what it held when the scene was finished: copy the "
                        "scene again, or delete it and encode it again",
                        self._out,
                    )

    def _part(self, array: zarr.Array, place: tuple[int, ...]) -> Part:
        """The rows and columns of an array's shard."""
        sizes, sides = (array.shards or array.chunks)[-2:], array.shape[-2:]
        return tuple(  # type: ignore[return-value]
            slice(number * size, min((number + 1) * size, side))
            for number, size, side in zip(place[-2:], sizes, sides, strict=True)
        )

    def _place(self, array: zarr.Array, part: Part) -> tuple[int, ...]:
        """The place of an array's shard that holds a part."""
        sizes = (array.shards or array.chunks)[len(self._lead) :]
        own = (one.start // size for one, size in zip(part, sizes, strict=False))
        return (*self._lead, *own, *(0,) * (array.ndim - len(self._lead) - 2))


def _record(group: zarr.Group, state: dict[str, Any], others: Mapping[str, Any] = {}) -> None:
    """Write what a scene records of itself, and, if it is complete, the copies for xarray.

    `others` are further attributes.
    """
    attributes = {**group.attrs, **others, layout.ATTRIBUTE: state}
    if state["state"] == "complete":
        nodes = {name: node for name, node in group.members() if name != refiner_array.GROUP}
        group = zarr_nodes.with_copies(group, nodes)
    group.attrs.put(attributes)


def _differing(one: Any, other: Any) -> list[str]:
    """The names of what differs in two JSON objects, that of the innermost."""
    found = []
    for name in sorted({*one, *other}):
        own, its = one.get(name), other.get(name)
        if own != its:
            inner = isinstance(own, dict) and isinstance(its, dict)
            found += _differing(own, its) if inner else [name]
    return found


def _holds_no_cell(out: Path) -> bool:
    """Whether it is a scene that was begun, and no part of it was written: it is made anew."""
    node = zarr_nodes.open_node(out)
    state = layout.state_of(node) if isinstance(node, zarr.Group) else None
    if state is None or state["state"] == "complete" or state["steps"]:
        return False
    if {path.name for path in out.iterdir()} - _MEMBERS:
        return False
    return not any(zarr_nodes.sizes(out / name).keys() - {"zarr.json"} for name in layout.OF_CELLS)


def _told(grid: SceneGrid) -> str:
    height, width = grid.shape
    return f"{height} x {width} cells in {grid.bounds} ({grid.code or grid.crs})"


def _stored_bytes(array: zarr.Array, place: tuple[int, ...]) -> int:
    """The size of a shard in the store; 0 if it is not stored."""
    store, key = array.store_path.store, zarr_nodes.key(array, place)
    return sync(store.getsize(key)) if sync(store.exists(key)) else 0
