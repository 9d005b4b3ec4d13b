"""Fewer images of a source."""

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
        return self._source[index % self._count * len(self._source) // self._count]
