"""`RasterScene`: georeferenced rasters as one scene, whose windows a model takes as they are."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from nec_jax.images.record import DataError
from nec_jax.models.architecture import ModelConfig
from nec_jax.scene_encoding.mosaic import Mosaic
from nec_jax.scene_encoding.resampling import Resampled, has_resolution
from nec_jax.scene_encoding.scene_bands import choose_bands, refuse_other_meaning
from nec_jax.scene_encoding.scene_files import OpenFiles, SceneFile, quoted, read_headers

_LISTED = 256  # files per digest
_DIGITS = 8  # hexadecimal digits of a digest


class RasterScene:
    """One or several rasters as one scene: a north-up grid of pixels, read in windows.

    Several files must have one coordinate reference system, one number of bands and one dtype.
    Unless they are resampled, their pixels lie on one grid. Where files overlap, the first one with
    a valid pixel counts. A pixel is valid unless a band that is read is missing in it: by nodata
    value, mask, alpha, NaN or infinity. Scales and offsets of bands are applied. Files that are
    south-up or mirrored are flipped.

    Attributes:
        crs: the coordinate reference system as WKT2.
        code: its code, such as "EPSG:32633"; None if it has none.
        transform: a to f, pixel -> map; a > 0, e < 0, b = d = 0.
        shape: height and width in pixels.
        time: when it was taken, in UTC; None unless all files say the same.
        preparation: what is done to the pixels, as JSON values: `files`; `bands`, number and
            description of each; `dtype` of the files; `scale` and `offset` of each band;
            `value_range`, the values that become the model's lowest and highest; `nodata`, the
            stored values that stand for missing pixels; `resolution` and `resampling`; `flipped`,
            how many files are south-up or mirrored.
        digests: identity of the files, as JSON values. For every 256 files, in order, 8 hexadecimal
            digits each: of SHA-256 over names, headers, sizes, and times of change. Sizes and times
            of files at URLs are unknown.
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
        """Read the headers of the files; pixels only for the message that asks for value_range.

        Args:
            names: paths, or URLs that rasterio opens.
            config: the model that takes the pixels.
            bands: for each band of the model, the number (from 1) or the description of a band;
                empty for those of the files in their order.
            value_range: the values, after scale and offset, that become the lowest and the highest
                of the model. Those between are scaled in proportion, those beyond are clipped.
            nodata: the stored value of missing pixels, in place of the files' tags.
            resolution: side of a pixel in map units. The files are resampled if theirs differ: by
                average if it is coarser, else cubic.

        Raises:
            DataError: files or options that cannot be used; says which file, why and what to do.
            OSError: the system failed, and not a file.
        """
        self._config, self._value_range = config, value_range
        _check_options(value_range, resolution)
        files = read_headers(names)
        chosen = _refuse_unlike(files, config, bands)
        _refuse_nodata(files[0], chosen, nodata)
        self._crs = _one_crs(files)
        if self._crs.is_geographic:
            _refuse_two_sides(files)
        self.crs = self._crs.to_wkt(version="WKT2_2019")
        self.code = _code(self._crs)
        limits = config.value_range if value_range is None else None
        layers = _layers(files, chosen, nodata, limits, resolution)
        self._pixels: Mosaic | Resampled = layers[0]
        if resolution is not None and not (
            len(layers) == 1 and has_resolution(layers[0], resolution)
        ):
            self._pixels = Resampled(layers, self._crs, resolution)
        self.transform, self.shape = self._pixels.transform, self._pixels.shape
        self._refuse_small(files[0])
        self._refuse_dtype(layers[0])
        self._files = files
        times = {file.time for file in files}
        self.time = times.pop() if len(times) == 1 else None
        self.digests = _digests(files)
        self.preparation = self._prepared(files, chosen, nodata, resolution)

    def read(
        self, row: int, column: int, height: int, width: int
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window, which may reach beyond the scene. Threads may call this at once.

        Args:
            row, column: the upper left pixel.
            height, width: in pixels.

        Returns:
            The pixels [h, w, C] in the model's dtype and range, and where they are valid, bool
            [h, w]. A pixel that is not valid has the mean of the model's training images.

        Raises:
            DataError: a file cannot be read, or a value is outside the model's range.
            OSError: the system failed, and not a file.
        """
        values, valid = self._pixels.read(row, column, height, width)
        low, high = self._config.value_range
        filled = np.clip(self._config.mean, low, high)
        dtype = np.dtype(self._config.dtype)
        if dtype.kind != "f":
            filled = np.rint(filled)
        out = np.empty(values.shape, dtype)
        out[...] = filled.astype(dtype)
        out[valid] = self._of_model(values[valid])
        return out, valid

    def refuse_changes(self) -> None:
        """Raise DataError if a local file was changed or deleted since it was opened; names it."""
        for file in self._files:
            file.refuse_changes()

    def _of_model(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of valid pixels [N, C] as the model takes them."""
        dtype = np.dtype(self._config.dtype)
        if self._value_range is None and isinstance(self._pixels, Mosaic):
            return values.astype(dtype)
        low, high = self._config.value_range
        if self._value_range is not None:
            start, stop = self._value_range
            share = (values.astype(np.float64) - start) / (stop - start)
            values = low + share * (high - low)
        values = np.clip(values, low, high)  # cubic resampling overshoots
        return (np.rint(values) if dtype.kind != "f" else values).astype(dtype)

    def _refuse_small(self, first: SceneFile) -> None:
        patch = self._config.patch
        for side, name in zip(self.shape, ("height", "width"), strict=True):
            if side < patch:
                raise DataError(
                    f"{first.shown}: the scene is {self.shape[0]} x {self.shape[1]} px, and its "
                    f"{name} is less than a patch of the model, {patch} px: give a larger scene, "
                    "or pass --resolution with fewer map units per pixel"
                )

    def _refuse_dtype(self, layer: Mosaic) -> None:
        """Ask for a range of values if those of the files are not the model's."""
        first, config = layer.files[0], self._config
        stored = first.dtypes[layer.bands[0] - 1]
        few = stored == "uint8" and first.bits < 8
        is_float = layer.dtype.kind == "f" == np.dtype(config.dtype).kind
        if self._value_range is not None or is_float or (layer.dtype == config.dtype and not few):
            return
        kind = stored
        if few:
            kind += f" of {first.bits} bits"
        if layer.is_scaled:
            kind += ", scaled to float"
        low, high = config.value_range
        text = (
            f"{first.shown}: pixels are {kind} and the model takes {config.dtype} from {low:g} to "
            f"{high:g}: pass --value-range LOW HIGH, the values that become {low:g} and {high:g}"
        )
        unlimited = Mosaic(layer.files, layer.bands, OpenFiles(), nodata=layer.nodata)
        sample = unlimited.sample()
        if sample.size:
            mark = _far_value(sample)
            if mark is not None:
                part = float((sample == mark).mean())
                sample = sample[sample != mark]
                text += (
                    f"; {part:.0%} of the values in a sample of its pixels are {mark:g}, far from "
                    f"all others: if these are missing, pass --nodata {mark:g}"
                )
            share = np.percentile(sample.astype(np.float64), [1, 99])
            start, stop = (
                (f"{share[0]:.6g}", f"{share[1]:.6g}")
                if layer.is_scaled or layer.dtype.kind == "f"
                else (str(math.floor(share[0])), str(math.ceil(share[1])))
            )
            if float(start) < float(stop):
                values = "the values in a sample of its pixels" if mark is None else "the others"
                text += (
                    f"; 98 % of {values} lie between {start} and "
                    f"{stop}: --value-range {start} {stop}"
                )
        raise DataError(text)

    def _prepared(
        self,
        files: Sequence[SceneFile],
        bands: tuple[int, ...],
        nodata: float | None,
        resolution: float | None,
    ) -> dict[str, Any]:
        first, at = files[0], [band - 1 for band in bands]
        tags = {file.nodata[i] for file in files for i in at} if nodata is None else {nodata}
        marked = {tag if math.isfinite(tag) else str(tag) for tag in tags if tag is not None}
        return {
            "files": [file.shown for file in files],
            "bands": [[band, first.descriptions[band - 1]] for band in bands],
            "dtype": first.dtypes[at[0]],
            "scale": [first.scales[i] for i in at],
            "offset": [first.offsets[i] for i in at],
            "value_range": None
            if self._value_range is None
            else list(map(float, self._value_range)),
            "nodata": sorted(marked, key=str),
            "resolution": None if resolution is None else float(resolution),
            "resampling": self._pixels.method if isinstance(self._pixels, Resampled) else None,
            "flipped": {
                "south_up": sum(file.flips[0] for file in files),
                "mirrored": sum(file.flips[1] for file in files),
            },
        }


def _check_options(value_range: tuple[float, float] | None, resolution: float | None) -> None:
    if value_range is not None:
        low, high = value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise DataError(
                f"--value-range {low:g} {high:g}: give two numbers, the lower one first"
            )
    if resolution is not None and not (math.isfinite(resolution) and resolution > 0):
        raise DataError(
            f"--resolution {resolution:g}: give the side of a pixel in map units, above 0"
        )


def _refuse_unlike(
    files: Sequence[SceneFile], config: ModelConfig, bands: Sequence[str]
) -> tuple[int, ...]:
    """The bands that are read, once all files are found to have the same."""
    first = files[0]
    chosen = choose_bands(first, config, bands)
    at = [band - 1 for band in chosen]
    kinds = [first.dtypes[i] for i in at]
    if len(set(kinds)) > 1:
        raise DataError(
            f"{first.shown}: its bands are {' and '.join(sorted(set(kinds)))}: store them in one "
            f"dtype (gdal_translate -ot Float32 {quoted(first.shown)} OUT.tif)"
        )
    for band, i in zip(chosen, at, strict=True):
        scale, offset = first.scales[i], first.offsets[i]
        if not (math.isfinite(scale) and math.isfinite(offset) and scale):
            raise DataError(
                f"{first.shown}: its band {band} has the scale {scale:g} and the offset "
                f"{offset:g}: set those that are meant "
                f"(gdal_edit.py -scale 1 -offset 0 {quoted(first.shown)})"
            )
    for file in files[1:]:
        _refuse_other_bands(file, first, chosen)
        if choose_bands(file, config, bands) != chosen:
            raise DataError(
                f"{file.shown}: its bands are in another order than those of {first.shown}: store "
                "the bands of all files in one order (gdal_translate -b N -b N -b N)"
            )
        refuse_other_meaning(file, first, chosen)
    return chosen


def _refuse_other_bands(file: SceneFile, first: SceneFile, chosen: tuple[int, ...]) -> None:
    """Refuse a file with other bands or another dtype, scale or offset than the first."""

    def refuse(own: str, other: str, remedy: str) -> NoReturn:
        raise DataError(f"{file.shown}: it has {own}, and {first.shown} has {other}: {remedy}")

    if len(file.bands) != len(first.bands) or max(chosen) > len(file.marks):
        remedy = "give files with the same bands (gdal_translate -b N takes some of them)"
        refuse(f"{len(file.bands)} bands", f"{len(first.bands)}", remedy)
    kinds = [{(one.dtypes[band - 1], one.bits) for band in chosen} for one in (file, first)]
    command = f"-ot Float32 {quoted(file.shown)} OUT.tif)"
    if kinds[0] != kinds[1]:
        own, other = (
            " and ".join(f"{dtype} ({bits} bits)" for dtype, bits in sorted(one)) for one in kinds
        )
        refuse(f"pixels of {own}", other, f"store all in one dtype (gdal_translate {command}")
    for what in ("scales", "offsets"):
        own, other = ([getattr(one, what)[band - 1] for band in chosen] for one in (file, first))
        if own != other:
            remedy = f"store scaled values in all files (gdal_translate -unscale {command}"
            refuse(f"the {what} {own}", f"{other}", remedy)


def _refuse_nodata(first: SceneFile, bands: tuple[int, ...], nodata: float | None) -> None:
    dtype = np.dtype(first.dtypes[bands[0] - 1])
    if nodata is None or dtype.kind == "f":
        return
    limits = np.iinfo(dtype)
    if not (math.isfinite(nodata) and nodata == int(nodata) and limits.min <= nodata <= limits.max):
        raise DataError(
            f"--nodata {nodata:g} is no value of {dtype} ({limits.min} to {limits.max}), the dtype "
            f"of {first.shown}: give a value that its pixels can have"
        )


def _one_crs(files: Sequence[SceneFile]) -> Any:
    """The coordinate reference system of all files, as rasterio's object."""
    from rasterio.crs import CRS

    first = CRS.from_wkt(files[0].crs)
    same = {files[0].crs}
    for file in files[1:]:
        if file.crs in same:
            continue
        own = CRS.from_wkt(file.crs)
        if own != first:
            target = _code(first) or quoted(files[0].crs)
            raise DataError(
                f"{file.shown}: its coordinate reference system is {_name(own)}, and that of "
                f"{files[0].shown} is {_name(first)}: bring all files to one "
                f"(gdalwarp -t_srs {target} {quoted(file.shown)} OUT.tif)"
            )
        same.add(file.crs)
    return first


def _refuse_two_sides(files: Sequence[SceneFile]) -> None:
    """Raise DataError for files on both sides of the antimeridian: a scene around the Earth."""
    spans = []
    for file in files:
        a, _, c = file.transform[:3]
        spans.append((c, c + a * file.shape[1], file))
    spans.sort(key=lambda span: span[:2])
    east = spans[0][1]
    for west, end, file in spans[1:]:
        if west - east > 180:
            first = spans[0][2]
            raise DataError(
                f"{first.shown} and {file.shown} lie {west - east:.0f} degrees apart, on both "
                f"sides of the antimeridian: give {quoted(first.shown)} longitudes from "
                f"{spans[0][0] + 360:.10g} on (gdal_translate -a_ullr), or encode them apart"
            )
        east = max(east, end)


def _code(crs: Any) -> str | None:
    """The code of a coordinate reference system, if it is the very one of that code."""
    from rasterio.crs import CRS

    found = crs.to_authority(confidence_threshold=100)
    return ":".join(found) if found and CRS.from_authority(*found) == crs else None


def _name(crs: Any) -> str:
    name = crs.to_wkt().split('"')[1]
    code = _code(crs)
    return f"{name} ({code})" if code else name


def _layers(
    files: Sequence[SceneFile],
    bands: tuple[int, ...],
    nodata: float | None,
    limits: tuple[float, float] | None,
    resolution: float | None,
) -> list[Mosaic]:
    """The files as one mosaic; if they are resampled and share no grid, one mosaic for each."""
    opened = OpenFiles()
    try:
        return [Mosaic(files, bands, opened, nodata=nodata, limits=limits)]
    except DataError:
        if resolution is None:
            raise
        return [Mosaic([one], bands, opened, nodata=nodata, limits=limits) for one in files]


def _digests(files: Sequence[SceneFile]) -> dict[str, str]:
    """Digests of what identifies the files, by what they are of."""
    return {
        "file_names": _digest(file.shown for file in files),
        "file_headers": _digest(
            (
                *file.transform, *file.shape, *file.flips, file.crs, *file.dtypes, file.bits,
                *file.marks, *file.descriptions, *file.scales, *file.offsets, *file.nodata,
            )
            for file in files
        ),
        "file_sizes": _digest(file.sizes for file in files),
        "file_times": _digest(file.changed for file in files),
    }  # fmt: skip


def _digest(facts: Iterator[Any]) -> str:
    text, digest, number = "", hashlib.sha256(), 0
    for number, fact in enumerate(facts, 1):
        digest.update(f"{fact}\n".encode(errors="backslashreplace"))
        if number % _LISTED == 0:
            text += digest.hexdigest()[:_DIGITS]
            digest = hashlib.sha256()
    return text + digest.hexdigest()[:_DIGITS] if number % _LISTED else text


def _far_value(sample: NDArray[Any]) -> float | None:
    """The lowest or highest value, if it is frequent and further from all others than they span.

    Such as -9999, which marks missing pixels in files that do not say so.
    """
    values, counts = np.unique(sample.astype(np.float64), return_counts=True)
    if len(values) < 3:
        return None
    for end, (nearest, furthest) in ((0, (1, -1)), (-1, (-2, 0))):
        gap, span = abs(values[end] - values[nearest]), abs(values[nearest] - values[furthest])
        if gap > span and counts[end] * 1000 >= sample.size:
            return float(values[end])
    return None
