"""Read image and mask files, whole or one window at a time. Safe to call from threads.

The first bytes of a file decide its kind, not its name or Pillow's mode.
"""

import re
import stat
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from nec_jax.images.colours import (
    TIFFS,
    black_is_zero,
    coloured,
    refuse_colours,
    refuse_other_colours,
)
from nec_jax.images.record import (
    IGNORE,
    Affine,
    CorruptImageError,
    DataError,
    MissingPixels,
    Record,
    raise_passing,
)

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Box = tuple[int, int, int, int]  # row, column, height, width in pixels

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff",
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
)  # fmt: skip
LARGEST = 1024  # maximum side of a georeferenced image that is not taken for a scene

_RASTERS = (  # what rasterio reads: TIFF, BigTIFF, JPEG 2000 in a file or as a codestream
    *TIFFS, b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51",
)  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"
# Formats of at most 8 bits per band, besides PNG: Pillow would read others as 8 bits.
_PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # Pillow's, of what RGB is made of as it is
# What says, in GDAL's file beside an image, that pixels are missing or mean other numbers.
_OF_SIDECARS = re.compile(rb"<(NoDataValue|Scale|Offset)\b")
# What may turn a PNG, wherever in the file it stands.
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # Pillow's names of them


class SceneError(DataError):
    """A scene where an image is expected: it would become one embedding of very few tokens."""


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
    it; of TIFF and JPEG 2000 these files are heeded.

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
        if head.startswith(_RASTERS):
            return _read_raster(path, image_id, box, largest, refuse_colours(file, head))
        _refuse_sidecars(path)
        return cut(read_picture(file, image_id), box)


def whole(record: Record, path: Path | str, box: Box | None = None) -> Record:
    """Return a decoded record of the window `box` of `path`, unless pixels are missing.

    Raises:
        MissingPixels: how many are missing, why, and where the first one is.
    """
    gaps = {kind: where for kind, where in record.pop("missing", {}).items() if where.any()}
    if not gaps:
        return record
    where = np.logical_or.reduce(list(gaps.values()))
    row, col = (int(place[0]) for place in np.nonzero(where))
    kinds = " and ".join(gaps)
    top, left = box[:2] if box else (0, 0)
    raise MissingPixels(
        f"cannot read {path}: {np.count_nonzero(where):,} of {where.size:,} pixels are missing "
        f"in at least one band ({kinds}), the first at row {top + row}, column {left + col}; an "
        "encoder needs whole images: fill these pixels, or cut images that have none. If they are "
        "not missing, the file says so wrongly: unset its nodata value, its mask, or its mark of "
        "alpha (gdal_edit.py -unsetnodata, -colorinterp_4 undefined)"
    )


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
        if not head.startswith(_RASTERS):
            _refuse_sidecars(path)
            mask = _read_indices(file, head)[_slices(box)]
        elif refuse_colours(file, head):
            raise DataError(
                "white is zero in it (photometric MINISWHITE), and programs do not agree on the "
                "class indices that this means: save it as MINISBLACK"
            )
        else:
            mask = _read_raster_indices(path, box)
        if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_):
            raise DataError(
                f"a mask has one band of uint8 class indices, this is {mask.dtype} {mask.shape}: "
                "save the index of each pixel's class, rather than its colour or an alpha"
            )
        return mask.astype(np.uint8)


class Header(NamedTuple):
    """The position of the pixels of an image or mask, from its header.

    Attributes:
        size: (height, width) in pixels, as the image is shown.
        orientation: the EXIF orientation, 1 to 8; 1 means as stored.
        transform: the affine a to f: pixel -> crs; None without georeference.
        crs: rasterio's object, which compares by meaning; None if unknown.
    """

    size: tuple[int, int]
    orientation: int = 1
    transform: tuple[float, ...] | None = None
    crs: Any = None


