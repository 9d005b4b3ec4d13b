"""results.csv: the tidy table of a study, one row per point and head, or baseline and head.

Its columns are those of report.json's points, then the axes: options of `compress`. A point is
identified by its values of the axes, so that the table alone tells which points are done.
"""

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coder import files
from train.configs.options import OptionsError
from train.configs.study_options import AXES

log = logging.getLogger(__name__)

Row = dict[str, str]
REFINED = "-refined"
"""The name of a method ends so if its embeddings are refined after decoding."""
# Rows of other methods are baselines of a model (`init`).
NEC = ("nec", "nec-transform", f"nec{REFINED}", f"nec-transform{REFINED}")


class Results:
    """The table of a study, in memory; the file is written whole when rows are added.

    Attributes:
      rows: all with the same columns.
      axes: the columns that are options.
    """

    def __init__(self, path: Path, axes: Iterable[str], shared: Mapping[str, Any]):
        """Read the table at `path`, if there is one.

        Args:
          axes: the axes of the study now; those that the table lacks are added.
          shared: options of `compress` that all points share, by field.
        """
        self._path = path
        self.rows = read(path) if path.exists() else []
        before = axes_of(self.rows)
        self.axes = list(dict.fromkeys(["lambda", *before, *axes]))
        for name in (axis for axis in self.axes if axis not in before):
            for row in self.rows:
                known = row["method"] in NEC or name == "init"
                row[name] = cell(shared.get(AXES[name])) if known else ""

    def values(self, options: Mapping[str, Any]) -> Row:
        """The axes' values of a point, as the table writes them, from options by field."""
        return {name: cell(options[AXES[name]]) for name in self.axes}

    def has(self, values: Row, *, baseline: bool = False) -> bool:
        """Whether there are rows of the point (or of baselines) with these values."""
        return any(
            (row["method"] not in NEC) == baseline and values.items() <= row.items()
            for row in self.rows
        )

    def add(self, values: Row, points: Iterable[Mapping[str, Any]]) -> None:
        """Append the points of a report as rows of these values, and replace the table.

        If this is interrupted, the file is the old or the new one, whole.
        """
        blank = dict.fromkeys(self.axes, "")
        self.rows += [blank | {k: cell(v) for k, v in point.items()} | values for point in points]
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        columns.sort(key=lambda name: name in AXES)  # stable: the axes come last
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(self._path, text.getvalue(), overwrite=True)


def cell(value: Any) -> str:
    """A value as text in the table; empty for None."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return " ".join(map(cell, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def axes_of(rows: Sequence[Row]) -> list[str]:
    """The axes of a table: its columns that are options of `compress`."""
    return [name for name in rows[0] if name in AXES] if rows else []


def read(path: Path) -> list[Row]:
    """The rows of a table, all with the same columns.

    If the file ends in half a row, the point of the last whole row is left out too: some of its
    rows may be missing.

    Raises:
      OptionsError: not the table of a study.
      FileError: as `files.read_bytes`.
    """
    try:
        text = files.read_bytes(path, "table").decode()
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole, newline=""))
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise OptionsError(f"{path} is not a table of `nec sweep` ({error})") from error
    names = set(reader.fieldnames or ())
    uneven = any(None in row or None in row.values() for row in rows)
    if uneven or not {"method", "head", "lambda"} <= names:
        raise OptionsError(f"{path} is not a table of `nec sweep`")
    if rows and whole != text:
        line = whole.count("\n") + 1
        log.warning(f"{path}: line {line} is cut short: the last point is left out")
        last = point_of(rows[-1])
        rows = [row for row in rows if point_of(row) != last]
    return rows


def point_of(row: Row) -> tuple[str, ...]:
    """The key of a row: equal in all rows of a point, or of the baselines of a model."""
    values = (row[name] for name in row if name in AXES)
    return ("nec", *values) if row["method"] in NEC else ("", row.get("init", ""))
