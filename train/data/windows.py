"""Segmentation pairs: large images and their masks, cut into square windows."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.data.read import Box, cut, image_size, is_tiff, read_image, read_mask
from train.data.record import IGNORE, CorruptImageError, DataError, Record

log = logging.getLogger("train.data")


@dataclass(frozen=True)
class Pair:
    """An image and its mask, as paths relative to the data set's root."""

    image: str
    mask: str
    split: str


class WindowSource:
    """Record i is one `chip` x `chip` window of an image with its mask.

    Windows do not overlap, go row by row, and the remainder at the right and the bottom is
    dropped. A TIFF is read window by window; any other file is decoded whole, so the last few
    are kept for the neighbouring windows.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        pairs: list[Pair],
        split: str,
        chip: int,
        mask_classes: Callable[[], tuple[str, ...]],
        decode_mask: Callable[[Path, Box | None], np.ndarray] = read_mask,
    ):
        """Read the image headers of `split`, but no pixels.

        Args:
            name: what errors and reports call the source.
            root: the folder that the pairs' paths are relative to.
            pairs: the pairs of every split.
            split: which of them to take, or "all".
            chip: side of a window, pixels.
            mask_classes: called once, when the names are first asked for.
            decode_mask: (path, window or None) -> uint8 [H, W] class indices.

        Raises:
            DataError: not one whole window, or a mask of another size than its image.
        """
        self.name = name
        self.classes: tuple[str, ...] = ()
        self.root = root
        self.chip = chip
        self.windows: list[tuple[Pair, int, int]] = []  # pair, row, column
        self._mask_classes = functools.cache(mask_classes)
        self._decode_mask = decode_mask
        self._decoded = functools.lru_cache(maxsize=4)(self._read)
        for pair in pairs:
            if split in ("all", pair.split):
                self.windows += [(pair, row, col) for row, col in self._grid(pair)]
        if not self.windows:
            raise DataError(f"split {split!r} of {name} has no window of {chip} x {chip} px")

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """Names of the mask values."""
        return self._mask_classes()

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int, /) -> Record:
        pair, row, col = self.windows[index]
        box = (row, col, self.chip, self.chip)
        if is_tiff(self.root / pair.image) and is_tiff(self.root / pair.mask):
            record = self._read(pair, box)
        else:
            record = cut(self._decoded(pair, None), box)
        record["id"] = _window_id(pair, row, col)
        return record

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id, with the window's size, and image file of each window."""
        return (
            (f"{_window_id(*window)},{self.chip}", self.root / window[0].image)
            for window in self.windows
        )

    def _read(self, pair: Pair, box: Box | None) -> Record:
        record = read_image(self.root / pair.image, pair.image, box)
        record["mask"] = self._decode_mask(self.root / pair.mask, box)
        return record

    def _grid(self, pair: Pair) -> list[tuple[int, int]]:
        try:
            size, mask_size = (image_size(self.root / path) for path in (pair.image, pair.mask))
        except CorruptImageError as error:
            log.warning("skipped: %s", error)
            return []
        if size != mask_size:
            raise DataError(
                f"{pair.image} has {size[0]} x {size[1]} px but its mask {pair.mask} has "
                f"{mask_size[0]} x {mask_size[1]}: a mask has one value a pixel of its image"
            )
        corners = list(corners_of(*size, self.chip))
        if not corners:
            log.warning(
                "skipped: %s (%d x %d px) is smaller than the chip of %d px",
                self.root / pair.image, *size, self.chip,
            )  # fmt: skip
        return corners


def _window_id(pair: Pair, row: int, col: int) -> str:
    return f"{pair.image}@{row},{col}"


def corners_of(height: int, width: int, chip: int) -> Iterator[tuple[int, int]]:
    """Yield (row, col) of each whole `chip` x `chip` window of a height x width image."""
    for row in range(0, height - chip + 1, chip):
        for col in range(0, width - chip + 1, chip):
            yield row, col


def numbered_classes(root: Path, pairs: list[Pair]) -> tuple[str, ...]:
    """Name mask classes "0", "1", ... to the highest index in the masks of every split."""

    def highest(pair: Pair) -> int:
        try:
            mask = read_mask(root / pair.mask)
        except CorruptImageError:  # named when its windows are opened
            return -1
        return int(np.max(mask, where=mask != IGNORE, initial=0))

    with ThreadPoolExecutor() as pool:
        return tuple(str(i) for i in range(max(pool.map(highest, pairs)) + 1))
