"""TIFF and JPEG 2000 files: their bands and windows, and which of their pixels are missing."""

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import rasterio
from image_files import PLACE, encoded, noise, pixels, png, put, write_raster

from nec_jax.images.read import read_image, read_mask
from nec_jax.images.record import CorruptImageError, MissingPixels
from nec_jax.sources import open_source
from nec_jax.sources.potsdam import read_colour_mask


def test_a_pixel_is_missing_if_one_of_its_bands_is(tmp_path: Path):
    bands = noise(3, 6, 5) // 2 + 1
    bands[:, 0, 0] = 0
    bands[2, 4, 3] = 0
    path = write_raster(tmp_path / "image.tif", bands, nodata=0)
    with rasterio.open(path) as file:
        assert (file.dataset_mask() == 0).sum() == 1
    with pytest.raises(MissingPixels, match="2 of 30 pixels are missing in at least one band "):
        pixels(path)


@pytest.mark.parametrize("depth", [8, 12, 16])
def test_jpeg_2000_is_an_image(tmp_path: Path, depth: int):
    dtype = np.uint8 if depth == 8 else np.uint16
    bands = noise(3, 40, 50, high=2**depth, dtype=dtype)
    extra = {"NBITS": 12} if depth == 12 else {}
    path = write_raster(tmp_path / "B04.jp2", bands, **extra, **PLACE)
    record = open_source(tmp_path)[0]
    np.testing.assert_array_equal(record["image"], bands.transpose(1, 2, 0))
    assert record["image"].dtype == dtype
    assert record.get("crs") == "EPSG:32633"
    window = read_image(path, "", (10, 20, 8, 9))
    np.testing.assert_array_equal(window["image"], bands[:, 10:18, 20:29].transpose(1, 2, 0))
    stream = imagecodecs.jpeg2k_encode(
        bands.transpose(1, 2, 0), level=0, codecformat="j2k", reversible=True, bitspersample=depth
    )
    np.testing.assert_array_equal(pixels(put(tmp_path / "B04.j2k", bytes(stream))), record["image"])


def test_a_scale_or_an_offset_is_refused(tmp_path: Path):
    path = write_raster(tmp_path / "a.tif", noise(2, 6, 5, dtype=np.uint16))
    for scales, offsets in (((1, 1e-4), (0, 0)), ((1, 1), (0, -1000))):
        with rasterio.open(path, "r+") as file:
            file.scales, file.offsets = scales, offsets
        with pytest.raises(
            CorruptImageError, match=r"a\.tif: its band 2 has the scale .* offset .*gdal_translate"
        ):
            pixels(path)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1, 1), (0, 0)
    assert pixels(path).dtype == np.uint16
    mask = write_raster(tmp_path / "mask.tif", noise(1, 6, 5, high=3))
    with rasterio.open(mask, "r+") as file:
        file.offsets = (1,)
    with pytest.raises(
        CorruptImageError, match=r"mask\.tif: its band 1 has the scale 1 and the offs"
    ):
        read_mask(mask)


def test_complex_numbers_are_no_pixels(tmp_path: Path):
    path = write_raster(tmp_path / "slc.tif", np.ones((1, 4, 4), np.complex64))
    with pytest.raises(CorruptImageError, match=r"slc\.tif: its pixels are complex64: save mag"):
        pixels(path)


def test_a_window_counts_its_own_missing_pixels_only(tmp_path: Path):
    bands = noise(3, 40, 40)
    bands[bands == 0] = 1
    bands[1, 30, 25] = 0
    tiff = write_raster(tmp_path / "a.tif", bands, nodata=0)
    assert read_image(tiff, "", (0, 0, 30, 40))["image"].shape == (30, 40, 3)
    with pytest.raises(
        MissingPixels, match=r"a\.tif: 1 of 200 .*nodata value 0.* row 30, column 25"
    ):
        read_image(tiff, "", (20, 20, 20, 10))


@pytest.mark.parametrize(
    ("value", "nodata", "kind"),
    [
        (-9999.0, -9999.0, "nodata value -9999"),
        (-3.4028234663852886e38, -3.4028234663852886e38, r"nodata value -3\.40282e\+38"),
        (np.nan, np.nan, "nodata value nan"),
        (np.nan, None, "NaN"),
        (np.inf, None, "infinity"),
        (-np.inf, -9999.0, "infinity"),
    ],
)
def test_missing_floats_are_named(tmp_path: Path, value: float, nodata: float | None, kind: str):
    bands = np.ones((4, 6, 5), np.float32)
    path = write_raster(tmp_path / "dem.tif", bands, nodata=nodata)
    assert pixels(path).dtype == np.float32
    bands[2, 3, 1:] = value
    write_raster(path, bands, nodata=nodata)
    with pytest.raises(MissingPixels, match=rf"dem\.tif: 4 of 30 .*{kind}.* row 3, column 1"):
        pixels(path)


