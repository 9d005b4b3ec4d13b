"""Files of images: what they hold is read whole, or they are refused by name."""

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import rasterio
from image_files import encoded, noise, png, write_raster
from PIL import Image, ImageOps
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioIOError

from nec_jax.images import rasters
from nec_jax.images import read as module
from nec_jax.images.read import is_raster, read_header, read_image, read_mask
from train.data import (
    CorruptImageError,
    DataError,
    MissingPixels,
    fingerprint,
    open_source,
    read_all,
)
from train.data.potsdam import read_colour_mask

PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500000, 0, -10, 4100000)}


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def image_size(path: Path) -> tuple[int, int]:
    return read_header(path).size


def pixels(path: Path) -> np.ndarray:
    return read_image(path, path.name)["image"]


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_a_png_of_16_bits_keeps_them(tmp_path: Path, samples: int):
    array = noise(5, 7, samples, high=4096, dtype=np.uint16)  # 12 bits, as sensors have them
    if samples in (2, 4):
        array[..., -1] = 65535  # opaque
    image = pixels(put(tmp_path / "deep.png", png(array)))
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, array[..., : samples - (samples in (2, 4))])


@pytest.mark.parametrize("samples", [2, 4])
def test_a_png_of_16_bits_that_is_not_opaque_is_not_read(tmp_path: Path, samples: int):
    array = np.full((5, 7, samples), 65535, np.uint16)
    array[2, 3:, -1] = 65534
    with pytest.raises(MissingPixels, match=r"deep\.png: 4 of 35 .*transparent.* row 2, column 3"):
        pixels(put(tmp_path / "deep.png", png(array)))
    colour = (b"tRNS", struct.pack(">HHH", 1, 2, 3))
    array = noise(5, 7, 3, high=9000, dtype=np.uint16)
    array[4, 6] = 1, 2, 3
    with pytest.raises(MissingPixels, match=r"1 of 35 .* row 4, column 6"):
        pixels(put(tmp_path / "key.png", png(array, colour)))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_is_missing_pixels_and_an_opaque_alpha_is_no_band(tmp_path: Path, form: str):
    array = noise(6, 5, 4)
    array[..., 3] = 255
    path = put(tmp_path / "image.png", encoded(array, form, lossless=True))
    np.testing.assert_array_equal(pixels(path), array[..., :3])
    array[1, 2, 3] = 254
    put(path, encoded(array, form, lossless=True, exact=True))
    with pytest.raises(MissingPixels, match=r"image\.png: 1 of 30 .* row 1, column 2"):
        pixels(path)


SIDECARS = {
    ".msk": b"II*\0",
    ".aux.xml": b"<PAMRasterBand><NoDataValue>0</NoDataValue></PAMRasterBand>",
}


@pytest.mark.parametrize("ending", SIDECARS)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_with_a_file_of_what_is_missing_is_refused(
    tmp_path: Path, form: str, ending: str
):
    path = put(tmp_path / "image.bin", encoded(noise(6, 5, 3), form))
    mask = put(tmp_path / "mask.png", encoded(noise(6, 5), "PNG"))
    for name in ("image.bin", "mask.png"):
        # Statistics alone, as gdalinfo -stats leaves them, say nothing of what is missing.
        put(tmp_path / f"{name}.aux.xml", b"<PAMDataset><Metadata/></PAMDataset>")
    assert pixels(path).shape == (6, 5, 3)
    assert read_mask(mask).shape == (6, 5)
    for name in ("image.bin", "mask.png"):
        put(tmp_path / f"{name}{ending}", SIDECARS[ending])
    with pytest.raises(CorruptImageError, match=rf"image\.bin: .*image\.bin\{ending} beside it"):
        pixels(path)
    with pytest.raises(CorruptImageError, match=rf"mask\.png: .*mask\.png\{ending} beside it"):
        read_mask(mask)


