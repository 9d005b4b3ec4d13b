"""Image and mask files <-> arrays, whole or one window at a time. Safe to call from threads."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from train.data.record import CorruptImageError, DataError, Record

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Box = tuple[int, int, int, int]  # row, column, height, width in pixels

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
_TIFF_SUFFIXES = (".tif", ".tiff")
# Pillow's modes of 8 bits a band or less: all others would be clipped on their way to RGB.
_RGB_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def is_tiff(path: Path) -> bool:
    """Say whether `path` is read with rasterio, so that a window costs only its own pixels."""
    return path.suffix.lower() in _TIFF_SUFFIXES


def read_image(path: Path, image_id: str, box: Box | None = None) -> Record:
    """Read `path`, or only its window `box`, as a Record with this id.

    TIFF: every band, [H, W, C] in the file's dtype, with `transform` and `crs` (of the window)
    where the file is georeferenced. All else: RGB, uint8 [H, W, 3].

    Raises:
        CorruptImageError: the file is missing, damaged, or no image; the message names it.
    """
    # Decoders raise nearly anything on damaged bytes (SyntaxError, struct.error, KeyError ...).
    try:
        if is_tiff(path):
            return _read_tiff(path, image_id, box)
        return {"id": image_id, "image": _crop(_read_rgb(path), box)}
    except (ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:
        raise CorruptImageError(f"cannot read {path}: {_reason(error)}") from error


def read_mask(path: Path, box: Box | None = None) -> np.ndarray:
    """Read a single-band mask of class indices, uint8 [H, W], or only its window `box`.

    Raises:
        CorruptImageError: missing, damaged, or not single-band 8-bit; the message names it.
    """
    try:
        if is_tiff(path):
            mask = _read_tiff(path, "", box)["image"]
            mask = mask[..., 0] if mask.shape[-1] == 1 else mask
        else:
            with Image.open(path) as image:
                mask = _crop(np.asarray(image), box)  # a palette image gives its indices
        if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_):
            raise DataError(
                f"a mask has one band of uint8 class indices, this is {mask.dtype} {mask.shape}"
            )
        return mask.astype(np.uint8)
    except (ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:
        raise CorruptImageError(f"cannot read the mask {path}: {_reason(error)}") from error


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels from the header alone; CorruptImageError as read_image."""
    try:
        if is_tiff(path):
            with open_tiff(path) as dataset:
                return dataset.height, dataset.width
        with Image.open(path) as image:
            return image.height, image.width
    except (ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:
        raise CorruptImageError(f"cannot read {path}: {_reason(error)}") from error


def open_tiff(path: Path) -> "DatasetReader":
    """Open `path` with rasterio; a TIFF without georeferencing is no reason to warn."""
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


def cut(record: Record, box: Box) -> Record:
    """Return the window `box` of an already decoded record (the arrays are views)."""
    out = record.copy()
    out["image"] = _crop(out["image"], box)
    if "mask" in out:
        out["mask"] = _crop(out["mask"], box)
    if "transform" in out:
        a, b, c, d, e, f = out["transform"]
        row, col = box[:2]
        out["transform"] = (a, b, c + a * col + b * row, d, e, f + d * col + e * row)
    return out


def _read_rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if image.mode not in _RGB_MODES:
            raise DataError(f"mode {image.mode} has more than 8 bits a band; store it as .tif")
        if image.mode == "P" and "transparency" in image.info:
            return np.asarray(image.convert("RGBA").convert("RGB"))
        return np.asarray(image.convert("RGB"))


def _read_tiff(path: Path, image_id: str, box: Box | None) -> Record:
    with open_tiff(path) as dataset:
        options: dict[str, Any] = {}
        if box is not None:
            row, col, height, width = box
            options["window"] = ((row, row + height), (col, col + width))
        image = np.moveaxis(dataset.read(**options), 0, -1)
        record: Record = {"id": image_id, "image": image}
        if dataset.crs is not None:
            record["crs"] = dataset.crs.to_string()
        if not dataset.transform.is_identity:
            a, b, c, d, e, f = dataset.transform[:6]
            row, col = (0, 0) if box is None else box[:2]
            record["transform"] = (a, b, c + a * col + b * row, d, e, f + d * col + e * row)
    return record


def _crop(array: np.ndarray, box: Box | None) -> np.ndarray:
    if box is None:
        return array
    row, col, height, width = box
    return array[row : row + height, col : col + width]


def _reason(error: BaseException) -> str:
    error = error.__cause__ or error  # rasterio's own message only points to GDAL's
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
