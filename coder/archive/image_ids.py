"""The ids of an archive's images: unique texts, stored unchanged."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder.errors import InputError, printable

LONGEST = (1 << 16) - 1  # bytes of an id in UTF-8


def checked(ids: Sequence[Any], first: int) -> list[str]:
    """Ids as they are stored: bytes of a file name that are not UTF-8 become `\\xNN`.

    Args:
      ids: ids of consecutive images.
      first: the number of the first of them.

    Raises:
      InputError: an id is not text, is empty, has a NUL (which fixed-length text loses at its
        end), is too long, or occurs twice; names the image and the id.
    """
    names: dict[str, int] = {}
    for number, given in enumerate(ids, first):
        if not isinstance(given, str):
            raise InputError(f"image {number} has the id {given!r}: give text")
        name = printable(given)
        if not name:
            raise InputError(f"image {number} has an empty id: give each image a name of its own")
        if "\0" in name:
            raise InputError(f"image {number} has the id {name[:80]!r}: leave out its NUL")
        if len(name) > LONGEST or len(name.encode()) > LONGEST:
            raise InputError(
                f"image {number} has an id of {len(name):,} characters, {name[:40]!r} and so on: "
                f"give at most {LONGEST:,} bytes"
            )
        if name in names:
            raise InputError(_alike(number, name, names[name]))
        names[name] = number
    return list(names)


class Known:
    """The ids that are written, and their images, in 16 bytes of memory each.

    They are kept as hashes, in sorted runs, each more than twice as long as the next.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, ids: Sequence[str], first: int) -> None:
        """Add the ids of images from `first` on."""
        hashes, rows = _hashes(ids), np.arange(first, first + len(ids))
        while self._runs and len(self._runs[-1][0]) <= 2 * len(hashes):
            more_hashes, more_rows = self._runs.pop()
            hashes, rows = np.append(hashes, more_hashes), np.append(rows, more_rows)
        order = np.argsort(hashes, kind="stable")
        self._runs.append((hashes[order], rows[order]))

    def candidates(self, ids: Sequence[str]) -> Iterable[tuple[int, int]]:
        """Pairs of an index in `ids` and an image that may have, or may have had, the same id."""
        wanted = _hashes(ids)
        for hashes, rows in self._runs:
            starts, ends = (np.searchsorted(hashes, wanted, side) for side in ("left", "right"))
            for place in np.flatnonzero(starts < ends):
                yield from ((int(place), int(row)) for row in rows[starts[place] : ends[place]])

    def refuse(self, ids: Sequence[str], images: slice, stored: Any) -> None:
        """Raise InputError if an image outside of `images` has one of their ids.

        Args:
          ids: the ids of `images`.
          stored: the Zarr array of all written ids.
        """
        for place, row in self.candidates(ids):
            # Another id may have this hash, and a shard that was rewritten may have other ids now.
            if not images.start <= row < images.stop and str(stored[row]) == ids[place]:
                raise InputError(_alike(images.start + place, ids[place], row))


def refuse_repeated(stored: Any) -> None:
    """Raise InputError if two images of a Zarr array of ids, which is all written, have one id."""
    known, step = Known(), (stored.shards or stored.chunks)[0]
    for start in range(0, stored.shape[0], step):
        images = slice(start, min(start + step, stored.shape[0]))
        names = [str(name) for name in stored[images]]
        known.refuse(names, images, stored)
        known.add(names, start)


def _hashes(ids: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, ids), np.int64, len(ids))


def _alike(number: int, name: str, other: int) -> str:
    return f"image {number} has the id {name[:80]!r}, as image {other} has: give each its own"
