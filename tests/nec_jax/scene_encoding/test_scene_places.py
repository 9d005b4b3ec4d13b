"""From a raster to xarray and to exports: ten known points, for scenes of three kinds."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from image_files import write_raster
from rasterio.transform import array_bounds
from rasterio.warp import Resampling, calculate_default_transform, reproject
from scene_rasters import earth

import coder
from coder.cli import main

SIDES = (260, 330)  # no multiples of the patch
CORNER = (700, 2600)  # of the part of Blue Marble: row, column


def in_degrees() -> tuple[np.ndarray, rasterio.Affine]:
    row, column = CORNER
    place = rasterio.Affine(1 / 15, 0, -180 + column / 15, 0, -1 / 15, 90 - row / 15)
    return earth(*SIDES, row=row, column=column), place


def plain(path: Path) -> list[str]:
    """Blue Marble as it is."""
    bands, place = in_degrees()
    write_raster(path, bands, crs="EPSG:4326", transform=place)
    return []


def warped(path: Path) -> list[str]:
    """The same in UTM, with corners that have no data."""
    bands, place = in_degrees()
    height, width = SIDES
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use `@` matmul")  # rasterio's own
        bounds = array_bounds(height, width, place)
        there, columns, rows = calculate_default_transform(
            "EPSG:4326", "EPSG:32633", width, height, *bounds, resolution=9000
        )
    out = np.zeros((3, rows or 0, columns or 0), np.uint8)
    options = {"src_transform": place, "src_crs": "EPSG:4326", "src_nodata": 0, "dst_nodata": 0}
    options |= {"dst_transform": there, "dst_crs": "EPSG:32633", "resampling": Resampling.nearest}
    for source, target in zip(np.maximum(bands, 1), out, strict=True):
        reproject(source, target, **options)
    assert (out == 0).all(0).any()
    write_raster(path, out, crs="EPSG:32633", transform=there, nodata=0)
    return []


def south_up(path: Path) -> list[str]:
    """The same as uint16 of 13 bands, with the southern rows first."""
    bands, place = in_degrees()
    many = np.stack([bands[{3: 0, 2: 1}.get(i, 2)] for i in range(13)]).astype(np.uint16) * 12 + 200
    a, _, c, _, e, f = place[:6]
    turned = rasterio.Affine(a, 0, c, 0, -e, f + e * SIDES[0])
    write_raster(path, many[:, ::-1], crs="EPSG:4326", transform=turned)
    return ["--bands", "4", "3", "2", "--value-range", "200", "3260"]


@pytest.mark.parametrize("make", [plain, warped, south_up])
def test_ten_points_lie_where_rasterio_has_them_in_all_that_is_made(
    make, tmp_path, monkeypatch, capsys
):
    xarray = pytest.importorskip("xarray")
    geopandas = pytest.importorskip("geopandas")
    pytest.importorskip("rioxarray")
    monkeypatch.chdir(tmp_path)
    options = make(Path("s.tif"))
    command = ["encode", "s.tif", "--scene", "--model", "nec-vit-ti", "--out", "s.zarr"]
    assert main([*command, "--no-refiner", *options]) == 0
    scene = coder.open_scene("s.zarr")
    with rasterio.open("s.tif") as file:
        source, crs, is_turned = file.transform, file.crs, file.transform.e > 0
        rows_of_source = file.height
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use `@` matmul")  # of rioxarray
        opened = xarray.open_zarr("s.zarr")
        assert opened.rio.crs == crs
        assert opened.embedding.rio.transform() == rasterio.Affine(*scene.grid.transform)
    height, width = scene.grid.shape
    west, south, east, north = scene.grid.part(slice(2, height - 2), slice(2, width - 2)).bounds
    window = ["--bbox", *map(repr, (west, south, east, north))]
    assert main(["export", "s.zarr", *window, "--channels", "7", "0", "--out", "w.tif"]) == 0
    assert main(["export", "s.zarr", *window, "--out", "w.parquet"]) == 0
    table = geopandas.read_parquet("w.parquet")
    assert table.crs == crs
    rng = np.random.default_rng(11)
    inner = np.argwhere(scene.valid()[2:-2, 2:-2]) + 2
    with rasterio.open("w.tif") as exported:
        assert exported.crs == crs
        for row, column in rng.choice(inner, 10, replace=False):
            x, y = float(opened.x[column]), float(opened.y[row])
            a, b, c, d, e, f = (~source)[:6]
            at = a * x + b * y + c, d * x + e * y + f
            line = rows_of_source - at[1] if is_turned else at[1]
            assert abs(at[0] - (16 * column + 8)) < 0.5
            assert abs(line - (16 * row + 8)) < 0.5
            vector = scene.at(x, y)
            np.testing.assert_array_equal(opened.embedding[row, column], vector)
            (value,) = exported.sample([(x, y)])
            np.testing.assert_array_equal(value, vector[[7, 0]])
            own = table[(table.row == row) & (table.column == column)]
            assert len(own) == 1
            centre = own.geometry.iloc[0].centroid
            assert (centre.x, centre.y) == pytest.approx((x, y), rel=1e-9)
            np.testing.assert_array_equal(np.stack(own.embedding)[0], vector)
