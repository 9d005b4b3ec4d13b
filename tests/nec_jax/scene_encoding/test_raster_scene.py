"""Scenes: any window equals the same part of the whole, however the pixels are stored."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from scene_rasters import (
    NORTH,
    RGB,
    SIDE,
    UTM,
    WEST,
    earth,
    model,
    model_of,
    put_scene,
    whole,
)

from nec_jax.scene_encoding import scene_files
from nec_jax.scene_encoding.raster_scene import RasterScene

LAYOUTS = [
    {},
    {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate"},
    {"interleave": "pixel"},
    {"interleave": "band", "tiled": True, "blockxsize": 16, "blockysize": 16},
]


def windows(shape: tuple[int, int], count: int = 12, seed: int = 0):
    """Random windows, some of which reach beyond the edges."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        row, column = (int(random.integers(-20, side)) for side in shape)
        yield row, column, int(random.integers(1, 70)), int(random.integers(1, 70))


def check_windows(scene: RasterScene) -> None:
    values, valid = whole(scene)
    for row, column, height, width in windows(scene.shape):
        found, known = scene.read(row, column, height, width)
        assert found.shape == (height, width, 3)
        assert known.shape == (height, width)
        rows, columns = np.arange(row, row + height), np.arange(column, column + width)
        inside = np.ix_((rows >= 0) & (rows < scene.shape[0]),
                        (columns >= 0) & (columns < scene.shape[1]))  # fmt: skip
        part = np.s_[max(row, 0) : max(row + height, 0), max(column, 0) : max(column + width, 0)]
        np.testing.assert_array_equal(found[inside], values[part])
        np.testing.assert_array_equal(known[inside], valid[part])
        assert known.sum() == valid[part].sum()


@pytest.mark.parametrize("layout", LAYOUTS, ids=["strips", "tiles", "pixel", "band"])
def test_windows_are_parts_of_the_whole(tmp_path: Path, layout: dict):
    bands = earth()
    scene = RasterScene([put_scene(tmp_path / "a.tif", bands, nodata=10, **layout)], RGB)
    values, valid = whole(scene)
    np.testing.assert_array_equal(valid, (bands != 10).all(axis=0))
    assert 0 < valid.sum() < valid.size
    np.testing.assert_array_equal(values[valid], bands.transpose(1, 2, 0)[valid])
    assert (scene.shape, values.dtype) == ((100, 130), np.uint8)
    assert scene.transform == (SIDE, 0, WEST, 0, -SIDE, NORTH)
    assert scene.code == UTM
    assert rasterio.CRS.from_wkt(scene.crs) == rasterio.CRS.from_string(UTM)
    check_windows(scene)


