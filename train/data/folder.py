"""A folder of images, or of one sub-folder of images a class."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from train.data.read import IMAGE_SUFFIXES, read_image
from train.data.record import DataError, Record
from train.data.splits import HASH_SPLITS, check_filled, check_split, hash_split


@dataclass(frozen=True)
class ImageList:
    """Whole images: record i is `paths[i]` under `root`, with label `labels[i]` if any."""

    name: str
    root: Path
    paths: tuple[str, ...]  # relative to root, with forward slashes: the records' ids
    labels: tuple[int, ...]  # empty, or one a path
    classes: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Record:
        record = read_image(self.root / self.paths[index], self.paths[index])
        if self.labels:
            record["label"] = self.labels[index]
        return record

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id and file of each image."""
        return ((path, self.root / path) for path in self.paths)


def open_folder(root: Path, split: str) -> ImageList:
    """List the images under `root`; an image's class is the sub-folder that it lies in.

    Raises:
        DataError: no images; images both beside and inside sub-folders; sub-folders that are
            splits; unknown or empty split.
    """
    check_split(split, HASH_SPLITS, str(root))
    found = find_images(root)
    if not found:
        raise DataError(
            f"no images under {root}; expected a split.csv, sub-folders of images (one a class), "
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
    top = {name.split("/")[0] for name in classes}
    if "train" in top and top <= {"train", "val", "valid", "validation", "test"}:
        raise DataError(
            f"{root} has the sub-folders {', '.join(sorted(top))}, and sub-folders are classes: "
            f"pass {root / 'train'}, or write {root / 'split.csv'} (path,label,split)"
        )
    kept = [i for i, path in enumerate(found) if split in ("all", hash_split(path))]
    check_filled(len(kept), split, str(root), len(found))
    number = {name: index for index, name in enumerate(classes)}
    return ImageList(
        name=root.name,
        root=root,
        paths=tuple(found[i] for i in kept),
        labels=tuple(number[folders[i]] for i in kept) if classes else (),
        classes=classes,
    )


def find_images(root: Path) -> list[str]:
    """Return the sorted relative paths of all images under `root`, hidden ones left out.

    Linked folders are entered; a link to a folder above itself is not.
    """
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here = os.path.realpath(folder)
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".")
            and not f"{here}/".startswith(f"{os.path.realpath(Path(folder, name))}/")
        ]
        inside = Path(folder).relative_to(root)
        found += [
            (inside / name).as_posix()
            for name in files
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)
