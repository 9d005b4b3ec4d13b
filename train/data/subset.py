"""Fewer images of a source."""

from collections.abc import Iterable
from pathlib import Path

from train.data.record import Record, Source


class Subset:
    """At most `count` records of `source`, spread evenly over it, the same ones each time."""

    def __init__(self, source: Source, count: int):
        self._source = source
        self._count = min(count, len(source))

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
        return self._count

    def __getitem__(self, index: int, /) -> Record:
        if not -self._count <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        return self._source[self._place(index % self._count)]

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id and file of each record that is left."""
        listed = list(self._source.files())
        return (listed[self._place(index)] for index in range(self._count))

    def _place(self, index: int) -> int:
        return index * len(self._source) // self._count
