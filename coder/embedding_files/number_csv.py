"""Write embeddings as NeuCo-Bench reads them: a CSV with an id and up to 1,024 numbers in a row.

Format: https://embed2scale.github.io/NeuCo-Bench/embedding_generation (header `id,0,1,..`; the
size of the challenge of 2025 was 1,024; `.zarr` and `.zarr.zip` are cut from ids; NaN is no
embedding). NeuCo-Bench reads the file by pandas, which takes some texts for numbers or for missing
values: such ids would not be found again, and are refused.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coder import files
from coder.errors import InputError

LARGEST = 1024
"""Numbers of a row, at most."""
# What pandas.read_csv takes for a missing value.
_MISSING = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"}
_MISSING |= {"1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_PLAIN = re.compile(r"0|-?[1-9]\d{0,17}")  # as pandas writes the number again
_TRUTH = ("true", "false")

Rows = Iterable[tuple[list[str], NDArray[np.float32]]]
"""Parts of a table: ids, and numbers [n, D], none of which is NaN."""


def write_csv(rows: Rows, width: int, out: Path, *, overwrite: bool = False) -> int:
    """Write embeddings with their ids. Returns the number of rows.

    Args:
      rows: ids and numbers.
      width: D, at most 1,024.
      out: the file.
      overwrite: whether to replace a file.

    Raises:
      InputError: more than 1,024 numbers; no rows; an id that is there twice, is empty, or that
        NeuCo-Bench would not find again; a number that is not finite.
      OutputError: the file cannot be written.
    """
    if width > LARGEST:
        raise InputError(
            f"embeddings of {width} numbers, and NeuCo-Bench takes {LARGEST}: pool tokens (--pool "
            "mean), or make vectors of fewer channels"
        )
    seen: dict[str, str] = {}
    numeric = 0
    with files.writing(out, overwrite=overwrite) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", *range(width)])
        for ids, y in rows:
            if not np.isfinite(y).all():
                raise InputError("an embedding is not finite, and NeuCo-Bench takes none such")
            for one in ids:
                _check(one, seen)
                numeric += bool(_NUMBER.fullmatch(one))
            shown = y.astype(np.float32).astype("U")
            writer.writerows([one, *own] for one, own in zip(ids, shown.tolist(), strict=True))
        if not seen:
            raise InputError("no row has an embedding: there is nothing to write")
        _check_all(list(seen.values()), numeric)
        text.detach()
    return len(seen)


def _check(one: str, seen: dict[str, str]) -> None:
    """Raise InputError for an id that cannot be used; otherwise add it, as NeuCo-Bench reads it."""
    key = one.replace(".zarr.zip", "").replace(".zarr", "")
    if not key or one.strip() != one:
        raise InputError(f"the id {one!r} is empty, or begins or ends with a space: give others")
    if one in _MISSING:
        raise InputError(f"pandas reads the id {one!r} as a missing value: give others")
    if key in seen:
        other = seen[key]
        twice = "is there twice" if other == one else f"is that of {other!r} for NeuCo-Bench"
        raise InputError(f"the id {one!r} {twice}: each row needs an id of its own")
    seen[key] = one


def _check_all(ids: list[str], numeric: int) -> None:
    """Raise InputError if pandas would take the ids for numbers, and write them in another way."""
    changed = next((one for one in ids if not _PLAIN.fullmatch(one)), None)
    if numeric == len(ids) and changed is not None:
        raise InputError(
            f"all ids are numbers, and pandas would change {changed!r} (as 007 becomes 7): give "
            "ids with a letter"
        )
    if all(one.lower() in _TRUTH for one in ids):
        raise InputError("all ids are true or false, which pandas changes: give others")


def with_vectors(
    ids: Sequence[str | None], y: NDArray[np.float32], there: NDArray[np.bool_]
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """The rows that have an embedding. Raises InputError: one of them has no id."""
    rows = np.flatnonzero(there)
    own = [ids[i] for i in rows.tolist()]
    if None in own:
        raise InputError(f"row {rows[own.index(None)]} of a part has no id: each row needs one")
    if len(rows):
        yield [str(one) for one in own], y[rows]
