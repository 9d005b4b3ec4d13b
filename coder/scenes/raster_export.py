"""Write a window of a scene as a cloud-optimised GeoTIFF: channels, components, colours."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coder import files
from coder.arrays import is_whole
from coder.errors import InputError, OutputError
from coder.scenes.principal_components import (
    PrincipalComponents,
    principal_components,
    stretched,
)
from coder.scenes.scene_grid import SceneGrid
from coder.scenes.scene_layout import CHUNK
from coder.scenes.scene_part import ScenePart, origin

if TYPE_CHECKING:
    from rasterio.io import DatasetWriter

Block = tuple[int, NDArray[Any]]
"""The first row of some whole rows of a raster, and their values [bands, h, w]."""
_SAMPLE = 128  # chunks that components are fitted on, at most
_PERCENTILES = (1, 99)  # of the cells: black and white of a preview
_TILE = 1 << 24  # bytes of a tile, at most, unless it has the smallest side
_SIDES = (512, 256, 128)  # of tiles
_CACHE = 64  # megabytes that GDAL keeps
PREVIEW = ".preview.tif"
"""The end of the name of the preview beside a scene, in place of `.zarr`."""
SIDECAR = ".aux.xml"
"""What GDAL's file beside a raster is called, after the raster's own name."""


@dataclass(frozen=True)
class Raster:
    """What a GeoTIFF holds.

    Attributes:
        grid: where its pixels lie.
        bands: a description for each.
        dtype: of all bands.
        nodata: the value of pixels without one; None if there is none.
        resampling: how GDAL makes the overviews, a name of `rasterio.enums.Resampling`.
        tags: further metadata.
        colours: colour interpretations, names of `rasterio.enums.ColorInterp`.
        palette: the colours of the values of the only band.
    """

    grid: SceneGrid
    bands: Sequence[str]
    dtype: str
    nodata: float | None
    resampling: str = "average"
    tags: dict[str, str] | None = None
    colours: Sequence[str] = ()
    palette: dict[int, tuple[int, int, int, int]] | None = None

    @property
    def tile(self) -> int:
        """The side of a tile, of all bands, in pixels."""
        cell = np.dtype(self.dtype).itemsize * len(self.bands)
        return next((side for side in _SIDES if side * side * cell <= _TILE), _SIDES[-1])


def write_channels(
    part: ScenePart, out: Path, *, channels: Sequence[int] = (), overwrite: bool = False
) -> None:
    """Write channels of the embeddings as they are: float32, NaN where there is none.

    Args:
        part: what to write.
        out: the file.
        channels: numbers of channels, from 0, in the order of the bands; all if there are none.
        overwrite: whether to replace a file.

    Raises:
        ModuleNotFoundError: rasterio is missing.
        InputError: no such channel, or one that is given twice.
        OutputError: the file cannot be written.
    """
    count = part.scene.codec.channels
    chosen = list(channels) or list(range(count))
    if any(not is_whole(one) or not 0 <= one < count for one in chosen):
        raise InputError(f"channels {chosen}: the scene has channels 0 to {count - 1}")
    if len(set(chosen)) < len(chosen):
        raise InputError(f"channels {chosen}: give each channel once")
    names = part.scene.channel_names or [""] * count
    bands = [names[one] or f"channel {one}" for one in chosen]
    raster = Raster(part.grid, bands, "float32", np.nan)
    write_raster(
        out,
        raster,
        (
            (rows.start - part.rows.start, part.read(rows)[..., chosen].transpose(2, 0, 1))
            for rows in part.strips()
        ),
        tags_of(part),
        overwrite=overwrite,
    )


def write_components(part: ScenePart, out: Path, count: int, *, overwrite: bool = False) -> None:
    """Write the first principal components of the cells: float32, NaN where there is none.

    They are those of the scene, so that its parts, levels and times can be compared: fitted on the
    cells of its first time, in at most 128 chunks that are evenly spread. Raises as
    `write_channels`; InputError, too, if no cell of the part, or of that time, has an embedding.
    """
    found, _ = _fitted(part, count)
    raster = Raster(part.grid, [f"component {i + 1}" for i in range(count)], "float32", np.nan)
    blocks = (
        (rows.start - part.rows.start, found.scores(part.read(rows)).transpose(2, 0, 1))
        for rows in part.strips()
    )
    write_raster(out, raster, blocks, tags_of(part), overwrite=overwrite)


def write_preview(part: ScenePart, out: Path, *, overwrite: bool = False) -> None:
    """Write three principal components as red, green and blue, uint8, and what is valid as alpha.

    They are those of `write_components`. Each is stretched from the 1st to the 99th percentile of
    the cells that they are fitted on, so that a colour means the same in all parts of a scene.
    Raises as `write_components`; InputError, too, for embeddings of fewer than three channels.
    """
    found, sample = _fitted(part, 3)
    limits = np.percentile(found.scores(sample), _PERCENTILES, axis=0)

    def blocks() -> Iterator[Block]:
        for rows in part.strips():
            scores = found.scores(part.read(rows))
            valid = ~np.isnan(scores[..., :1])
            colours = np.round(255 * stretched(np.where(valid, scores, 0), limits))
            values = np.concatenate([np.where(valid, colours, 0), 255 * valid], axis=-1)
            yield rows.start - part.rows.start, values.astype(np.uint8).transpose(2, 0, 1)

    names = [*(f"component {i + 1}" for i in range(3)), "valid"]
    colours = ("red", "green", "blue", "alpha")
    raster = Raster(part.grid, names, "uint8", None, colours=colours)
    write_raster(out, raster, blocks(), tags_of(part), overwrite=overwrite)


def _fitted(part: ScenePart, count: int) -> tuple[PrincipalComponents, NDArray[np.float32]]:
    """The components of a part's scene, and the cells [N, D] on which they were fitted."""
    if not part.valid().any():
        raise InputError("no cell of the window has an embedding: give other bounds")
    scene, time = part.scene, None if part.scene.times is None else 0
    level = max(level for level in scene.levels if level <= CHUNK)  # as small as a chunk
    chunks = _with_cells(scene.valid(level=level, time=time), CHUNK // level)
    if not len(chunks):
        raise InputError("no cell of the scene's first time has an embedding: export channels")
    chosen = np.linspace(0, len(chunks) - 1, min(len(chunks), _SAMPLE)).astype(int)
    kept = []
    for row, column in CHUNK * chunks[chosen]:
        y = scene.read(slice(row, row + CHUNK), slice(column, column + CHUNK), time=time)
        kept.append(y[~np.isnan(y[..., 0])])
    sample = np.concatenate(kept)
    return principal_components(sample, count), sample


def _with_cells(valid: NDArray[np.bool_], side: int) -> NDArray[np.intp]:
    """The rows and columns [n, 2] of the squares of side x side cells with one that is valid."""
    height, width = (-(-length // side) for length in valid.shape)
    padded = np.zeros((height * side, width * side), bool)
    padded[: valid.shape[0], : valid.shape[1]] = valid
    return np.argwhere(padded.reshape(height, side, width, side).any((1, 3)))


def tags_of(part: ScenePart) -> dict[str, str]:
    """The metadata of a raster: what made the embeddings, and their time."""
    tags = {"nec": json.dumps(origin(part.scene))}
    if part.scene.times is not None:
        tags["time"] = f"{part.scene.times[part.time]}Z"
    return tags


def write_raster(
    out: Path,
    raster: Raster,
    blocks: Iterator[Block],
    tags: dict[str, str],
    *,
    overwrite: bool = False,
    sidecar: str | None = None,
) -> None:
    """Write a cloud-optimised GeoTIFF, block by block.

    Its pixels pass through a file in the same folder, which is deleted.

    Args:
        out: the file.
        raster: what it holds.
        blocks: all rows, from the first on.
        tags: metadata.
        overwrite: whether to replace a file, and GDAL's file beside it.
        sidecar: the text of GDAL's file beside it, with what a TIFF cannot hold.

    Raises:
        ModuleNotFoundError: rasterio is missing.
        OutputError: it cannot be written.
    """
    try:
        import rasterio
        from rasterio.errors import RasterioError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("GeoTIFF needs rasterio: install nec-jax[scenes]") from error
    beside = out.with_name(out.name + SIDECAR)
    files.check_output(beside, overwrite=overwrite)
    with files.writing_all(overwrite=overwrite) as opened, opened(out) as file:
        with files.scratch_folder(out) as place, rasterio.Env(GDAL_CACHEMAX=_CACHE):
            strips = place / "strips.tif"
            try:
                _write_strips(strips, raster, blocks, tags)
            except RasterioError as error:
                raise _failed(error, out) from error
            try:
                _add_overviews(strips, raster)
                _copy(strips, place / "cog.tif", raster)
            except Exception as error:  # also GDAL's own errors, which rasterio does not export
                raise _failed(error, out) from error
            with (place / "cog.tif").open("rb") as written:
                copyfileobj(written, file, 1 << 20)
        if sidecar is not None:
            with opened(beside) as file:
                file.write(sidecar.encode())
    if sidecar is None:  # that of the raster that was there would be wrong
        beside.unlink(missing_ok=True)


def _failed(error: Exception, out: Path) -> OutputError:
    """The error of a file that GDAL could not write, such as for want of space."""
    return OutputError(f"cannot be written ({error.__cause__ or error}): is there space?", out)


def _write_strips(
    path: Path, raster: Raster, blocks: Iterator[Block], tags: dict[str, str]
) -> None:
    """Write a plain TIFF, band after band in flat tiles, which strips fill."""
    import rasterio
    from rasterio.crs import CRS
    from rasterio.enums import ColorInterp
    from rasterio.transform import Affine
    from rasterio.windows import Window

    height, width = raster.grid.shape
    dataset: DatasetWriter
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=len(raster.bands),
        dtype=raster.dtype,
        crs=CRS.from_wkt(raster.grid.crs),
        transform=Affine(*raster.grid.transform),
        nodata=raster.nodata,
        interleave="band",
        tiled=True,
        blockxsize=_SIDES[-1],
        blockysize=CHUNK,
        bigtiff="IF_SAFER",
        alpha="YES" if "alpha" in raster.colours else "NO",
    ) as dataset:
        dataset.descriptions = tuple(raster.bands)
        dataset.update_tags(**tags, **(raster.tags or {}))
        if raster.colours:
            dataset.colorinterp = [ColorInterp[name] for name in raster.colours]
        if raster.palette is not None:
            dataset.write_colormap(1, raster.palette)
        for top, values in blocks:
            dataset.write(values, window=Window(0, top, width, values.shape[1]))  # type: ignore[call-arg]


def _add_overviews(path: Path, raster: Raster) -> None:
    """Add overviews to a plain TIFF.

    GDAL makes them band by band, which in a file of tiles of all bands writes each tile again and
    again.
    """
    import rasterio
    from rasterio.enums import Resampling

    largest, factors = max(raster.grid.shape), [2]
    while -(-largest // factors[-1]) > raster.tile:
        factors.append(2 * factors[-1])
    if largest > raster.tile:
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews(factors, Resampling[raster.resampling])


def _copy(source: Path, target: Path, raster: Raster) -> None:
    """Make a cloud-optimised GeoTIFF of a plain one with overviews."""
    from rasterio.shutil import copy

    copy(
        source,
        target,
        driver="COG",
        blocksize=raster.tile,
        compress="DEFLATE",
        predictor="YES",
        bigtiff="IF_SAFER",
        overview_compress="DEFLATE",
    )
