"""Read TIFF and JPEG 2000 files with rasterio: whole, or one window at a time."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nec_jax.images.acquisition import time_of_raster
from nec_jax.images.colours import TIFFS, black_is_zero, coloured, refuse_other_colours
from nec_jax.images.record import IGNORE, Box, DataError, Record, moved, slices_of

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

RASTERS = (*TIFFS, b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
"""What these files begin with: TIFF, BigTIFF, JPEG 2000 in a file or as a codestream."""


class SceneError(DataError):
    """A scene where an image is expected: it would become one embedding of very few tokens."""


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
    """Read the header of a raster."""
    with open_raster(path) as dataset:
        place = dataset.transform
        placed = not (place.is_identity or place.is_degenerate)
        transform = tuple(place[:6]) if placed else None
        return Header(dataset.shape, transform=transform, crs=dataset.crs)


def read(
    path: Path, image_id: str, box: Box | None, largest: int | None, white_is_zero: bool
) -> Record:
    """Read an image as `nec_jax.images.read.decode` does, without its check for NaN."""
    from rasterio.enums import ColorInterp

    with open_raster(path) as dataset:
        _refuse_pages(dataset)
        if largest is not None and max(dataset.shape) > largest and _is_georeferenced(dataset):
            raise SceneError(
                f"{path} is a scene of {dataset.height} x {dataset.width} px, which would be one "
                "embedding of a few tokens: pass --scene to nec encode, for an embedding per patch "
                "on the map; or --chip N (open_source: chip=N), to cut all images into windows of "
                f"N x N px; or keep images of at most {largest} px"
            )
        window = box and slices_of(box)
        kinds = dict(zip(dataset.indexes, dataset.colorinterp, strict=True))
        bands = [index for index, kind in kinds.items() if kind != ColorInterp.alpha]
        if not bands:
            raise DataError("it has no band but alpha")
        _refuse_scaled(dataset, bands)
        refuse_other_colours([kinds[index].name for index in bands])
        stored = dataset.read(bands, window=window)
        image = np.moveaxis(stored, 0, -1)
        if image.dtype.kind not in "uif":
            raise DataError(f"its pixels are {image.dtype}: save magnitude and phase as bands")
        missing = missing_by_mark(dataset, bands, window, stored)
        missing = {kind: where for kind, where in missing.items() if where.any()}
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
            record["transform"] = moved(dataset.transform[:6], box)
        if (taken := time_of_raster(dataset)) is not None:
            record["time"] = taken
    return record


def read_indices(path: Path, box: Box | None) -> np.ndarray:
    """Read the class indices of a mask, which has one band if it is [H, W]."""
    with open_raster(path) as dataset:
        _refuse_pages(dataset)
        _refuse_scaled(dataset, list(dataset.indexes))
        if lossy := _loss(dataset):
            raise DataError(f"{lossy} changes the class indices of a mask: save it without loss")
        window = box and slices_of(box)
        stored = dataset.read(window=window)
        mask = np.moveaxis(stored, 0, -1)
        if mask.shape[-1] == 1:
            mask = mask[..., 0]
            for missing in missing_by_mark(dataset, [1], window, stored).values():
                mask[missing] = IGNORE
    return mask


def open_raster(path: Path | str) -> "DatasetReader":
    """Open a path or URL with rasterio, without its warning about missing georeference."""
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {Path(path).name} needs rasterio: install nec-jax[scenes]"
        ) from error
    # Not warnings.catch_warnings: it swaps the process' filters, which is not thread-safe.
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    return rasterio.open(path)


def _refuse_pages(dataset: "DatasetReader") -> None:
    if len(dataset.subdatasets) > 1:
        raise DataError(f"it has {len(dataset.subdatasets)} pages: save each as a file of its own")


def _loss(dataset: "DatasetReader") -> str:
    """The lossy compression of a dataset, which may have changed its values; empty if none."""
    said = dataset.tags(ns="IMAGE_STRUCTURE")
    kind = said.get("COMPRESSION", "JPEG 2000")
    if kind in ("JPEG", "YCbCr JPEG"):
        return "JPEG"
    # LERC keeps whole numbers if its tolerance is less than one.
    lossy = (
        said.get("COMPRESSION_REVERSIBILITY") == "LOSSY" or float(said.get("MAX_Z_ERROR", 0)) >= 1
    )
    return f"lossy {kind}" if lossy else ""


def _refuse_scaled(dataset: "DatasetReader", bands: list[int]) -> None:
    for index in bands:
        scale, offset = dataset.scales[index - 1], dataset.offsets[index - 1]
        if (scale, offset) != (1, 0):
            raise DataError(
                f"its band {index} has the scale {scale:g} and the offset {offset:g}, and neither "
                "is applied: store scaled values (gdal_translate -unscale -ot Float32 IN OUT), or "
                "say that the stored ones are meant (gdal_edit.py -scale 1 -offset 0 FILE)"
            )


def _is_georeferenced(dataset: "DatasetReader") -> bool:
    placed = dataset.crs is not None or not dataset.transform.is_identity
    return placed or bool(dataset.gcps[0]) or dataset.rpcs is not None


def missing_by_mark(
    dataset: "DatasetReader",
    bands: Sequence[int],
    window: Any,
    stored: NDArray[Any],
    nodata: float | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Where one of these bands is missing [h, w], by what says so: nodata tag, mask, alpha band.

    A file may have all of them. GDAL's masks are of one alone: the mask, or else the tag, or else
    alpha.

    Args:
        dataset: an open raster.
        bands: numbers of the bands, from 1.
        window: rows and columns, as rasterio takes them; None for all.
        stored: the bands in the window, [bands, h, w], as they are stored.
        nodata: a stored value that means that a pixel is missing, in place of the file's tags.
    """
    from rasterio.enums import ColorInterp, MaskFlags

    found: dict[str, NDArray[np.bool_]] = {}
    flags, masked = dataset.mask_flag_enums, []
    by_tag, values = np.zeros(stored.shape[1:], np.bool_), {}
    for place, band in enumerate(bands):
        value = dataset.nodatavals[band - 1] if nodata is None else nodata
        if value is not None:
            by_tag |= _is_value(stored[place], value)
            values[f"{value:.6g}"] = None
        elif MaskFlags.nodata in flags[band - 1]:  # a tag of several numbers
            masked.append(band)
        if not {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha} & set(flags[band - 1]):
            masked.append(band)
    if values:
        found[f"nodata value {', '.join(values)}"] = by_tag
    if masked:
        opaque = dataset.read_masks(sorted(set(masked)), window=window) == 255
        found["left out by the file's mask"] = ~opaque.all(axis=0)
    kinds = zip(dataset.indexes, dataset.colorinterp, strict=True)
    for band in [band for band, kind in kinds if kind == ColorInterp.alpha][:1]:
        alpha = dataset.read(band, window=window)
        highest = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1
        found[f"transparent: band {band} is marked as alpha"] = ~(alpha >= highest)
    return found


def _is_value(stored: NDArray[Any], value: float) -> NDArray[np.bool_]:
    """Where stored values are this one, which may be none of their dtype, or NaN."""
    if stored.dtype.kind not in "iu":
        with np.errstate(over="ignore"):  # float64's lowest, a common tag of float32: none is it
            own = np.float64(value).astype(stored.dtype)
        return np.isnan(stored) if np.isnan(own) else stored == own
    if not math.isfinite(value) or value != int(value):
        return np.zeros(stored.shape, np.bool_)
    return stored == int(value)  # exact, also beyond the range of the dtype
