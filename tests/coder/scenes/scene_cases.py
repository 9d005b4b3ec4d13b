"""A small scene, of which the tests of `coder.scenes` make their own."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transform_cases import smooth_tiles

from coder import QualityLadder, fit
from coder.codecs import OneQualityCodec
from coder.refiner import Refiner
from coder.scenes.scene_grid import SceneGrid
from coder.scenes.scene_writer import SceneWriter

SHAPE = (300, 530)  # more than one shard in each direction, and two overviews
PART = np.s_[80:144, 60:120]


@cache
def grid() -> SceneGrid:
    """A grid in UTM zone 33, of cells of 160 m."""
    from rasterio.crs import CRS

    crs = CRS.from_epsg(32633).to_wkt(version="WKT2_2019")
    return SceneGrid(crs, "EPSG:32633", (160.0, 0.0, 500000.0, 0.0, -160.0, 6000000.0), SHAPE)


@cache
def cells() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings with an oblique edge and a hole, NaN where there is none; and the coverage."""
    row, column = np.mgrid[: SHAPE[0], : SHAPE[1]]
    coverage = np.where(row + column < 100, 0, np.where(row + column < 110, 60, 100))
    coverage[200:203, 300:330] = 20
    y = np.where((coverage >= 50)[..., None], smooth_tiles(*SHAPE)[0], np.nan)
    return y.astype(np.float32), coverage.astype(np.uint8)


@cache
def ladder() -> QualityLadder:
    """A codec of many qualities, fitted to these embeddings."""
    codec = fit(smooth_tiles(*SHAPE)[0])
    assert isinstance(codec, QualityLadder)
    return codec


def writer(out: Path, quality: int = 8, **settings: Any) -> SceneWriter:
    """A writer of the scene."""
    settings = {"made": {"model": "m"}, "step": {"files": ["a.tif"]}} | settings
    return SceneWriter(out, ladder().at(quality), grid(), **settings)


def written(out: Path, **settings: Any) -> Path:
    """Write the whole scene."""
    with writer(out, **settings) as writing:
        filled(writing, *cells())
    return out


def written_part(
    out: Path, *, by: float = 0, refiner: Refiner | None = None, **settings: Any
) -> Path:
    """Write a part of the scene, 4 shards of 32 x 32 cells if shards have so many, plus a number.

    With overviews down to 32 cells, it has one.
    """
    y, coverage = (of_cells[PART] for of_cells in cells())
    settings = {"made": {"model": "m"}, "step": {"files": ["a.tif"]}} | settings
    codec = ladder().at(8).with_refiner(refiner)
    assert isinstance(codec, OneQualityCodec)
    with SceneWriter(out, codec, grid().part(*PART), **settings) as writing:
        filled(writing, y + np.float32(by), coverage)
    return out


def filled(writing: SceneWriter, y: np.ndarray, coverage: np.ndarray) -> None:
    """Write what is missing of a scene, and finish it."""
    for part in writing.missing():
        writing.write(part, y[part], coverage[part])
    writing.finish()
