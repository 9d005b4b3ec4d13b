"""Read columns of a Parquet file, in batches: vectors, tensors, and numbers."""

import io
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coder.embedding_files.array_views import Place, all_slices
from coder.errors import FileError, InputError, about
from coder.format.file_kinds import SAVE

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

_BATCH = 1 << 23  # bytes of a batch of vectors, about
_ROWS = 1 << 13  # of a batch, at most
_LISTS = "lists of numbers"


def open_parquet(path: Path, **options: Any) -> "ParquetFile":
    """Open a Parquet file.

    Raises:
      ModuleNotFoundError: pyarrow is missing.
      FileError: it is damaged.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        message = "Parquet files need pyarrow: install nec-jax[parquet]"
        raise ModuleNotFoundError(message) from error
    # Opened here: pyarrow takes no names that are not UTF-8, and reads keys out of folders' names.
    with path.open("rb") as file:
        whole = pyarrow.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        opened = parquet.ParquetFile(
            pyarrow.BufferReader(whole), page_checksum_verification=True, **options
        )
        _ = opened.schema_arrow.names  # which may be no UTF-8
        return opened
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(error) from error


def damaged(error: Exception) -> FileError:
    """The error of a file that pyarrow cannot read."""
    return FileError(f"a damaged Parquet file ({error}): copy it again")


class Rows:
    """The rows of some columns of a Parquet file, from any row on; best read in order.

    Memory holds one batch. Going back reads a row group again from its beginning.

    Attributes:
      groups: the first row of each row group, and the number of rows.
    """

    def __init__(self, file: "ParquetFile", columns: list[str], batch: int):
        self._file, self._columns, self._batch = file, columns, batch
        metadata = file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.groups = np.cumsum([0, *sizes])
        self._batches: Iterator[Any] = iter(())
        self._held: Any = None
        self._group, self._first, self._end = -1, 0, 0

    def read(self, start: int, stop: int) -> Iterator[tuple[int, "pyarrow.RecordBatch"]]:
        """Rows `start` to `stop` in parts, each with the number of its first row.

        Raises FileError: the file is damaged.
        """
        import pyarrow

        while start < stop:
            try:
                self._go_to(start)
            except (pyarrow.ArrowException, OSError) as error:
                raise damaged(error) from error
            part = self._held.slice(start - self._first, stop - start)
            yield start, part
            start += part.num_rows

    def _go_to(self, row: int) -> None:
        """Hold the batch that has a row."""
        group = int(np.searchsorted(self.groups, row, "right")) - 1
        if group != self._group or row < self._first:
            self._group = group
            self._first = self._end = int(self.groups[group])
            self._batches = self._file.iter_batches(
                self._batch, row_groups=[group], columns=self._columns
            )
        while not self._first <= row < self._end:
            held = next(self._batches, None)
            if held is None:
                raise FileError(
                    f"a damaged Parquet file (its row group {group} ends early): copy it again"
                )
            self._held = held
            self._first, self._end = self._end, self._end + self._held.num_rows


class ParquetNumbers:
    """A column of numbers [N]; a null is masked."""

    def __init__(self, file: "ParquetFile", name: str):
        from pyarrow import types

        kind = file.schema_arrow.field(name).type
        if not (types.is_floating(kind) or types.is_integer(kind)):
            raise InputError(f"column {name} holds {kind}, not a number for each row")
        self.shape, self.ndim = (file.metadata.num_rows,), 1
        self.dtype = np.dtype(kind.to_pandas_dtype())
        self.nbytes = self.shape[0] * self.dtype.itemsize
        self._rows = Rows(file, [name], _ROWS)

    def __getitem__(self, place: Place) -> NDArray[Any]:
        (rows,) = all_slices(place, self.shape)
        parts = [np.ma.masked_array(np.empty(0, self.dtype))]
        for _, batch in self._rows.read(rows.start, rows.stop):
            column = batch.column(0)
            missing = column.is_null().to_numpy(zero_copy_only=False)
            values = column.fill_null(0).to_numpy(zero_copy_only=False)
            parts.append(np.ma.masked_array(values, missing))
        return np.ma.concatenate(parts)


class ParquetColumn:
    """A column of vectors or tensors, [N, ...]; a null is masked.

    Attributes:
      path: of the file.
      name: of the column.
      file: it, opened.
    """

    def __init__(self, path: Path, column: str | None):
        """Open it, and look at the first row that is not null.

        Args:
          path: a Parquet file.
          column: of lists of one length, or of tensors; None for the only one of these.

        Raises:
          FileError: the file is damaged.
          InputError: no such column, none of vectors, or several.
        """
        self.path, self.file = path, open_parquet(path)
        self.name = _column(self.file.schema_arrow, column)
        self._what = f"column {self.name}"
        count = self.file.metadata.num_rows
        first = self._first(count)
        self.shape, self.dtype = (count, *first.shape[1:]), first.dtype
        self.ndim = len(self.shape)
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        self.nbytes = count * row
        self.batch = max(1, min(_ROWS, _BATCH // max(1, row)))
        self.chunks = (max(1, min(self.batch, count)), *self.shape[1:])
        self._rows = Rows(self.file, [self.name], self.batch)

    def _first(self, count: int) -> NDArray[Any]:
        """The first row that is not null, as [1, ...]."""
        for start, batch in Rows(self.file, [self.name], 64).read(0, count):
            column = batch.column(0)
            there = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            if len(there):
                row = int(there[0])
                return _dense(self._what, column.slice(row, 1), np.array([start + row]))
        if count:
            raise InputError(f"{self._what} is null in all rows: there is nothing to code")
        return np.empty((0, 0), np.float32)

    def changed_types(self) -> list[str]:
        """What to say of other columns whose type Arrow does not have, nor does a coded table."""
        before, after = logical_types(self.file), logical_types(empty(self.file.schema_arrow))
        names = {path.partition(".")[0] for path in before if before[path] != after.get(path)}
        named = {self.name, self.name.partition(".")[0]}
        return [
            f"column {name} has a type that Arrow does not have ({before[path]}): a coded table "
            f"keeps it as {after.get(path, 'another type')}"
            for path in before
            if (name := path.partition(".")[0]) in names - named and before[path] != after.get(path)
        ]

    def __getitem__(self, place: Place) -> NDArray[Any]:
        with about(self.path):
            return self._part(place)

    def _part(self, place: Place) -> NDArray[Any]:
        rows, *rest = all_slices(place, self.shape)
        shape = (rows.stop - rows.start, *self.shape[1:])
        found, missing = np.zeros(shape, self.dtype), np.zeros(shape[0], bool)
        for start, batch in self._rows.read(rows.start, rows.stop):
            column, at = batch.column(0), start - rows.start
            there = column.is_valid().to_numpy(zero_copy_only=False)
            places = np.flatnonzero(there)
            missing[at : at + len(there)] = ~there
            if not len(places):
                continue
            values = _dense(self._what, column.drop_null(), start + places)
            if values.shape[1:] != self.shape[1:]:
                raise InputError(
                    f"{self._what} does not hold lists of one length: those of row {start} on are "
                    f"{list(values.shape[1:])}, those before {list(self.shape[1:])}"
                )
            found[at + places] = values
        part = found[(slice(None), *rest)]
        if not missing.any():
            return part
        hidden = missing.reshape(-1, *(1,) * (part.ndim - 1))
        return np.ma.masked_array(part, np.broadcast_to(hidden, part.shape).copy())


def empty(schema: "pyarrow.Schema") -> "ParquetFile":
    """A Parquet file without rows, as it is written with a schema of Arrow."""
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.ParquetWriter(file, schema.remove_metadata()).close()
    return parquet.ParquetFile(file)


def logical_types(file: "ParquetFile") -> dict[str, str]:
    """The kind of each column that Parquet has of a table, by its path: `Interval`, `bytes`.

    Plain numbers have one kind, whether the file names it or not.
    """
    found = {}
    for i in range(len(file.schema)):
        column = file.schema.column(i)
        kind = str(column.logical_type).partition("(")[0]
        is_plain = kind in ("None", "Int") or column.physical_type == "INT96"
        found[column.path] = "bytes" if "BYTE" in column.physical_type else "number"
        if not is_plain:
            found[column.path] = kind
        elif column.physical_type == "INT96":
            found[column.path] = "Timestamp"
    return found


def has_column(path: Path, name: str) -> bool:
    """Whether a Parquet file has a column of this name. Raises FileError as `open_parquet`."""
    return name in open_parquet(path).schema_arrow.names


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
            f"no column holds {_LISTS}, but {held}{', ...' * (len(schema) > 4)}: if each "
            f"column is a dimension, make one array [N, D] of them (to_numpy in pandas); {SAVE}"
        )
    if (count := schema.names.count(column)) != 1:
        raise InputError(f"{count} columns are called {column}: {', '.join(schema.names)}")
    if column not in lists:
        others = f"--column, one of {', '.join(lists)}" if lists else f"no column does; {SAVE}"
        raise InputError(
            f"column {column} holds {schema.field(column).type}, not {_LISTS}: {others}"
        )
    return column


def _is_list(type_: Any) -> bool:
    import pyarrow as pa

    lists = (pa.ListType, pa.LargeListType, pa.ListViewType, pa.LargeListViewType)
    return isinstance(type_, (*lists, pa.FixedSizeListType, pa.FixedShapeTensorType))


def _dense(what: str, values: Any, numbers: NDArray[np.intp]) -> NDArray[Any]:
    """Rows that are not null, as [N, ...]; `numbers` are those of the rows in the file."""
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
            row = numbers[place // math.prod(sides[1:])]
            raise InputError(
                f"{what} has {values.null_count} nulls within vectors, the first in row {row}: "
                "make those vectors null as a whole, or leave the rows out (table.filter)"
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
