"""Cut large images, with their masks if they have any, into square windows."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from coder.errors import printable
from nec_jax.images.rasters import Header
from nec_jax.images.read import decode, is_raster, read_header, read_mask
from nec_jax.images.record import IGNORE, Box, CorruptImageError, DataError, Record, cut, whole

CHIP = 256  # default side of windows of data sets that are always cut, pixels
_APART = 0.1  # maximum distance of the corners of a mask from those of its image, pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """An image, and its mask or its label; files as paths relative to the data set's root."""

    image: str
    mask: str | None
    split: str
    # Not in the text of a pair, by which an archive knows its images.
    label: int | None = field(default=None, repr=False)


class LeftOut(NamedTuple):
    """A file of a source that no window is cut from.

    Attributes:
        path: as the source names it.
        reason: why.
        is_unreadable: whether it cannot be read; otherwise it is smaller than a window.
    """

    path: str
    reason: str
    is_unreadable: bool


class WindowSource:
    """Windows of images: record i is one `chip` x `chip` window, with its mask or label.

    Windows do not overlap, go row by row, and the remainder at the right and the bottom is
    dropped; a log line says how much. A TIFF or JPEG 2000 is read window by window; any
    other file is decoded whole, so the last few are kept for the neighbouring windows.

    Attributes:
        windows: the pair of each record, and the row and column of its upper left pixel.
        left_out: how many pixels of the split's images lie in no window, and how many there are.
        files_left_out: the split's files that no window is cut from.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        pairs: list[Pair],
        split: str,
        chip: int,
        mask_classes: Callable[[], tuple[str, ...]] = tuple,
        decode_mask: Callable[[Path, Box | None], np.ndarray] = read_mask,
        classes: tuple[str, ...] = (),
    ):
        """Read the image headers of `split`, but no pixels.

        Args:
            name: the name of the source in errors and reports.
            root: the folder that the pairs' paths are relative to.
            pairs: the pairs of every split.
            split: which of them to take, or "all".
            chip: side of a window, pixels.
            mask_classes: returns the names of mask classes; called on first use.
            decode_mask: (path, window or None) -> uint8 [H, W] class indices.
            classes: names of the pairs' labels.

        Raises:
            DataError: not one whole window, as when no file can be read; a mask of another size
                than its image, georeferenced elsewhere, or without the EXIF rotation of its image.
        """
        self.name = name
        self.classes = classes
        self.root = root
        self.chip = chip
        self.windows: list[tuple[Pair, int, int]] = []  # pair, row, column
        self._mask_classes = functools.cache(mask_classes)
        self._decode_mask = decode_mask
        self._decoded = functools.lru_cache(maxsize=4)(self._read)
        chosen = [pair for pair in pairs if split in ("all", pair.split)]
        self._in_parts: set[Pair] = set()  # read window by window
        with ThreadPoolExecutor() as pool:  # on a network drive each header takes its time
            grids, pixels = pool.map(self._grid, chosen), 0
            self.files_left_out: list[LeftOut] = []
            for pair, (corners, in_parts, size, why) in zip(chosen, grids, strict=True):
                self.windows += [(pair, row, col) for row, col in corners]
                pixels += size
                if in_parts:
                    self._in_parts.add(pair)
                if why is not None:
                    self.files_left_out.append(why)
        if not self.windows:
            text = f"split {split!r} of {name} has no window of {chip} x {chip} px"
            bad = [file for file in self.files_left_out if file.is_unreadable]
            more = f": {len(bad):,} of {len(chosen):,} files cannot be read, the first: "
            raise DataError(f"{text}{more}{bad[0].reason}" if bad else text)
        self.left_out = (pixels - len(self.windows) * chip**2, pixels)
        log_left_out(f"{name}, split {split}", *self.left_out, chip)

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """Names of the mask values."""
        return self._mask_classes()

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int, /) -> Record:
        pair, row, col = self.windows[index]
        box = (row, col, self.chip, self.chip)
        if pair in self._in_parts:
            record = self._read(pair, box)
        else:
            record = cut(self._decoded(pair, None), box)
        record = whole(record, self.root / pair.image, box)
        record["id"] = _window_id(pair, row, col)
        if pair.label is not None:
            record["label"] = pair.label
        return record

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id, with the window's size, and image file of each window."""
        return (
            (f"{_window_id(*window)},{self.chip}", self.root / window[0].image)
            for window in self.windows
        )

    def _read(self, pair: Pair, box: Box | None) -> Record:
        record = decode(self.root / pair.image, pair.image, box)
        if pair.mask is None:
            return record
        mask = self._decode_mask(self.root / pair.mask, box)
        if mask.shape != record["image"].shape[:2]:  # the files changed since they were opened
            raise CorruptImageError(
                f"cannot read {self.root / pair.image}: it has {record['image'].shape[:2]} px and "
                f"its mask {pair.mask} {mask.shape}"
            )
        record["mask"] = mask
        return record

    def _grid(self, pair: Pair) -> tuple[list[tuple[int, int]], bool, int, LeftOut | None]:
        """Corners of a pair's windows, whether they are read one by one, and the image's pixels.

        And why it has no windows, if it has none.
        """
        files = [self.root / path for path in (pair.image, pair.mask) if path is not None]
        try:
            headers = [read_header(file) for file in files]
        except CorruptImageError as error:
            log.warning("skipped: %s", error)
            return [], False, 0, LeftOut(pair.image, str(error), is_unreadable=True)
        if pair.mask is not None:
            _refuse_apart(files[0], files[1], *headers)
        size = headers[0].size
        corners, too_small = list(corners_of(*size, self.chip)), None
        if not corners:
            reason = f"({size[0]} x {size[1]} px) is smaller than the chip of {self.chip} px"
            reason = f"{printable(str(files[0]))} {reason}"
            log.warning("skipped: %s", reason)
            too_small = LeftOut(pair.image, reason, is_unreadable=False)
        return corners, all(map(is_raster, files)), size[0] * size[1], too_small


