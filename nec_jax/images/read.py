"""Read image and mask files, whole or one window at a time. Safe to call from threads.

The first bytes of a file decide its kind, not its name or Pillow's mode.
"""

import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from nec_jax.images import rasters
from nec_jax.images.acquisition import time_of_picture
from nec_jax.images.colours import refuse_colours
from nec_jax.images.record import (
    Box,
    CorruptImageError,
    DataError,
    Record,
    cut,
    raise_passing,
    slices_of,
    whole,
)

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff",
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
)  # fmt: skip
LARGEST = 1024  # maximum side of a georeferenced image that is not taken for a scene

_PNG = b"\x89PNG\r\n\x1a\n"
# Formats of at most 8 bits per band, besides PNG: Pillow would read others as 8 bits.
_PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# Pillow's modes that become RGB without a profile.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
# Elements of GDAL's file beside an image that say that pixels are missing or mean other numbers.
_OF_SIDECARS = re.compile(rb"<(NoDataValue|Scale|Offset)\b")
# Chunks that may hold the orientation of a PNG. They may stand anywhere in the file.
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # Pillow's names of them


def read_image(
    path: Path, image_id: str, box: Box | None = None, *, largest: int | None = None
) -> Record:
    """Read `path`, or only its window `box`, as a Record with this id.

    TIFF and JPEG 2000: every band, [H, W, C] in the file's dtype, with `transform` and `crs` (of
    the window) where the file is georeferenced. A palette becomes RGB, bands of fewer than 8 bits
    are scaled to 8, and if white is zero (MINISWHITE) the values are inverted. Other colours than
    grey, RGB, palettes and the YCbCr of JPEG are refused. So are bands with a scale or an offset:
    the same number could mean different things in different files.

    JPEG, PNG, WebP: RGB, uint8 [H, W, 3], also if grey; rotated as EXIF says. A PNG of 16 bits is
    uint16 [H, W, 1 or 3]: grey of 16 bits is a measurement rather than a picture, and stays one
    band, as in a TIFF. CMYK is refused.

    An alpha band is not a band of the image. Bands are in the file's order. Three bands that a TIFF
    or JPEG 2000 marks as colours (its colour interpretation) must be red, green, blue in this
    order; others, such as blue, green, red, are refused. With more bands the marks are ignored: a
    model names its bands in the order of its images.

    A pixel is missing where any of its bands is: an encoder takes all of them. GDAL's mask of a
    dataset counts fewer, only those that lack every band.

    JPEG, PNG and WebP hold no mask and no nodata value of their own that GDAL writes: it puts them
    in files beside (`NAME.msk`, `NAME.aux.xml`). A picture with such a file is refused, which names
    it; of TIFF and JPEG 2000 these files are used.

    Args:
        path: the file.
        image_id: the id of the record.
        box: the part of the image; all of it if None.
        largest: maximum side of a georeferenced image, pixels.

    Raises:
        CorruptImageError: the file is missing, damaged, no image, or a picture with a file beside
            it that says what is missing; the message names it.
        OSError: the system failed, and not the file (`raise_passing`); it names the file too.
        MissingPixels: (one of these) pixels are missing, in one band or more: transparent, the
            value of the file's nodata tag, left out by its mask, NaN or infinite.
        SceneError: a georeferenced image with a side above `largest`.
    """
    return whole(decode(path, image_id, box, largest=largest), path, box)


def decode(
    path: Path, image_id: str, box: Box | None = None, *, largest: int | None = None
) -> Record:
    """Read an image as `read_image` does, and say under `missing` which pixels are missing."""
    with _naming(path), open_regular(path) as file:
        head = _head(file)
        if head.startswith(rasters.RASTERS):
            record = rasters.read(path, image_id, box, largest, refuse_colours(file, head))
            if missing := record.get("missing", {}) | not_finite(record["image"]):
                record["missing"] = missing
            return record
        _refuse_sidecars(path)
        return cut(read_picture(file, image_id), box)


def read_mask(path: Path, box: Box | None = None) -> np.ndarray:
    """Read a single-band mask of class indices, uint8 [H, W], or only its window `box`.

    The indices are the numbers that are stored: those of a palette, not its colours; 0 to 3 where
    there are two bits. Pixels that a TIFF says are missing (nodata tag, mask) are IGNORE.

    Raises:
        CorruptImageError: missing, damaged, lossy, or not single-band 8-bit; white is zero, so
            that programs do not agree on the indices; a scale; a picture with a file beside it that
            says what is missing, as in `read_image`. The message names it.
    """
    with _naming(path, "the mask "), open_regular(path) as file:
        head = _head(file)
        if not head.startswith(rasters.RASTERS):
            _refuse_sidecars(path)
            mask = _read_indices(file, head)[slices_of(box)]
        elif refuse_colours(file, head):
            raise DataError(
                "white is zero in it (photometric MINISWHITE), and programs do not agree on the "
                "class indices that this means: save it as MINISBLACK"
            )
        else:
            mask = rasters.read_indices(path, box)
        if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_):
            raise DataError(
                f"a mask has one band of uint8 class indices, this is {mask.dtype} {mask.shape}: "
                "save the index of each pixel's class, rather than its colour or an alpha"
            )
        return mask.astype(np.uint8)


def read_header(path: Path) -> rasters.Header:
    """Read the header of an image, and no pixels; CorruptImageError as read_image."""
    with _naming(path), open_regular(path) as file:
        head = _head(file)
        if head.startswith(rasters.RASTERS):
            return rasters.read_header(path)
        with Image.open(file, formats=_PICTURES) as image:
            height, width = image.height, image.width
            if head.startswith(_PNG):  # its EXIF may come last
                file.seek(0)
                content = file.read()
                if any(name in content for name in _PNG_EXIF):
                    image.load()
            turn = _orientation(image)
            return rasters.Header((width, height) if turn >= 5 else (height, width), turn)


