"""Images that a table lists: a CSV or Parquet file with the path of an image in each row."""

import io
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coder import InputError
from coder.archive import image_columns
from coder.errors import printable
from coder.files import is_url, without_query, without_scheme
from nec_jax.images.record import DataError, Record, Source, raise_passing
from nec_jax.images.windows import LeftOut, WindowSource
from nec_jax.sources.folder import whole_or_cut
from nec_jax.sources.remote_images import fetched, images_at, url_beside
from nec_jax.sources.splits import check_filled, check_split

if TYPE_CHECKING:
    import pyarrow

TABLES = (".csv", ".parquet", ".pq", ".geoparquet", ".gpq")
"""What the names of tables end with."""
_TEXTS = ("path", "id", "label", "split")  # columns of names, whatever they look like
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_CODE = "[+-]?(0[0-9].*|[0-9]{16,})"  # such as 007, or more digits than a float holds
OF_FILES = {"time": image_columns.TIME, "footprint": image_columns.TEXT}
"""The columns that image files may fill, which all archives of images have."""

log = logging.getLogger(__name__)


class ImageTable:
    """The images of a table: record i is an image, or a window of one, that a row lists.

    Attributes:
        columns: name and dtype of what the table says of each image, as an archive has it.
        labels: the label of each record; -1 where there is none. Empty if there are no labels.
        chip: side of the windows, pixels; None for whole images.
        sizes: as `RemoteImages.sizes`; None for local files.
        left_out, files_left_out: as of `WindowSource`.
    """

    mask_classes: tuple[str, ...] = ()

    def __init__(
        self,
        base: Source,
        rows: Sequence[int],
        ids: Sequence[str] | None,
        columns: "dict[str, tuple[np.dtype, pyarrow.ChunkedArray]]",
    ):
        """Add ids and columns to the images of a source.

        Args:
            base: the images; the id of each begins with its path.
            rows: the row of the table of each of its records.
            ids: the id of each row, in place of its path; None for the path.
            columns: dtype and values of each column.
        """
        self._base, self._rows, self._ids, self._columns = base, rows, ids, columns
        self.name, self.classes = base.name, base.classes
        self.columns = {name: dtype for name, (dtype, _) in columns.items()}
        self.chip: int | None = getattr(base, "chip", None)
        self.sizes: Sequence[int | None] | None = getattr(base, "sizes", None)
        self.left_out = getattr(base, "left_out", (None, None))
        self.files_left_out: Sequence[LeftOut] = getattr(base, "files_left_out", ())
        own = getattr(base, "labels", ()) or [w[0].label for w in getattr(base, "windows", ())]
        self.labels = tuple(own) if base.classes else ()

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, index: int, /) -> Record:
        record = self._base[index]
        record["id"] = self._named(record["id"], index)
        if record.get("label", -1) < 0:
            record.pop("label", None)
        return record

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id, with a window's size, and file of each record."""
        listed = enumerate(self._base.files())
        return ((self._named(name, i), path) for i, (name, path) in listed)

    def about(self, index: int) -> dict[str, Any]:
        """What the table says of the image of a record, by column; None where it says nothing."""
        row = self._rows[index]
        return {
            name: _as_value(dtype, values[row]) for name, (dtype, values) in self._columns.items()
        }

    def _named(self, name: str, index: int) -> str:
        if self._ids is None:
            return name
        window = re.search(r"@\d+,\d+(,\d+)?$", name) if self.chip is not None else None
        return self._ids[self._rows[index]] + (window[0] if window else "")


