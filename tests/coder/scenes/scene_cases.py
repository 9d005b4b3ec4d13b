"""A small scene, of which the tests of `coder.scenes` make their own."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transform_cases import smooth_tiles

from coder import QualityLadder, fit
from coder.scenes.scene_grid import SceneGrid
from coder.scenes.scene_writer import SceneWriter

SHAPE = (300, 530)  # more than one shard in each direction, and two overviews


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
    y, coverage = cells()
    with writer(out, **settings) as writing:
        for part in writing.missing():
            writing.write(part, y[part], coverage[part])
        writing.finish()
    return out