def is_raster(path: Path) -> bool:
    """Whether `path` is read with rasterio, so that a window costs only its own pixels.

    False for a file that cannot be read: `read_image` will say why.
    """
    try:
        with open_regular(path) as file:
            return _head(file).startswith(rasters.RASTERS)
    except (OSError, DataError) as error:
        raise_passing(error, path)
        return False


@contextmanager
def _naming(path: Path, what: str = "") -> Iterator[None]:
    """Name the file in the errors of decoders, which raise nearly anything on damaged bytes."""
    try:
        yield
    except (ModuleNotFoundError, MemoryError, rasters.SceneError):
        raise
    except Exception as error:  # SyntaxError, struct.error, KeyError ...
        _raise_passing(error, path)
        raise CorruptImageError(f"cannot read {what}{path}: {reason_of(error)}") from error


def _raise_passing(error: Exception, path: Path) -> None:
    """As `raise_passing`. GDAL may leave out the number: reading the file again shows it."""
    raise_passing(error, path)
    try:
        with open_regular(path) as file:
            while file.read(1 << 22):
                pass
    except Exception as again:
        raise_passing(again, path)


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file; opening a pipe would wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError("it is no regular file")
    return path.open("rb")


def not_finite(image: np.ndarray) -> dict[str, NDArray[np.bool_]]:
    """Masks of the pixels of [H, W, C] that are NaN, infinite or masked, by kind."""
    missing = {}
    if isinstance(image, np.ma.MaskedArray):
        missing["masked"] = np.ma.getmaskarray(image).any(-1)
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        missing |= {"NaN": np.isnan(image).any(-1), "infinity": np.isinf(image).any(-1)}
    return missing


def _head(file: IO[bytes]) -> bytes:
    """The first bytes of an open file, which is rewound."""
    head = file.read(32)
    file.seek(0)
    if not head:
        raise DataError("it is empty")
    return head


def _png_depth(head: bytes) -> int:
    """Bits per sample of a PNG; 0 for any other file."""
    return head[24] if head.startswith(_PNG) and len(head) > 24 else 0


def _open_picture(file: IO[bytes]) -> Image.Image:
    """Open a picture of one frame."""
    image = Image.open(file, formats=_PICTURES)
    # The further pictures of a camera's JPEG (MPO) are previews or another eye's view.
    frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(f"it has {frames} frames: save each as a file of its own")
    return image


def read_picture(file: IO[bytes], image_id: str) -> Record:
    """Read an open JPEG, PNG or WebP file as `decode` does; raises nearly anything."""
    record: Record
    head = _head(file)
    with _open_picture(file) as image:
        image.load()  # before its EXIF is asked for, which may come last
        if image.mode not in _MODES and _png_depth(head) != 16:
            raise DataError(
                f"its colours are {image.mode}, which are no RGB without a profile: convert it to "
                "RGB (magick IN -colorspace sRGB OUT)"
            )
        if _png_depth(head) == 16:
            file.seek(0)
            pixels = imagecodecs.png_decode(file.read())
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        elif "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
            pixels = np.asarray(image.convert("RGBA"))
        else:
            pixels = np.asarray(image.convert("RGB"))
        pixels = turned(pixels, _orientation(image))
        taken = time_of_picture(image)
    record = {"id": image_id, "image": pixels}
    if taken is not None:
        record["time"] = taken
    if pixels.shape[-1] in (1, 3):
        return record
    record["image"] = np.ascontiguousarray(pixels[..., :-1])
    transparent = pixels[..., -1] < np.iinfo(pixels.dtype).max
    if transparent.any():
        record["missing"] = {"transparent": transparent}
    return record


def _refuse_sidecars(path: Path) -> None:
    """Refuse a picture if a file of GDAL's beside it, which Pillow ignores, says more of it."""
    remedy = (
        "which is not read for pictures: convert both to one TIFF (gdal_translate IN OUT.tif); or "
        "delete it, if what it says is wrong"
    )
    mask, about = (path.with_name(path.name + ending) for ending in (".msk", ".aux.xml"))
    if mask.exists():
        raise DataError(f"its mask is the file {mask.name} beside it, {remedy}")
    if about.exists() and (found := _OF_SIDECARS.search(about.read_bytes())):
        raise DataError(f"the file {about.name} beside it has a {found[1].decode()}, {remedy}")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (as stored) if EXIF is missing or damaged."""
    if not any(name in image.info for name in _ORIENTED):
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # decoders raise nearly anything
        return 1
    return found if found in range(1, 9) else 1


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate or mirror [H, W, ...] by its EXIF orientation, 1 to 8."""
    if orientation == 1:
        return image
    if orientation >= 5:  # rows and columns change places
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _read_indices(file: IO[bytes], head: bytes) -> np.ndarray:
    """Class indices of a picture's pixels; for a palette image, its indices."""
    with _open_picture(file) as image:
        if image.format in ("JPEG", "MPO"):
            raise DataError("JPEG changes the class indices of a mask: save it as PNG or TIFF")
        mask = turned(np.asarray(image), _orientation(image))
    depth = _png_depth(head)
    if depth in (2, 4) and image.mode == "L":  # which Pillow stretches to 0 to 255
        return mask // np.uint8(255 // (2**depth - 1))
    return mask


def reason_of(error: BaseException) -> str:
    """The reason of a decoder's error, as text for a message."""
    error = error.__cause__ or error  # rasterio's own message only points to GDAL's
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, struct.error):  # too few bytes
        return "it is truncated, or damaged"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
