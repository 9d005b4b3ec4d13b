"""Image and mask files: what they hold is read whole, or they are refused by name."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from image_files import PLACE, encoded, noise, pixels, png, put, write_raster
from PIL import Image, ImageOps

from nec_jax.images.read import read_header, read_mask
from nec_jax.images.record import CorruptImageError, MissingPixels
from nec_jax.sources import open_source


def image_size(path: Path) -> tuple[int, int]:
    return read_header(path).size


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


def test_a_cmyk_jpeg_is_refused(tmp_path: Path):
    picture = Image.fromarray(noise(8, 8, 3)).convert("CMYK")
    path = put(tmp_path / "print.jpg", encoded(picture, "JPEG"))
    with pytest.raises(
        CorruptImageError, match=r"print\.jpg: its colours are CMYK.*convert it to RGB"
    ):
        pixels(path)


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


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".jpe", ".jfif", ".JFIF"])
def test_a_jpeg_is_an_image_whatever_its_suffix(tmp_path: Path, suffix: str):
    put(tmp_path / f"a{suffix}", encoded(noise(6, 5, 3), "JPEG"))
    assert open_source(tmp_path)[0]["image"].shape == (6, 5, 3)
