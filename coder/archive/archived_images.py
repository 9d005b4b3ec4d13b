"""The images of complete archives, one archive after another, to copy or to append them."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder import files
from coder.archive import contents, manifest, zarr_nodes
from coder.archive.image_columns import TEXT
from coder.archive.zarr_codec import nec_codec
from coder.errors import InputError
from coder.lazy_attribute import lazy_attribute

OF_ALL = ("images", "image_names", "image_sizes", "pixels", "pixels_in_no_window")
"""Attributes of `nec encode` that are about all of its images."""
_NO_REASON = "not valid, and no reason is known"


class Rows(NamedTuple):
    """Consecutive images, as `Writer.write` takes them.

    Attributes:
      embeddings: float32 [valid, n, D].
      ids, labels, errors: those of all images.
      columns: the values of each column.
    """

    embeddings: NDArray[np.float32]
    ids: list[str]
    labels: NDArray[np.int32]
    errors: list[str]
    columns: dict[str, list[Any]]


class ArchivedImages:
    """An archive, and the numbers of its images to take."""

    def __init__(self, store: Any):
        """Open a complete archive.

        Raises FileError as `open_archive`, and InputError for one that cannot be copied.
        """
        self.store = store
        self.group = contents.open_archive(store)
        with zarr_nodes.about_store(self.group.store):
            array = contents.array_of(self.group, "embedding")
            self.count, *grid = array.shape[:3]
            self.grid = grid[0], grid[1]
            names = ["embedding", *(["class_token"] if "class_token" in self.group else [])]
            found = [nec_codec(contents.array_of(self.group, name)) for name in names]
            self.codecs = [codec for codec in found if codec is not None]
            if len(self.codecs) < len(names):
                raise InputError("its embeddings are not coded by nec")
        self.numbers = np.arange(self.count)
        names = self.group.attrs.get("classes", ())
        self.classes = list(map(str, names)) if isinstance(names, list | tuple) else []
        if len(set(self.classes)) < len(self.classes):
            raise InputError(
                f"{store} has two classes of one name: correct its attribute `classes`"
            )
        self.columns = contents.columns_of(self.group)

    @property
    def name(self) -> str:
        """The path or URL of the archive, without the query of a signed URL."""
        return files.without_query(str(self.store))

    @lazy_attribute
    def ids(self) -> list[str]:
        """The ids of all images."""
        return [str(name) for name in contents.read_array(self.group, "id")]

    @lazy_attribute
    def valid(self) -> NDArray[np.bool_]:
        """Which images have an embedding."""
        return contents.valid_images(self.group)

    @lazy_attribute
    def labels(self) -> NDArray[np.int32]:
        """The labels of all images. Raises InputError if one has no name."""
        labels = contents.read_array(self.group, "label")
        if self.classes and labels.max(initial=-1) >= len(self.classes):
            raise InputError(
                f"{self.store} has the label {labels.max()}, and names of {len(self.classes)} "
                "classes: correct its attribute `classes`"
            )
        return labels

    @property
    def is_labelled(self) -> bool:
        """Whether an image has a label."""
        return bool((self.labels >= 0).any())

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that say what the images are, and not how many or how they are stored."""
        own = (*contents.OWN, *OF_ALL, "shard")
        return {k: v for k, v in self.group.attrs.asdict().items() if k not in own}

    def rows(
        self, inside: slice, classes: Sequence[str]
    ) -> tuple[NDArray[np.float32], list[str], NDArray[np.int32], list[str]]:
        """Embeddings of those that are valid, ids, labels and errors of some of the images."""
        numbers = self.numbers[inside]
        good = numbers[self.valid[numbers]]
        y = contents.read_array(self.group, "embedding", good)
        y = y.reshape(len(good), self.grid[0] * self.grid[1], y.shape[-1])
        if "class_token" in self.group:
            own = contents.read_array(self.group, "class_token", good)
            y = np.concatenate([own[:, None], y], axis=1)
        labels = self.labels[numbers]
        if self.classes:
            moved = np.array([classes.index(name) for name in self.classes], np.int32)
            labels = np.where(labels >= 0, moved[labels], -1)
        errors = [""] * len(numbers)
        if "error" in self.group:  # `valid` says which images have an embedding
            given = contents.read_array(self.group, "error", numbers)
            there = self.valid[numbers]
            errors = ["" if v else str(e) or _NO_REASON for v, e in zip(there, given, strict=True)]
        return y, [self.ids[i] for i in numbers], labels, errors

    def column(self, name: str, inside: slice) -> Sequence[Any]:
        """The values of a column of some of the images; missing, if it has no such column."""
        numbers = self.numbers[inside]
        if name not in self.columns:
            return [None] * len(numbers)
        values = contents.read_array(self.group, name, numbers)
        return [str(one) for one in values] if self.columns[name] == TEXT else list(values)