def open_image_table(
    path: Path | str, split: str = "all", *, chip: int | None = None
) -> ImageTable:
    """Open a table of images.

    Its column `path` names the files: absolute, relative to the table's folder, or all URLs. In a
    table at a URL, a path is relative to the folder of that URL (`url_beside`), or is a URL. These
    columns may be there: `id`, unique, in place of the path; `label`, the name of a class; and
    `split`. All others, and `path` beside an `id`, are what is known of the images: text, bools,
    numbers, and times (of which those without a zone are taken for UTC). Other types, such as
    lists, are left out with a warning. Columns of a CSV file are numbers or times if all of their
    cells are; an empty cell is missing. Cells such as 007, or of 16 digits and more, are text.

    Args:
        path: CSV in UTF-8 with a header, or Parquet: a file or its URL. No error shows a query.
        split: rows of which `split` to take; "all" for all.
        chip: side of the windows to cut images into, pixels; None for whole images.

    Raises:
        DataError: no column `path`, an empty or repeated path or id, columns that an archive cannot
            have, an unknown split, a damaged table; local paths in a table at a URL.
        ModuleNotFoundError: pyarrow is missing.
        OSError: the disk or the network failed.
        FileNotFoundError, NoPermission: a table at a URL, as of `remote_images.fetched`.
    """
    url = path if isinstance(path, str) and is_url(path) else None
    path = Path(path) if url is None else without_query(url)
    table, is_text = _read(path, None if url is None else fetched(url))
    twice = {name for name in table.column_names if table.column_names.count(name) > 1}
    if twice:
        raise DataError(f"{path} has more than one column {min(twice)!r}: rename one")
    if any(not name.strip() for name in table.column_names):
        raise DataError(
            f"{path} has a column without a name, as pandas writes its index: name it, or "
            "leave it out"
        )
    if "path" not in table.column_names:
        listed = ", ".join(table.column_names[:8])
        raise DataError(
            f"{path} has no column `path`, which names the images; it has {listed}. Cells end "
            "with a comma, and not with a semicolon or a tab. For embeddings, leave --model out"
        )
    texts = {name: _texts(path, table, name) for name in _TEXTS if name in table.column_names}
    splits = texts.get("split", [])
    check_split(split, sorted({part for part in splits if part}), str(path))
    chosen = [i for i in range(table.num_rows) if split == "all" or splits[i] == split]
    check_filled(len(chosen), split, str(path), table.num_rows)
    for name in ("path", "id"):
        _refuse_repeated(path, name, texts.get(name))
    classes, labels = _classes(texts.get("label"))
    paths = [_resolved(path, i + 1, texts["path"][i]) for i in chosen]
    own = [labels[i] for i in chosen] if classes else []
    if any(map(is_url, paths)):
        if chip is not None:
            raise DataError("windows are cut from local images: copy those at URLs to a folder")
        # A query may be a signature.
        names = [without_query(texts["path"][i]) for i in chosen]
        base = images_at(Path(path).stem, paths, names, labels=own, classes=classes)
    else:
        assert isinstance(path, Path)
        base = whole_or_cut(path.parent, paths, own, classes, chip, split)
    if chip is None:
        rows = chosen
    else:
        row_of = dict(zip(paths, chosen, strict=True))
        assert isinstance(base, WindowSource)
        rows = [row_of[pair.image] for pair, _, _ in base.windows]
    return ImageTable(base, rows, texts.get("id"), _columns(path, table, is_text))


def _read(path: Path | str, content: bytes | None) -> "tuple[pyarrow.Table, bool]":
    """The table, and whether it is text, whose cells may be numbers.

    Args:
        path: the file, or what errors call it.
        content: what is in it, if it is no local file.
    """
    try:
        import pyarrow
        from pyarrow import csv, parquet
    except ModuleNotFoundError as error:
        text = f"{path}: tables need pyarrow: install nec-jax[parquet]"
        raise ModuleNotFoundError(text) from error
    try:
        # Opened here: pyarrow takes no names that are not UTF-8.
        with Path(path).open("rb") if content is None else io.BytesIO(content) as file:
            if file.read(4) == b"PAR1":
                file.seek(0)
                return parquet.ParquetFile(file, page_checksum_verification=True).read(), False
            file.seek(0)
            parsing = csv.ParseOptions(newlines_in_values=True)
            with csv.open_csv(file, parse_options=parsing) as reader:
                names = reader.schema.names
            file.seek(0)
            # As text: pyarrow would take 007 for 7.
            types = csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
            )
            return csv.read_csv(file, parse_options=parsing, convert_options=types), True
    except (pyarrow.ArrowException, OSError) as error:
        raise_passing(error, path)
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{path} cannot be read as a table (CSV in UTF-8, or Parquet): {error}"
        ) from error


def _texts(path: Path | str, table: "pyarrow.Table", name: str) -> list[str]:
    """The cells of a column of names; "" where there is none."""
    import pyarrow

    try:
        column = table[name].cast(pyarrow.string())
    except pyarrow.ArrowException as error:
        raise DataError(f"the column {name} of {path} is {table[name].type}: give text") from error
    return [cell or "" for cell in column.to_pylist()]


def _refuse_repeated(path: Path | str, name: str, cells: list[str] | None) -> None:
    first: dict[str, int] = {}
    for row, cell in enumerate(cells or [], 1):
        if not cell:
            raise DataError(f"{path}, row {row}: its {name} is empty")
        if (before := first.setdefault(cell, row)) != row:
            shown = printable(cell)
            raise DataError(f"{path} has the {name} {shown} in rows {before} and {row}: keep one")


def _classes(labels: list[str] | None) -> tuple[tuple[str, ...], list[int]]:
    """The names of the classes, sorted, as numbers if they are; and each row's class, or -1."""
    names = sorted({label for label in labels or [] if label})
    if all(re.fullmatch("[0-9]+", name) for name in names):
        names.sort(key=int)
    number = {name: i for i, name in enumerate(names)}
    return tuple(names), [number.get(label, -1) for label in labels or []]


