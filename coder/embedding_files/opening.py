"""`open_embeddings`: the embeddings of a file of any kind, by its first bytes and not its name."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from coder import files
from coder.embedding_files.array_views import ChannelsLast, Marked
from coder.embedding_files.georeference import Georeference
from coder.embedding_files.geotiff_file import GeoTiff
from coder.embedding_files.npy_file import open_npy
from coder.embedding_files.parquet_columns import ParquetColumn, ParquetNumbers
from coder.embedding_files.quantised import companded, linear, scaled
from coder.embedding_files.zarr_arrays import open_zarr
from coder.errors import FileError, InputError, about
from coder.format import file_kinds
from coder.format.file_kinds import SAVE

_SHAPES = "grids [N, H, W, D], a raster [H, W, D], or vectors [N, D]"


@dataclass(frozen=True)
class EmbeddingFile:
    """The embeddings of a file, and what else the file says.

    Attributes:
      y: an array [N, H, W, D], [H, W, D] or [N, D] of numbers, which is read when it is sliced;
        masked where tokens are missing.
      nodata: the number in `y` that marks missing data; None if there is none.
      lines: what to say of it, a line each.
      place: where the tokens of rasters lie; None if that is unknown.
      facts: what else is known of it, as JSON.
      column: the column of a Parquet file.
    """

    y: Any
    nodata: float | None = None
    lines: tuple[str, ...] = ()
    place: Georeference | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    column: ParquetColumn | None = None


def open_embeddings(
    path: Path | str,
    column: str | None = None,
    *,
    nodata: float | None = None,
    scale: str | None = None,
    is_companded: bool = False,
    channel_first: bool = False,
) -> EmbeddingFile:
    """Open the embeddings of a file; they are read in parts later.

    The first bytes of a file decide its kind, not its name.

    Args:
      path: a `.npy` file, a Zarr array or group, a GeoTIFF or a (Geo)Parquet file; a text is the
        URL of a Zarr array or group.
      column: the Parquet column, of lists of one length or of tensors. If there is only one such
        column, it may be None.
      nodata: the number in the file that marks missing data, in place of what the file says.
      scale: a file of scales, or a column with one for each row, if the numbers are integers with
        a scale (`quantised.scaled`).
      is_companded: whether the numbers are companded (`quantised.companded`).
      channel_first: whether an array is [D, H, W] or [N, D, H, W].

    Raises:
      FileError: no such file, a damaged one, or one of another kind; says what to do.
      InputError: the array or column does not hold embeddings, or options do not fit it.
      ModuleNotFoundError: the package that reads such files is missing.
    """
    with about(path):
        opened = _opened(path, column, nodata, channel_first)
        y = opened.y
        if y.dtype.kind not in "fiu":
            raise InputError(f"an array of {y.dtype}: give floats")
        if y.ndim not in (2, 3, 4) or 0 in y.shape:
            raise InputError(f"an array of shape {list(y.shape)}: give {_SHAPES}")
        if channel_first:
            if y.ndim == 2:
                raise InputError(
                    f"--channel-first is for [D, H, W] and [N, D, H, W], not for {list(y.shape)}"
                )
            y = ChannelsLast(y)
        y, rule = _dequantised(y, opened, scale, is_companded)
        if rule is not None:
            facts = opened.facts | {"dequantised": rule}
            opened = replace(opened, nodata=None, facts=facts)
        if opened.place is not None:
            y = opened.place.north_up(y)
    return replace(opened, y=y)


def _dequantised(
    y: Any, opened: EmbeddingFile, scale: str | None, is_companded: bool
) -> tuple[Any, str | None]:
    """The numbers in their own units, and by which rule; None if they are taken as they are."""
    own = opened.facts.get("scales")
    if own is not None and (is_companded or scale is not None):
        raise InputError("the file itself says its scale: leave --scale and --companded out")
    if is_companded:
        return companded(y, opened.nodata), "companded"
    if scale is not None:
        return scaled(y, _scales(scale, opened), opened.nodata), "scale"
    if own is not None:
        scales, offsets = np.array(own["scale"]), np.array(own["offset"])
        return linear(y, scales, offsets, opened.nodata), "scale and offset"
    return y, None


def _opened(
    path: Path | str, column: str | None, nodata: float | None, channel_first: bool
) -> EmbeddingFile:
    """The file as it is, before its numbers are dequantised and its axes are put in order."""
    if isinstance(path, str) or path.is_dir():
        opened = _of_zarr(path, channel_first, nodata)
    else:
        start = file_kinds.start_of(files.check_input(path, "file of embeddings"))
        if start.startswith(file_kinds.PARQUET):
            found = ParquetColumn(path, column)
            lines = tuple(found.changed_types())
            return EmbeddingFile(found, nodata, lines, facts=_facts(path, found), column=found)
        if start.startswith(file_kinds.NPY):
            y = open_npy(path)
            opened = EmbeddingFile(y, facts=_facts(path, y))
        elif start.startswith(file_kinds.TIFF):
            if channel_first:
                raise InputError("the bands of a TIFF are its channels: leave --channel-first out")
            opened = _of_tiff(path, nodata)
        else:
            unknown = ("not a .npy file, a Zarr array, a GeoTIFF or Parquet", SAVE)
            raise FileError(": ".join(file_kinds.described(path) or unknown))
    if column is not None:
        raise InputError(f"not a Parquet file, so it has no column {column}")
    return opened if nodata is None else replace(opened, nodata=nodata)


def _missing_line(by: str, nodata: float) -> str:
    return f"{by} says that {nodata:g} is missing data (--nodata says otherwise)"


def _facts(path: Path | str, y: Any) -> dict[str, Any]:
    name = files.without_query(path).rpartition("/")[2] if isinstance(path, str) else path.name
    return {"file": name, "dtype": str(y.dtype), "shape": list(y.shape)}


def _of_zarr(path: Path | str, channel_first: bool, nodata: float | None) -> EmbeddingFile:
    found = open_zarr(path, channel_first=channel_first, nodata=nodata)
    numbers = found.numbers
    facts = _facts(path, found.y) | found.facts
    if found.bands:
        facts["bands"] = found.bands
    lines, place = list(found.lines), found.place
    if place is not None and found.y.ndim == 4 and place.times is None:
        lines.append("its first dimension is no time: a plain array is made, without its place")
        place = None
    if numbers.scale != 1 or numbers.offset:
        facts["scales"] = {"scale": numbers.scale, "offset": numbers.offset}
        lines.append(f"its numbers are scaled: number * {numbers.scale:g} + {numbers.offset:g}")
    if nodata is None and numbers.nodata is not None:
        lines.insert(0, _missing_line(numbers.by, numbers.nodata))
    return EmbeddingFile(found.y, numbers.nodata, tuple(lines), place, facts)


def _of_tiff(path: Path, nodata: float | None) -> EmbeddingFile:
    y = GeoTiff(path, nodata)
    facts = _facts(path, y) | {"tags": y.tags}
    lines = [
        f"band {n} is an alpha band: where it is 0, a pixel is missing; it is no channel"
        for n in y.alpha
    ]
    if y.bands:
        facts["bands"] = y.bands
    if y.band_tags:
        facts["band_tags"] = y.band_tags
    if (y.scales != 1).any() or y.offsets.any():
        facts["scales"] = {"scale": y.scales.tolist(), "offset": y.offsets.tolist()}
        lines.append("its bands have scales and offsets, which are applied")
    if y.place is None:
        lines.append("it has no georeference: a plain array is made of it")
    if nodata is None and y.nodata is not None:
        lines.insert(0, _missing_line("its nodata value", y.nodata))
    return EmbeddingFile(y, y.nodata, tuple(lines), y.place, facts)


def _scales(scale: str, opened: EmbeddingFile) -> Any:
    """The scales that --scale names: a column of the table, or an array of a file."""
    if opened.column is not None and scale in opened.column.file.schema_arrow.names:
        return ParquetNumbers(opened.column.file, scale)
    path = scale if files.is_url(scale) else Path(files.without_scheme(scale))
    with about(path):
        if isinstance(path, Path) and not path.exists():
            what = "column or file" if opened.column is not None else "file"
            raise InputError(f"--scale: there is no such {what}")
        return _scale_array(path)


def _scale_array(path: Path | str) -> Any:
    """Scales of a file: an array, or the only band of a TIFF; masked where they are missing."""
    if isinstance(path, str) or path.is_dir():
        array = open_zarr(path, channel_first=False)
        _check_plain(array.numbers.scale, array.numbers.offset)
        return Marked(array.y, array.numbers.nodata)
    start = file_kinds.start_of(files.check_input(path, "file of scales"))
    if start.startswith(file_kinds.NPY):
        return open_npy(path)
    if start.startswith(file_kinds.TIFF):
        found = GeoTiff(path)
        if found.shape[2] != 1:
            raise InputError(f"{found.shape[2]} bands, and scales are one band")
        _check_plain(found.scales[0], found.offsets[0])
        return Marked(found, found.nodata)
    raise FileError("not a .npy file, a Zarr array or a TIFF, as scales are")


def _check_plain(scale: float, offset: float) -> None:
    """Raise InputError if scales have a scale themselves."""
    if scale != 1 or offset:
        raise InputError("scales that have a scale or offset themselves: write plain floats")
