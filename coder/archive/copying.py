"""Copy archives: at another quality, with fewer images, or several into one.

Embeddings are decoded and coded again. By the law of codecs this gives the same blobs if the codec
stays the same; at another quality, they are those of the decoded embeddings, which lost something
already.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder.archive import contents, zarr_nodes
from coder.archive.image_columns import TEXT
from coder.archive.writer import Writer
from coder.archive.zarr_codec import nec_codec
from coder.codecs import EmbeddingCodec
from coder.errors import InputError

_OF_IMAGES = (
    "images", "shard", "image_names", "image_sizes", "pixels", "pixels_in_no_window",
    "files_left_out",
)  # fmt: skip
"""Attributes of `nec encode` that are about its run, or about all of its images."""


class Copied(NamedTuple):
    """What `copy` did: the images of the copy, and how many of them have no embedding."""

    images: int
    not_valid: int


def copy(
    sources: Sequence[Any],
    out: Any,
    codec: EmbeddingCodec,
    *,
    quality: int | None = None,
    keep: Collection[str] | None = None,
    drop: Collection[str] | None = None,
    shard: int = contents.SHARD,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Copied:
    """Copy the images of complete archives to a new one; called again, it goes on.

    Args:
      sources: archives of one codec, quality and grid, as `open_archive` takes them.
      out: path or store of the copy, as for `Writer`.
      codec: the codec that they were made with. (An archive holds only what decodes one quality.)
      quality: quality of the copy; None for that of the archives.
      keep: ids of the images to copy; None for all.
      drop: ids of images to leave out.
      shard: maximum number of images per shard.
      progress: called after each shard, with the images that are written and all images.

    The copy has the attributes that all archives share, labels by the names of classes (attribute
    `classes`), the columns of all archives, and the refiner of the codec, if it has one.

    Raises:
      FileError: an archive is damaged or not complete.
      InputError: archives of different codecs, qualities or grids, or of another codec than the
        one given; one id twice; labels or columns that cannot be joined; not one image to copy.
      OutputError: as `Writer`.
    """
    if not sources:
        raise InputError("no archive to copy")
    parts = [_Source(store) for store in sources]
    _choose(parts, keep, drop)
    first = parts[0]
    for other in parts[1:]:
        for what in ("codecs", "grid"):
            if getattr(other, what) != getattr(first, what):
                raise InputError(
                    f"{other.store} has another {what.removesuffix('s')} than {first.store}: "
                    "only archives of one codec, quality and grid make one archive"
                )
    own = codec.quality_of(first.codecs)
    if own is None:
        raise InputError(
            f"{first.store} was not coded by this codec: give the codec or the model that made it"
        )
    one = codec.at(own if quality is None else quality)
    if one.quality > own:
        raise InputError(
            f"quality {one.quality}, and the archive has quality {own}: a copy cannot be better: "
            f"give {own} or less, or encode the images again"
        )
    classes = list(dict.fromkeys(name for part in parts for name in part.classes))
    if classes and any(not part.classes and part.is_labelled for part in parts):
        raise InputError("some archives have names of classes, and others labels without names")
    names = Counter(part.ids[i] for part in parts for i in part.numbers)
    if names and names.most_common(1)[0][1] > 1:
        raise InputError(
            f"two images have the id {names.most_common(1)[0][0]!r}: ids of an archive are unique, "
            "so leave one out"
        )
    count = names.total()
    if count == 0:
        raise InputError("no image to copy")
    attributes = _shared([part.attributes for part in parts])
    attributes |= {"classes": classes} if classes else {}
    if "quality" in attributes:
        attributes["quality"] = one.quality
    if one.quality != own:
        attributes.pop("for_refiner", None)  # of symbols that were chosen again
    attributes["copied_from"] = [str(store) for store in sources]
    attributes["copied_from_quality"] = own
    attributes["copied_images"] = _digest(parts)
    columns = _columns(parts)
    writer = Writer(
        out, one, count, first.grid, shard=contents.even_shard(count, shard),
        attributes=attributes, columns=columns,
    )  # fmt: skip
    with writer:
        missing = writer.missing()
        done = count - sum(part.stop - part.start for part in missing)
        for part in missing:
            cuts = list(_cut(parts, part))
            rows = [source.rows(inside, classes) for source, inside in cuts]
            y, ids, labels, errors = (list(values) for values in zip(*rows, strict=True))
            beside = {
                name: [one for source, inside in cuts for one in source.column(name, inside)]
                for name in columns
            }
            whole = np.concatenate(y)
            writer.write(
                part,
                whole if len(whole) else np.empty(0),
                [name for some in ids for name in some],
                np.concatenate(labels),
                [error for some in errors for error in some],
                beside,
            )
            done += part.stop - part.start
            progress(done, count)
        writer.finish()
        return Copied(count, contents.not_valid(writer.group, 0)[0])


class _Source:
    """An archive to copy, and the numbers of the images to copy of it."""

    def __init__(self, store: Any):
        self.store = store
        self.group = contents.open_archive(store)
        with zarr_nodes.about_store(self.group.store):
            array = contents.array_of(self.group, "embedding")
            self.grid = array.shape[1], array.shape[2]
            names = ["embedding", *(["class_token"] if "class_token" in self.group else [])]
            found = [nec_codec(contents.array_of(self.group, name)) for name in names]
            self.codecs = [codec for codec in found if codec is not None]
            if len(self.codecs) < len(names):
                raise InputError("its embeddings are not coded by nec")
        self.ids = [str(name) for name in contents.read_array(self.group, "id")]
        self.numbers = np.arange(len(self.ids))
        names = self.group.attrs.get("classes", ())
        self.classes = list(map(str, names)) if isinstance(names, list | tuple) else []
        self.labels = contents.read_array(self.group, "label")
        if self.classes and self.labels.max(initial=-1) >= len(self.classes):
            raise InputError(
                f"{store} has the label {self.labels.max()}, and names of {len(self.classes)} "
                "classes: correct its attribute `classes`"
            )
        if len(set(self.classes)) < len(self.classes):
            raise InputError(
                f"{store} has two classes of one name: correct its attribute `classes`"
            )
        self.valid = contents.valid_images(self.group)
        self.columns = contents.columns_of(self.group)

    @property
    def is_labelled(self) -> bool:
        return bool((self.labels >= 0).any())

    @property
    def attributes(self) -> Mapping[str, Any]:
        own = (*contents.OWN, *_OF_IMAGES)
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
        if "error" in self.group:
            errors = [str(one) for one in contents.read_array(self.group, "error", numbers)]
        return y, [self.ids[i] for i in numbers], labels, errors

    def column(self, name: str, inside: slice) -> Sequence[Any]:
        """The values of a column of some of the images; missing, if it has no such column."""
        numbers = self.numbers[inside]
        if name not in self.columns:
            return [None] * len(numbers)
        values = contents.read_array(self.group, name, numbers)
        return [str(one) for one in values] if self.columns[name] == TEXT else list(values)


def _choose(
    parts: Sequence[_Source], keep: Collection[str] | None, drop: Collection[str] | None
) -> None:
    """Cut the images to copy. Raises InputError if a listed id is in no archive."""
    for listed, is_kept in ((keep, True), (drop, False)):
        if listed is None:
            continue
        wanted = set(listed)
        if lost := wanted.difference(*(part.ids for part in parts)):
            raise InputError(
                f"{len(lost)} of {len(wanted)} listed ids are in no archive, such as {min(lost)!r}"
            )
        for part in parts:
            chosen = [(part.ids[i] in wanted) == is_kept for i in part.numbers]
            part.numbers = part.numbers[np.array(chosen, bool)]


def _columns(parts: Sequence[_Source]) -> dict[str, np.dtype]:
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


def _digest(parts: Sequence[_Source]) -> str:
    """A SHA-256 of the images to copy: ids, labels and which are valid."""
    sha = hashlib.sha256()
    for part in parts:
        for i in part.numbers.tolist():
            sha.update(f"{part.ids[i]}\0{part.labels[i]}\0{part.valid[i]}\n".encode())
    return sha.hexdigest()


def _cut(parts: Sequence[_Source], images: slice) -> Iterator[tuple[_Source, slice]]:
    """The images of a shard of the copy: sources, and places in their `numbers`."""
    start = 0
    for part in parts:
        low = max(images.start - start, 0)
        high = min(images.stop - start, len(part.numbers))
        if low < high:
            yield part, slice(low, high)
        start += len(part.numbers)


def _shared(attributes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The attributes that all have, with one value."""
    first, *others = attributes
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }
