"""The images of an archive: whether they are those that it was begun with.

Their names, labels and file sizes are compared; no pixels are read. The content of files is not
compared: a file that was changed in place and kept its size is not noticed.
"""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from coder import archive
from coder.archive import zarr_nodes
from coder.errors import NoPermission, printable
from nec_jax.images.record import DataError, Source, raise_passing
from nec_jax.images.windows import LeftOut
from nec_jax.sources import ImageTable

_LISTED = 256  # images per digest
_DIGITS = 8  # hexadecimal digits of a digest
_LEFT_OUT = "files_left_out"
_NAMED = 100  # files that no window is cut from, which an archive names


class Listed(NamedTuple):
    """What is known of the images of a source before they are read.

    Attributes:
        digests: attributes that tell whether a source has the same images. For every 256 images,
            in order, 8 hexadecimal digits each: of a SHA-256 over ids, labels and what a table says
            of them, and of one over file sizes.
        file_bytes: the size of all files.
        bytes_of: float64 [images], the size of each image's file, which its windows share; 0 where
            it is unknown.
    """

    digests: dict[str, str]
    file_bytes: int
    bytes_of: NDArray[np.float64]


def listed(source: Source) -> Listed:
    """List the images of a source; no pixels are read."""
    labels = getattr(source, "labels", ())
    if not labels:  # windows have the labels of their images
        labels = (getattr(part[0], "label", None) for part in getattr(source, "windows", ()))

    total = 0

    @lru_cache(4)  # consecutive windows are of one file
    def size(file: Path) -> int | None:
        nonlocal total
        try:
            found = file.stat().st_size
        except OSError as error:
            raise_passing(error, file)
            return None  # it is left out later, when it is read
        total += found
        return found

    known = getattr(source, "sizes", None)  # of images at URLs, as they were listed
    names, sizes = hashlib.sha256(), hashlib.sha256()
    digests = {"image_names": "", "image_sizes": ""}
    # Of each file: its first image, and its size.
    firsts, file_sizes, last = array("q"), array("q"), None
    for number, ((name, file), label) in enumerate(zip_longest(source.files(), labels), 1):
        text = f"{name}\t{label}"
        if isinstance(source, ImageTable):
            text += f"\t{source.about(number - 1)}"
        names.update(f"{text}\n".encode(errors="backslashreplace"))
        if known is not None:
            total += known[number - 1] or 0
        found = size(file) if known is None else known[number - 1]
        sizes.update(f"{found}\n".encode())
        if file != last:
            firsts.append(number - 1)
            file_sizes.append(found or 0)
            last = file
        if number % _LISTED == 0 or number == len(source):
            digests["image_names"] += names.hexdigest()[:_DIGITS]
            digests["image_sizes"] += sizes.hexdigest()[:_DIGITS]
            names, sizes = hashlib.sha256(), hashlib.sha256()
    counts = np.diff([*firsts, len(source)])
    share = np.array(file_sizes) / counts
    return Listed(digests, total, np.repeat(share, counts))


def files_left_out(source: Source) -> dict[str, Any]:
    """The attribute `files_left_out` of an archive: the files that no window is cut from.

    Returns:
        `unreadable`: the number of those that cannot be read. `too_small`: of those that are
        smaller than a window. `first`: path and reason of at most 100 of them, unreadable ones
        first. `sha256`: 8 digits, over all paths and kinds; "" if there are none.
    """
    found: Sequence[LeftOut] = getattr(source, _LEFT_OUT, ())
    found = sorted(found, key=lambda file: not file.is_unreadable)
    digest = hashlib.sha256()
    for file in found:
        text = f"{file.path}\t{file.is_unreadable}\n"
        digest.update(text.encode(errors="backslashreplace"))
    unreadable = sum(file.is_unreadable for file in found)
    return {
        "unreadable": unreadable,
        "too_small": len(found) - unreadable,
        "first": [
            {"path": printable(file.path), "reason": printable(file.reason)}
            for file in found[:_NAMED]
        ],
        "sha256": digest.hexdigest()[:_DIGITS] if found else "",
    }


