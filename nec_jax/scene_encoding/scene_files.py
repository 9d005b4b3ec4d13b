"""The files of a scene: their headers, and open handles that threads share."""

import math
import shlex
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coder import CodecError
from coder.files import check_input, is_url, without_query, without_scheme
from nec_jax.images.acquisition import time_of_raster
from nec_jax.images.colours import refuse_colours
from nec_jax.images.rasters import RASTERS, open_raster
from nec_jax.images.read import reason_of
from nec_jax.images.record import Affine, DataError, raise_passing

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

OFF_GRID = 0.01
"""Pixels closer than this, in pixels, are at the same place."""
_DRIVERS = ("GTiff", "VRT", "JP2OpenJPEG", "JP2ECW", "JP2KAK", "JP2MrSID")
_THREADS = 8  # that read headers: opening a file is mostly waiting
_KEPT = 64  # handles that stay open while no thread uses them


@dataclass(frozen=True)
class SceneFile:
    """What the header of a raster says. Tuples have one element per band, alpha included.

    Attributes:
        name: the path or URL, as rasterio opens it.
        shown: the name for messages and archives: a URL without its query.
        shape: height and width in pixels.
        transform: pixel -> map, of the file as it is read: north-up.
        flips: whether rows and columns are stored the other way around.
        crs: the coordinate reference system as WKT.
        dtypes: NumPy's names.
        bits: the number of bits of a value that are used.
        marks: names of the colour interpretation, such as "red", "alpha", "undefined".
        descriptions: "" for a band without.
        scales, offsets: value = scale * stored + offset.
        nodata: the tag; None for a band without.
        time: when it was taken, in UTC, if the file says so.
        paths: the file and those that it is read with (sources of a VRT, a mask beside it), as far
            as they are local.
        sizes, changed: their bytes, and times of change in ns.
    """

    name: str
    shown: str
    shape: tuple[int, int]
    transform: Affine
    flips: tuple[bool, bool]
    crs: str
    dtypes: tuple[str, ...]
    bits: int
    marks: tuple[str, ...]
    descriptions: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    nodata: tuple[float | None, ...]
    time: np.datetime64 | None
    paths: tuple[Path, ...]
    sizes: tuple[int, ...]
    changed: tuple[int, ...]

    @property
    def bands(self) -> tuple[int, ...]:
        """The numbers, from 1, of the bands that are not alpha."""
        return tuple(i for i, mark in enumerate(self.marks, 1) if mark != "alpha")

    def refuse_changes(self) -> None:
        """Raise DataError if a file has another size or time of change than when it was opened."""
        for path, size, changed in zip(self.paths, self.sizes, self.changed, strict=True):
            try:
                now = path.stat()
            except FileNotFoundError:
                now = None
            if now is None or (now.st_size, now.st_mtime_ns) != (size, changed):
                raise DataError(
                    f"{path} was {'changed' if now else 'deleted'} while it was encoded: what is "
                    "written is of its state before; encode again once the file stays as it is "
                    "(a scene without times: delete it first)"
                )


def read_headers(names: Sequence[str | Path]) -> list[SceneFile]:
    """Read the headers of the files of a scene, in threads.

    Raises:
        DataError: the first file that cannot be part of a scene, why, and what to do.
        OSError: the system failed, and not the file.
    """
    if not names:
        raise DataError("a scene needs a raster: give at least one file")
    with ThreadPoolExecutor(min(_THREADS, len(names))) as pool:
        found = [pool.submit(_header, str(name)) for name in names]
        try:
            return [one.result() for one in found]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class OpenFiles:
    """Handles of rasters, each used by one thread at a time and opened when one is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[str, DatasetReader]] = []  # the one used last at the end

    @contextmanager
    def handle(self, file: SceneFile) -> "Iterator[DatasetReader]":
        """An open handle of a file; errors of reading name the file.

        Raises DataError, OSError: it cannot be read.
        """
        with self._lock:
            names = [name for name, _ in self._idle]
            found = self._idle.pop(names.index(file.name))[1] if file.name in names else None
        with _naming(file.name), _settings(file.name):
            dataset = open_raster(_target(file.name)) if found is None else found
            try:
                yield dataset
            except BaseException:
                dataset.close()
                raise
        with self._lock:
            self._idle.append((file.name, dataset))
            oldest = self._idle.pop(0)[1] if len(self._idle) > _KEPT else None
        if oldest is not None:
            oldest.close()


def quoted(shown: str) -> str:
    """A file's name as a word of a command."""
    return shlex.quote(shown)


