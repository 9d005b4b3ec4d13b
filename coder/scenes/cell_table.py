"""Write the cells of a scene as GeoParquet 1.1: a row for each cell that has an embedding."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coder import files
from coder.errors import InputError
from coder.scenes.scene_grid import SceneGrid
from coder.scenes.scene_part import ScenePart, origin

if TYPE_CHECKING:
    import pyarrow

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_POLYGON = np.dtype(
    [("order", "u1"), ("type", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("ring", "<f8", (5, 2))]
)
"""A polygon of one ring of five points as WKB, little-endian."""


def write_table(parts: Sequence[ScenePart], out: Path, *, overwrite: bool = False) -> None:
    """Write a table of the cells of a scene, with a row group for each strip of them.

    The columns are `geometry` (the cell's outline as WKB, in the scene's coordinate reference
    system), `bbox`, `x` and `y` (its centre, map units), `row`, `column`, `coverage` (percent of
    its pixels that are valid), `time` (UTC) if the scene has times, and `embedding`, a list of
    fixed size.

    Args:
        parts: windows of one scene, one for each time.
        out: the file.
        overwrite: whether to replace a file.

    Raises:
        ModuleNotFoundError: pyarrow or rasterio is missing.
        InputError: no cell has an embedding, or the coordinate reference system has no PROJJSON.
        OutputError: the file cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Parquet needs pyarrow: install nec-jax[parquet]") from error
    about = {"geo": json.dumps(_geo(parts)), "nec": json.dumps(origin(parts[0].scene))}
    with files.writing(out, overwrite=overwrite) as file, ExitStack() as stack:
        writer = None
        for columns in (one for part in parts for one in _strips(part)):
            table = pyarrow.table(columns, metadata=about)
            if writer is None:
                writer = parquet.ParquetWriter(
                    file, table.schema, compression="zstd", write_page_checksum=True
                )
                stack.enter_context(writer)
            writer.write_table(table, row_group_size=max(1, table.num_rows))


def _strips(part: ScenePart) -> Iterator[dict[str, "pyarrow.Array"]]:
    """The columns of the cells of each strip that has any."""
    import pyarrow

    grid = part.scene.grid_at(part.level)
    for rows in part.strips():
        y = part.read(rows)
        places = np.argwhere(~np.isnan(y[..., 0]))
        if not len(places):
            continue
        row, column = places[:, 0] + rows.start, places[:, 1] + part.columns.start
        sides = _sides(grid, row, column)
        columns: dict[str, Any] = {
            "geometry": _polygons(sides),
            "bbox": pyarrow.StructArray.from_arrays(list(map(pyarrow.array, sides)), _SIDES),
            "x": pyarrow.array(grid.x[column]),
            "y": pyarrow.array(grid.y[row]),
            "row": pyarrow.array(row.astype(np.int32)),
            "column": pyarrow.array(column.astype(np.int32)),
            "coverage": pyarrow.array(part.coverage(rows)[tuple(places.T)]),
        }
        if part.scene.times is not None:
            time = np.full(len(places), part.scene.times[part.time])
            columns["time"] = pyarrow.array(time, pyarrow.timestamp("us", "UTC"))
        own = y[tuple(places.T)]
        columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(own.reshape(-1)), own.shape[1]
        )
        yield columns


def _sides(
    grid: SceneGrid, row: NDArray[np.intp], column: NDArray[np.intp]
) -> tuple[NDArray[np.floating], ...]:
    """West, south, east and north of cells [n] each; cells side by side have the same."""
    a, _, c, _, e, f = grid.transform
    return c + a * column, f + e * (row + 1), c + a * (column + 1), f + e * row


def _polygons(sides: tuple[NDArray[np.floating], ...]) -> "pyarrow.Array":
    """The outlines of cells as WKB, counter-clockwise from the south-west."""
    import pyarrow

    west, south, east, north = sides
    found = np.zeros(len(west), _POLYGON)
    found["order"], found["type"], found["rings"], found["points"] = 1, 3, 1, 5
    for i, (x, y) in enumerate(
        ((west, south), (east, south), (east, north), (west, north), (west, south))
    ):
        found["ring"][:, i, 0], found["ring"][:, i, 1] = x, y
    ends = np.arange(len(found) + 1, dtype=np.int32) * _POLYGON.itemsize
    buffers = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(found.tobytes())]
    return pyarrow.BinaryArray.from_buffers(pyarrow.binary(), len(found), buffers)


def _geo(parts: Sequence[ScenePart]) -> dict[str, Any]:
    """The metadata of GeoParquet."""
    return {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "geometry_types": ["Polygon"],
                "crs": _projjson(parts[0].grid.crs),
                "orientation": "counterclockwise",
                "bbox": _extent(parts),
                "covering": {"bbox": {side: ["bbox", side] for side in _SIDES}},
            }
        },
    }


def _extent(parts: Sequence[ScenePart]) -> list[float]:
    """West, south, east and north of all cells with an embedding. Raises InputError: none has."""
    valid = np.any([part.valid() for part in parts], axis=0)
    rows, columns = (np.flatnonzero(valid.any(axis)) for axis in (1, 0))
    if not len(rows):
        raise InputError("no cell of the window has an embedding: give other bounds")
    own = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return [float(side) for side in parts[0].grid.part(*own).bounds]


def _projjson(crs: str) -> dict[str, Any]:
    """A coordinate reference system as PROJJSON."""
    try:
        from rasterio.crs import CRS
        from rasterio.errors import CRSError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("GeoParquet needs rasterio: install nec-jax[scenes]") from error
    try:
        found = CRS.from_wkt(crs).to_dict(projjson=True)
    except CRSError as error:
        raise InputError(
            f"the scene's coordinate reference system has no PROJJSON ({error}), which GeoParquet "
            "needs: export a GeoTIFF"
        ) from error
    if "type" not in found:
        raise InputError(
            "the scene's coordinate reference system has no PROJJSON, which GeoParquet needs: "
            "export a GeoTIFF"
        )
    return found