def refuse_different(parts: Sequence[ArchivedImages]) -> None:
    """Raise InputError unless all archives are of one codec, quality, grid and encoder."""
    first = parts[0]
    for other in parts[1:]:
        for what in ("codecs", "grid"):
            if getattr(other, what) != getattr(first, what):
                raise InputError(
                    f"{other.store} has another {what.removesuffix('s')} than {first.store}: "
                    "only archives of one codec, quality and grid make one archive"
                )
    models = {str(part.group.attrs["model"]): part for part in parts if "model" in part.group.attrs}
    if len(models) > 1:
        one, two, *_ = models.values()
        raise InputError(
            f"{two.store} was made by another model than {one.store}, of the same codec: "
            "embeddings of two models cannot be compared"
        )


def choose(
    parts: Sequence[ArchivedImages], keep: Collection[str] | None, drop: Collection[str] | None
) -> None:
    """Leave images out. Raises InputError if a listed id is in no archive."""
    for listed, is_kept in ((keep, True), (drop, False)):
        if listed is None:
            continue
        wanted = set(listed)
        if lost := wanted.difference(*(part.ids for part in parts)):
            raise InputError(
                f"{len(lost)} of {len(wanted)} listed ids are in no archive, such as {min(lost)!r}"
            )
        for part in parts:
            _take(part, [(name in wanted) == is_kept for name in part.ids])


def leave_replaced(parts: Sequence[ArchivedImages]) -> None:
    """Leave out the images whose id a later archive has."""
    later: set[str] = set()
    for part in reversed(parts):
        own = {part.ids[i] for i in part.numbers}
        _take(part, [name not in later for name in part.ids])
        later |= own


def _take(part: ArchivedImages, chosen: Sequence[bool]) -> None:
    part.numbers = part.numbers[np.array(chosen, bool)[part.numbers]]


def count_unique(parts: Sequence[ArchivedImages]) -> int:
    """The number of images to take. Raises InputError if two have one id."""
    names = Counter(part.ids[i] for part in parts for i in part.numbers)
    if names and names.most_common(1)[0][1] > 1:
        raise InputError(
            f"two images have the id {names.most_common(1)[0][0]!r}: ids of an archive are unique, "
            "so leave one out"
        )
    return names.total()


def classes_of(parts: Sequence[ArchivedImages]) -> list[str]:
    """The names of the classes of all archives. Raises InputError if labels cannot be joined."""
    classes = list(dict.fromkeys(name for part in parts for name in part.classes))
    if classes and any(not part.classes and part.is_labelled for part in parts):
        raise InputError("some archives have names of classes, and others labels without names")
    return classes


def columns_of(parts: Sequence[ArchivedImages]) -> dict[str, np.dtype]:
    """The columns of all archives. Raises InputError if they cannot be joined."""
    found: dict[str, np.dtype] = {}
    for part in parts:
        for name, dtype in part.columns.items():
            if found.setdefault(name, dtype) != dtype:
                raise InputError(
                    f"the column {name} has another type in {part.store} than in an archive before "
                    "it: copy one of them without the other"
                )
    for name, dtype in found.items():
        for part in parts:
            if name not in part.columns and dtype.kind in "bi":
                raise InputError(
                    f"{part.store} has no column {name}, and no value of its type ({dtype}) means "
                    "that it is missing"
                )
    return found


def digest(parts: Sequence[ArchivedImages]) -> str:
    """A SHA-256 of the images to take: ids, labels, which are valid, and digests of their shards.

    Archives of earlier versions have no digests of shards.
    """
    sha = hashlib.sha256()
    for part in parts:
        for i in part.numbers.tolist():
            sha.update(f"{part.ids[i]}\0{part.labels[i]}\0{part.valid[i]}\n".encode())
        state = manifest.read_state(part.group) or {}
        sha.update(f"{part.classes}\n{sorted(state.get('sha256', {}).items())}\n".encode())
    return sha.hexdigest()


def rows(
    parts: Sequence[ArchivedImages], images: slice, classes: Sequence[str], columns: Mapping
) -> Rows:
    """Consecutive images of all that are taken.

    Args:
      parts: the archives.
      images: which, counted over all archives.
      classes: the names of labels.
      columns: names of columns.
    """
    cuts = list(_cut(parts, images))
    found = [part.rows(inside, classes) for part, inside in cuts]
    y, ids, labels, errors = (list(values) for values in zip(*found, strict=True))
    beside = {
        name: [one for part, inside in cuts for one in part.column(name, inside)]
        for name in columns
    }
    whole = np.concatenate(y)
    return Rows(
        whole if len(whole) else np.empty(0, np.float32),
        [name for some in ids for name in some],
        np.concatenate(labels),
        [error for some in errors for error in some],
        beside,
    )


def _cut(parts: Sequence[ArchivedImages], images: slice) -> Iterator[tuple[ArchivedImages, slice]]:
    """Consecutive images: archives, and places in their `numbers`."""
    start = 0
    for part in parts:
        low = max(images.start - start, 0)
        high = min(images.stop - start, len(part.numbers))
        if low < high:
            yield part, slice(low, high)
        start += len(part.numbers)
