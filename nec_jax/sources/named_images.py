"""`open_inputs`: images by files, folders and patterns, or by the name of a data set."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coder.files import is_url, without_query
from nec_jax.images.read import IMAGE_SUFFIXES
from nec_jax.images.record import DataError, Source, raise_passing
from nec_jax.sources.folder import find_images, whole_or_cut
from nec_jax.sources.image_table import TABLES, open_image_table
from nec_jax.sources.open import folder_of, open_source
from nec_jax.sources.remote_images import open_urls


def open_inputs(inputs: Sequence[str], split: str = "all", *, chip: int | None = None) -> Source:
    """The images that all inputs name together, in their order, each once.

    One input that is a folder or the name of a data set is opened by `open_source`, and one that is
    a table (CSV or Parquet) by `open_image_table`: their images may have labels and splits.
    Otherwise an input is an image file, a folder whose images are taken at
    any depth, or a pattern (`*`, `?`, `[..]`, and `**` for folders at any depth), and an image's id
    is its path below the folder that holds all of them.

    Inputs at URLs are opened by `remote_images.open_urls`: images, folders and patterns. A table at
    a URL is opened as a local one is.

    Args:
        inputs: what to open.
        split: a split of a data set; "all" for others.
        chip: as for `open_source`; None for URLs.

    Raises:
        InputError: a URL whose scheme is in capitals.
        DataError: an input that is no image, names nothing, or has no split; as `open_source` and
            `open_image_table`; URLs together with local paths.
        StoreError, NoPermission, ImportError: as `open_urls`.
        FileNotFoundError: an input that does not exist.
        OSError: a folder that may not be listed.
    """
    if any(map(is_url, inputs)):
        names = [without_query(name) for name in inputs if is_url(name)]
        if tables := [name for name in names if name.lower().endswith(TABLES)]:
            _refuse_others(tables[0], inputs)
            return open_image_table(inputs[0], split, chip=chip)
        if split != "all":
            raise DataError(f"images at URLs have no splits, and {split!r} is asked for")
        if chip is not None:
            raise DataError("windows are cut from local images: copy those at URLs to a folder")
        return open_urls(inputs)
    inputs = [absolute(name) for name in inputs]
    if len(inputs) == 1 and not _is_file_or_pattern(inputs[0]):
        return open_source(inputs[0], split, chip=chip)
    if tables := [name for name in inputs if name.lower().endswith(TABLES)]:
        _refuse_others(tables[0], inputs)
        return open_image_table(Path(tables[0]).expanduser(), split, chip=chip)
    if split != "all":
        raise DataError(f"files have no splits, and {split!r} is asked for: leave it out")
    found: dict[Any, Path] = {}
    for path in (path for name in inputs for path in _files(name)):
        found.setdefault(_identity(path), path)
    paths = list(found.values())
    root = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(root).as_posix() for path in paths]
    return whole_or_cut(root, names, [], (), chip, "all")


def absolute(name: str) -> str:
    """An input under a name that means the same in any working folder.

    So what an archive says of images that cannot be read is the same, too.
    """
    if not name or is_url(name) or folder_of(name) is None:  # no path
        return name
    return str(Path(name).expanduser().absolute())


def _refuse_others(table: str, inputs: Sequence[str]) -> None:
    if len(inputs) > 1:
        raise DataError(f"{table} is a table of images, which is given alone: leave the rest out")


def _is_file_or_pattern(name: str) -> bool:
    path = Path(name).expanduser()
    return path.is_file() or (glob.has_magic(name) and not path.exists())


def _files(name: str) -> list[Path]:
    """The absolute paths of the images that one input names."""
    path = Path(name).expanduser()
    if path.is_dir():
        found = [path / inner for inner in find_images(path)]
        if not found:
            raise DataError(f"no images under {name}: {' '.join(IMAGE_SUFFIXES)}")
    elif path.exists():
        found = [path]
    elif glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        found = [
            Path(one)
            for one in matches
            if one.lower().endswith(IMAGE_SUFFIXES) and not Path(one).is_dir()
        ]
        if not found:
            raise DataError(f"no image fits the pattern {name}: {' '.join(IMAGE_SUFFIXES)}")
    else:
        raise FileNotFoundError(f"there is no file or folder {name}")
    for one in found:
        if not one.name.lower().endswith(IMAGE_SUFFIXES):
            raise DataError(f"{one} is no image: images are {' '.join(IMAGE_SUFFIXES)}")
    return [one.parent.resolve() / one.name for one in found]


def _identity(path: Path) -> Any:
    """Equal for paths that lead to one file."""
    try:
        status = path.stat()
    except OSError as error:  # it is left out later, when it is read
        raise_passing(error, path)
        return path
    return status.st_dev, status.st_ino
