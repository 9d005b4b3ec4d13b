"""Parquet tables whose vectors are coded: one blob for a run of rows, all other columns as they are.

| column | type | content |
| --- | --- | --- |
| `NAME` | dictionary of binary | the blob that has the row's vector, in each row of its run; null where there is no vector |
| `NAME_place` | int32 | the number of the vector in the blob; null as above. Not there if each row has a blob of its own |

Parquet stores each blob of a row group once, in the dictionary of the column. So every row can be
decoded by itself, also after a query has dropped or sorted rows. The file's key `nec_codec` is the
codec's file in base 64, `nec` says how the table was made (JSON).
"""  # noqa: E501

import base64
import binascii
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder import codecs
from coder.codecs import OneQualityCodec
from coder.embedding_files.chunk_parts import aimed_chunk, checked_part
from coder.embedding_files.parquet_columns import ParquetColumn, Rows, empty, open_parquet
from coder.errors import BlobError, CorruptBlob, FileError, InputError, about
from coder.refiner import Refiner

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import FileMetaData

CODEC, RECORD = "nec_codec", "nec"
"""The keys of the file that hold the codec, and the record of how the table was made."""
VERSION = 1
ROWS_PER_BLOB = 256
"""Rows that share a blob, unless another number is asked for."""
_GROUP = 1 << 16  # rows of a row group, at most
_PLACE = "_place"
_AHEAD = 1 << 23  # bytes of vectors that are read together, about
_ROWS = 1 << 13  # that are decoded together, at most
_WAITING = 1 << 26  # bytes of decoded vectors that become a row group
_KEPT = 64  # decoded blobs that are kept for the rows that follow


class Written(NamedTuple):
    """What was written.

    Attributes:
      missing: rows without a vector.
      blob_bytes: of the columns of blobs and places, as they are stored.
      codec_bytes: of the codec in the file, which has it as a key and, so that Arrow's programs
        keep it, within Arrow's schema.
    """

    missing: int
    blob_bytes: int
    codec_bytes: int


def write_table(
    file: BinaryIO,
    column: ParquetColumn,
    y: Any,
    codec: OneQualityCodec,
    nodata: float | None,
    *,
    rows_per_blob: int = ROWS_PER_BLOB,
    notes: Mapping[str, Any],
) -> Written:
    """Write a table with coded vectors, row group by row group.

    A run of rows does not leave its row group. Row groups are those of the table, cut at 65,536
    rows. Memory holds one of them, without its vectors.

    Args:
      file: to write to.
      column: the vectors in their table.
      y: the same as numbers to code, [N, D], or [N, H, W, D].
      codec: without class token.
      nodata: the number that marks missing data.
      rows_per_blob: maximum number of rows of a run; grids have a blob each.
      notes: what else to record, as JSON.

    Raises:
      FileError: the table is damaged.
      InputError: as `checked_part`; all vectors are missing; a column of places is there.
    """
    from pyarrow import parquet

    source, name = column.file, column.name
    schema, has_places = source.schema_arrow, rows_per_blob > 1 and y.ndim == 2
    rest = [one for one in schema.names if one != name]
    if len(set(rest)) < len(rest):
        raise InputError("two of its columns have one name: rename one")
    if has_places and name + _PLACE in rest:
        raise InputError(f"there is a column {name}{_PLACE}: rename it, or give --rows-per-blob 1")
    record = {"version": VERSION, "column": name, "rows_per_blob": rows_per_blob, **notes}
    record |= {"shape": list(y.shape[1:]), "type": str(schema.field(name).type)}
    if not schema.field(name).nullable:
        record["nullable"] = False
    record |= {"codec": codec.fingerprint.hex(), "quality": codec.quality}
    text = base64.b64encode(codec.to_bytes())
    out = _coded_schema(schema, name, has_places).with_metadata(
        {**(schema.metadata or {}), CODEC: text, RECORD: json.dumps(record)}
    )
    own = [name, name + _PLACE] if has_places else [name]
    missing, others, written = 0, Rows(source, rest, column.batch), []
    # Statistics of blobs would put blobs in the footer; a dictionary that ends at the usual
    # megabyte would store the blobs after it once for each row.
    options: dict[str, Any] = {
        "compression": "zstd",
        "write_page_checksum": True,
        "use_dictionary": [*own[: 2 * has_places], *_categories(out, name)],
        "dictionary_pagesize_limit": 1 << 30,
        "write_statistics": [one for one in _leaves(out) if one != name],
        "metadata_collector": written,
    }
    with parquet.ParquetWriter(file, out, **options) as writer:
        for start, stop in _pieces(others.groups, rows_per_blob):
            blobs, numbers, places = _coded(y, codec, nodata, start, stop, rows_per_blob)
            missing += int((numbers < 0).sum())
            columns = _arrow_columns(blobs, numbers, places, has_places, name)
            batches = [batch for _, batch in others.read(start, stop)] if rest else []
            for one in rest:
                columns[one] = [batch.column(batch.schema.names.index(one)) for batch in batches]
            table = _table(columns, out)
            writer.write_table(table, row_group_size=table.num_rows)
        if missing == y.shape[0]:
            raise InputError("all vectors are missing: there is nothing to code")
    return Written(missing, _stored_bytes(written[0], own), _codec_bytes(written[0].metadata))