def test_two_halves_are_the_whole(tmp_path: Path):
    bands = earth()
    one = RasterScene([put_scene(tmp_path / "a.tif", bands, nodata=10)], RGB)
    for cut in (np.s_[:, :41], np.s_[:, :, 77:]):
        rest = np.s_[:, 41:] if cut[1] != slice(None) else np.s_[:, :, :77]
        parts = []
        for number, part in enumerate((rest, cut)):
            rows, columns = (*part, slice(None))[1:3]
            parts.append(
                put_scene(
                    tmp_path / f"{number}.tif", bands[part], nodata=10,
                    row=rows.start or 0, column=columns.start or 0, south_up=number == 1,
                )
            )  # fmt: skip
        two = RasterScene(parts, RGB)
        assert (two.shape, two.transform) == (one.shape, one.transform)
        for found, expected in zip(whole(two), whole(one), strict=True):
            np.testing.assert_array_equal(found, expected)
        check_windows(two)
        for side in (37, 7):
            coarse, expected = (
                RasterScene(names, RGB, resolution=side) for names in (parts, [tmp_path / "a.tif"])
            )
            for found, wanted in zip(whole(coarse), whole(expected), strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_the_first_file_with_a_valid_pixel_counts_and_gaps_are_missing(tmp_path: Path):
    bands = earth(80, 80)
    upper = np.where((np.indices((50, 50)).sum(0) % 3 == 0), 0, 255 - bands[:, :50, :50])
    first = put_scene(tmp_path / "first.tif", upper.astype(np.uint8), nodata=0)
    second = put_scene(tmp_path / "second.tif", bands[:, 30:, 30:], row=30, column=30)
    scene = RasterScene([first, second], RGB)
    values, valid = whole(scene)
    hole = (upper == 0).any(0)
    expected = np.zeros((80, 80), bool)
    expected[:50, :50] = ~hole
    expected[30:, 30:] = True
    np.testing.assert_array_equal(valid, expected)
    pixels = bands.transpose(1, 2, 0).copy()
    pixels[:50, :50][~hole] = upper.transpose(1, 2, 0)[~hole]
    np.testing.assert_array_equal(values[valid], pixels[valid])
    assert (values[~valid] == np.rint(RGB.mean)).all()
    check_windows(scene)


@pytest.mark.parametrize("resolution", [None, 25, 4])
@pytest.mark.parametrize(("south_up", "mirrored"), [(True, False), (False, True), (True, True)])
def test_flipped_files_are_read_north_up(
    tmp_path: Path, south_up: bool, mirrored: bool, resolution: float | None
):
    bands = earth()
    plain = put_scene(tmp_path / "a.tif", bands, nodata=10)
    flipped = put_scene(tmp_path / "b.tif", bands, nodata=10, south_up=south_up, mirrored=mirrored)
    with rasterio.open(flipped) as file:
        assert (file.transform.e > 0, file.transform.a < 0) == (south_up, mirrored)
    scene, expected = (RasterScene([name], RGB, resolution=resolution) for name in (flipped, plain))
    assert (scene.transform, scene.shape) == (expected.transform, expected.shape)
    for found, wanted in zip(whole(scene), whole(expected), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert scene.preparation["flipped"] == {"south_up": south_up, "mirrored": mirrored}
    check_windows(scene)


@pytest.mark.parametrize("resolution", [SIDE, 20, 25, 7, 400, 2])
def test_windows_of_a_resampled_scene_are_parts_of_the_whole(tmp_path: Path, resolution: float):
    name = put_scene(tmp_path / "a.tif", earth(), nodata=10)
    check_windows(RasterScene([name], model(patch=2, image_size=2), resolution=resolution))


def test_a_coarser_pixel_is_the_mean_of_its_valid_pixels(tmp_path: Path):
    bands = earth(96, 128)
    missing = np.zeros((96, 128), bool)
    missing[40:, 60:] = True
    missing[3::7, 5::9] = True
    bands[:, missing] = 0
    scene = RasterScene([put_scene(tmp_path / "a.tif", bands)], RGB, nodata=0, resolution=4 * SIDE)
    missing = (bands == 0).any(0)
    weights = (~missing).reshape(24, 4, 32, 4).sum((1, 3))
    sums = np.where(missing, 0, bands.astype(float)).reshape(3, 24, 4, 32, 4).sum((2, 4))
    values, valid = whole(scene)
    np.testing.assert_array_equal(valid, weights > 0)
    means = np.moveaxis(sums / np.maximum(weights, 1), 0, -1)
    assert np.abs(values[valid] - means[valid]).max() <= 0.5 + 1e-4
    assert scene.preparation["resampling"] == "average"


def test_missing_pixels_do_not_bleed_into_finer_ones(tmp_path: Path):
    bands = np.full((1, 60, 60), 100, np.float32)
    bands[0, :, 30:] = np.nan
    bands[0, 20:25, 5:9] = -9999
    name = put_scene(tmp_path / "a.tif", bands, nodata=-9999)
    config = model_of("a", dtype="float32", value_range=(0.0, 1000.0))
    scene = RasterScene([name], config, resolution=4)
    values, valid = whole(scene)
    np.testing.assert_allclose(values[valid], 100, rtol=1e-6)
    share = (bands == 100).mean()
    assert abs(valid.mean() - share) < 0.03
    assert scene.preparation["resampling"] == "cubic"


def test_resampled_files_need_no_common_grid(tmp_path: Path):
    bands = np.full((3, 60, 60), 50, np.uint8)
    names = [
        put_scene(tmp_path / "a.tif", bands),
        put_scene(tmp_path / "b.tif", bands, side=7, row=3.3, column=60.4),
    ]
    scene = RasterScene(names, RGB, resolution=12)
    values, valid = whole(scene)
    assert scene.shape == (50, 85)
    assert (values[valid] == 50).all()
    assert valid[:, :50].all()
    assert valid.mean() > 0.85
    check_windows(scene)


def test_bands_are_taken_by_number_and_by_description(tmp_path: Path):
    bands = np.concatenate([earth(), earth(row=1200)])
    name = put_scene(tmp_path / "a.tif", bands)
    with rasterio.open(name, "r+") as file:
        file.descriptions = ("B02", "B03", "B04", "nir", "swir", "7")
    for words, order in (
        (("3", "2", "1"), [2, 1, 0]),
        (("nir", "B03", "nir"), [3, 1, 3]),
        (("1", "1", "1"), [0, 0, 0]),
    ):
        scene = RasterScene([name], RGB, bands=words)
        np.testing.assert_array_equal(whole(scene)[0], bands[order].transpose(1, 2, 0))
        assert [band for band, _ in scene.preparation["bands"]] == [i + 1 for i in order]


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_a_range_of_values_becomes_the_models(tmp_path: Path, kind: str):
    stored = np.broadcast_to(np.arange(0, 100, dtype=kind), (1, 20, 100)).copy()
    name = put_scene(tmp_path / "a.tif", stored)
    scene = RasterScene([name], RGB, bands=("1", "1", "1"), value_range=(10, 61))
    expected = np.rint(np.clip((np.arange(100) - 10) / 51 * 255, 0, 255))
    np.testing.assert_array_equal(whole(scene)[0][0, :, 0], expected)
    floats = model(dtype="float32", value_range=(-1.0, 1.0))
    scene = RasterScene([name], floats, bands=("1", "1", "1"), value_range=(10, 61))
    values, valid = whole(scene)
    assert (values.min(), values.max(), values.dtype) == (-1, 1, np.float32)
    assert valid.all()


def test_scales_and_offsets_are_applied(tmp_path: Path):
    stored = earth().astype(np.uint16) * 40
    name = put_scene(tmp_path / "a.tif", stored, nodata=0)
    with rasterio.open(name, "r+") as file:
        file.scales, file.offsets = (1e-4, 2e-4, 1e-4), (-0.1, 0, 0.5)
    floats = model(dtype="float32", value_range=(-10.0, 10.0))
    scene = RasterScene([name], floats)
    values, valid = whole(scene)
    expected = stored.transpose(1, 2, 0) * (1e-4, 2e-4, 1e-4) + (-0.1, 0, 0.5)
    np.testing.assert_array_equal(values[valid], expected[valid].astype(np.float32))
    np.testing.assert_array_equal(valid, (stored != 0).all(0))
    assert scene.preparation["scale"] == [1e-4, 2e-4, 1e-4]
    assert scene.preparation["offset"] == [-0.1, 0, 0.5]
    scene = RasterScene([name], RGB, value_range=(0, 2))
    expected = np.rint(np.clip(expected / 2, 0, 1) * 255)
    np.testing.assert_array_equal(whole(scene)[0][valid], expected[valid])


def test_a_pixel_is_missing_by_every_mark(tmp_path: Path):
    """Tag, alpha, mask, NaN and infinity, also where GDAL looks at one of two marks alone."""
    bands = np.concatenate([earth(40, 40) | 1, np.full((1, 40, 40), 255, np.uint8)])
    bands[1, 3, 4], bands[3, 5, 6], bands[3, 7, 8] = 0, 0, 128
    name = put_scene(tmp_path / "alpha.tif", bands, alpha=4, nodata=0)
    missing = {(int(row), int(column)) for row, column in np.argwhere(~read(name))}
    assert missing == {(3, 4), (5, 6), (7, 8)}
    name = put_scene(tmp_path / "mask.tif", bands[:3], nodata=0)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(name, "r+") as file:
        file.write_mask(bands[3] > 200)
    assert {tuple(map(int, place)) for place in np.argwhere(~read(name))} == missing
    name = put_scene(tmp_path / "beside.tif", bands[:3], nodata=0)
    before = RasterScene([name], RGB).digests
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(name, "r+") as file:
        file.write_mask(bands[3] > 200)
    assert (tmp_path / "beside.tif.msk").is_file()
    assert {tuple(map(int, place)) for place in np.argwhere(~read(name))} == missing
    assert RasterScene([name], RGB).digests["file_sizes"] != before["file_sizes"]
    floats = bands[:3].astype(np.float32)
    floats[0, 1, 1], floats[1, 2, 2], floats[2, 3, 3] = np.nan, np.inf, -np.inf
    name = put_scene(tmp_path / "nan.tif", floats)
    config = model(dtype="float32")
    found = {tuple(map(int, place)) for place in np.argwhere(~read(name, config=config))}
    assert found == {(1, 1), (2, 2), (3, 3)}


def read(name: Path, *, config=RGB, **options) -> np.ndarray:
    return whole(RasterScene([name], config, **options))[1]


def test_nodata_replaces_the_tag_and_counts_in_chosen_bands_only(tmp_path: Path):
    bands = np.full((4, 20, 20), 9, np.uint8)
    bands[:, 0, 0], bands[1, 1, 1], bands[3, 2, 2] = 0, 7, 7
    name = put_scene(tmp_path / "a.tif", bands, nodata=0, photometric="minisblack")
    chosen = ("1", "2", "3")
    assert np.argwhere(~read(name, bands=chosen)).tolist() == [[0, 0]]
    assert np.argwhere(~read(name, nodata=7, bands=chosen)).tolist() == [[1, 1]]
    scene = RasterScene([name], RGB, nodata=7, bands=chosen)
    assert scene.preparation["nodata"] == [7]
    name = put_scene(tmp_path / "b.tif", bands.astype(np.float32) / 10, nodata=np.nan)
    config = model(dtype="float32")
    assert np.argwhere(~read(name, config=config, nodata=0.7, bands=chosen)).tolist() == [[1, 1]]
    assert RasterScene([name], config, bands=chosen).preparation["nodata"] == ["nan"]
    assert read(name, config=config, nodata=-1.7976931348623157e308, bands=chosen).all()


def test_a_scene_may_cross_the_antimeridian(tmp_path: Path):
    bands = earth()
    place = {"crs": "EPSG:4326", "transform": rasterio.Affine(0.1, 0, 175, 0, -0.1, 40)}
    name = put_scene(tmp_path / "a.tif", bands, **place)
    scene = RasterScene([name], RGB)
    assert scene.transform[2] + scene.transform[0] * scene.shape[1] == pytest.approx(188)
    np.testing.assert_array_equal(whole(scene)[0], bands.transpose(1, 2, 0))
    coarse = RasterScene([name], RGB, resolution=0.2)
    values, valid = whole(coarse)
    means = bands.reshape(3, 50, 2, 65, 2).mean((2, 4)).transpose(1, 2, 0)
    assert valid.all()
    assert np.abs(values - means).max() <= 0.5 + 1e-4


def test_threads_read_what_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scene_files, "_KEPT", 3)
    bands = earth(96, 96)
    names = [
        put_scene(tmp_path / f"{r}{c}.tif", bands[:, r : r + 16, c : c + 16], row=r, column=c)
        for r in range(0, 96, 16)
        for c in range(0, 96, 16)
    ]
    scene = RasterScene(names, RGB)
    places = list(windows(scene.shape, 60))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: scene.read(*place), places))
    pixels = np.pad(bands.transpose(1, 2, 0), ((20, 90), (20, 90), (0, 0)))
    for (row, column, height, width), (values, valid) in zip(places, found, strict=True):
        part = pixels[row + 20 : row + 20 + height, column + 20 : column + 20 + width]
        np.testing.assert_array_equal(values[valid], part[valid])
    assert sum(valid.sum() for _, valid in found) > 10_000


