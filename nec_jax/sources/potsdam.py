"""ISPRS 2D Semantic Labelling, Potsdam, in the folders that ISPRS distributes."""

from pathlib import Path

import numpy as np

from nec_jax.images.read import Box, decode
from nec_jax.images.record import CorruptImageError, DataError
from nec_jax.images.windows import Pair, WindowSource
from nec_jax.sources.splits import HASH_SPLITS, check_split

MASK_CLASSES = ("impervious surface", "building", "low vegetation", "tree", "car", "clutter")

_IMAGES = "*/top_potsdam_*_RGB.tif"
# The benchmark's own lists; `val` is four tiles of its 24 training tiles, from four rows of them.
TILES = {
    "train": "2_10 2_11 3_10 3_11 3_12 4_10 4_12 5_10 5_11 5_12 "
    "6_7 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_12",
    "val": "2_12 4_11 6_8 7_11",
    "test": "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13",
}
_NEAR = 64  # maximum difference of a colour from a label's in a band, exclusive
# Class of a colour, by its bits red * 4 + green * 2 + blue; black and magenta are no class.
_CLASS_OF_COLOUR = np.array([255, 1, 3, 2, 5, 255, 4, 0], np.uint8)


def is_potsdam(root: Path) -> bool:
    """Whether `root` has a sub-folder with tiles named like top_potsdam_2_10_RGB.tif."""
    return next(root.glob(_IMAGES), None) is not None


def open_potsdam(root: Path, split: str, chip: int) -> WindowSource:
    """Cut the RGB tiles of a split, with their labels, into windows of `chip` px.

    Raises:
        DataError: a tile of no official list, in two folders, or without its label; an unknown
            split, or one of which no tile is there.
    """
    check_split(split, HASH_SPLITS, str(root))
    part = {tile: name for name, tiles in TILES.items() for tile in tiles.split()}
    pairs, seen = [], {}
    for image in sorted(root.glob(_IMAGES)):
        tile = image.stem.removeprefix("top_potsdam_").removesuffix("_RGB")
        if tile not in part:
            raise DataError(f"{image} is no tile of the official Potsdam lists: move it away")
        if tile in seen:
            raise DataError(f"{seen[tile]} and {image} are one tile: keep one of them")
        seen[tile] = image
        # ISPRS has the training tiles' labels in two archives; 5_Labels_all comes first.
        label = min(root.glob(f"*/top_potsdam_{tile}_label.tif"), default=None)
        if label is None:
            raise DataError(
                f"{image} has no top_potsdam_{tile}_label.tif in a folder beside it: "
                f"unpack ISPRS' 5_Labels_all.zip in {root}"
            )
        image, label = (path.relative_to(root).as_posix() for path in (image, label))
        pairs.append(Pair(image, label, part[tile]))
    if split != "all" and split not in (there := {pair.split for pair in pairs}):
        raise DataError(
            f"{root} holds no tile of split {split!r}, only {len(pairs)} of "
            f"{', '.join(sorted(there))}: add the tiles {TILES[split]}, or use split 'all'"
        )
    return WindowSource("potsdam", root, pairs, split, chip, lambda: MASK_CLASSES, read_colour_mask)


def read_colour_mask(path: Path, box: Box | None = None) -> np.ndarray:
    """Read a colour-coded label file as class indices, uint8 [H, W]; black and magenta are 255.

    Raises:
        CorruptImageError: missing, damaged, not 8-bit RGB, or of other colours; the message names
            it.
    """
    colours = decode(path, path.name, box)["image"]
    if colours.shape[-1] != 3 or colours.dtype != np.uint8:
        raise CorruptImageError(
            f"cannot read the mask {path}: its labels are colours, RGB of uint8; this has "
            f"{colours.shape[-1]} bands of {colours.dtype}"
        )
    # Some of the official files hold colours such as (252, 255, 0): only the bright bit counts.
    bits = colours >= 128
    if (other := (np.where(bits, 255 - colours, colours) >= _NEAR).any(-1)).any():
        row, col = (int(place[0]) for place in np.nonzero(other))
        top, left = box[:2] if box else (0, 0)
        raise CorruptImageError(
            f"cannot read the mask {path}: the colour {tuple(colours[row, col].tolist())} at row "
            f"{top + row}, column {left + col} is no label's: has it been resized, or saved with "
            "loss?"
        )
    return _CLASS_OF_COLOUR[bits @ np.array([4, 2, 1])]