def _columns(
    path: Path | str, table: "pyarrow.Table", is_text: bool
) -> "dict[str, tuple[np.dtype, pyarrow.ChunkedArray]]":
    """Dtype and values of what the table says of each image. Warns of what is left out."""
    import pyarrow

    unused = {"id", "label"} | (set() if "id" in table.column_names else {"path"})
    found, left_out = {}, []
    for name in (name for name in table.column_names if name not in unused):
        values = table[name]
        if name == "path":
            values = pyarrow.chunked_array([[without_query(one) for one in values.to_pylist()]])
        elif is_text and name not in _TEXTS:
            values = _guessed(values)
        if name in OF_FILES and values.null_count == len(values):
            continue  # as if it were not there
        try:
            dtype, values = _as_column(values)
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}, column {name}: {error}: write it as text") from error
        if dtype == image_columns.TEXT and any("\0" in (text or "") for text in values.to_pylist()):
            raise DataError(f"{path}, column {name}: a text has a NUL: leave it out")
        if dtype is None:
            left_out.append(f"{name} ({values.type})")
        else:
            found[name] = dtype, values
    if left_out:
        log.warning(
            "%s: left out columns that are no text, bools, numbers or times: %s",
            printable(str(path)),
            printable(", ".join(left_out)),
        )
    try:
        image_columns.checked({name: dtype for name, (dtype, _) in found.items()})
    except InputError as error:
        raise DataError(f"{path}: {error}") from error
    for name in OF_FILES:
        if name in found and found[name][0] != OF_FILES[name]:
            raise DataError(
                f"{path}: the column {name} is no {'time' if name == 'time' else 'text'}, which it "
                "is in every archive: rename it"
            )
    return found


def _as_column(values: "pyarrow.ChunkedArray") -> "tuple[np.dtype | None, pyarrow.ChunkedArray]":
    """The dtype of a column in an archive, and its values as they are stored there.

    None for a type that an archive does not have. Raises ArrowException for values that it cannot
    hold.
    """
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return image_columns.TEXT, values
    if types.is_timestamp(kind) and kind.tz is not None:
        values = values.cast(pyarrow.timestamp(kind.unit))  # the same instant, in UTC
    if types.is_timestamp(kind) or types.is_date(kind):
        return image_columns.TIME, values.cast(pyarrow.timestamp("us"), safe=False)
    is_full = not values.null_count  # a bool and a whole number are never missing
    if types.is_boolean(kind):
        if is_full:
            return np.dtype(bool), values
        return image_columns.TEXT, values.cast(pyarrow.string())
    if types.is_integer(kind) and is_full:
        return np.dtype(np.int64), values.cast(pyarrow.int64())
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return np.dtype(np.float64), values.cast(pyarrow.float64())
    return None, values


def _guessed(cells: "pyarrow.ChunkedArray") -> "pyarrow.ChunkedArray":
    """The cells of a CSV file as numbers, times or bools, if all that are not empty are such."""
    import pyarrow

    texts = [cell or None for cell in cells.to_pylist()]
    cells = pyarrow.chunked_array([texts], pyarrow.string())
    known = {text for text in texts if text}
    if all(re.fullmatch(_NUMBER, text) for text in known):
        if not known or any(re.fullmatch(_CODE, text) for text in known):
            return cells
        with suppress(pyarrow.ArrowException):
            if not cells.null_count:
                return cells.cast(pyarrow.int64())
        finite = all(math.isfinite(float(text)) for text in known)
        return cells.cast(pyarrow.float64()) if finite else cells
    for kind in (pyarrow.timestamp("us"), pyarrow.timestamp("us", "UTC")):
        with suppress(pyarrow.ArrowException):
            return cells.cast(kind)
    if known <= {"true", "false", "True", "False"}:
        return cells.cast(pyarrow.bool_())
    return cells


def _as_value(dtype: np.dtype, cell: Any) -> Any:
    """A cell of a table as an archive takes it; None if it is missing."""
    if dtype == image_columns.TIME and cell.is_valid:
        return np.datetime64(cell.value, "us")  # Python's own times end with the year 9999
    return cell.as_py()


def _resolved(table: Path | str, row: int, path: str) -> str:
    """A path or a URL as the commands take it.

    In a local table, ~ is the home folder, and file:// begins a local path. In one at a URL, a path
    becomes a URL.
    """
    try:
        if is_url(path):
            return path
        if isinstance(table, Path):
            return os.path.expanduser(without_scheme(path))  # noqa: PTH111
        if path.startswith(("/", "~/")) or without_scheme(path) != path:
            raise DataError(
                f"{path} is a local path: in a table at a URL, give URLs, or paths relative to the "
                "table's folder; or copy the table to this machine"
            )
        return url_beside(table, path)
    except (InputError, DataError) as error:
        raise DataError(f"{table}, row {row}: {error}") from error