def test_only_files_that_touch_a_window_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bands = earth(40, 90)
    names = [
        put_scene(tmp_path / f"{i}.tif", bands[:, :, 30 * i : 30 * i + 30], column=30 * i)
        for i in range(3)
    ]
    scene = RasterScene(names, RGB)
    opened = []

    def open_one(path: Path):
        opened.append(path.name)
        return rasterio.open(path)

    monkeypatch.setattr(scene_files, "open_raster", open_one)
    scene.read(0, 0, 40, 30)
    scene.read(0, 0, 40, 30)
    assert opened == ["0.tif"]
    scene.read(0, 0, 40, 31)
    assert opened == ["0.tif", "1.tif"]


def test_a_vrt_is_a_scene(tmp_path: Path):
    bands = earth()
    source = put_scene(tmp_path / "a.tif", bands)
    name = tmp_path / "a.vrt"
    with rasterio.open(source) as file:
        rasterio.shutil.copy(file, name, driver="VRT")
    assert name.read_bytes().startswith(b"<VRTDataset")
    scene = RasterScene([name], RGB)
    np.testing.assert_array_equal(whole(scene)[0], bands.transpose(1, 2, 0))
    put_scene(source, bands, compress="deflate")
    changed = RasterScene([name], RGB).digests
    assert changed["file_names"] == scene.digests["file_names"]
    assert changed["file_sizes"] != scene.digests["file_sizes"]


