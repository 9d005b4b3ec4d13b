"""A folder of images, or of sub-folders of images, one per class."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coder.errors import printable
from nec_jax.images.read import IMAGE_SUFFIXES, LARGEST, read_image, read_mask
from nec_jax.images.record import CorruptImageError, DataError, Record, Source, raise_passing
from nec_jax.images.windows import Pair, WindowSource
from nec_jax.sources.splits import HASH_SPLITS, check_filled, check_split, hash_split

log = logging.getLogger(__name__)

# Names of folders, and endings of file names, of images and of their masks.
_OF_IMAGES = re.compile(r"(images?|imgs?|jpeg_?images|rgb|sat)", re.IGNORECASE)
_OF_MASKS = re.compile(
    r"(masks?|labels?|gt|ground_?truths?|annotations?|seg|segmentation(_?class)?)", re.IGNORECASE
)
_DRAWN = 32  # maximum number of different values in a file that may be a mask
# Folders that systems make beside images: thumbnails, attributes, deleted files.
_OF_SYSTEMS = (
    "@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found",
)  # fmt: skip


@dataclass(frozen=True)
class ImageList:
    """Whole images: record i is `paths[i]` under `root`, with `labels[i]` if there are labels."""

    name: str
    root: Path
    paths: tuple[str, ...]  # relative to root, with forward slashes: the records' ids
    labels: tuple[int, ...]  # empty, or one per path
    classes: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Record:
        path = self.paths[index]
        record = read_image(self.root / path, path, largest=LARGEST)
        if self.labels:
            record["label"] = self.labels[index]
        return record

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id and file of each image."""
        return ((path, self.root / path) for path in self.paths)


def whole_or_cut(
    root: Path,
    paths: list[str],
    labels: list[int],
    classes: tuple[str, ...],
    chip: int | None,
    split: str,
) -> Source:
    """Images of one split: whole if `chip` is None, else all windows of that side.

    Raises:
        DataError: not one whole window.
    """
    if chip is None:
        return ImageList(root.name, root, tuple(paths), tuple(labels), classes)
    pairs = [Pair(path, None, split, labels[i] if labels else None) for i, path in enumerate(paths)]
    return WindowSource(root.name, root, pairs, split, chip, classes=classes)


def open_folder(root: Path, split: str, chip: int | None = None) -> Source:
    """List the images under `root`; an image's class is the sub-folder that it lies in.

    Raises:
        DataError: no images; images both beside and inside sub-folders; sub-folders that are
            splits; masks among the images; unknown or empty split; not one window of `chip` px.
        OSError: a folder that may not be listed.
    """
    check_split(split, HASH_SPLITS, str(root))
    found = find_images(root)
    if not found:
        raise DataError(
            f"no images under {root}; expected a split.csv, sub-folders of images (one per class), "
            f"or images: {' '.join(IMAGE_SUFFIXES)}"
        )
    folders = [path.rpartition("/")[0] for path in found]
    classes = tuple(sorted(set(folders) - {""}))
    if classes and "" in folders:
        stray = found[folders.index("")]
        raise DataError(
            f"{root} holds images both beside sub-folders ({stray}) and inside them: "
            f"sub-folders are classes, so move {stray} into one, or out of {root}"
        )
    if pair := _find_mask(root, found):
        raise DataError(
            f"{root} holds masks, which would be taken for images: {pair[1]} seems to be one, of "
            f"{pair[0]}. Write {root / 'split.csv'}: image,mask,split in its first line, then a "
            f"line for each pair, such as {pair[0]},{pair[1]},train. If there are no masks, list "
            "the images with path,label,split"
        )
    top = {name.split("/")[0] for name in classes}
    if "train" in top and top <= {"train", "val", "valid", "validation", "test"}:
        raise DataError(
            f"{root} has the sub-folders {', '.join(sorted(top))}, and sub-folders are classes: "
            f"pass {root / 'train'}, or write {root / 'split.csv'} (path,label,split)"
        )
    kept = [i for i, path in enumerate(found) if split in ("all", hash_split(path))]
    check_filled(len(kept), split, str(root), len(found))
    number = {name: index for index, name in enumerate(classes)}
    labels = [number[folders[i]] for i in kept] if classes else []
    return whole_or_cut(root, [found[i] for i in kept], labels, classes, chip, split)


def _find_mask(root: Path, found: list[str]) -> tuple[str, str] | None:
    """The paths of an image and its mask, if a folder of images seems to hold masks as well.

    Masks are recognised by the names of folders (images/ and masks/) or of files (1.jpg and
    1_mask.png); or as a second file of each stem, in the same folder or in the only other one,
    that has few different pixel values while the image has many.
    """
    folders: dict[str, dict[str, list[str]]] = {}  # paths by stem, by folder
    for path in found:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, {}).setdefault(name.rpartition(".")[0], []).append(path)
    masks = [name for name in folders if any(map(_OF_MASKS.fullmatch, name.split("/")))]
    rest = [name for name in folders if name not in masks]
    named = all(any(map(_OF_IMAGES.fullmatch, name.split("/"))) for name in rest)
    for mask in masks:
        for image in rest:
            both = folders[mask].keys() & folders[image].keys()
            if named or len(both) == len(folders[mask]):
                stems = (min(both),) * 2 if both else (min(folders[image]), min(folders[mask]))
                return folders[image][stems[0]][0], folders[mask][stems[1]][0]
    for stems in folders.values():
        for stem, paths in stems.items():
            start = re.sub(rf"[_-]{_OF_MASKS.pattern}$", "", stem, flags=re.IGNORECASE)
            ends = (
                "",
                *(f"{mark}{end}" for mark in "_-" for end in ("image", "img", "rgb", "sat")),
            )
            image = next((stems[start + end] for end in ends if start + end in stems), None)
            if start != stem and image:
                return image[0], paths[0]
    pairs = [paths for stems in folders.values() for paths in stems.values()]
    if len(folders) == 2:
        one, two = folders.values()
        pairs = [one[stem] + two[stem] for stem in one] if one.keys() == two.keys() else []
    if pairs and all(len(paths) == 2 for paths in pairs):
        drawn = [path for path in pairs[0] if _seems_drawn(root / path)]
        if len(drawn) == 1:
            return next(path for path in pairs[0] if path not in drawn), drawn[0]
    return None


