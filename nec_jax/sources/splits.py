"""Parts of data sets: splits into train, val and test, some images of a source, several sources."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from nec_jax.images.record import DataError, Record, Source

HASH_SPLITS = ("train", "val", "test")


def hash_split(image_id: str) -> str:
    """Return "train", "val" or "test" (80/10/10) from the SHA-256 of an image's id.

    It depends only on the id: adding images to a data set moves none of the others.
    """
    bucket = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") % 10
    return {8: "val", 9: "test"}.get(bucket, "train")


def check_split(split: str, existing: Iterable[str], name: str) -> None:
    """Raise DataError, which names the splits, unless `split` is "all" or one of them."""
    names = [*dict.fromkeys(existing), "all"]
    if split not in names:
        raise DataError(f"{name} has no split {split!r}; it has: {', '.join(names)}")


def check_filled(count: int, split: str, name: str, total: int) -> None:
    """Raise DataError if a split holds no image: `count` of the `total` images of `name`."""
    if count == 0:
        raise DataError(
            f"split {split!r} of {name} is empty ({total} images in all): "
            f"use split 'all', or say what belongs where in a split.csv"
        )


def spread(total: int, limit: int | None) -> list[int]:
    """At most `limit` of the numbers below `total`, evenly spread, the same ones each time."""
    count = total if limit is None else min(limit, total)
    return [i * total // count for i in range(count)]


def at_most(source: Source, limit: int | None) -> Source:
    """At most `limit` records of a source, evenly spread; all if `limit` is None."""
    return source if limit is None else Subset(source, limit)


class Subset:
    """At most `count` records of `source`, spread evenly over it, the same ones each time."""

    def __init__(self, source: Source, count: int):
        self._source = source
        self._places = spread(len(source), count)
        self.name, self.classes = source.name, source.classes

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """The source's. Some sources read all masks to find them."""
        return self._source.mask_classes

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> Record:
        return self._source[self._places[index]]

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id and file of each record of the subset."""
        listed = list(self._source.files())
        return (listed[place] for place in self._places)


class Concatenated:
    """The images of several sources, one source after another, without labels."""

    classes: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()

    def __init__(self, parts: Sequence[Source]):
        self.name = ",".join(part.name for part in parts)
        self._parts = tuple(parts)
        self._places = [(part, i) for part, source in enumerate(parts) for i in range(len(source))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> Record:
        part, place = self.place(index)
        record = self._parts[part][place]
        return {"image": record["image"], "id": record["id"]}

    def place(self, index: int) -> tuple[int, int]:
        """The index of an image's source, and the index of the image in it."""
        return self._places[index]

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id and file of each image, those of the first source first."""
        return chain.from_iterable(part.files() for part in self._parts)