def _codec_bytes(held: Mapping[bytes, bytes]) -> int:
    """The bytes of the codec among the keys of a file."""
    text = held.get(CODEC.encode(), b"")
    inside = b"ARROW:schema" in held and len(held[b"ARROW:schema"]) > len(text)
    return len(text) + (4 * -(-len(text) // 3) if inside else 0)


def _coded(
    y: Any, codec: OneQualityCodec, nodata: float | None, start: int, stop: int, rows_per_blob: int
) -> tuple[list[bytes], NDArray[np.int32], NDArray[np.int32]]:
    """The blobs of some rows; for each row the number of its blob, or -1, and its place in it."""
    blobs: list[bytes] = []
    numbers = np.full(stop - start, -1, np.int32)
    places = np.zeros(stop - start, np.int32)
    row = 4 * int(np.prod(y.shape[1:]))
    ahead = rows_per_blob * max(1, _AHEAD // (row * rows_per_blob))
    for first in range(start, stop, ahead):
        part = checked_part(y, slice(first, min(first + ahead, stop)), nodata)
        gone = np.isnan(part[..., 0]).reshape(len(part), -1)
        there = np.atleast_1d(~gone.all(axis=1))
        some = np.atleast_1d(gone.any(axis=1)) & there
        if some.any():
            raise InputError(
                f"row {first + int(some.argmax())}: some tokens of its grid are missing, and a "
                "blob of a table has none: write a Zarr array, --out NAME.zarr"
            )
        for begin in range(0, len(part), rows_per_blob):
            rows = begin + np.flatnonzero(there[begin : begin + rows_per_blob])
            if not len(rows):
                continue
            # Vectors are a row of tokens; a grid is alone.
            one = part[rows] if y.ndim == 2 else part[rows[0]]
            if codec.refiner is not None:
                one = aimed_chunk(one, codec)
            grid = (1, len(rows)) if y.ndim == 2 else one.shape[:2]
            numbers[first - start + rows] = len(blobs)
            places[first - start + rows] = np.arange(len(rows))
            blobs.append(codec.encode(one.reshape(-1, y.shape[-1]), grid))
    return blobs, numbers, places


def _arrow_columns(
    blobs: Sequence[bytes],
    numbers: NDArray[np.int32],
    places: NDArray[np.int32],
    has_places: bool,
    name: str,
) -> dict[str, list[Any]]:
    import pyarrow as pa

    gone = numbers < 0
    which = pa.array(np.where(gone, 0, numbers), pa.int32(), mask=gone)
    held = pa.DictionaryArray.from_arrays(which, pa.array(blobs, pa.binary()))
    if not has_places:
        return {name: [held.dictionary_decode()]}
    return {name: [held], name + _PLACE: [pa.array(places, pa.int32(), mask=gone)]}


def _coded_schema(schema: "pyarrow.Schema", name: str, has_places: bool) -> "pyarrow.Schema":
    """The schema of a table whose vectors are coded."""
    import pyarrow as pa

    number, own = schema.names.index(name), schema.field(name).metadata
    if not has_places:
        return schema.set(number, pa.field(name, pa.binary(), metadata=own))
    place = pa.field(name + _PLACE, pa.int32())
    blobs = pa.field(name, pa.dictionary(pa.int32(), pa.binary()), metadata=own)
    coded = schema.set(number, blobs)
    return coded.insert(number + 1, place)


def _table(columns: Mapping[str, list[Any]], schema: "pyarrow.Schema") -> "pyarrow.Table":
    import pyarrow as pa

    arrays = [pa.chunked_array(columns[f.name], f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _categories(schema: "pyarrow.Schema", but: str) -> list[str]:
    """The columns whose dictionaries have an order, which another encoding would lose."""
    from pyarrow import types

    return [f.name for f in schema if f.name != but and types.is_dictionary(f.type)]


def _leaves(schema: "pyarrow.Schema") -> list[str]:
    """The paths of the columns that Parquet makes of a schema."""
    held = empty(schema).schema
    return [held.column(i).path for i in range(len(held))]


def _pieces(groups: NDArray[np.int64], rows_per_blob: int) -> Iterator[tuple[int, int]]:
    """The rows of the row groups to write, first and end."""
    for first, end in itertools.pairwise(groups.tolist()):
        size = -(-(end - first) // max(1, -(-(end - first) // _GROUP)))
        size = max(1, -(-size // rows_per_blob)) * rows_per_blob
        for start in range(first, end, size):
            yield start, min(start + size, end)


def _stored_bytes(metadata: "FileMetaData", names: Sequence[str]) -> int:
    """The bytes of columns of a Parquet file, as they are stored."""
    total = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for j in range(group.num_columns):
            column = group.column(j)
            total += column.total_compressed_size if column.path_in_schema in names else 0
    return total


def _whole_numbers(
    column: "pyarrow.Array", wanted: NDArray[np.bool_], what: str, start: int
) -> NDArray[np.int64]:
    """A column of whole numbers, 0 where none is wanted.

    Where rows have no vector, pandas makes floats of the integers; other programs make text.

    Raises FileError: there is none, or another thing; says in which row.
    """
    from pyarrow import types

    if types.is_integer(column.type):
        wrong = wanted & column.is_null().to_numpy(zero_copy_only=False)
        numbers = column.fill_null(0).to_numpy(zero_copy_only=False)
    else:
        numbers = np.array([_as_float(one) for one in column.to_pylist()], np.float64)
        wrong = wanted & ~(np.abs(numbers) < 1 << 53)
        wrong |= wanted & ~wrong & (numbers != np.rint(numbers))
    if wrong.any():
        row = int(wrong.argmax())
        raise FileError(
            f"{what} {start + row} holds {column[row].as_py()!r}, not the place of a vector in its "
            "blob: copy the file again, or write whole numbers there"
        )
    return np.where(wanted, numbers, 0).astype(np.int64)


def _as_float(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


class BlobTable:
    """A Parquet table whose vectors are coded.

    Attributes:
      column: of the blobs.
      shape: of what a row holds: (D,), or (H, W, D).
      codec: of the blobs.
      record: how the table was made.
      num_rows: how many rows it has.
      blob_bytes, codec_bytes: as of `Written`.
    """

    def __init__(self, path: Path, refiner: Refiner | None = None):
        """Open it; with a refiner, vectors are refined.

        Raises:
          InputError: the refiner of another codec.
          ModuleNotFoundError: pyarrow is missing.
          FileError: it is damaged, or a table without coded vectors.
        """
        plain = open_parquet(path)
        metadata = plain.metadata
        held = metadata.metadata or {}
        if CODEC.encode() not in held or RECORD.encode() not in held:
            raise FileError(
                "a Parquet table without a codec: `nec encode TABLE --out OUT.parquet` codes its "
                f"vectors. If another program wrote it from a coded table, copy the keys {RECORD} "
                f"and {CODEC} of that file, too (DuckDB: COPY .. (KV_METADATA {{..}}))"
            )
        try:
            self.record: dict[str, Any] = json.loads(held[RECORD.encode()])
            version = self.record["version"]
            if isinstance(version, int) and version > VERSION:
                raise FileError(
                    f"a table of version {version}, this reads {VERSION}: update nec-jax"
                )
            self.column = str(self.record["column"])
            self.shape = tuple(int(side) for side in self.record["shape"])
            # By the record: a table may have a column of this name that is its own.
            self._has_places = len(self.shape) == 1 and int(self.record["rows_per_blob"]) > 1
            found = codecs.from_bytes(base64.b64decode(held[CODEC.encode()], validate=True))
        except (binascii.Error, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"its record or codec is damaged ({error}): copy it again") from error
        if not isinstance(found, OneQualityCodec) or found.channels != self.shape[-1]:
            raise FileError("its codec is not of one quality, or of other channels than it says")
        self.codec, self.is_refined = found.with_refiner(refiner), refiner is not None
        if self.column not in plain.schema_arrow.names:
            raise FileError(f"its column {self.column} is lost: copy it again")
        self.path, self.file = path, open_parquet(path, read_dictionary=[self.column])
        self.schema = self.file.schema_arrow
        for name in self._own:
            if (count := self.schema.names.count(name)) != 1:
                lost = "lost" if not count else f"there {count} times"
                raise FileError(f"its column {name} is {lost}: copy it again")
        held_type: Any = self.schema.field(self.column).type
        if "binary" not in str(getattr(held_type, "value_type", held_type)):
            raise FileError(f"its column {self.column} holds {held_type}, not blobs: copy it again")
        self.num_rows = metadata.num_rows
        self.blob_bytes = _stored_bytes(metadata, self._own)
        self.codec_bytes = _codec_bytes(held)
        self._decoded = lru_cache(_KEPT)(self._decode)

    @property
    def _own(self) -> list[str]:
        """The columns that are of the coded vectors."""
        return [self.column, self.column + _PLACE][: 1 + self._has_places]

    @property
    def names(self) -> list[str]:
        """The columns of the table, without that of places."""
        return [name for name in self.schema.names if name not in self._own[1:]]

    def has_missing(self) -> bool:
        """Whether a row has no vector. Raises FileError: the file is damaged."""
        rows = Rows(self.file, [self.column], _ROWS)
        with about(self.path):
            return any(batch.column(0).null_count for _, batch in rows.read(0, self.num_rows))

    def batches(
        self, columns: Sequence[str] | None = None
    ) -> Iterator[tuple["pyarrow.RecordBatch", NDArray[np.float32], NDArray[np.bool_]]]:
        """The rows in parts: the columns asked for, the vectors [n, ..], and which rows have one.

        Raises:
          FileError: the file is damaged.
          BlobError: a blob is; says in which row.
        """
        kept = self.names if columns is None else list(columns)
        row = 4 * int(np.prod(self.shape))
        size = max(1, min(_ROWS, _AHEAD // row))
        wanted = list(dict.fromkeys([*kept, *self._own]))
        with about(self.path):
            for start, batch in Rows(self.file, wanted, size).read(0, self.num_rows):
                y, there = self._vectors(batch, start)
                yield batch.select([name for name in kept if name != self.column]), y, there

    def _vectors(
        self, batch: "pyarrow.RecordBatch", start: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        held: Any = batch.column(batch.schema.names.index(self.column))
        there = held.is_valid().to_numpy(zero_copy_only=False)
        numbers = held.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        places = np.zeros(len(there), np.int64)
        if self._has_places:
            name = self.column + _PLACE
            given = batch.column(batch.schema.names.index(name))
            places = _whole_numbers(given, there, f"column {name}: row", start)
        y = np.zeros((len(there), *self.shape), np.float32)
        for number in np.unique(numbers[there]).tolist():
            rows = np.flatnonzero(numbers == number)
            try:
                found = self._decoded(held.dictionary[number].as_py())
                if places[rows].min() < 0 or places[rows].max() >= len(found):
                    raise CorruptBlob("the column of places has a number that the blob has not")
            except BlobError as error:
                raise type(error)(f"row {start + int(rows[0])}: {error}") from error
            y[rows] = found[places[rows]]
        return y, there

    def _decode(self, blob: bytes) -> NDArray[np.float32]:
        """The vectors, or the one grid, of a blob: [n, ..]."""
        grid = self.codec.grid_of(blob)
        if len(self.shape) == 3 and grid != self.shape[:2]:
            raise CorruptBlob(f"a blob of {grid}, and the table has grids of {self.shape[:2]}")
        return self.codec.decode(blob, refine=self.is_refined).reshape(-1, *self.shape)


def write_decoded(table: BlobTable, file: BinaryIO) -> int:
    """Write the table with decoded vectors, float32, in place of blobs; returns the missing rows.

    Lists of fixed size, or tensors; null where there is none. Raises as `BlobTable.batches`.
    """
    import pyarrow as pa
    from pyarrow import parquet

    kind: Any = pa.list_(pa.float32(), table.shape[-1])
    if len(table.shape) == 3:
        kind = pa.fixed_shape_tensor(pa.float32(), list(table.shape))
    record = {
        name: v for name, v in table.record.items() if name not in ("version", "rows_per_blob")
    }
    kept = {k: v for k, v in (table.schema.metadata or {}).items() if k != CODEC.encode()}
    kept[RECORD.encode()] = json.dumps(
        record | {"decoded": True, "refined": table.is_refined}
    ).encode()
    schema = pa.schema([table.schema.field(name) for name in table.names])
    number = schema.names.index(table.column)
    field = pa.field(table.column, kind, metadata=schema.field(number).metadata)
    if table.record.get("nullable") is False:
        field = field.with_nullable(table.has_missing())
    schema = schema.set(number, field).with_metadata(kept)
    missing, held, waiting = 0, [], 0
    own, leaves = table.column.partition(".")[0], _leaves(schema)
    options: dict[str, Any] = {
        "compression": "zstd",
        "write_page_checksum": True,
        "use_dictionary": [leaf for leaf in leaves if leaf.partition(".")[0] != own],
    }
    with parquet.ParquetWriter(file, schema, **options) as writer:
        for batch, y, there in table.batches():
            missing += int((~there).sum())
            lists = pa.FixedSizeListArray.from_arrays(
                pa.array(y.reshape(-1)), int(np.prod(table.shape)), mask=pa.array(~there)
            )
            own = lists if len(table.shape) == 1 else pa.ExtensionArray.from_storage(kind, lists)
            columns = {name: [batch.column(i)] for i, name in enumerate(batch.schema.names)}
            held.append(_table(columns | {table.column: [own]}, schema))
            waiting += y.nbytes
            if waiting >= _WAITING:
                writer.write_table(pa.concat_tables(held))
                held, waiting = [], 0
        if held:
            writer.write_table(pa.concat_tables(held))
    return missing
