"""A folder with a split.csv, which lists the images, their labels or masks, and splits."""

import csv
import functools
import io
import os
import stat
import unicodedata
from pathlib import Path

from nec_jax.images.record import DataError, Source, raise_passing
from nec_jax.images.windows import CHIP, Pair, WindowSource, numbered_classes
from nec_jax.sources.folder import whole_or_cut
from nec_jax.sources.splits import check_filled, check_split

_HEADERS = (("path", "label", "split"), ("image", "mask", "split"))
_Row = tuple[int, list[str]]  # its line in the file, its cells


def open_table(root: Path, split: str, chip: int | None) -> Source:
    """Open `root`/split.csv: header `path,label,split` or `image,mask,split`.

    Labels are names; the classes are the sorted names over all splits. Mask classes are named in
    `root`/classes.csv (`index,name`) if it exists, else they are numbered.

    Raises:
        DataError: another header, an empty cell, a file listed twice, whatever paths lead to it,
            an unknown split, text that is not UTF-8.
        OSError: the table cannot be read.
    """
    table = root / "split.csv"
    header, lines = _read_csv(table, _HEADERS)
    _refuse_repeated(table, root, lines)
    rows = [row for _, row in lines]
    _refuse_twins(table, {row[2] for row in rows}, "split")
    if header[1] == "label":
        _refuse_twins(table, {row[1] for row in rows}, "label")
    check_split(split, (row[2] for row in rows), str(root))
    if header[1] == "mask":
        pairs = [Pair(image, mask, part) for image, mask, part in rows]
        masks = [row[1] for row in rows]
        return WindowSource(
            root.name, root, pairs, split, chip or CHIP, lambda: _mask_classes(root, masks)
        )
    classes = tuple(sorted({row[1] for row in rows}))
    number = {name: index for index, name in enumerate(classes)}
    kept = [row for row in rows if split in ("all", row[2])]
    check_filled(len(kept), split, str(root), len(rows))
    paths, labels = [row[0] for row in kept], [number[row[1]] for row in kept]
    return whole_or_cut(root, paths, labels, classes, chip, split)


def _refuse_twins(table: Path, names: set[str], what: str) -> None:
    """Refuse names that differ only in case or Unicode form: images would be left out."""
    first: dict[str, str] = {}
    for name in sorted(names):
        before = first.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if before != name:
            raise DataError(
                f"{table} has the {what}s {before!r} and {name!r}, which look alike: if they are "
                "one, write them in the same way; otherwise give one another name"
            )


def _refuse_repeated(table: Path, root: Path, lines: list[_Row]) -> None:
    """Refuse a file that is listed twice, by any paths: it could be in two splits."""
    # Folders are few, and resolving a path asks the disk about each of its parts.
    real_folder = functools.cache(lambda folder: os.path.realpath(root / folder))
    first: dict[str, _Row] = {}
    for number, row in lines:
        name = row[0].rpartition("/")[2]
        real = f"{real_folder(row[0].removesuffix(name))}/{name}"
        try:
            found = os.lstat(real)
            if name in ("", ".", "..") or stat.S_ISLNK(found.st_mode):
                real = os.path.realpath(real)
                found = os.lstat(real)
            if found.st_nlink > 1:  # hard links are told by their inode only
                real = f"{found.st_dev} {found.st_ino}"
        except OSError as error:  # a missing file is left out later, when it is read
            raise_passing(error, real)
        if real in first:
            before, other = first[real]
            same = row[0] if row[0] == other[0] else f"one file, {other[0]} and {row[0]},"
            raise DataError(
                f"{table} lists {same} more than once, in lines {before} and {number}: keep one"
            )
        first[real] = number, row


def _mask_classes(root: Path, masks: list[str]) -> tuple[str, ...]:
    path = root / "classes.csv"
    if not os.path.lexists(path):
        return numbered_classes(root, masks)
    _, lines = _read_csv(path, (("index", "name"),))
    names = {index: name for _, (index, name) in lines}
    if len(names) < len(lines) or sorted(names) != sorted(str(i) for i in range(len(lines))):
        raise DataError(f"the indices of {path} must be 0 to {len(lines) - 1}, each once")
    found = tuple(names[str(i)] for i in range(len(lines)))
    if twice := [i for i, name in enumerate(found) if name in found[:i]]:
        raise DataError(
            f"{path}: the index {twice[0]} has the name of another, {found[twice[0]]!r}: give each "
            "class a name of its own"
        )
    return found


def _read_csv(
    path: Path, headers: tuple[tuple[str, ...], ...]
) -> tuple[tuple[str, ...], list[_Row]]:
    if not path.is_file():
        raise DataError(f"{path} is not a file, or is a broken link: expected a table (CSV)")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte {error.start} ({content[error.start]:#04x}) is not UTF-8: "
            "save the file as UTF-8"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}: is a quote missing?") from error
    header = tuple(lines[0][1]) if lines else ()
    if header not in headers:
        expected = " or ".join(",".join(names) for names in headers)
        raise DataError(f"{path} begins with {','.join(header)!r}; expected {expected}")
    if len(lines) == 1:
        raise DataError(f"{path} lists nothing below its header")
    for number, row in lines[1:]:
        if len(row) != len(header) or not all(row):
            raise DataError(f"{path}, line {number}: expected {','.join(header)}, got {row}")
        if any(c in cell for cell in row for c in "\n\r\0") or any(
            cell != cell.strip() for cell in row[1:]
        ):
            raise DataError(
                f"{path}, line {number}: {row} has a line break, a NUL byte, or spaces around a "
                "name: is a quote missing, or a space to be deleted?"
            )
    return header, lines[1:]