def _shown(name: str) -> str:
    return without_query(without_scheme(name))


def _target(name: str) -> Any:
    """What rasterio opens: a path, or a URL."""
    return name if is_url(name) else Path(without_scheme(name))


def _settings(name: str) -> AbstractContextManager[Any]:
    """GDAL's settings for a file."""
    import rasterio

    options: dict[str, Any] = {}
    if is_url(name):  # a failing network is tried again
        options |= {"GDAL_HTTP_MAX_RETRY": 4, "GDAL_HTTP_RETRY_DELAY": 1}
        if _shown(name) != name:  # signed for GET, it would be refused by HEAD
            options["CPL_VSIL_CURL_USE_HEAD"] = False
    else:  # files beside it are asked for one by one: its folder may have many thousands
        options["GDAL_DISABLE_READDIR_ON_OPEN"] = True
    return rasterio.Env(**options)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the file in errors of rasterio, without the query of its URL."""
    try:
        yield
    except (ModuleNotFoundError, MemoryError, DataError):
        raise
    except Exception as error:  # also GDAL's own, which are no OSError
        shown = _shown(name)
        raise_passing(error, shown)
        reason = reason_of(error)
        if is_url(name):
            reason = reason.replace(name.removeprefix(shown), "")
        hidden = None if shown != name and is_url(name) else error  # its text has the query
        raise DataError(f"cannot read {shown}: {reason}") from hidden


def _header(name: str) -> SceneFile:
    shown = _shown(name)
    try:
        if not is_url(name):
            check_input(shown, "raster")
    except CodecError as error:
        raise DataError(str(error)) from error
    with _naming(name), _settings(name), open_raster(_target(name)) as dataset:
        _refuse_kind(dataset, shown)
        if not is_url(name):
            _refuse_stored_colours(shown)
        transform, flips = _north_up(dataset, shown)
        said = dataset.tags(1, ns="IMAGE_STRUCTURE")
        paths = tuple(Path(one) for one in dataset.files if Path(one).is_file())
        states = [path.stat() for path in paths]
        return SceneFile(
            name=name,
            shown=shown,
            shape=dataset.shape,
            transform=transform,
            flips=flips,
            crs=dataset.crs.to_wkt(),
            dtypes=dataset.dtypes,
            bits=int(said.get("NBITS", 8 * np.dtype(dataset.dtypes[0]).itemsize)),
            marks=tuple(kind.name for kind in dataset.colorinterp),
            descriptions=tuple(text or "" for text in dataset.descriptions),
            scales=dataset.scales,
            offsets=dataset.offsets,
            nodata=dataset.nodatavals,
            time=time_of_raster(dataset),
            paths=paths,
            sizes=tuple(state.st_size for state in states),
            changed=tuple(state.st_mtime_ns for state in states),
        )


def _refuse_kind(dataset: "DatasetReader", shown: str) -> None:
    """Refuse what is no raster of plain numbers in plain colours."""
    if len(dataset.subdatasets) > 1 or not dataset.count:
        parts = dataset.subdatasets or ["SUBDATASET"]
        part = without_query(parts[0])
        raise DataError(
            f"{shown}: it has {len(dataset.subdatasets)} subdatasets or pages: save the one that "
            f"is meant as a file of its own (gdal_translate {quoted(part)} OUT.tif)"
        )
    if dataset.driver not in _DRIVERS:
        raise DataError(
            f"{shown}: it is a {dataset.driver} file, and a scene is a TIFF, JPEG 2000 or VRT: "
            f"convert it (gdal_translate {quoted(shown)} OUT.tif)"
        )
    kinds = [kind.name for kind in dataset.colorinterp]
    if "palette" in kinds:
        raise DataError(
            f"{shown}: its pixels are indices of a palette: convert them to colours "
            f"(gdal_translate -expand rgb {quoted(shown)} OUT.tif)"
        )
    if odd := [dtype for dtype in dataset.dtypes if np.dtype(dtype).kind not in "uif"]:
        raise DataError(f"{shown}: its pixels are {odd[0]}: save magnitude and phase as bands")
    if set(kinds) == {"alpha"}:
        raise DataError(
            f"{shown}: it has no band but alpha: unset the mark if it is none "
            f"(gdal_edit.py -colorinterp_1 undefined {quoted(shown)})"
        )
    said = dataset.tags(ns="IMAGE_STRUCTURE")
    if said.get("MINISWHITE") == "YES":
        raise DataError(
            f"{shown}: white is zero in it (photometric MINISWHITE): save it as MINISBLACK"
        )
    if (space := said.get("SOURCE_COLOR_SPACE", "YCbCr")) != "YCbCr":
        raise DataError(f"{shown}: its colour space is {space}: convert it to RGB or grey")


def _refuse_stored_colours(shown: str) -> None:
    """Refuse colours and orientations that GDAL does not tell."""
    with Path(shown).open("rb") as file:
        head = file.read(32)
        if head.startswith(RASTERS):
            try:
                refuse_colours(file, head)
            except DataError as error:
                raise DataError(f"{shown}: {error}") from error


def _north_up(dataset: "DatasetReader", shown: str) -> tuple[Affine, tuple[bool, bool]]:
    """The transform of a raster's pixels once its rows and columns are flipped, if they are.

    Returns:
        a to f with a > 0 and e < 0; whether rows, and whether columns, are flipped.
    """
    a, b, c, d, e, f = dataset.transform[:6]
    height, width = dataset.shape
    file = quoted(shown)
    if dataset.transform.is_identity:
        if dataset.gcps[0]:
            raise DataError(
                f"{shown}: its place is given by ground control points: bring it to a grid "
                f"(gdalwarp -order 1 -t_srs EPSG:N {file} OUT.tif)"
            )
        if dataset.rpcs is not None:
            raise DataError(
                f"{shown}: its place is given by rational polynomials (RPC): bring it to a grid "
                f"(gdalwarp -rpc -t_srs EPSG:N {file} OUT.tif)"
            )
        raise DataError(
            f"{shown}: it does not say where its pixels lie: give its edges, west, north, east "
            f"and south (gdal_edit.py -a_srs EPSG:N -a_ullr W N E S {file})"
        )
    if dataset.crs is None:
        raise DataError(
            f"{shown}: it has no coordinate reference system: say which its transform is in "
            f"(gdal_edit.py -a_srs EPSG:N {file})"
        )
    if not all(map(math.isfinite, (a, b, c, d, e, f))) or a * e == b * d:
        raise DataError(
            f"{shown}: its transform {(a, b, c, d, e, f)} puts all pixels on a line or nowhere: "
            f"give its edges (gdal_edit.py -a_ullr W N E S {file})"
        )
    if abs(b) * height > OFF_GRID * abs(a) or abs(d) * width > OFF_GRID * abs(e):
        raise DataError(
            f"{shown}: its rows are not parallel to the x of the map (rotated or sheared): bring "
            f"it to a north-up grid (gdalwarp {file} OUT.tif)"
        )
    if a < 0:
        c += a * width
    if e > 0:
        f += e * height
    return (abs(a), 0.0, c, 0.0, -abs(e), f), (e > 0, a < 0)
