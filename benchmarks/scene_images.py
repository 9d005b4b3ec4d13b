"""The images on which the seams of scenes are measured, and their latents."""

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nec_jax import NecParams
from nec_jax.heads.ridge import token_labels
from nec_jax.images.read import read_image, read_mask
from nec_jax.scene_encoding.tiles import Read, region_latents
from nec_jax.sources.blue_marble import BlueMarble

MARBLE_ROWS = slice(28 * 16, 92 * 16)  # 60 N to 8 S
MARBLE_AREAS = 6

Latents = NDArray[np.float32]  # [h, w, D]


@dataclass
class Scene:
    """An image whose sides are multiples of the patch, and the classes of its cells (-1: none)."""

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.int32]
    split: NDArray[np.int8]  # of each cell: 0 train, 1 val, -1 neither


def marble(patch: int) -> list[Scene]:
    """The Earth, in parts. The class of a cell is land or water; splits are the source's."""
    source = BlueMarble(chip=patch)
    image, mask = source.image[MARBLE_ROWS], (source.mask[MARBLE_ROWS] == 1).astype(np.int32)
    height, width = image.shape[0] // patch, image.shape[1] // patch // MARBLE_AREAS
    columns = np.full(image.shape[1] // patch, -1, np.int8)
    for value, name in enumerate(("train", "val")):
        columns[[column // patch for _, column in BlueMarble(name, chip=patch).windows]] = value
    scenes = []
    for i in range(MARBLE_AREAS):
        cells = slice(i * width, (i + 1) * width)
        pixels = slice(cells.start * patch, cells.stop * patch)
        labels = token_labels(mask[None, :, pixels], (height, width), 2)[0]
        split = np.broadcast_to(columns[cells], (height, width))
        scenes.append(Scene(f"Blue Marble {i}", image[:, pixels], labels, split))
    return scenes


def mosaics(folder: Path, patch: int, pixels: int) -> list[Scene]:
    """Dubai's tiles, each of 3 x 3 images that are neighbours; the middle of it, at most `pixels`.

    Those of the split test are left out: settings are chosen here.
    """
    tiles: dict[str, list[dict[str, str]]] = defaultdict(list)
    with (folder / "split.csv").open() as file:
        for row in csv.DictReader(file):
            tiles[row["image"].split("/")[0]].append(row)
    scenes = []
    for name, rows in tiles.items():
        split = rows[0]["split"]
        if split == "test":
            continue
        rows.sort(key=lambda row: int(re.findall(r"\d+", row["image"])[-1]))
        image = _joined([read_image(folder / row["image"], row["image"])["image"] for row in rows])
        mask = _joined([read_mask(folder / row["mask"], None) for row in rows])
        largest = pixels if split == "train" else pixels * 4 // 3
        part = tuple(_middle(length, largest, patch) for length in image.shape[:2])
        image, mask = image[part], mask[part].astype(np.int32)
        grid = image.shape[0] // patch, image.shape[1] // patch
        mask[mask == 255] = -1
        labels = token_labels(mask[None], grid, 6)[0]
        split = np.full(grid, ("train", "val").index(split), np.int8)
        scenes.append(Scene(f"Dubai {name}", image, labels, split))
    return scenes


def _joined(parts: list[NDArray]) -> NDArray:
    """Nine images, row by row, whose sides may differ by a pixel."""
    rows = []
    for i in range(0, 9, 3):
        height = min(len(part) for part in parts[i : i + 3])
        rows.append(np.concatenate([part[:height] for part in parts[i : i + 3]], axis=1))
    width = min(row.shape[1] for row in rows)
    return np.concatenate([row[:, :width] for row in rows])


def _middle(length: int, largest: int, patch: int) -> slice:
    kept = min(length, largest) // patch * patch
    start = (length - kept) // 2
    return slice(start, start + kept)


def reader(image: NDArray) -> Read:
    """`read` of a scene in memory."""

    def read(row: int, column: int, height: int, width: int) -> tuple[NDArray, NDArray[np.bool_]]:
        rows, columns = np.arange(row, row + height), np.arange(column, column + width)
        seen_rows = (rows >= 0) & (rows < image.shape[0])
        seen_columns = (columns >= 0) & (columns < image.shape[1])
        at = np.ix_(rows.clip(0, image.shape[0] - 1), columns.clip(0, image.shape[1] - 1))
        return image[at], seen_rows[:, None] & seen_columns

    return read


def whole(params: NecParams, image: NDArray, side: int, halo: int) -> Latents:
    """The latents of all cells of an image, as archives have them."""
    everything = slice(None), slice(None)
    return region_latents(
        params, reader(image), image.shape[:2], *everything, side=side, halo=halo
    )[0]
