"""What a TIFF or JPEG 2000 file says about its colours is heeded, or refused."""

import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import rasterio
from image_files import encoded, noise, pixels, png, put, write_raster
from PIL import Image
from rasterio.enums import ColorInterp

from nec_jax.images.read import read_image, read_mask
from nec_jax.images.record import CorruptImageError


@pytest.mark.parametrize("how", [{}, {"big_tiff": True}])
def test_a_tiff_that_is_to_be_turned_is_refused(tmp_path: Path, how: dict[str, bool]):
    for orientation in range(1, 9):
        content = encoded(noise(6, 9, 3), "TIFF", tiffinfo={274: orientation}, **how)
        path = put(tmp_path / "a.tif", content)
        assert content.startswith(b"II+" if how else b"II*")
        if orientation == 1:
            assert pixels(path).shape == (6, 9, 3)
            continue
        with pytest.raises(
            CorruptImageError, match=rf"a\.tif: its orientation tag is {orientation}"
        ):
            pixels(path)


def palette_image(colours: list[int]) -> Image.Image:
    image = Image.fromarray(noise(4, 5, high=3)).convert("P")
    image.putdata(noise(20, high=3).tolist())
    image.putpalette(colours)
    return image


def test_a_palette_becomes_rgb_in_a_tiff_as_in_a_png(tmp_path: Path):
    image = palette_image([10, 20, 30, 40, 50, 60, 255, 80, 0])
    expected = np.asarray(image.convert("RGB"))
    for form in ("PNG", "TIFF"):
        path = put(tmp_path / f"palette.{form.lower()}", encoded(image, form))
        np.testing.assert_array_equal(pixels(path), expected)
        # and a mask holds indices
        np.testing.assert_array_equal(read_mask(path), np.asarray(image))
    window = read_image(path, "", (1, 2, 3, 2))["image"]
    np.testing.assert_array_equal(window, expected[1:4, 2:4])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_fill_eight_in_a_tiff_as_in_a_png(tmp_path: Path, bits: int):
    array = noise(6, 10, 1, high=2**bits)
    path = put(tmp_path / "few.png", png(array, bits=bits))
    stretched = pixels(path)
    np.testing.assert_array_equal(stretched[..., :1], array * (255 // (2**bits - 1)))
    tiff = write_raster(tmp_path / "few.tif", array.transpose(2, 0, 1), NBITS=bits)
    np.testing.assert_array_equal(pixels(tiff)[..., :1], stretched[..., :1])
    for file in (path, tiff):  # and a mask holds the numbers
        np.testing.assert_array_equal(read_mask(file), array[..., 0])


@pytest.mark.parametrize(
    ("dtype", "bits"), [(np.uint8, 8), (np.uint8, 1), (np.uint8, 2), (np.uint8, 4), (np.uint16, 16)]
)
def test_where_white_is_zero_black_becomes_zero(tmp_path: Path, dtype: type, bits: int):
    array = noise(1, 6, 10, high=2**bits, dtype=dtype)
    few = {"NBITS": bits} if bits < 8 else {}
    white = write_raster(tmp_path / "white.tif", array, photometric="MINISWHITE", **few)
    black = write_raster(tmp_path / "black.tif", 2**bits - 1 - array, **few)
    expected = pixels(black)[..., :1]  # GDAL has a palette for one bit
    np.testing.assert_array_equal(pixels(white), expected)
    window = read_image(white, "", (1, 2, 3, 4))["image"]
    np.testing.assert_array_equal(window, expected[1:4, 2:6])
    # as Pillow writes and shows it
    for image in (Image.fromarray(noise(6, 10)), Image.fromarray(noise(6, 10, high=2) > 0)):
        path = put(tmp_path / "pillow.tif", encoded(image, "TIFF", tiffinfo={262: 0}))
        with Image.open(path) as shown:
            np.testing.assert_array_equal(pixels(path)[..., 0], np.asarray(shown.convert("L")))


def test_white_as_zero_is_refused_where_it_has_no_meaning(tmp_path: Path):
    for bands, what in (
        (np.ones((1, 4, 4), np.float32), "a band of float32"),
        (noise(2, 4, 4), "several bands"),
    ):
        path = write_raster(tmp_path / "a.tif", bands, photometric="MINISWHITE")
        with pytest.raises(CorruptImageError, match=rf"a\.tif: .*MINISWHITE.*{what}: save it as"):
            pixels(path)
    path = write_raster(tmp_path / "mask.tif", noise(1, 4, 4, high=3), photometric="MINISWHITE")
    with pytest.raises(CorruptImageError, match=r"mask\.tif: white is zero.*save it as MINISBLACK"):
        read_mask(path)


@pytest.mark.parametrize("form", ["classic", "big", "big-endian"])
@pytest.mark.parametrize(
    ("number", "name"),
    [(4, "transparency mask"), (5, "CMYK"), (6, "YCbCr"), (8, "CIELAB"), (9, "ICCLAB"),
     (10, "ITULAB"), (32803, "mosaic"), (34892, "linear values"), (777, "none that is known")],
)  # fmt: skip
def test_colours_that_are_no_rgb_are_refused(tmp_path: Path, number: int, name: str, form: str):
    options = {"classic": {}, "big": {"BIGTIFF": "YES"}, "big-endian": {"ENDIANNESS": "BIG"}}
    path = write_raster(tmp_path / "a.tif", noise(3, 8, 8), photometric="RGB", **options[form])
    content = bytearray(path.read_bytes())
    order = ">" if form == "big-endian" else "<"
    long = struct.pack(order + "HHQH", 262, 3, 1, 2), struct.pack(order + "HHIH", 262, 3, 1, 2)
    entry = long[form != "big"]
    at = content.index(entry) + len(entry) - 2
    content[at : at + 2] = struct.pack(order + "H", number)
    path.write_bytes(content)
    for read in (pixels, read_mask):
        with pytest.raises(CorruptImageError, match=rf"a\.tif: .*{name}.* \({number}\), .*convert"):
            read(path)


def test_the_ycbcr_of_jpeg_in_a_tiff_is_rgb(tmp_path: Path):
    rows, columns = np.mgrid[:64, :64] * 4
    smooth = np.stack([rows, columns, 255 - rows]).astype(np.uint8)
    how = {"compress": "JPEG", "JPEG_QUALITY": 95}
    path = write_raster(tmp_path / "a.tif", smooth, photometric="YCBCR", **how)
    found = pixels(path).transpose(2, 0, 1).astype(int)
    assert np.abs(found - smooth).mean() < 3  # of another space: 80 and more
    with rasterio.open(path) as file:
        assert file.photometric.name == "ycbcr"


@pytest.mark.parametrize("space", ["SYCC", "EYCC", "CMYK"])
def test_colours_of_jpeg_2000_that_are_no_rgb_are_refused(tmp_path: Path, space: str):
    array = noise(32, 32, 4 if space == "CMYK" else 3)
    how: dict[str, Any] = {"level": 0, "codecformat": "jp2", "reversible": True}
    path = tmp_path / "a.jp2"
    put(path, bytes(imagecodecs.jpeg2k_encode(array, colorspace=space, **how)))
    with pytest.raises(
        CorruptImageError, match=r"a\.jp2: its colour space is .*: convert it to RGB"
    ):
        pixels(path)
    for plain in ("SRGB", "GRAY"):
        put(path, bytes(imagecodecs.jpeg2k_encode(array[..., :3], colorspace=plain, **how)))
        np.testing.assert_array_equal(pixels(path), array[..., :3])


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ("blue green red", "blue, green, red, and .* order .gdal_translate -b 3 -b 2 -b 1.;"),
        ("green blue red", "green, blue, red, and .* order .gdal_translate -b 3 -b 1 -b 2.;"),
        ("blue green red alpha", "marked blue, green, red, and three colours are read as red, gr"),
        ("blue alpha green red", "marked blue, green, red"),
        ("Y Cb Cr", "marked Y, Cb, Cr, and .*: convert it to these colours; .* unset the marks"),
        ("hue saturation lightness", "marked hue, saturation, lightness"),
        ("cyan magenta yellow", "marked cyan, magenta, yellow"),
        ("red green blue", None),
        ("red green blue alpha", None),
        ("gray undefined undefined", None),
        ("nir red green", None),  # no picture: a model names its bands
        ("blue green red nir", None),
        ("red", None),
        ("blue green", None),
    ],
)
def test_three_bands_marked_as_other_colours_than_rgb_are_refused(
    marks: str, message: str | None, tmp_path: Path
):
    kinds = [ColorInterp[name] for name in marks.split()]
    bands = noise(len(kinds), 6, 5)
    if ColorInterp.alpha in kinds:
        bands[kinds.index(ColorInterp.alpha)] = 255
    path = write_raster(tmp_path / "a.tif", bands, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as file:
        file.colorinterp = kinds
    with rasterio.open(path) as file:
        assert list(file.colorinterp) == kinds
    if message is None:
        kept = [band for band, kind in zip(bands, kinds, strict=True) if kind != ColorInterp.alpha]
        np.testing.assert_array_equal(pixels(path), np.stack(kept, -1))
        return
    with pytest.raises(CorruptImageError, match=message):
        pixels(path)
    with pytest.raises(CorruptImageError, match=message):  # of a window too
        read_image(path, "", (0, 0, 2, 2))
