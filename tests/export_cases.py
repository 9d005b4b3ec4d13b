"""Scenes to export, in which some cells have no embedding, and heads for them."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import coder
from coder import Head
from coder.codecs import OneQualityCodec
from coder.scenes.scene_grid import SceneGrid
from coder.scenes.scene_writer import SceneWriter
from coder.task_heads.head_settings import HeadSettings, ModelFacts
from coder.task_heads.task_head import weight_shapes

CHANNELS = 6
CLASSES = ("water", "<forest> & farm", "town")
TRANSFORM = (160.0, 0.0, 500_000.0, 0.0, -160.0, 5_800_000.0)  # 160 m, UTM zone 33 north


def grid_of(
    shape: tuple[int, int], code: str = "EPSG:32633", transform: tuple[float, ...] = TRANSFORM
) -> SceneGrid:
    from rasterio.crs import CRS

    crs = CRS.from_user_input(code).to_wkt(version="WKT2_2019")
    return SceneGrid(crs, code if code.startswith("EPSG") else None, transform, shape)


def cells(
    shape: tuple[int, int], seed: int = 0, channels: int = CHANNELS, *, holes: bool = True
) -> NDArray[np.float32]:
    """Smooth embeddings [h, w, D] of falling variance; NaN in an oblique corner and a hole."""
    rng = np.random.default_rng(seed)
    row, column = np.ogrid[: shape[0], : shape[1]]
    scale = np.linspace(3, 0.5, channels)
    y = rng.normal(size=(*shape, channels)) * 0.3 * scale
    for channel, (down, across) in enumerate(rng.uniform(0.02, 0.3, (channels, 2))):
        y[..., channel] += scale[channel] * np.sin(down * row + across * column + channel)
    if not holes:
        return y.astype(np.float32)
    y[(row + 2 * column < shape[0] / 2) | ((row // 4 == 3) & (column // 4 == 5))] = np.nan
    return y.astype(np.float32)


@cache
def codec_of(channels: int = CHANNELS) -> OneQualityCodec:
    y = cells((256, 16), 1, channels, holes=False).reshape(16, 16, 16, channels)
    return coder.fit(y).at(8)


def written(
    path: Path,
    shape: tuple[int, int] = (70, 300),
    *,
    grid: SceneGrid | None = None,
    times: tuple[str, ...] = (),
    channels: int = CHANNELS,
    codec: OneQualityCodec | None = None,
    attributes: dict[str, Any] | None = None,
) -> Path:
    """The path of a scene, written."""
    grid = grid or grid_of(shape)
    codec = codec or codec_of(channels)
    for seed, time in enumerate(times or (None,)):
        y = cells(shape, seed, channels)
        coverage = np.where(np.isnan(y[..., 0]), 10, 90).astype(np.uint8)
        made = {"model_name": "nec-vit-ti", "quality": 8}
        when = None if time is None else np.datetime64(time)
        with SceneWriter(
            path, codec, grid, made=made, step={"files": []}, attributes=attributes, time=when
        ) as writer:
            for rows, columns in writer.missing():
                writer.write((rows, columns), y[rows, columns], coverage[rows, columns])
            writer.finish()
    return path


def head_of(
    kind: str = "token-linear",
    grid: tuple[int, int] = (4, 4),
    mask_size: tuple[int, int] | None = (32, 32),
    *,
    class_token: bool = True,
    with_decoder: bool = False,
    width: int = CHANNELS,
) -> Head:
    """A head of random weights."""
    model = ModelFacts(width, 2, 8, 2, mlp_ratio=1, code_class_token=class_token)
    settings = HeadSettings(kind, CLASSES, grid, with_decoder, mask_size, model)  # type: ignore[arg-type]
    rng = np.random.default_rng(3)
    weights = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in weight_shapes(settings).items()
    }
    return Head(settings, weights | {"scaling/std": np.ones(width, np.float32)})