def test_a_pixel_is_missing_if_one_of_its_bands_is(tmp_path: Path):
    bands = noise(3, 6, 5) // 2 + 1
    bands[:, 0, 0] = 0
    bands[2, 4, 3] = 0
    path = write_raster(tmp_path / "image.tif", bands, nodata=0)
    with rasterio.open(path) as file:
        assert (file.dataset_mask() == 0).sum() == 1
    with pytest.raises(MissingPixels, match="2 of 30 pixels are missing in at least one band "):
        pixels(path)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_file_that_is_cut_off_is_called_truncated(tmp_path: Path, form: str):
    content = encoded(noise(20, 20, 3), form)
    path = tmp_path / "image.bin"
    for size in range(32, len(content) - 40, 29):
        put(path, content[:size])
        with pytest.raises(CorruptImageError, match=r"(?i)truncated|cut|failed|damaged") as caught:
            pixels(path)
        assert "buffer" not in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_transparent_colour_is_missing_pixels(tmp_path: Path, mode: str):
    image = Image.new(mode, (5, 4))
    image.putpixel((3, 2), {"L": 7, "P": 1, "RGB": (7, 7, 7)}[mode])
    if mode == "P":
        image.putpalette([0, 0, 0, 7, 7, 7])
    key = {"L": 7, "P": 1, "RGB": (7, 7, 7)}[mode]
    path = put(tmp_path / "key.png", encoded(image, "PNG", transparency=key))
    with pytest.raises(MissingPixels, match=r"key\.png: 1 of 20 .* row 2, column 3"):
        pixels(path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "PNG16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_an_image_and_its_size(tmp_path: Path, form: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = noise(6, 9, 3)
    path = tmp_path / "turned.png"
    if form == "PNG16":
        deep = array.astype(np.uint16) * 257
        put(path, png(deep, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    else:
        put(path, encoded(array, form, exif=exif))
    with Image.open(path) as image:
        shown = ImageOps.exif_transpose(image) or image
        expected = np.asarray(shown.convert("RGB"))
    found = pixels(path)
    np.testing.assert_array_equal(found // 257 if form == "PNG16" else found, expected)
    assert image_size(path) == expected.shape[:2]
    assert (found.shape[:2] == (9, 6)) == (orientation >= 5)


def test_damaged_exif_turns_nothing(tmp_path: Path):
    path = put(tmp_path / "a.jpg", encoded(noise(6, 9, 3), "JPEG", exif=b"Exif\0\0no TIFF at all"))
    assert pixels(path).shape == (6, 9, 3)


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


def test_the_bytes_say_what_a_file_is(tmp_path: Path):
    bands = noise(4, 6, 5, high=4096, dtype=np.uint16)
    variants: list[dict[str, Any]] = [{}, {"BIGTIFF": "YES"}, {"ENDIANNESS": "BIG"}, PLACE]
    for options in variants:
        path = write_raster(tmp_path / "scene.tif", bands, **options)
        path = path.rename(tmp_path / "scene.jpg")
        np.testing.assert_array_equal(pixels(path), bands.transpose(1, 2, 0))
        assert image_size(path) == (6, 5)
    jpeg = encoded(noise(6, 5, 3), "JPEG")
    picture = pixels(put(tmp_path / "a.jpg", jpeg))
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(pixels(put(tmp_path / name, jpeg)), picture)


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


def test_a_cmyk_jpeg_is_refused(tmp_path: Path):
    picture = Image.fromarray(noise(8, 8, 3)).convert("CMYK")
    path = put(tmp_path / "print.jpg", encoded(picture, "JPEG"))
    with pytest.raises(
        CorruptImageError, match=r"print\.jpg: its colours are CMYK.*convert it to RGB"
    ):
        pixels(path)


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


def test_several_frames_or_pages_are_no_image(tmp_path: Path):
    frames = [Image.fromarray(noise(6, 5, 3, seed=i)) for i in range(3)]
    for form in ("PNG", "WEBP", "GIF", "TIFF"):
        content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        path = put(tmp_path / "several.png", content)
        with pytest.raises(CorruptImageError, match=r"several\.png: it has 3 (frames|pages)"):
            pixels(path)
        with pytest.raises(CorruptImageError, match=r"it has 3 (frames|pages)"):
            read_mask(path)
    # The further pictures of a camera's file are previews.
    content = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert pixels(put(tmp_path / "camera.jpg", content)).shape == (6, 5, 3)
    # And overviews are no pages.
    path = write_raster(tmp_path / "cog.tif", noise(3, 64, 64))
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    assert pixels(path).shape == (64, 64, 3)


def test_complex_numbers_are_no_pixels(tmp_path: Path):
    path = write_raster(tmp_path / "slc.tif", np.ones((1, 4, 4), np.complex64))
    with pytest.raises(CorruptImageError, match=r"slc\.tif: its pixels are complex64: save mag"):
        pixels(path)


def test_what_is_no_file_of_pixels_is_named_and_nothing_waits_for_it(tmp_path: Path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    put(tmp_path / "empty.png", b"")
    put(tmp_path / "text.png", b"a" * 100)
    put(tmp_path / "cut.tif", b"II*\0")
    put(tmp_path / "cut.png", png(noise(5, 5, 3, dtype=np.uint16))[:90])
    for name, why in {
        "folder.png": "no regular file", "pipe.png": "no regular file", "link.png": "No such file",
        "empty.png": "it is empty", "text.png": "cannot identify", "cut.tif": "", "cut.png": "",
        "a\0b.png": "null",
    }.items():  # fmt: skip
        for read in (pixels, read_mask, image_size):
            if (name, read) != ("cut.png", image_size):  # its header is whole
                with pytest.raises(CorruptImageError, match=f"{name[:3]}.*{why}"):
                    read(tmp_path / name)


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


PASSING = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOMEM)


@pytest.mark.parametrize("number", [*PASSING, errno.EACCES, errno.ENOENT])
@pytest.mark.parametrize("place", ["opened", "cause", "read again"])
def test_an_error_of_the_system_is_none_of_the_image(
    number: int, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_raster(tmp_path / "a.tif", noise(1, 6, 5))
    source = open_source(tmp_path)
    failure = OSError(number, os.strerror(number))
    kept = module.open_regular

    def fail(*_: object) -> None:
        raise failure

    def fail_as_gdal(*_: object) -> None:
        if place == "cause":
            raise RasterioIOError("see the cause") from failure
        monkeypatch.setattr(module, "open_regular", fail)  # it said no number; Python will
        raise RasterioIOError("read failed")

    readers: list[Callable[[], object]] = [
        lambda: read_image(path, "a.tif"),
        lambda: read_mask(path),
        lambda: image_size(path),
        lambda: read_all(source, 4),
    ]
    for reader in readers:
        monkeypatch.setattr(module, "open_regular", fail if place == "opened" else kept)
        monkeypatch.setattr(rasters, "open_raster", fail_as_gdal)
        error = OSError if number in PASSING else DataError
        with pytest.raises(error, match=r"a\.tif") as caught:
            reader()
        if number in PASSING:
            assert isinstance(caught.value, OSError)
            assert caught.value.errno == number
            assert "give the same command again" in str(caught.value)


@pytest.mark.parametrize("number", [*PASSING, errno.EACCES])
def test_neither_a_fingerprint_nor_a_kind_of_file_comes_from_a_failing_disk(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = put(tmp_path / "a.png", encoded(noise(6, 5, 3), "PNG"))
    source = open_source(tmp_path)

    def fail(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    for name in ("open", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, fail)
            if number in PASSING:
                for look in (lambda: fingerprint(source), lambda: is_raster(path)):
                    with pytest.raises(OSError, match=str(path)) as caught:
                        look()
                    assert caught.value.errno == number
            else:
                assert fingerprint(source)["images"] == 1
                assert not is_raster(path)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".jpe", ".jfif", ".JFIF"])
def test_a_jpeg_is_an_image_whatever_its_suffix(tmp_path: Path, suffix: str):
    put(tmp_path / f"a{suffix}", encoded(noise(6, 5, 3), "JPEG"))
    assert open_source(tmp_path)[0]["image"].shape == (6, 5, 3)
