"""A part of the images of a source."""

from collections.abc import Iterable
from pathlib import Path

from nec_jax.images.record import Record, Source


def spread(total: int, limit: int | None) -> list[int]:
    """At most `limit` of the numbers below `total`, evenly spread, the same ones each time."""
    count = total if limit is None else min(limit, total)
    return [i * total // count for i in range(count)]


def at_most(source: Source, limit: int | None) -> Source:
    """The source, or `limit` of its records, evenly spread, if it has more."""
    return source if limit is None else Subset(source, limit)


class Subset:
    """At most `count` records of `source`, spread evenly over it, the same ones each time."""

    def __init__(self, source: Source, count: int):
        self._source = source
        self._places = spread(len(source), count)

    @property
    def name(self) -> str:
        """The source's."""
        return self._source.name

    @property
    def classes(self) -> tuple[str, ...]:
        """The source's."""
        return self._source.classes

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """The source's."""
        return self._source.mask_classes

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._source[self._places[index]]

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id and file of each record that is left."""
        listed = list(self._source.files())
        return (listed[place] for place in self._places)