def refuse_changed(
    out: Path | str, source: Source, split: str, now: Mapping[str, str], *, retry: bool
) -> dict[str, str]:
    """Compare images with those that an existing archive was begun with.

    Args:
        out: the path or URL of the archive.
        source: the images.
        split: the split of the data set that they are.
        now: the digests of the images.
        retry: whether images that could not be read may have changed.

    Returns:
        The archive's attributes of these names; `now` if there is no archive.

    Raises:
        DataError: other images of the same data set; names the first, if known.
    """
    store = zarr_nodes.place(out)
    if isinstance(store, Path) and not (store / "zarr.json").is_file():
        return dict(now)
    try:
        group: Any = zarr.open_group(store, mode="r")
    except FileNotFoundError:
        return dict(now)
    except NoPermission:
        raise
    except ValueError:  # damaged, or no archive: its writer says so
        return dict(now)
    if archive.appended(group):
        raise DataError(
            f"{out} is complete, and images were appended to it: encode further ones to a second "
            "archive, and append that (`nec append`)"
        )
    had = {name: group.attrs.get(name) for name in (*now, "images")}
    # Of an earlier version, or damaged: its writer says so.
    if None in had.values() or "id" not in group or "valid" not in group:
        return dict(now)
    same = {"data": source.name, "split": split, "chip": getattr(source, "chip", None)}
    if any(group.attrs.get(name) != value for name, value in same.items()):
        return {name: had[name] for name in now}  # its writer says so; all others differ too
    text = f"{out} was begun with other images ({had['images']} then, {len(source)} now): "
    remedy = ": put them back as they were, or write a second archive"
    _refuse_left_out(group.attrs.get(_LEFT_OUT), files_left_out(source), text, remedy)
    for name, digests in now.items():
        for block in range(-(-max(len(had[name]), len(digests)) // _DIGITS)):
            place = slice(_DIGITS * block, _DIGITS * (block + 1))
            rows = slice(_LISTED * block, _LISTED * (block + 1))
            if had[name][place] == digests[place]:
                continue
            ids, paths = id_list(source)[rows], [path for _, path in source.files()][rows]
            if name == "image_sizes":
                if retry and not group["valid"][rows].all():
                    continue
                newest = max(paths, key=_changed)
                raise DataError(
                    f"{text}the size of a file differs among images {rows.start} to "
                    f"{rows.start + len(ids) - 1}, {ids[0]} to {ids[-1]}"
                    + (f"; of these, {newest} changed last" if isinstance(newest, Path) else "")
                    + f"{remedy}, or give --retry if only unreadable images changed"
                )
            # Only the ids that are written; others are empty.
            stored = [str(one) for one in group["id"][rows]]
            for i, (old, new) in enumerate(zip_longest(stored, ids, fillvalue="")):
                if old and old != new:
                    raise DataError(
                        f"{text}image {rows.start + i} was {old}, and is {new or 'none'}{remedy}"
                    )
            raise DataError(
                f"{text}a name, a label or a column differs from image {rows.start} on"
                f"{', ' + ids[0] if ids else ''}{remedy}"
            )
    return {name: had[name] for name in now}


def _refuse_left_out(had: Any, now: Mapping[str, Any], text: str, remedy: str) -> None:
    """Raise DataError if no window is cut from other files than when the archive was begun."""
    # One of an earlier version has none.
    if not isinstance(had, dict) or had.get("sha256") == now["sha256"]:
        return
    then, here = ({one["path"]: one["reason"] for one in held["first"]} for held in (had, now))
    is_whole = [held["unreadable"] + held["too_small"] <= _NAMED for held in (had, now)]
    added, gone = [p for p in here if p not in then], [p for p in then if p not in here]
    if added and is_whole[0]:
        text += f"{added[0]} was not left out then, and is now ({here[added[0]]})"
    elif gone and is_whole[1]:
        text += f"{gone[0]} was left out then ({then[gone[0]]}), and is not now"
    else:
        text += "other files were left out then, or for another reason"
    raise DataError(f"{text}{remedy}")


def _changed(file: Path | str) -> float:
    """When a local file was changed last."""
    return file.stat().st_mtime if isinstance(file, Path) and file.exists() else 0


class Ids:
    """The ids of a source's images, listed when the first is asked for; no pixels are read."""

    def __init__(self, source: Source):
        self._source = source

    def __getitem__(self, index: int) -> str:
        return self._all[index]

    @cached_property
    def _all(self) -> list[str]:
        return id_list(self._source)


def id_list(source: Source) -> list[str]:
    """Ids of all images, in their order; no pixels are read."""
    # Ids of windows end with the window's size, which the ids of records lack.
    size = f",{getattr(source, 'chip', None)}"
    return [name.removesuffix(size) for name, _ in source.files()]


def refuse_inside(folder: Path, out: Path | str) -> None:
    """Raise DataError if the archive would be inside the folder of images."""
    if not isinstance(out, Path):
        return
    target = out.resolve()
    if folder.is_dir() and folder.resolve() in (target, *target.parents):
        raise DataError(f"{out} lies in the folder of images {folder}: choose another place")
