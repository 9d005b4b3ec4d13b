"""Small files that have the shape of products: TESSERA's, AlphaEarth's, tables of vectors."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from export_cases import TRANSFORM, cells
from numpy.typing import NDArray

import coder
from coder.codecs import OneQualityCodec

D = 8
CRS = "EPSG:32633"


def smooth(shape: tuple[int, int] = (40, 50), seed: int = 0) -> NDArray[np.float32]:
    """A raster [h, w, D] of values within -1 to 1."""
    y = cells(shape, seed, D, holes=False)
    return (y / np.abs(y).max()).astype(np.float32)


@cache
def codec_of(spatial: bool = True) -> OneQualityCodec:
    y = smooth((64, 64), 7)
    whole = coder.fit(y if spatial else y.reshape(-1, D))
    return whole.at(whole.num_qualities - 1)


def with_scales(y: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """TESSERA's way: int8 [h, w, D], and float32 scales [h, w]."""
    scales = (np.abs(y).max(-1) / 127).astype(np.float32)
    return np.rint(y / scales[..., None]).astype(np.int8), scales


def as_companded(y: NDArray[np.float32]) -> NDArray[np.int8]:
    """AlphaEarth's way: int8, the signed square root of values within -1 to 1."""
    return np.rint(np.sign(y) * np.sqrt(np.abs(y)) * 127.5).clip(-127, 127).astype(np.int8)


def expanded(q: NDArray[np.int8]) -> NDArray[np.float32]:
    """The values of companded numbers."""
    x = q.astype(np.float64)
    return (np.sign(x) * (np.abs(x) / 127.5) ** 2).astype(np.float32)


def put_tiff(
    path: Path,
    y: NDArray[Any],
    *,
    south_up: bool = False,
    georeferenced: bool = True,
    names: bool = False,
    mask: NDArray[np.bool_] | None = None,
    scale: float | None = None,
    **options: Any,
) -> Path:
    """A GeoTIFF of a raster [h, w, D], whose bands are the channels."""
    import rasterio

    height, width, count = y.shape
    a, b, c, d, e, f = TRANSFORM
    transform = (a, b, c, d, -e, f + e * height) if south_up else TRANSFORM
    if georeferenced:
        options |= {"crs": CRS, "transform": rasterio.Affine(*transform)}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=y.dtype, **options
    ) as file:
        file.write((y[::-1] if south_up else y).transpose(2, 0, 1))
        file.update_tags(YEAR="2024")
        if names:
            file.descriptions = tuple(f"A{i:02}" for i in range(count))
        if mask is not None:
            file.write_mask(mask)
        if scale is not None:
            file.scales = (scale,) * count
    return path


def vectors(count: int = 700, seed: int = 0) -> NDArray[np.float32]:
    return smooth((count, 1), seed)[:, 0]


def put_table(
    path: Path, y: NDArray[Any], *, missing: NDArray[np.bool_] | None = None, rows: int = 300
) -> pa.Table:
    """A GeoParquet table of points with ids, labels, times and a bbox, and null vectors."""
    import geopandas as gpd
    from shapely import Point

    count = len(y)
    places = [Point(13 + 0.01 * i, 52 - 0.01 * i) for i in range(count)]
    frame = gpd.GeoDataFrame(
        {
            "id": [f"tile-{i:05}" for i in range(count)],
            "label": pd.Categorical(np.where(np.arange(count) % 3, "forest", "water")),
            "when": pd.date_range("2024-01-01", periods=count, freq="h", tz="UTC"),
            "area": np.linspace(0, 9, count),
        },
        geometry=places,
        crs=CRS,
    )
    frame.to_parquet(path, write_covering_bbox=True)
    table = pq.read_table(path)
    gone = None if missing is None else pa.array(missing)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(y.ravel()), y.shape[1], mask=gone)
    field = pa.field("embedding", lists.type, metadata={"model": "of the table"})
    table = table.add_column(2, field, lists)
    pq.write_table(table, path, row_group_size=rows)
    return pq.read_table(path)
