"""`RasterScene`: georeferenced rasters as one picture on one grid, read window by window."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coder.files import is_url, without_query
from nec_jax.images.acquisition import time_of_raster
from nec_jax.images.rasters import open_raster
from nec_jax.images.read import reason_of
from nec_jax.images.record import CorruptImageError, DataError, raise_passing
from nec_jax.models.architecture import ModelConfig
from nec_jax.scenes import raster_bands
from nec_jax.scenes.raster_bands import Band

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_APART = 0.01  # pixels: how far the pixels of two rasters of one grid may lie apart
_OPEN = 32  # rasters that are kept open
_SAMPLED = 8  # rasters that values are sampled from
_SIDE = 512  # pixels: side of the sample of a raster, at most


@dataclass(frozen=True)
class _Raster:
    """What the header of a raster says.

    Attributes:
        place: what rasterio opens.
        name: as errors and attributes have it.
        shape: height and width, pixels.
        transform: a to f, of the picture turned north-up.
        is_flipped: whether rows, and columns, are stored the other way round.
        crs: rasterio's object.
        bands: without alpha.
        time: when it was taken, if it says.
        size: of the file, bytes; 0 for a URL.
    """

    place: str
    name: str
    shape: tuple[int, int]
    transform: tuple[float, ...]
    is_flipped: tuple[bool, bool]
    crs: Any
    bands: tuple[Band, ...]
    time: np.datetime64 | None
    size: int


class RasterScene:
    """One or several georeferenced rasters as one north-up picture, as a model takes it.

    Where rasters overlap, the first with a valid pixel counts. Rasters that are stored south-up or
    mirrored are turned. A pixel is valid if it is in all bands that are read: by the nodata value,
    the mask and the alpha band of the file, and if it is finite.

    Attributes:
        crs: the coordinate reference system, as WKT2.
        code: its code, such as "EPSG:32633"; None if it has none.
        transform: a to f: (column, row) of a pixel's corner -> map; a > 0, e < 0, b = d = 0.
        shape: height and width, pixels.
        time: when it was taken, in UTC, if all rasters state the same; else None.
        preparation: what is done to the pixels, as JSON.
        digests: which files these are, as JSON: their number, and a digest of names and sizes.
    """

    def __init__(
        self,
        names: Sequence[str | Path],
        config: ModelConfig,
        *,
        bands: Sequence[str] = (),
        value_range: tuple[float, float] | None = None,
        nodata: float | None = None,
        resolution: float | None = None,
    ):
        """Read the headers of all rasters, and a sample of pixels if `value_range` is needed.

        Args:
            names: paths or URLs (https, s3), which rasterio opens.
            config: the configuration of the model.
            bands: one word per band of the model, in its order: a number from 1, or a description.
                Empty: the bands of the files, if these are the model's.
            value_range: values that become the lowest and the highest that the model takes; others
                are clipped. Scale and offset of a band are applied before.
            nodata: stored value that marks missing data, instead of that of the files.
            resolution: side of a pixel in map units, to resample to; None for the files' pixels.

        Raises:
            DataError: rasters that are no scene, or not one that the model takes; each message
                says what to do.
            ModuleNotFoundError: rasterio is missing.
            OSError: the disk or the network failed.
        """
        if value_range is not None and not (
            np.isfinite(value_range).all() and value_range[0] < value_range[1]
        ):
            raise DataError(
                f"--value-range {value_range[0]:g} {value_range[1]:g}: give two numbers, the lower "
                "first"
            )
        if resolution is not None and not (np.isfinite(resolution) and resolution > 0):
            raise DataError(f"--resolution {resolution:g}: give map units per pixel, above 0")
        self._config, self._range = config, value_range
        self._nodata, self._resolution = nodata, resolution
        with ThreadPoolExecutor() as pool:  # on a network drive each header takes its time
            self._rasters = list(pool.map(_header, names))
        first = self._rasters[0]
        for other in self._rasters[1:]:
            _refuse_other(first, other, is_resampled=resolution is not None)
        self._bands = {}
        for one in self._rasters:
            self._bands[one.name] = raster_bands.chosen(one.name, one.bands, bands, config)
            self._check_nodata(one)
        self._place()
        if min(self.shape) < config.patch:
            raise DataError(
                f"{first.name}: the scene has {self.shape[0]} x {self.shape[1]} px, and a patch of "
                f"the model {config.patch} x {config.patch}: give a larger scene, or a finer "
                "--resolution"
            )
        self.crs = first.crs.to_wkt(version="WKT2_2019")
        authority = first.crs.to_authority()
        self.code = None if authority is None else ":".join(authority)
        times = {one.time for one in self._rasters}
        self.time = times.pop() if len(times) == 1 else None
        self._lock, self._opened = threading.Lock(), OrderedDict[str, Any]()
        self._stacks: dict[str, ExitStack] = {}
        if value_range is None:
            for one in self._rasters:
                own = self._bands[one.name]
                if not _is_plain(own, config):
                    raster_bands.refuse_values(one.name, own, config, self._sample())
        text = "\n".join(f"{one.name}\t{one.size}" for one in self._rasters)
        digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
        self.digests = {"count": len(self._rasters), "sha256 of names and sizes": digest}
        coarser = resolution is not None and resolution >= first.transform[0]
        self.preparation = {
            "files": [one.name for one in self._rasters],
            "bands": raster_bands.described(self._bands[first.name]),
            "model_bands": list(config.bands),
            "value_range": None if value_range is None else list(value_range),
            "model_dtype": config.dtype,
            "model_range": list(config.value_range),
            "nodata": nodata if nodata is not None else self._bands[first.name][0].nodata,
            "resolution": resolution,
            "resampling": None if resolution is None else "average" if coarser else "cubic",
        }

    def read(
        self, row: int, column: int, height: int, width: int
    ) -> tuple[NDArray, NDArray[np.bool_]]:
        """Read a window, which may reach beyond the scene. Safe to call from threads.

        Returns:
            Values [height, width, C] in the model's dtype and range, any where a pixel is not
            valid; and bool [height, width]: which pixels are valid.

        Raises:
            CorruptImageError: a file is missing or damaged, or the model does not take a value.
            OSError: the disk or the network failed.
        """
        low = self._config.value_range[0]
        image = np.full((height, width, self._config.channels), low, self._config.dtype)
        valid = np.zeros((height, width), np.bool_)
        for one, (top, left), (h, w) in zip(self._rasters, self._corners, self._sizes, strict=True):
            rows = slice(max(row, top), min(row + height, top + h))
            columns = slice(max(column, left), min(column + width, left + w))
            if rows.start >= rows.stop or columns.start >= columns.stop:
                continue
            part = np.s_[
                rows.start - row : rows.stop - row,
                columns.start - column : columns.stop - column,
            ]
            if valid[part].all():
                continue
            inner = (rows.start - top, rows.stop - top, columns.start - left, columns.stop - left)
            values, there = self._read_raster(one, inner)
            new = there & ~valid[part]
            image[part][new] = self._mapped(one, values[new])
            valid[part] |= there
        return image, valid

    def _mapped(self, one: _Raster, values: NDArray) -> NDArray:
        """Valid values [n, C] as the model takes them."""
        low, high = self._config.value_range
        if self._range is None and values.size:
            least, most = values.min(), values.max()
            if least < low or most > high:
                raise CorruptImageError(
                    f"{one.name} has values from {least:g} to {most:g}, and the model takes "
                    f"{low:g} to {high:g}: give --value-range LOW HIGH, or --nodata if some stand "
                    "for missing data"
                )
        return raster_bands.mapped(values, self._config, self._range)

    def _place(self) -> None:
        """Find the grid of the scene, and where each raster lies on it."""
        first = self._rasters[0]
        a, _, c, _, e, f = first.transform
        if self._resolution is not None:
            west = min(one.transform[2] for one in self._rasters)
            north = max(one.transform[5] for one in self._rasters)
            a, c, e, f = self._resolution, west, -self._resolution, north
        self._corners, self._sizes = [], []
        for one in self._rasters:
            oa, _, oc, _, oe, of = one.transform
            top, left = (of - f) / e, (oc - c) / a
            height, width = one.shape[0] * oe / e, one.shape[1] * oa / a
            if self._resolution is None:
                self._corners.append((round(top), round(left)))
                self._sizes.append(one.shape)
            else:  # the pixels of the grid that the raster covers
                corner = int(np.floor(top + _APART)), int(np.floor(left + _APART))
                self._corners.append(corner)
                end = int(np.ceil(top + height - _APART)), int(np.ceil(left + width - _APART))
                self._sizes.append((end[0] - corner[0], end[1] - corner[1]))
        top = min(row for row, _ in self._corners)
        left = min(column for _, column in self._corners)
        self._corners = [(row - top, column - left) for row, column in self._corners]
        self.transform = (a, 0.0, c + left * a, 0.0, e, f + top * e)
        ends = [
            (row + h, column + w)
            for (row, column), (h, w) in zip(self._corners, self._sizes, strict=True)
        ]
        self.shape = max(row for row, _ in ends), max(column for _, column in ends)

    def _read_raster(
        self, one: _Raster, box: tuple[int, int, int, int]
    ) -> tuple[NDArray, NDArray[np.bool_]]:
        """A window of a raster: scaled values [h, w, C], and which are valid."""
        top, bottom, left, right = box
        own = self._bands[one.name]
        numbers = [band.number for band in own]
        try:
            with self._lock:
                dataset = self._dataset(one)
                if self._resolution is None:
                    rows, columns = one.is_flipped
                    height, width = one.shape
                    if rows:
                        top, bottom = height - bottom, height - top
                    if columns:
                        left, right = width - right, width - left
                window: Any = ((top, bottom), (left, right))
                values = np.moveaxis(dataset.read(numbers, window=window), 0, -1)
                missing = self._missing(dataset, own, values, window)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # decoders raise nearly anything
            raise_passing(error, one.name)
            raise CorruptImageError(f"cannot read {one.name}: {reason_of(error)}") from error
        if self._resolution is None:
            turned = np.s_[:: -1 if one.is_flipped[0] else 1, :: -1 if one.is_flipped[1] else 1]
            values, missing = values[turned], missing[turned]
        scales = np.array([band.scale for band in own])
        offsets = np.array([band.offset for band in own])
        if (scales != 1).any() or offsets.any():
            values = values * scales + offsets
        return values, ~missing

    def _missing(
        self, dataset: Any, own: Sequence[Band], values: NDArray, window: Any
    ) -> NDArray[np.bool_]:
        """Which pixels of a window of stored values are missing in any band."""
        from rasterio.enums import MaskFlags

        missing = np.zeros(values.shape[:2], np.bool_)
        if self._resolution is not None:  # the last band is the alpha that resampling has made
            missing |= dataset.read(dataset.count, window=window) < 128
        else:
            flags = {flag for band in own for flag in dataset.mask_flag_enums[band.number - 1]} - {
                MaskFlags.all_valid
            }
            if flags and (self._nodata is None or MaskFlags.nodata not in flags):
                numbers = [band.number for band in own]
                missing |= (dataset.read_masks(numbers, window=window) < 255).any(0)
            if self._nodata is not None:
                missing |= _equal(values, self._nodata).any(-1)
        if values.dtype.kind == "f":
            missing |= ~np.isfinite(values).all(-1)
        return missing

    def _dataset(self, one: _Raster) -> Any:
        """An open raster, resampled if that is asked for; the caller holds the lock."""
        if one.place in self._opened:
            self._opened.move_to_end(one.place)
            return self._opened[one.place]
        stack = ExitStack()
        dataset: Any = stack.enter_context(open_raster(one.place))
        if self._resolution is not None:
            dataset = stack.enter_context(self._resampled(one, dataset))
        self._opened[one.place], self._stacks[one.place] = dataset, stack
        if len(self._opened) > _OPEN:
            oldest, _ = self._opened.popitem(last=False)
            self._stacks.pop(oldest).close()
        return dataset

    def _resampled(self, one: _Raster, dataset: Any) -> Any:
        from rasterio.enums import Resampling
        from rasterio.transform import Affine
        from rasterio.vrt import WarpedVRT

        number = self._rasters.index(one)
        (row, column), (height, width) = self._corners[number], self._sizes[number]
        a, b, c, d, e, f = self.transform
        coarser = a >= one.transform[0]
        has_alpha = len(one.bands) < dataset.count
        settings: dict[str, Any] = {} if has_alpha else {"add_alpha": True}
        nodata = self._nodata if self._nodata is not None else self._bands[one.name][0].nodata
        if nodata is not None:
            settings["src_nodata"] = nodata
            settings["nodata"] = nodata
        return WarpedVRT(
            dataset,
            crs=dataset.crs,
            transform=Affine(a, b, c + column * a, d, e, f + row * e),
            height=height,
            width=width,
            resampling=Resampling.average if coarser else Resampling.cubic,
            UNIFIED_SRC_NODATA="NO",
            **settings,
        )

    def _sample(self) -> NDArray:
        """Some valid values of some of the rasters, in units of the scaled bands."""
        found = []
        for i in np.unique(np.linspace(0, len(self._rasters) - 1, _SAMPLED).astype(int)):
            one = self._rasters[i]
            own = self._bands[one.name]
            numbers = [band.number for band in own]
            shape = [min(side, _SIDE) for side in one.shape]
            with open_raster(one.place) as dataset:
                values = np.moveaxis(dataset.read(numbers, out_shape=(len(own), *shape)), 0, -1)
                masks = dataset.read_masks(numbers, out_shape=(len(own), *shape))
            valid = (masks == 255).all(0)
            if values.dtype.kind == "f":
                valid &= np.isfinite(values).all(-1)
            if self._nodata is not None:
                valid &= ~_equal(values, self._nodata).any(-1)
            scales, offsets = ([getattr(b, n) for b in own] for n in ("scale", "offset"))
            found.append((values[valid] * np.array(scales) + np.array(offsets)).ravel())
        return np.concatenate(found)

    def _check_nodata(self, one: _Raster) -> None:
        if self._nodata is None:
            return
        for band in self._bands[one.name]:
            kind = np.dtype(band.dtype)
            if kind.kind in "iu":
                limits = np.iinfo(kind)
                if not (
                    float(self._nodata).is_integer() and limits.min <= self._nodata <= limits.max
                ):
                    raise DataError(
                        f"--nodata {self._nodata:g}: {one.name} has {kind} pixels, which are never "
                        "this number"
                    )


def _header(name: str | Path) -> _Raster:
    """Read the header of a raster. Raises DataError for one that can be no part of a scene."""
    place = str(name)
    shown = without_query(place) if is_url(place) else place
    try:
        with open_raster(place) as dataset:
            return _described(place, shown, dataset)
    except (DataError, ModuleNotFoundError):
        raise
    except Exception as error:  # decoders raise nearly anything
        raise_passing(error, shown)
        reason = reason_of(error).replace(place, shown)
        raise CorruptImageError(f"cannot read {shown}: {reason}") from error


def _described(place: str, name: str, dataset: "DatasetReader") -> _Raster:
    from rasterio.enums import ColorInterp

    if dataset.count == 0 or len(dataset.subdatasets) > 1:
        raise DataError(
            f"{name} has {len(dataset.subdatasets)} pages or subdatasets: save the one that is "
            "meant as a file of its own (gdal_translate)"
        )
    kinds = dict(zip(dataset.indexes, dataset.colorinterp, strict=True))
    numbers = [number for number, kind in kinds.items() if kind != ColorInterp.alpha]
    if not numbers:
        raise DataError(f"{name} has no band but alpha")
    if any(kind == ColorInterp.palette for kind in kinds.values()):
        raise DataError(
            f"{name} has a palette, whose numbers are no measurements: expand it to colours "
            f"(gdal_translate -expand rgb {name} OUT.tif)"
        )
    if any(np.dtype(dataset.dtypes[number - 1]).kind not in "uif" for number in numbers):
        raise DataError(
            f"{name} has pixels of {dataset.dtypes[numbers[0] - 1]}: save magnitude and phase as "
            "bands of their own"
        )
    transform, is_flipped = _north_up(name, dataset)
    bands = tuple(
        Band(
            number,
            dataset.descriptions[number - 1] or "",
            kinds[number].name,
            dataset.dtypes[number - 1],
            dataset.scales[number - 1],
            dataset.offsets[number - 1],
            dataset.nodatavals[number - 1],
        )
        for number in numbers
    )
    size = 0 if is_url(place) else Path(place).stat().st_size
    return _Raster(
        place,
        name,
        dataset.shape,
        transform,
        is_flipped,
        dataset.crs,
        bands,
        time_of_raster(dataset),
        size,
    )


def _north_up(name: str, dataset: "DatasetReader") -> tuple[tuple[float, ...], tuple[bool, bool]]:
    """The transform of the raster turned north-up, and whether its rows and columns are turned."""
    a, b, c, d, e, f = dataset.transform[:6]
    if dataset.transform.is_identity or dataset.transform.is_degenerate:
        points, by = dataset.gcps[0], ""
        if points:
            by = f"has {len(points)} ground control points and no transform"
        elif dataset.rpcs is not None:
            by = "has rational polynomial coefficients (RPC) and no transform"
        if by:
            how = "-rpc" if dataset.rpcs is not None and not points else "-order 1"
            raise DataError(f"{name} {by}: warp it first (gdalwarp {how} {name} OUT.tif)")
        raise DataError(
            f"{name} has no georeference: give it one (gdal_edit.py -a_srs EPSG:N -a_ullr WEST "
            f"NORTH EAST SOUTH {name}); or encode it as an image, with --chip N"
        )
    if dataset.crs is None:
        raise DataError(
            f"{name} has no coordinate reference system: give it its own (gdal_edit.py -a_srs "
            f"EPSG:N {name})"
        )
    if b or d:
        raise DataError(
            f"{name} is rotated or sheared (transform {tuple(dataset.transform[:6])}): warp it to "
            f"a grid that is north-up first (gdalwarp {name} OUT.tif)"
        )
    height, width = dataset.shape
    rows, columns = e > 0, a < 0
    if rows:
        e, f = -e, f + e * height
    if columns:
        a, c = -a, c + a * width
    return (a, 0.0, c, 0.0, e, f), (rows, columns)


def _refuse_other(first: _Raster, other: _Raster, *, is_resampled: bool) -> None:
    """Raise DataError unless a raster can be a part of one mosaic with the first."""
    if other.crs != first.crs:
        named = [one.crs.to_string() for one in (first, other)]
        raise DataError(
            f"{first.name} is in {named[0]} and {other.name} in {named[1]}, and a scene has one: "
            f"warp the one to that of the other (gdalwarp -t_srs {named[0]} {other.name} OUT.tif), "
            "or encode them apart"
        )
    kinds = [[band.dtype for band in one.bands] for one in (first, other)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"{first.name} has bands of {', '.join(kinds[0])} and {other.name} of "
            f"{', '.join(kinds[1])}: a mosaic has the same bands everywhere; encode them apart"
        )
    if is_resampled:
        return
    a, _, c, _, e, f = first.transform
    oa, _, oc, _, oe, of = other.transform
    height, width = other.shape
    if abs(oa / a - 1) * width > _APART or abs(oe / e - 1) * height > _APART:
        raise DataError(
            f"{first.name} has pixels of {a:.10g} x {-e:.10g} map units and {other.name} of "
            f"{oa:.10g} x {-oe:.10g}: give one size for all, --resolution {a:.10g}"
        )
    for place in ((oc - c) / a, (of - f) / e):
        if (apart := abs(place - round(place))) > _APART:
            raise DataError(
                f"the pixels of {other.name} lie {apart:.2f} px beside those of {first.name}: "
                f"resample all to one grid, --resolution {a:.10g}"
            )


def _is_plain(bands: Sequence[Band], config: ModelConfig) -> bool:
    return all(band.dtype == config.dtype and (band.scale, band.offset) == (1, 0) for band in bands)


def _equal(values: NDArray, nodata: float) -> NDArray[np.bool_]:
    return np.isnan(values) if np.isnan(nodata) else values == nodata
