"""A folder whose split.csv says which image belongs where."""

import csv
from collections import Counter
from pathlib import Path

from train.data.folder import ImageList
from train.data.record import DataError, Source
from train.data.splits import check_filled, check_split
from train.data.windows import Pair, WindowSource, numbered_classes

_HEADERS = (("path", "label", "split"), ("image", "mask", "split"))


def open_table(root: Path, split: str, chip: int) -> Source:
    """Open `root`/split.csv: header `path,label,split` or `image,mask,split`.

    Labels are names; the classes are the sorted names of every split. Mask classes come from
    `root`/classes.csv (`index,name`) if there, else they are numbered.

    Raises:
        DataError: another header, an empty cell, a path listed twice, an unknown split.
    """
    table = root / "split.csv"
    header, rows = _read_csv(table, _HEADERS)
    repeated = [path for path, count in Counter(row[0] for row in rows).items() if count > 1]
    if repeated:
        raise DataError(f"{table} lists {repeated[0]} more than once: keep one line")
    check_split(split, (row[2] for row in rows), str(root))
    if header[1] == "mask":
        pairs = [Pair(image, mask, part) for image, mask, part in rows]
        return WindowSource(root.name, root, pairs, split, chip, lambda: _mask_classes(root, pairs))
    classes = tuple(sorted({row[1] for row in rows}))
    number = {name: index for index, name in enumerate(classes)}
    kept = [row for row in rows if split in ("all", row[2])]
    check_filled(len(kept), split, str(root), len(rows))
    return ImageList(
        name=root.name,
        root=root,
        paths=tuple(row[0] for row in kept),
        labels=tuple(number[row[1]] for row in kept),
        classes=classes,
    )


def _mask_classes(root: Path, pairs: list[Pair]) -> tuple[str, ...]:
    path = root / "classes.csv"
    if not path.exists():
        return numbered_classes(root, pairs)
    _, rows = _read_csv(path, (("index", "name"),))
    names = dict(rows)
    if sorted(names) != sorted(str(i) for i in range(len(rows))):
        raise DataError(f"the indices of {path} must be 0 to {len(rows) - 1}, each once")
    return tuple(names[str(i)] for i in range(len(rows)))


def _read_csv(
    path: Path, headers: tuple[tuple[str, ...], ...]
) -> tuple[tuple[str, ...], list[list[str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    header = tuple(lines[0]) if lines else ()
    if header not in headers:
        expected = " or ".join(",".join(names) for names in headers)
        raise DataError(f"{path} begins with {','.join(header)!r}; expected {expected}")
    if len(lines) == 1:
        raise DataError(f"{path} lists nothing below its header")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header) or not all(line):
            raise DataError(f"{path}, line {number}: expected {','.join(header)}, got {line}")
    return header, lines[1:]