def _seems_drawn(path: Path) -> bool:
    """Whether the pixels of a file may be class indices."""
    try:
        return len(np.unique(read_mask(path))) <= _DRAWN
    except (CorruptImageError, ModuleNotFoundError):
        return False


def find_images(root: Path) -> list[str]:
    """Return the sorted relative paths of all images under `root`, hidden ones left out.

    Linked folders are entered. A folder or file that several paths lead to is listed once: under
    the path without links if there is one, else under the first path; the latter holds for hard
    links too. Folders that systems make beside images, such as thumbnails, are not entered. What is
    left out is logged: files of other suffixes as counts, the rest by name.

    Raises:
        OSError: a folder that may not be listed.
    """
    search = _Search(root)
    folders, links = [""], []
    while folders:
        for folder in folders:
            search.enter(folder)
        # Links to folders come last: a class keeps the name of its own folder.
        folders, links = sorted(search.linked_folders), links + sorted(search.linked_files)
        search.linked_folders, search.linked_files = [], []
    for path in links:
        search.follow(path)
    if search.hidden:
        names = sorted(search.hidden)
        log.warning(
            "left out as hidden, or as a system's own: %s in %s",
            printable(", ".join(names[:3]))
            + (f" and {len(names) - 3:,} others" if len(names) > 3 else ""),
            printable(str(root)),
        )
    if search.others:
        ordered = sorted(search.others.items(), key=lambda item: (-item[1], item[0]))
        counts = ", ".join(f"{count} {suffix}" for suffix, count in ordered)
        log.warning(
            "left out by their suffix: %s in %s; images are %s",
            counts,
            printable(str(root)),
            " ".join(IMAGE_SUFFIXES),
        )
    return search.without_repeated()


class _Search:
    """A walk through a folder; paths are relative to it."""

    def __init__(self, root: Path):
        self._root = root
        self._names: dict[str, set[str]] = {}  # of the images in each folder, by its real path
        self._first: dict[str, str] = {}  # path that first led to a real folder or linked file
        self._found: dict[str, int] = {}  # each image, and its number (inode) in its folder
        self.hidden: list[str] = []  # images and folders
        self.others: Counter[str] = Counter()  # files of other suffixes
        self.linked_folders: list[str] = []
        self.linked_files: list[str] = []

    def enter(self, folder: str) -> None:
        """List a folder and the folders in it, except linked ones."""
        here = self._root / folder
        real = os.path.realpath(here)
        # A link back to a folder that contains it gives no new images.
        if folder and f"{os.path.realpath(here.parent)}/".startswith(f"{real}/"):
            return
        if real in self._first:
            self._say_twice(folder, self._first[real])
            return
        self._first[real] = folder
        names = self._names[real] = set()
        inner = []
        with os.scandir(here) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if printable(path) != path:  # an archive and a report could not store it
                    log.warning(
                        "left out: %r in %s: its name is not UTF-8, rename it",
                        path,
                        printable(str(self._root)),
                    )
                    continue
                if entry.name.startswith(".") or entry.name.lower() in _OF_SYSTEMS:
                    if entry.name.lower().endswith(IMAGE_SUFFIXES) or entry.is_dir():
                        self.hidden.append(path)
                    continue
                if entry.is_dir():
                    (self.linked_folders if entry.is_symlink() else inner).append(path)
                elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
                    self.others[Path(entry.name).suffix.lower() or "without suffix"] += 1
                elif entry.is_symlink():
                    self.linked_files.append(path)
                else:
                    names.add(entry.name)
                    self._found[path] = entry.inode()
        for path in sorted(inner):
            self.enter(path)

    def follow(self, path: str) -> None:
        """List a linked file, unless its target is listed."""
        real = os.path.realpath(self._root / path)
        folder, name = os.path.split(real)
        before = self._first.get(real)
        if before is None and name in self._names.get(folder, ()):
            before = f"{self._first[folder]}/{name}".removeprefix("/")
        if before is None:
            self._first[real] = path
            try:
                number = Path(real).stat().st_ino
            except OSError as error:  # a broken link is left out later, when it is read
                raise_passing(error, real)
                number = 0
            self._found[path] = number
        else:
            self._say_twice(path, before)

    def without_repeated(self) -> list[str]:
        """The sorted paths, without further hard links to a file."""
        # Folders give the numbers at no cost; only files with equal numbers are examined.
        times = Counter(self._found.values())
        kept: list[str] = []
        first: dict[tuple[int, int], str] = {}
        for path, number in sorted(self._found.items()):
            if times[number] > 1:
                try:
                    found = (self._root / path).stat()
                except OSError as error:
                    raise_passing(error, self._root / path)
                    kept.append(path)
                    continue
                before = first.setdefault((found.st_dev, found.st_ino), path)
                if found.st_nlink > 1 and before != path:
                    self._say_twice(path, before)
                    continue
            kept.append(path)
        return kept

    def _say_twice(self, path: str, before: str) -> None:
        names = (printable(str(self._root / name)) for name in (path, before))
        log.warning("left out: %s leads to what is listed already, %s", *names)
