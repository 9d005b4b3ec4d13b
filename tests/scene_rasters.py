"""Georeferenced rasters of real pixels, and the model that takes them."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from image_files import write_raster
from numpy.typing import NDArray

from nec_jax.models.architecture import VARIANTS, ModelConfig
from nec_jax.scene_encoding.raster_scene import RasterScene
from nec_jax.sources.blue_marble import BlueMarble

RGB = ModelConfig("vit-ti", 32, *VARIANTS["vit-ti"])
UTM = "EPSG:32633"
SIDE = 10.0  # metres
WEST, NORTH = 500_000.0, 4_100_000.0


def model(**changes: Any) -> ModelConfig:
    return dataclasses.replace(RGB, **changes)


def model_of(*bands: str, **changes: Any) -> ModelConfig:
    count = len(bands)
    return model(bands=bands, mean=(0.5,) * count, std=(1.0,) * count, **changes)


@cache
def _blue_marble() -> NDArray[np.uint8]:
    return BlueMarble().image


def earth(height: int = 100, width: int = 130, *, row: int = 700, column: int = 2700) -> Any:
    """A part of Blue Marble, uint8 [3, H, W]."""
    part = _blue_marble()[row : row + height, column : column + width]
    return np.ascontiguousarray(part.transpose(2, 0, 1))


def put_scene(
    path: Path,
    bands: NDArray[Any],
    *,
    row: float = 0,
    column: float = 0,
    side: float = SIDE,
    south_up: bool = False,
    mirrored: bool = False,
    **options: Any,
) -> Path:
    """Write [bands, H, W], whose upper left pixel is at a row and column of one grid."""
    a, c, e, f = side, WEST + SIDE * column, -side, NORTH - SIDE * row
    if south_up:
        bands, f, e = bands[:, ::-1], f + e * bands.shape[1], -e
    if mirrored:
        bands, c, a = bands[:, :, ::-1], c + a * bands.shape[2], -a
    place = {"crs": UTM, "transform": rasterio.Affine(a, 0, c, 0, e, f)} | options
    return write_raster(path, np.ascontiguousarray(bands), **place)


def whole(scene: RasterScene) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    return scene.read(0, 0, *scene.shape)
