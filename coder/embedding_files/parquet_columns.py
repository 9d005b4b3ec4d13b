"""Read a column of a Parquet file that holds embeddings."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coder.errors import FileError, InputError
from coder.format.file_kinds import SAVE

if TYPE_CHECKING:
    import pyarrow


def read_parquet(path: Path, column: str | None) -> np.ndarray:
    """A column as an array [N, ...]. Raises FileError or InputError as `open_embeddings`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        message = "Parquet files need pyarrow: install nec-jax[parquet]"
        raise ModuleNotFoundError(message) from error
    # Opened here: pyarrow takes no names that are not UTF-8, and reads keys out of folders' names.
    with path.open("rb") as file:
        try:
            table = parquet.ParquetFile(file, page_checksum_verification=True)
            name = _column(table.schema_arrow, column)
            values = table.read(columns=[name]).column(name)
        except (pyarrow.ArrowException, OSError) as error:
            raise FileError(f"a damaged Parquet file ({error}): copy it again") from error
    parts, row = [], 0
    for chunk in values.chunks:
        if len(chunk):
            parts.append(_rows(f"column {name}", chunk, row))
        row += len(chunk)
    if len(shapes := sorted({part.shape[1:] for part in parts})) > 1:
        raise InputError(f"column {name} does not hold lists of one length: {shapes}")
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def _column(schema: "pyarrow.Schema", column: str | None) -> str:
    """The column asked for, or the only one that may hold embeddings."""
    lists = [field.name for field in schema if _is_list(field.type)]
    if column is None:
        if len(lists) == 1:
            return lists[0]
        if lists:
            raise InputError(f"which column? --column, one of {', '.join(lists)}")
        held = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:4])
        raise InputError(
            f"no column holds lists of numbers, but {held}{', ...' * (len(schema) > 4)}: if each "
            f"column is a dimension, make one array [N, D] of them (to_numpy in pandas); {SAVE}"
        )
    if (count := schema.names.count(column)) != 1:
        raise InputError(f"{count} columns are called {column}: {', '.join(schema.names)}")
    if column not in lists:
        others = f"--column, one of {', '.join(lists)}" if lists else f"no column does; {SAVE}"
        raise InputError(
            f"column {column} holds {schema.field(column).type}, not lists of numbers: {others}"
        )
    return column


def _is_list(type_: Any) -> bool:
    import pyarrow as pa

    lists = (pa.ListType, pa.LargeListType, pa.ListViewType, pa.LargeListViewType)
    return isinstance(type_, (*lists, pa.FixedSizeListType, pa.FixedShapeTensorType))


def _rows(what: str, values: Any, row: int) -> np.ndarray:
    """A chunk of a column as [N, ...]; `row` is the number of its first row in the file."""
    from pyarrow import FixedShapeTensorType, types

    sides, rest = [len(values)], None
    if isinstance(values.type, FixedShapeTensorType):
        rest = values.type.shape
        if values.type.permutation not in (None, list(range(len(rest)))):
            raise InputError(f"{what} holds permuted tensors: {SAVE}")
        values = values.storage
    while True:
        if values.null_count:
            place = int(values.is_null().to_numpy(zero_copy_only=False).argmax())
            at = row + place // math.prod(sides[1:])
            raise InputError(
                f"{what} has {values.null_count} nulls, the first in row {at}: leave those rows "
                "out (table.filter)"
            )
        if not _is_list(values.type):
            break
        lengths = values.value_lengths().unique()
        if len(lengths) != 1 or not lengths[0].as_py():
            raise InputError(
                f"{what} does not hold lists of one length: "
                f"{', '.join(str(length) for length in lengths[:4])} ..."
            )
        sides.append(lengths[0].as_py())
        values = values.flatten()
    if not (types.is_floating(values.type) or types.is_integer(values.type)):
        raise InputError(f"{what} holds lists of {values.type}, not of numbers")
    shape = sides if rest is None else [sides[0], *rest]
    if len(shape) == 3:
        raise InputError(
            f"{what} holds rows of {shape[1]} x {shape[2]}, whose grid is unknown: "
            f"make grids [N, H, W, D] of them, and {SAVE}"
        )
    return values.to_numpy(zero_copy_only=False).reshape(shape)