def test_what_was_done_is_json_and_names_no_query(tmp_path: Path):
    name = put_scene(tmp_path / "a.tif", earth(), nodata=3)
    scenes = [RasterScene([name], RGB, resolution=20) for _ in range(2)]
    assert scenes[0].preparation == scenes[1].preparation
    assert scenes[0].digests == scenes[1].digests
    assert json.loads(json.dumps(scenes[0].preparation, allow_nan=False)) == {
        "files": [str(name)],
        "bands": [[1, ""], [2, ""], [3, ""]],
        "dtype": "uint8",
        "scale": [1.0, 1.0, 1.0],
        "offset": [0.0, 0.0, 0.0],
        "value_range": None,
        "nodata": [3.0],
        "resolution": 20.0,
        "resampling": "average",
        "flipped": {"south_up": 0, "mirrored": 0},
    }


def test_files_agree_on_a_time_or_there_is_none(tmp_path: Path):
    bands = earth(40, 40)
    names = [put_scene(tmp_path / f"{i}.tif", bands, column=40 * i) for i in range(3)]
    for name, day in zip(names, (6, 6, 7), strict=True):
        with rasterio.open(name, "r+") as file:
            file.update_tags(EXIF_DateTimeOriginal=f"2024:05:0{day} 10:20:30")
    assert RasterScene(names[:2], RGB).time == np.datetime64("2024-05-06T10:20:30")
    assert RasterScene(names, RGB).time is None
