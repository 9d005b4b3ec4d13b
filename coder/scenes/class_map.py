"""A head's classes over a window of a scene, as a GeoTIFF.

A head reads grids of tokens of one size, and knows nothing beyond them. So windows of that size
overlap, and of each only the core is kept, half of the window's side. Where the windows lie depends
on the scene alone: the map of any part of a scene is that part of the map of all of it.
"""

import colorsys
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from coder.archive import refiner_array
from coder.errors import InputError
from coder.scenes.raster_export import Block, Raster, tags_of, write_raster
from coder.scenes.scene_part import ScenePart
from coder.task_heads import Head

NONE = 255
"""The value of pixels of cells without an embedding."""
_FIELDS = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
"""Name, type and use of the fields of GDAL's attribute tables."""
_AT_ONCE = 32  # windows that a head classifies at once


@dataclass(frozen=True)
class Windows:
    """The windows of a head along one side of a scene.

    Attributes:
        cells: side of a window, in cells.
        pixels: side of a window, in pixels of the masks.
        step: from one window to the next, in cells: a whole number of pixels.
    """

    cells: int
    pixels: int
    step: int

    @property
    def core(self) -> int:
        """Side of the part of a window that is kept, in pixels."""
        return self.step * self.pixels // self.cells

    @property
    def margin(self) -> int:
        """Pixels of a window before its core."""
        return (self.pixels - self.core) // 2

    def pixels_of(self, cells: slice) -> slice:
        """The pixels of which some cells contain a part."""
        first = cells.start * self.pixels // self.cells
        return slice(first, -(-cells.stop * self.pixels // self.cells))

    def cells_of(self, pixels: NDArray[np.intp]) -> NDArray[np.intp]:
        """The cell in which the centre of each pixel lies."""
        return (2 * pixels + 1) * self.cells // (2 * self.pixels)

    def numbers(self, pixels: slice) -> range:
        """The windows whose cores hold some pixels; the core of window 0 begins at `margin`."""
        first = (pixels.start - self.margin) // self.core
        return range(first, (pixels.stop - 1 - self.margin) // self.core + 1)


def windows(cells: int, pixels: int) -> Windows:
    """The windows of a head with masks of `pixels` over `cells`: about half of each is its core.

    Raises InputError: no step of whole cells is one of whole pixels.
    """
    parts = math.gcd(cells, pixels)
    if parts == 1:
        raise InputError(
            f"the head predicts {pixels} px for {cells} tokens: windows of it that overlap have no "
            "pixels in common; fit a head to masks of a multiple of the tokens"
        )
    return Windows(cells, pixels, max(1, parts // 2) * (cells // parts))


def check_head(part: ScenePart, head: Head) -> None:
    """Raise InputError if a head cannot make a map of a part of a scene; says why."""
    settings, channels = head.settings, part.scene.codec.channels
    if settings.mask_size is None:
        raise InputError(
            f"the head ({settings.kind}) gives one class for an image, and no map: fit one of kind "
            "token-linear or conv to masks"
        )
    if settings.model.embedding_width != channels:
        raise InputError(
            f"the head takes embeddings of {settings.model.embedding_width} channels, the scene "
            f"has {channels}: give a head of the scene's model"
        )
    if settings.with_decoder and settings.class_tokens:
        raise InputError(
            "the head's decoder reads the class token, which scenes do not have: fit a head "
            "without the decoder"
        )
    if part.level != 1:
        raise InputError("a head reads the cells themselves: leave the level out")
    if part.scene.is_refined:
        raise InputError(
            "a head reads embeddings as they are, or refines them itself: open the scene without "
            "refining"
        )
    held = part.scene.facts.get(refiner_array.ATTRIBUTE)
    if settings.refiner is not None and held is not None and held != settings.refiner:
        raise InputError("the head has another refiner than the scene: give one of its model")


def write_map(part: ScenePart, head: Head, out: Path, *, overwrite: bool = False) -> None:
    """Write the class of each pixel of a head's masks: uint8, 255 for cells without an embedding.

    The classes have colours; their names are in the metadata, as `class_0` and so on, and in GDAL's
    file beside the TIFF. Cells without an embedding count as the nearest one in the window.

    Raises:
        ModuleNotFoundError: rasterio is missing.
        InputError: a head that makes no map, or of embeddings of another width.
        OutputError: the file cannot be written.
    """
    check_head(part, head)
    assert head.settings.mask_size is not None
    down, across = map(windows, head.settings.grid, head.settings.mask_size)
    rows, columns = down.pixels_of(part.rows), across.pixels_of(part.columns)
    a, b, c, d, e, f = part.scene.grid.transform
    pixel = (a * across.cells / across.pixels, e * down.cells / down.pixels)
    transform = (pixel[0], b, c + pixel[0] * columns.start, d, pixel[1], f + pixel[1] * rows.start)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    grid = replace(part.scene.grid, transform=transform, shape=shape)
    names = {f"class_{i}": name for i, name in enumerate(head.classes)}
    colours = _colours(len(head.classes))
    palette = {i: (*colour, 255) for i, colour in enumerate(colours)}
    raster = Raster(grid, ["class"], "uint8", NONE, "mode", names, palette=palette)
    blocks = _blocks(part, head, (down, across), (rows, columns))
    text = _sidecar(head.classes, colours)
    write_raster(out, raster, blocks, tags_of(part), overwrite=overwrite, sidecar=text)


def _blocks(
    part: ScenePart, head: Head, sides: tuple[Windows, Windows], pixels: tuple[slice, slice]
) -> Iterator[Block]:
    """The map, one row of cores after another, cut to `pixels` of the whole scene."""
    down, across = sides
    rows, columns = pixels
    numbers = across.numbers(columns)
    left = numbers.start * across.step
    width = (len(numbers) - 1) * across.step + across.cells
    for i in down.numbers(rows):
        y = _cells(
            part, slice(i * down.step, i * down.step + down.cells), slice(left, left + width)
        )
        classes = _classes(head, y, across.step, len(numbers))
        kept = slice(down.margin, down.margin + down.core)
        kept_across = slice(across.margin, across.margin + across.core)
        line = classes[:, kept, kept_across].transpose(1, 0, 2).reshape(down.core, -1)
        top = i * down.core + down.margin
        start = numbers.start * across.core + across.margin
        cut = slice(max(top, rows.start), min(top + down.core, rows.stop))
        valid = ~np.isnan(y[..., 0])
        below = down.cells_of(np.arange(cut.start, cut.stop)) - i * down.step
        beside = across.cells_of(np.arange(columns.start, columns.stop)) - left
        there = valid[np.ix_(below, beside)]
        own = line[cut.start - top : cut.stop - top, columns.start - start : columns.stop - start]
        yield cut.start - rows.start, np.where(there, own, NONE).astype(np.uint8)[None]


def _cells(part: ScenePart, rows: slice, columns: slice) -> NDArray[np.float32]:
    """The embeddings of cells [h, w, D], of which some may lie outside the scene; NaN there."""
    scene, (height, width) = part.scene, part.scene.grid.shape
    shape = (rows.stop - rows.start, columns.stop - columns.start, scene.codec.channels)
    y = np.full(shape, np.nan, np.float32)
    inside = slice(max(0, rows.start), min(height, rows.stop))
    across = slice(max(0, columns.start), min(width, columns.stop))
    place = (
        slice(inside.start - rows.start, inside.stop - rows.start),
        slice(across.start - columns.start, across.stop - columns.start),
    )
    y[place] = scene.read(inside, across, time=part.time)
    return y


def _classes(head: Head, y: NDArray[np.float32], step: int, count: int) -> NDArray[np.uint8]:
    """The masks [count, H, W] of the windows of a row of them, `step` cells apart."""
    assert head.settings.mask_size is not None
    width = head.settings.grid[1]
    found = np.full((count, *head.settings.mask_size), NONE, np.uint8)
    parts = {i: y[:, i * step : i * step + width] for i in range(count)}
    filled = [i for i, one in parts.items() if not np.isnan(one[..., 0]).all()]
    lead = np.zeros((head.settings.class_tokens, y.shape[-1]), np.float32)  # which it drops
    for start in range(0, len(filled), _AT_ONCE):
        some = filled[start : start + _AT_ONCE]
        tokens = [np.concatenate([lead, _filled(parts[i]).reshape(-1, y.shape[-1])]) for i in some]
        found[some] = head.predict(np.stack(tokens))
    return found


def _filled(y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embeddings [h, w, D] with that of the nearest cell where there is none."""
    missing = np.isnan(y[..., 0])
    if not missing.any():
        return y
    there, y = np.argwhere(~missing), y.copy()
    distance = np.square(np.argwhere(missing)[:, None] - there).sum(-1)
    y[missing] = y[tuple(there[distance.argmin(1)].T)]
    return y


def _colours(count: int) -> list[tuple[int, int, int]]:
    """Colours of classes: hues a golden angle apart, of three lightnesses."""
    found = []
    for i in range(count):
        colour = colorsys.hls_to_rgb(0.618034 * i % 1, (0.5, 0.35, 0.7)[i % 3], 0.65)
        found.append(tuple(round(255 * part) for part in colour))
    return found


def _sidecar(classes: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> str:
    """GDAL's file beside a raster: the names of its values, and an attribute table of them.

    The table has the classes alone: a palette of a TIFF has 256 colours.
    """
    names = "".join(f"<Category>{escape(name)}</Category>" for name in classes)
    fields = "".join(
        f'<FieldDefn index="{i}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage>'
        "</FieldDefn>"
        for i, (name, kind, usage) in enumerate(_FIELDS)
    )
    rows = "".join(
        f'<Row index="{i}">'
        + "".join(f"<F>{escape(str(value))}</F>" for value in (i, name, *colour))
        + "</Row>"
        for i, (name, colour) in enumerate(zip(classes, colours, strict=True))
    )
    table = f'<GDALRasterAttributeTable tableType="thematic">{fields}{rows}'
    return (
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames>'
        f"{table}</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>\n"
    )