def test_a_mask_and_an_alpha_band_of_a_tiff_name_missing_pixels(tmp_path: Path):
    bands = noise(4, 6, 5, high=9000, dtype=np.uint16)
    bands[3] = 65535
    path = write_raster(tmp_path / "alpha.tif", bands, alpha=4)
    np.testing.assert_array_equal(pixels(path), bands[:3].transpose(1, 2, 0))  # opaque: no band
    bands[3, 5, 4] = 9
    write_raster(path, bands, alpha=4)
    with pytest.raises(MissingPixels, match=r"1 of 30 .*band 4 is marked as alpha.* row 5, col"):
        pixels(path)
    path = write_raster(tmp_path / "masked.tif", bands[:3])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        inside = np.full((6, 5), 255, np.uint8)
        inside[0, 2] = 0
        file.write_mask(inside)
    with pytest.raises(MissingPixels, match=r"1 of 30 .*the file's mask.* row 0, column 2"):
        pixels(path)


def test_a_fourth_band_is_alpha_if_the_file_says_so(tmp_path: Path):
    bands = noise(4, 6, 5)  # red, green, blue and infrared: GDAL marks the fourth as alpha
    path = write_raster(tmp_path / "nir.tif", bands)
    with pytest.raises(MissingPixels, match=r"band 4 is marked as alpha.* -colorinterp_4 undefin"):
        pixels(path)
    write_raster(path, bands, photometric="MINISBLACK")
    np.testing.assert_array_equal(pixels(path), bands.transpose(1, 2, 0))


def test_missing_pixels_of_a_mask_are_ignored_ones(tmp_path: Path):
    mask = noise(1, 6, 5, high=4)
    path = write_raster(tmp_path / "mask.tif", mask, nodata=0)
    np.testing.assert_array_equal(read_mask(path), np.where(mask[0] == 0, 255, mask[0]))


def test_a_mask_that_was_saved_with_loss_is_refused(tmp_path: Path):
    mask = noise(32, 32, high=3)
    lossy = put(tmp_path / "mask.png", encoded(mask, "JPEG"))
    tiff = write_raster(tmp_path / "mask.tif", mask[None], COMPRESS="JPEG")
    for path in (lossy, tiff):
        with pytest.raises(CorruptImageError, match=rf"{path.name}: JPEG changes the class"):
            read_mask(path)
    stream = imagecodecs.jpeg2k_encode(mask, level=20, codecformat="jp2", reversible=False)
    path = put(tmp_path / "mask.jp2", bytes(stream))
    with pytest.raises(CorruptImageError, match=r"mask\.jp2: lossy JPEG 2000 changes the class"):
        read_mask(path)
    rounded = write_raster(tmp_path / "rounded.tif", mask[None], COMPRESS="LERC", MAX_Z_ERROR=2)
    with pytest.raises(CorruptImageError, match=r"rounded\.tif: lossy LERC changes the class"):
        read_mask(rounded)
    exact = write_raster(tmp_path / "exact.tif", mask[None], COMPRESS="LERC")
    for path in (exact, write_raster(tmp_path / "exact.jp2", mask[None])):
        np.testing.assert_array_equal(read_mask(path), mask)


def test_masks_of_colours_or_16_bits_are_refused(tmp_path: Path):
    for content in (png(noise(4, 4, 1, dtype=np.uint16)), encoded(noise(4, 4, 3), "PNG")):
        with pytest.raises(CorruptImageError, match="a mask has one band of uint8"):
            read_mask(put(tmp_path / "mask.png", content))
    path = write_raster(tmp_path / "label.tif", noise(1, 4, 4))
    with pytest.raises(CorruptImageError, match=r"label\.tif: its labels are colours"):
        read_colour_mask(path)
    colours = np.zeros((3, 4, 4), np.uint8)
    colours[:, 2, 1] = 252, 255, 3  # as in an official file
    assert read_colour_mask(write_raster(path, colours))[2, 1] == 4
    colours[1, 3, 2] = 100
    write_raster(path, colours)
    for box, place in ((None, "row 3, column 2"), ((2, 1, 2, 2), "row 3, column 2")):
        with pytest.raises(
            CorruptImageError, match=rf"label\.tif: .*\(0, 100, 0\) at {place} is no"
        ):
            read_colour_mask(path, box)


@pytest.mark.parametrize("marks", ["tag and alpha", "mask and tag", "mask and alpha"])
def test_a_pixel_is_missing_by_each_of_two_marks(tmp_path: Path, marks: str):
    """GDAL's own mask is of one mark alone; as in scenes, all count here."""
    bands = noise(4, 6, 5) // 2 + 1
    bands[3] = 255
    if "tag" in marks:
        bands[1, 1, 1] = 0
    if "alpha" in marks:
        bands[3, 5, 4] = 9
    count = 4 if "alpha" in marks else 3
    nodata = 0 if "tag" in marks else None
    alpha = 4 if "alpha" in marks else 0
    path = write_raster(tmp_path / "a.tif", bands[:count], nodata=nodata, alpha=alpha)
    if "mask" in marks:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
            inside = np.full((6, 5), 255, np.uint8)
            inside[0, 2] = 0
            file.write_mask(inside)
    with pytest.raises(MissingPixels, match="2 of 30 pixels are missing") as error:
        pixels(path)
    named = {"tag": "nodata value 0", "alpha": "marked as alpha", "mask": "the file's mask"}
    for word in marks.split(" and "):
        assert named[word] in str(error.value)