def _refuse_apart(image: Path, mask: Path, of_image: Header, of_mask: Header) -> None:
    """Refuse a mask whose pixels are not, or may not be, those of its image."""
    if of_image.size != of_mask.size:
        (height, width), mask_size = of_image.size, of_mask.size
        raise DataError(
            f"{image} has {height} x {width} px but its mask {mask} has {mask_size[0]} x "
            f"{mask_size[1]}: a mask has one value per pixel of its image"
        )
    # A turn by 90 degrees swaps height and width: equal sizes then show that the mask is of the
    # image as shown. Other turns leave that open.
    turn, square = of_image.orientation, of_image.size[0] == of_image.size[1]
    if turn != of_mask.orientation and (square or {turn, of_mask.orientation} <= {1, 2, 3, 4}):
        raise DataError(
            f"EXIF turns {image} (orientation {turn}) and not its mask {mask} (orientation "
            f"{of_mask.orientation}), which may be of the image as stored or as shown: save both "
            "upright, without the tag (ImageOps.exif_transpose of Pillow, or exiftran -a)"
        )
    place, other = of_image.transform, of_mask.transform
    if place is None or other is None:
        return
    apart = _distance(place, other, *of_image.size)
    if apart > _APART or (of_image.crs and of_mask.crs and of_image.crs != of_mask.crs):
        raise DataError(
            f"{image} and its mask {mask} are georeferenced in different places: {apart:,.3g} px "
            f"apart, transforms {place} and {other}, in {of_image.crs} "
            f"and {of_mask.crs}: warp the mask to the grid of its image (gdalwarp -te, -tr, "
            "-t_srs, -r near); or, if it lies on it already, give it the georeference of the image"
        )


def _distance(image: tuple[float, ...], mask: tuple[float, ...], height: int, width: int) -> float:
    """The largest distance between corners of an image and of its mask, by their transforms.

    In pixels of the image, which has height x width of them.
    """
    a, b, _, d, e, _ = image
    moved = np.subtract(mask, image)
    corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)])
    metres = corners @ moved.reshape(2, 3).T
    return float(np.abs(np.linalg.solve([[a, b], [d, e]], metres.T)).max())


def _window_id(pair: Pair, row: int, col: int) -> str:
    return f"{pair.image}@{row},{col}"


def corners_of(height: int, width: int, chip: int) -> Iterator[tuple[int, int]]:
    """Yield (row, col) of each whole `chip` x `chip` window of a height x width image."""
    for row in range(0, height - chip + 1, chip):
        for col in range(0, width - chip + 1, chip):
            yield row, col


def log_left_out(name: str, left_out: int, pixels: int, chip: int) -> None:
    """Say how many of a data set's pixels lie in no window, if any do."""
    if left_out:
        log.warning(
            "%s: %s of %s pixels (%.2g %%) lie in no window of %d px: windows begin at the upper "
            "left, and the remainder at the right and the bottom is dropped",
            printable(name), f"{left_out:,}", f"{pixels:,}", 100 * left_out / pixels, chip,
        )  # fmt: skip


def numbered_classes(root: Path, masks: Iterable[str]) -> tuple[str, ...]:
    """Name mask classes "0", "1", ... to the highest index in the masks of every split.

    Raises:
        DataError: as `names_of`.
    """

    def values(mask_path: str) -> set[int]:
        try:
            return set(np.unique(read_mask(root / mask_path)).tolist())
        except CorruptImageError as error:
            log.warning("not counted for the classes: %s", error)
            return set()

    with ThreadPoolExecutor() as pool:
        return names_of(set().union(*pool.map(values, masks)), str(root))


def names_of(values: set[int], name: str) -> tuple[str, ...]:
    """Names of mask classes by number, if only the values in the masks of `name` are known.

    Raises:
        DataError: the values are 0 and 255 only, as in many masks of a single class.
    """
    indices = values - {IGNORE}
    if indices == {0} and IGNORE in values:
        raise DataError(
            f"the masks of {name} hold 0 and {IGNORE} alone, and pixels of {IGNORE} are ignored: "
            f"if it stands for a class, write 1 in its place"
        )
    count = max(indices, default=-1) + 1
    if len(indices) < count:
        held = ", ".join(map(str, sorted(indices)[:8])) + (" ..." if len(indices) > 8 else "")
        log.warning(
            "%d of the %d classes of %s are in no mask: the masks hold %s, and classes are "
            "counted from 0 to the highest",
            count - len(indices), count, printable(name), held,
        )  # fmt: skip
    return tuple(map(str, range(count)))
