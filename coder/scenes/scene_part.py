"""`ScenePart`: a window of a scene at one level and time, read in strips for other formats."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder.errors import InputError
from coder.scenes.scene_grid import SceneGrid
from coder.scenes.scene_layout import ATTRIBUTE, CHUNK
from coder.scenes.scene_reader import Scene

_STRIP = 1 << 24  # bytes of the embeddings of a strip, about
_OF_STORAGE = ("zarr_conventions", "coordinates", "multiscales", "spatial:", "proj:")


@dataclass(frozen=True)
class ScenePart:
    """Some rows and columns of a scene.

    Attributes:
        scene: the scene.
        rows, columns: slices with a start and a stop, in cells of the level.
        level: the factor of an overview; 1 for the cells themselves.
        time: the number of a time; None if the scene has none.
    """

    scene: Scene
    rows: slice
    columns: slice
    level: int = 1
    time: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in cells."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def grid(self) -> SceneGrid:
        """Where the cells of the part lie."""
        return self.scene.grid_at(self.level).part(self.rows, self.columns)

    def strips(self) -> Iterator[slice]:
        """The rows of the part in strips of whole chunks, each of some 16 MB or one chunk high."""
        row = CHUNK * 4 * self.shape[1] * self.scene.codec.channels
        height = CHUNK * max(1, min(16, _STRIP // row))
        start = self.rows.start
        while start < self.rows.stop:
            stop = min(self.rows.stop, (start // height + 1) * height)
            yield slice(start, stop)
            start = stop

    def read(self, rows: slice) -> NDArray[np.float32]:
        """The embeddings of a strip: float32 [h, w, D], NaN where there is none."""
        return self.scene.read(rows, self.columns, level=self.level, time=self.time)

    def valid(self, rows: slice | None = None) -> NDArray[np.bool_]:
        """Which cells of a strip, or of all, have an embedding: bool [h, w]."""
        return self.scene.valid(rows or self.rows, self.columns, level=self.level, time=self.time)

    def coverage(self, rows: slice) -> NDArray[np.uint8]:
        """Percent of the valid pixels of each cell of a strip: uint8 [h, w]."""
        return self.scene.coverage(rows, self.columns, level=self.level, time=self.time)


def part_of(
    scene: Scene,
    bounds: Sequence[float] | None = None,
    *,
    level: int = 1,
    time: int | None = None,
) -> ScenePart:
    """The cells of a scene of which bounds contain a part; all if they are not given.

    Args:
        scene: the scene.
        bounds: west, south, east, north, in map units.
        level: the factor of an overview.
        time: the number of a time. It may be left out if the scene has one time alone.

    Raises InputError: no such bounds, level or time; or no time of several is given.
    """
    grid = scene.grid_at(level)
    if bounds is None:
        rows, columns = (slice(0, side) for side in grid.shape)
    else:
        rows, columns = grid.window(bounds)
    if scene.times is not None and time is None and len(scene.times) == 1:
        time = 0
    if scene.times is not None and time is None:
        raise InputError(
            f"the scene has {len(scene.times)} times: give one of {listed_times(scene)}"
        )
    scene.valid(slice(0, 0), slice(0, 0), level=level, time=time)  # refuses no such time
    return ScenePart(scene, rows, columns, level, time)


def time_number(scene: Scene, time: datetime) -> int:
    """The number of a time (in UTC, without an offset). Raises InputError: the scene lacks it."""
    if scene.times is None:
        raise InputError("the scene has no times: leave the time out")
    found = np.flatnonzero(scene.times == np.datetime64(time, "us"))
    if not len(found):
        raise InputError(
            f"the scene has no time {np.datetime64(time, 'us')}Z: it has {listed_times(scene)}"
        )
    return int(found[0])


def listed_times(scene: Scene) -> str:
    """The first times of a scene, as text."""
    times = [] if scene.times is None else [f"{time}Z" for time in scene.times[:4]]
    more = "" if scene.times is None or len(scene.times) <= len(times) else ", .."
    return ", ".join(times) + more


def origin(scene: Scene) -> dict[str, Any]:
    """What made a scene, as JSON: its attributes without those of its storage."""
    kept = {name: value for name, value in scene.facts.items() if not name.startswith(_OF_STORAGE)}
    state = kept.get(ATTRIBUTE)
    if isinstance(state, dict):
        kept[ATTRIBUTE] = {name: value for name, value in state.items() if name != "sha256"}
    return kept | {"refined": scene.is_refined}