def read_header(path: Path) -> Header:
    """Read the header of an image, and no pixels; CorruptImageError as read_image."""
    with _naming(path), open_regular(path) as file:
        head = _head(file)
        if head.startswith(_RASTERS):
            with open_raster(path) as dataset:
                place = dataset.transform
                placed = not (place.is_identity or place.is_degenerate)
                transform = tuple(place[:6]) if placed else None
                return Header(dataset.shape, transform=transform, crs=dataset.crs)
        with Image.open(file, formats=_PICTURES) as image:
            height, width = image.height, image.width
            if head.startswith(_PNG):  # its EXIF may come last
                file.seek(0)
                content = file.read()
                if any(name in content for name in _PNG_EXIF):
                    image.load()
            turn = _orientation(image)
            return Header((width, height) if turn >= 5 else (height, width), turn)


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels from the header alone; CorruptImageError as read_image."""
    return read_header(path).size


def is_raster(path: Path) -> bool:
    """Whether `path` is read with rasterio, so that a window costs only its own pixels.

    False for a file that cannot be read: `read_image` will say why.
    """
    try:
        with open_regular(path) as file:
            return _head(file).startswith(_RASTERS)
    except (OSError, DataError) as error:
        raise_passing(error, path)
        return False


@contextmanager
def _naming(path: Path, what: str = "") -> Iterator[None]:
    """Name the file in the errors of decoders, which raise nearly anything on damaged bytes."""
    try:
        yield
    except (ModuleNotFoundError, MemoryError, SceneError):
        raise
    except Exception as error:  # SyntaxError, struct.error, KeyError ...
        _raise_passing(error, path)
        raise CorruptImageError(f"cannot read {what}{path}: {reason_of(error)}") from error


def _raise_passing(error: Exception, path: Path) -> None:
    """As `raise_passing`; also of what GDAL says without its number, if it is so still."""
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


def open_raster(path: Path) -> "DatasetReader":
    """Open `path` with rasterio, without its warning about missing georeference."""
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'reading {path.name} needs rasterio: pip install "nec-jax[scenes]"'
        ) from error
    # Not warnings.catch_warnings: it swaps the process' filters, which is not thread-safe.
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    return rasterio.open(path)


def cut(record: Record, box: Box | None) -> Record:
    """Return the window `box` of an already decoded record (the arrays are views)."""
    if box is None:
        return record
    out, window = record.copy(), _slices(box)
    out["image"] = out["image"][window]
    if "mask" in out:
        out["mask"] = out["mask"][window]
    if "missing" in out:
        out["missing"] = {kind: where[window] for kind, where in out["missing"].items()}
    if "transform" in out:
        out["transform"] = _moved(out["transform"], box)
    return out


def _slices(box: Box | None) -> tuple[slice, slice]:
    """The rows and columns of a window."""
    if box is None:
        return np.s_[:, :]
    row, col, height, width = box
    return np.s_[row : row + height, col : col + width]


def _moved(transform: Sequence[float], box: Box | None) -> Affine:
    """The transform of a window."""
    a, b, c, d, e, f = transform
    row, col = box[:2] if box else (0, 0)
    return a, b, c + a * col + b * row, d, e, f + d * col + e * row


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
    if pixels.shape[-1] in (1, 3):
        return {"id": image_id, "image": pixels}
    record = {"id": image_id, "image": np.ascontiguousarray(pixels[..., :-1])}
    transparent = pixels[..., -1] < np.iinfo(pixels.dtype).max
    if transparent.any():
        record["missing"] = {"transparent": transparent}
    return record


def _refuse_sidecars(path: Path) -> None:
    """Refuse a picture of whose pixels GDAL's file beside it says more: Pillow does not read it."""
    remedy = (
        "which is not read for pictures: convert both to one TIFF (gdal_translate IN OUT.tif); or, "
        "if it says nothing that holds, delete it"
    )
    mask, about = (path.with_name(path.name + ending) for ending in (".msk", ".aux.xml"))
    if mask.exists():
        raise DataError(f"its mask is the file {mask.name} beside it, {remedy}")
    if about.exists() and (found := _OF_SIDECARS.search(about.read_bytes())):
        raise DataError(f"the file {about.name} beside it has a {found[1].decode()}, {remedy}")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, as it is stored, where EXIF is damaged."""
    if not any(name in image.info for name in _ORIENTED):
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as of decoders
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


def _read_raster(
    path: Path, image_id: str, box: Box | None, largest: int | None, white_is_zero: bool
) -> Record:
    from rasterio.enums import ColorInterp

    with open_raster(path) as dataset:
        _refuse_pages(dataset)
        if largest is not None and max(dataset.shape) > largest and _is_georeferenced(dataset):
            raise SceneError(
                f"{path} is a scene of {dataset.height} x {dataset.width} px, which would be one "
                f"embedding of a few tokens: pass --chip N (open_source: chip=N), to cut all "
                f"images into windows of N x N px; or keep images of at most {largest} px"
            )
        window = box and _slices(box)
        kinds = dict(zip(dataset.indexes, dataset.colorinterp, strict=True))
        bands = [index for index, kind in kinds.items() if kind != ColorInterp.alpha]
        if not bands:
            raise DataError("it has no band but alpha")
        _refuse_scaled(dataset, bands)
        refuse_other_colours([kinds[index].name for index in bands])
        image = np.moveaxis(dataset.read(bands, window=window), 0, -1)
        if image.dtype.kind not in "uif":
            raise DataError(f"its pixels are {image.dtype}: save magnitude and phase as bands")
        missing = _missing(dataset, bands, window) | not_finite(image)
        # A file may say that fewer bits of its dtype are in use.
        bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * image.dtype.itemsize))
        if white_is_zero:
            image = black_is_zero(image, bits)
        elif kinds[bands[0]] == ColorInterp.palette:
            image, transparent = coloured(image[..., 0], dataset.colormap(bands[0]))
            missing |= {"transparent": transparent}
            bits = 8
        if bits < 8:
            image = (image.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
        record: Record = {"id": image_id, "image": image}
        if missing:
            record["missing"] = missing
        if dataset.crs is not None:
            record["crs"] = dataset.crs.to_string()
        if not dataset.transform.is_identity:
            record["transform"] = _moved(dataset.transform[:6], box)
    return record


def _read_raster_indices(path: Path, box: Box | None) -> np.ndarray:
    with open_raster(path) as dataset:
        _refuse_pages(dataset)
        _refuse_scaled(dataset, list(dataset.indexes))
        if lossy := _loss(dataset):
            raise DataError(f"{lossy} changes the class indices of a mask: save it without loss")
        window = box and _slices(box)
        mask = np.moveaxis(dataset.read(window=window), 0, -1)
        if mask.shape[-1] == 1:
            mask = mask[..., 0]
            for missing in _missing(dataset, [1], window).values():
                mask[missing] = IGNORE
    return mask


def _refuse_pages(dataset: "DatasetReader") -> None:
    if len(dataset.subdatasets) > 1:
        raise DataError(f"it has {len(dataset.subdatasets)} pages: save each as a file of its own")


def _loss(dataset: "DatasetReader") -> str:
    """The lossy compression of a dataset, which may have changed its values; empty if none."""
    said = dataset.tags(ns="IMAGE_STRUCTURE")
    kind = said.get("COMPRESSION", "JPEG 2000")
    if kind in ("JPEG", "YCbCr JPEG"):
        return "JPEG"
    # LERC rounds whole numbers by less than one where its tolerance is less.
    lossy = (
        said.get("COMPRESSION_REVERSIBILITY") == "LOSSY" or float(said.get("MAX_Z_ERROR", 0)) >= 1
    )
    return f"lossy {kind}" if lossy else ""


def _refuse_scaled(dataset: "DatasetReader", bands: list[int]) -> None:
    for index in bands:
        scale, offset = dataset.scales[index - 1], dataset.offsets[index - 1]
        if (scale, offset) != (1, 0):
            raise DataError(
                f"its band {index} has the scale {scale:g} and the offset {offset:g}, and files "
                "with others mean other things by the same numbers: store what is meant "
                "(gdal_translate -unscale -ot Float32 IN OUT); or, where the numbers are meant as "
                "they are stored, say so (gdal_edit.py -scale 1 -offset 0 FILE)"
            )


def _is_georeferenced(dataset: "DatasetReader") -> bool:
    placed = dataset.crs is not None or not dataset.transform.is_identity
    return placed or bool(dataset.gcps[0]) or dataset.rpcs is not None


def _missing(
    dataset: "DatasetReader", bands: list[int], window: tuple[slice, slice] | None
) -> dict[str, NDArray[np.bool_]]:
    """Where a band of a dataset is missing, by nodata tag, mask or alpha band."""
    from rasterio.enums import MaskFlags

    flags = {flag for index in bands for flag in dataset.mask_flag_enums[index - 1]}
    if flags <= {MaskFlags.all_valid}:
        return {}
    where = (dataset.read_masks(bands, window=window) < 255).any(0)
    if MaskFlags.alpha in flags:
        kind = (
            "transparent: "
            + ", ".join(f"band {index}" for index in dataset.indexes if index not in bands)
            + " is marked as alpha"
        )
    elif MaskFlags.nodata in flags:
        values = dict.fromkeys(v for v in dataset.nodatavals if v is not None)
        kind = "nodata value " + ", ".join(f"{value:.6g}" for value in values)
    else:
        kind = "left out by the file's mask"
    return {kind: where} if where.any() else {}


def reason_of(error: BaseException) -> str:
    """The reason of a decoder's error, as text for a message."""
    error = error.__cause__ or error  # rasterio's own message only points to GDAL's
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, struct.error):  # of too few bytes
        return "it is truncated, or damaged"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
