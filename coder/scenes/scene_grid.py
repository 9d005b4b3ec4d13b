"""`SceneGrid`: where the cells of a scene lie on the map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coder.errors import InputError

Bounds = tuple[float, float, float, float]
"""West, south, east, north, in map units."""
LARGEST, MOST = 1 << 24, 1 << 36
"""Cells on a side, and in all, at most: as many as the Earth has of 90 m. Bounds the work that a
wrong resolution, or hostile metadata, can ask for."""
_FINEST = 1 << 10  # steps of float64 in a cell, at least
_EDGE = 1e-6  # of a cell: a bound this close to a cell's border is on it


@dataclass(frozen=True)
class SceneGrid:
    """A north-up grid of cells.

    Attributes:
        crs: the coordinate reference system as WKT2.
        code: its code, such as "EPSG:32633"; None if it has none.
        transform: a, b, c, d, e, f: the corner (column, row) of a cell lies at
            (a column + b row + c, d column + e row + f). a > 0, e < 0, b = d = 0.
        shape: height and width in cells.
    """

    crs: str
    code: str | None
    transform: tuple[float, ...]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        a, b, _, d, e, _ = self.transform
        if not all(map(math.isfinite, self.transform)) or a <= 0 or e >= 0 or b or d:
            raise InputError(f"a transform of {self.transform}: give one that is north-up")
        if min(self.shape) < 1:
            raise InputError(f"a grid of {self.shape[0]} x {self.shape[1]} cells is empty")
        if max(self.shape) > LARGEST or self.shape[0] * self.shape[1] > MOST:
            raise InputError(
                f"a grid of {self.shape[0]:,} x {self.shape[1]:,} cells: a scene has at most "
                f"{LARGEST:,} on a side and {MOST:,} in all: make several of it"
            )
        farthest = max(map(abs, self.bounds))
        if not math.isfinite(farthest) or _FINEST * math.ulp(farthest) > min(a, -e):
            raise InputError(
                f"cells of {a:g} x {-e:g} map units at up to {farthest:g}: such numbers do not "
                "tell neighbours apart; is the transform right?"
            )

    @property
    def bounds(self) -> Bounds:
        """West, south, east and north edge, in map units."""
        a, _, c, _, e, f = self.transform
        height, width = self.shape
        return c, f + e * height, c + a * width, f

    @property
    def x(self) -> NDArray[np.float64]:
        """The x of the centre of each column, in map units: float64 [width]."""
        centres = np.arange(self.shape[1], dtype=np.float64) + 0.5
        return (self.transform[2] + self.transform[0] * centres).astype(np.float64)

    @property
    def y(self) -> NDArray[np.float64]:
        """The y of the centre of each row, in map units: float64 [height]."""
        centres = np.arange(self.shape[0], dtype=np.float64) + 0.5
        return (self.transform[5] + self.transform[4] * centres).astype(np.float64)

    def window(self, bounds: Sequence[float]) -> tuple[slice, slice]:
        """Rows and columns of the cells of which bounds contain a part.

        Args:
            bounds: west, south, east, north, in map units.

        Raises InputError: no such bounds, or they lie outside the grid.
        """
        if len(bounds) != 4 or not all(map(math.isfinite, bounds)):
            raise InputError(f"bounds are {tuple(bounds)}: give west, south, east, north")
        west, south, east, north = bounds
        if west >= east or south >= north:
            raise InputError(
                f"bounds {tuple(bounds)} are empty: west must be below east, south below north"
            )
        a, _, c, _, e, f = self.transform
        rows = _covered((north - f) / e, (south - f) / e, self.shape[0])
        columns = _covered((west - c) / a, (east - c) / a, self.shape[1])
        if rows.start >= rows.stop or columns.start >= columns.stop:
            raise InputError(
                f"bounds {tuple(bounds)} lie outside the scene, whose bounds are {self.bounds}: "
                "give them in the units of its coordinate reference system"
            )
        return rows, columns

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of the cell that holds a point in map units.

        Raises InputError: the point lies outside the grid.
        """
        a, _, c, _, e, f = self.transform
        row, column = (y - f) / e, (x - c) / a
        height, width = self.shape
        if not (0 <= row < height and 0 <= column < width):
            raise InputError(
                f"the point ({x:.10g}, {y:.10g}) lies outside the scene, whose bounds are "
                f"{self.bounds}: give it in the units of its coordinate reference system"
            )
        return int(row), int(column)

    def part(self, rows: slice, columns: slice) -> "SceneGrid":
        """The grid of some rows and columns, slices without a step."""
        top, bottom, _ = rows.indices(self.shape[0])
        left, right, _ = columns.indices(self.shape[1])
        a, b, c, d, e, f = self.transform
        moved = (a, b, c + a * left, d, e, f + e * top)
        return replace(self, transform=moved, shape=(bottom - top, right - left))

    def coarser(self, factor: int) -> "SceneGrid":
        """The grid of cells of factor x factor of these; the last may reach beyond the edge."""
        a, b, c, d, e, f = self.transform
        height, width = (-(-side // factor) for side in self.shape)
        return replace(self, transform=(a * factor, b, c, d, e * factor, f), shape=(height, width))


def _covered(first: float, last: float, side: int) -> slice:
    """The cells between two places, of which at least `_EDGE` of a cell lies between them."""
    return slice(max(0, math.floor(first + _EDGE)), min(side, math.ceil(last - _EDGE)))
