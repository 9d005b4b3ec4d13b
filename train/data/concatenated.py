"""Several data sets as one, for training without labels."""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from nec_jax.images.record import Record, Source


class Concatenated:
    """The images of several sources, one source after another, without labels."""

    classes: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()

    def __init__(self, parts: Sequence[Source]):
        self._parts = tuple(parts)
        self._places = [(part, i) for part, source in enumerate(parts) for i in range(len(source))]

    @property
    def name(self) -> str:
        """The names of the sources, joined by commas."""
        return ",".join(part.name for part in self._parts)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> Record:
        part, place = self.place(index)
        record = self._parts[part][place]
        return {"image": record["image"], "id": record["id"]}

    def place(self, index: int) -> tuple[int, int]:
        """The index of an image's source, and the index of the image in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._places[index]

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id and file of each image, those of the first source first."""
        return chain.from_iterable(part.files() for part in self._parts)
