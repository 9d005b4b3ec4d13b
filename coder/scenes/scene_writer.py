"""`SceneWriter`: write a scene shard by shard; opened again, it goes on."""

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
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

        Raises CodecError: a codec of several qualities, or with a class token.
        """
        if not isinstance(codec, OneQualityCodec) or codec.class_token:
            raise CodecError("a scene has one quality and no class token: codec.at().split()[0]")
        self.codec, self.grid = codec, grid
        self._out, self._made, self._step = Path(out), dict(made), dict(step)
        self._attributes = dict(attributes or {})
        self._time = None if time is None else time.astype("datetime64[us]")
        self._stack = ExitStack()
        self._lead: tuple[int, ...] = ()  # the number of the time, if there are times

    def __enter__(self) -> "SceneWriter":
        with self._stack as stack, about(self._out):
            stack.enter_context(locked(self._out))
            self.group = self._opened()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @property
    def time_number(self) -> int:
        """The number of the time that is written. Raises IndexError if the scene has none."""
        return self._lead[0]

    def missing(self) -> list[Part]:
        """The parts that are not written, row by row."""
        valid = layout.array_in(self.group, "valid")
        there = zarr_nodes.stored(valid)
        return [
            self._part(valid, place)
            for place in zarr_nodes.places(valid)
            if place[: len(self._lead)] == self._lead and place not in there
        ]

    def write(self, part: Part, y: NDArray[np.float32], coverage: NDArray[np.uint8]) -> int:
        """Write one of `missing()`. Returns the bytes that it has in the store.

        Args:
            part: rows and columns.
            y: [h, w, D], all NaN where a cell has no embedding.
            coverage: [h, w], percent of each cell's pixels that are valid.

        Raises InputError: another shape, NaN in a part of a cell's channels, or infinity.
        """
        self._write(self.group, part, y, coverage, np.asarray(~np.isnan(y).all(-1)))
        arrays = (layout.array_in(self.group, name) for name in layout.OF_CELLS)
        return sum(_stored_bytes(array, self._place(array, part)) for array in arrays)

    def finish(self) -> None:
        """Write the overviews, and mark the scene as complete.

        Raises FileError: a part is not written, of this time or of another; the message says which.
        """
        if rest := self.missing():
            raise FileError(f"{len(rest)} parts of the scene are not written", self._out)
        levels = layout.levels_of(self.grid.shape)
        for below, level in itertools.pairwise(levels):
            self._pool(layout.group_at(self.group, below), layout.group_at(self.group, level))
        self._refuse_unwritten(levels)
        sha256 = {
            path: layout.digests_of(array) for path, array in layout.arrays_of(self.group, levels)
        }
        state = layout.state_of(self.group) or {}
        complete = {**state, "state": "complete", "sha256": sha256}
        nodes = {name: node for name, node in self.group.members() if name != refiner_array.GROUP}
        copied = zarr_nodes.with_copies(self.group, nodes)
        copied.attrs.put({**self.group.attrs, layout.ATTRIBUTE: complete})

    def _opened(self) -> zarr.Group:
        """The scene, made if it is not there, with the time to write."""
        out = self._out
        if not out.exists() or zarr_nodes.is_empty(out):
            state = {"version": layout.VERSION, "state": "writing", "made": self._made, "steps": []}
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
                )
                if self.codec.refiner is not None:
                    refiner_array.write_array(group, self.codec.refiner)
        remove_unfinished(out)
        node = zarr_nodes.open_node(out)
        if not isinstance(node, zarr.Group) or layout.state_of(node) is None:
            raise OutputError("exists, and is no scene: choose another place, or delete it first")
        group = zarr.open_group(out, mode="r+", use_consolidated=False)
        self._refuse_others(group)
        self._begin(group)
        return group

    def _refuse_others(self, group: zarr.Group) -> None:
        """Raise InputError if the scene that is there is another than that to write."""
        state = layout.state_of(group) or {}
        there = layout.grid_of(group)
        if there != self.grid:
            raise InputError(
                f"has {_told(there)}, and the scene to write has {_told(self.grid)}: choose "
                "another place for it"
            )
        if ("time" in group) != (self._time is not None):
            text = "has times: give the time of the scene" if "time" in group else "has no times"
            raise InputError(f"{text}; or choose another place")
        made: dict[str, Any] = state["made"]
        for name in sorted({*self._made, *made}):
            if made.get(name) != self._made.get(name):
                raise InputError(
                    f"was made with {name} {made.get(name)!r}, and now it is "
                    f"{self._made.get(name)!r}: give the same, or choose another place"
                )

    def _begin(self, group: zarr.Group) -> None:
        """Make room for the time to write, if it is new, and note what is embedded."""
        state = dict(layout.state_of(group) or {})
        steps, names = list(state["steps"]), [one.get("time") for one in state["steps"]]
        name = None if self._time is None else str(self._time)
        if name in names:
            number = names.index(name)
            if steps[number] != {"time": name, **self._step}:
                raise InputError(
                    "was written, or begun, with other files or settings for "
                    f"{'this scene' if name is None else name}: give the same, or choose another "
                    "place"
                )
        else:
            number = len(steps)
            steps.append({"time": name, **self._step})
        if self._time is not None:
            self._lead = (number,)
        is_new = name not in names
        if is_new or self.missing_in(group):
            # Readers refuse it from here on, until it is finished.
            state |= {"state": "writing", "steps": steps}
            group.attrs.put({**group.attrs, layout.ATTRIBUTE: state})
        if self._time is not None:
            self._make_room(group, number)

    def missing_in(self, group: zarr.Group) -> bool:
        """Whether a part of the time to write is not in the store."""
        valid = layout.array_in(group, "valid")
        if self._lead and valid.shape[0] <= self._lead[0]:
            return True
        return len([p for p in zarr_nodes.stored(valid) if p[: len(self._lead)] == self._lead]) < (
            len([p for p in zarr_nodes.places(valid) if p[: len(self._lead)] == self._lead])
        )

    def _make_room(self, group: zarr.Group, number: int) -> None:
        assert self._time is not None
        for level in layout.levels_of(self.grid.shape):
            own = layout.group_at(group, level)
            for name in (*layout.OF_CELLS, "time"):
                array = layout.array_in(own, name)
                if array.shape[0] <= number:
                    array.resize((number + 1, *array.shape[1:]))
            layout.array_in(own, "time")[number] = self._time.astype(np.int64)

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
                layout.array_in(group, "embedding")[place] = y
            layout.array_in(group, "coverage")[place] = coverage
            array = layout.array_in(group, "valid")
            array.with_config({"write_empty_chunks": True})[place] = valid

    def _pool(self, below: zarr.Group, group: zarr.Group) -> None:
        """Write an overview: means over 2 x 2 cells of the level below."""
        source = {name: layout.array_in(below, name) for name in layout.OF_CELLS}
        height, width = source["valid"].shape[-2:]
        array = layout.array_in(group, "valid")
        for place in zarr_nodes.places(array):
            if place[: len(self._lead)] != self._lead:
                continue
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
                (covered // 4).astype(np.uint8),
                count > 0,
            )

    def _refuse_unwritten(self, levels: tuple[int, ...]) -> None:
        """Raise FileError if a shard is missing, of any time or level."""
        for level in levels:
            valid = layout.array_in(layout.group_at(self.group, level), "valid")
            rest = set(zarr_nodes.places(valid)) - zarr_nodes.stored(valid)
            if rest and self._lead:
                number = min(rest)[0]
                steps = (layout.state_of(self.group) or {})["steps"]
                raise FileError(
                    f"the embeddings of {steps[number]['time']} are not complete: encode these "
                    "again, then this time again",
                    self._out,
                )
            if rest:
                raise FileError(f"{zarr_nodes.key(valid, min(rest))} is not written", self._out)

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


def _told(grid: SceneGrid) -> str:
    height, width = grid.shape
    return f"{height} x {width} cells in {grid.bounds} ({grid.code or grid.crs})"


def _stored_bytes(array: zarr.Array, place: tuple[int, ...]) -> int:
    """The size of a shard in the store; 0 if it is not stored."""
    store, key = array.store_path.store, zarr_nodes.key(array, place)
    data = sync(store.get(key, default_buffer_prototype()))
    return 0 if data is None else len(data)
