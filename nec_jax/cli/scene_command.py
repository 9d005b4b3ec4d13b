"""`nec encode --model MODEL SCENE.tif --out SCENE.zarr`: a scene to a map of embeddings."""

import glob
import hashlib
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich import filesize
from rich.progress import TextColumn

import coder
import nec_jax
from coder import InputError, OutputError, files
from coder.archive.lock import locked
from coder.cli.arguments import Encode
from coder.cli.scene_export import parsed_time
from coder.errors import about
from coder.files import is_url
from coder.scenes import raster_export
from coder.scenes.scene_part import part_of
from coder.scenes.stac_item import stac_item
from nec_jax.cli.progress_bar import ProgressBar
from nec_jax.images.read import LARGEST, is_raster, read_header
from nec_jax.images.record import DataError
from nec_jax.model_file import model_path
from nec_jax.scene_encoding.raster_scene import RasterScene
from nec_jax.scene_encoding.scene_archive import EncodedScene, encode_scene, quality_for_scene
from nec_jax.sources.folder import find_images

_ENDINGS = (".tif", ".tiff", ".vrt", ".jp2", ".j2k")


def is_scene(options: Encode) -> bool:
    """Whether the inputs are one scene: if that is asked for, or the first is a large raster.

    Says so if it is a smaller one that is georeferenced.
    """
    if options.asks_for_scene:
        return True
    if options.images.chip is not None:
        return False
    files = [Path(name).expanduser() for name in options.inputs if not is_url(name)]
    if len(files) < len(options.inputs) or not all(one.is_file() for one in files):
        return False
    if not is_raster(files[0]):
        return False
    try:
        header = read_header(files[0])
    except DataError:  # which reading it as an image names
        return False
    if header.transform is None and header.crs is None:
        return False
    if max(header.size) > LARGEST:
        return True
    print(
        f"{files[0]} is georeferenced: it becomes an image in an archive; --scene makes a map of "
        "embeddings of it",
        file=sys.stderr,
    )
    return False


def encode(options: Encode) -> dict[str, Any]:
    """Encode a scene, and print what was done. Returns the facts."""
    options.check_scene()
    given, wanted = options.images, options.scenes
    path = model_path(given.model or "")
    params = nec_jax.load(path)
    if given.no_refiner and params.codec is not None:
        params = replace(params, codec=params.codec.with_refiner(None))
    assert isinstance(options.out, Path)
    names = _rasters(options.inputs, options.out)
    _refuse_beside(options.out, names)
    scene = RasterScene(
        names,
        params.config,
        bands=wanted.bands,
        value_range=wanted.value_range,
        nodata=options.nodata,
        resolution=wanted.resolution,
    )
    side = None
    if given.image_size is not None:
        params.config.grid(given.image_size, given.image_size)
        side = given.image_size // params.config.patch
    height, width = scene.shape
    files = len(scene.preparation["files"])
    print(
        f"one scene of {height:,} x {width:,} px in {scene.code or 'a system without a code'}"
        + (f", a mosaic of {files:,} files" if files > 1 else "")
    )
    settings: dict[str, Any] = {"side": side, "halo": wanted.halo}
    quality = options.quality
    if options.max_bytes is not None or options.max_mse is not None:
        quality = quality_for_scene(
            params, scene, max_bytes=options.max_bytes, max_mse=options.max_mse, **settings
        )
        print(f"quality {quality} fits")
    notes = {
        "model_name": path.stem,
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "written_by": f"nec-jax {nec_jax.__version__}",
    }
    time_of = _time(wanted.time, scene)
    with _Bar() as bar:
        done = encode_scene(
            params,
            scene,
            options.out,
            quality=quality,
            time_of=time_of,
            notes=notes,
            progress=bar,
            **settings,
        )
    facts = _told(options.out, scene, done)
    return facts | _beside(options.out, scene, time_of)


def _places_beside(out: Path) -> tuple[Path, Path]:
    """Where the preview and the STAC Item of a scene are."""
    if not out.name:  # such as "."
        raise OutputError("is no name of a scene: give one, such as scene.zarr", out)
    return out.with_name(f"{out.stem}{raster_export.PREVIEW}"), out.with_name(
        f"{out.stem}.stac.json"
    )


def _refuse_beside(out: Path, names: list[str | Path]) -> None:
    """Refuse to replace an input, or a file that is not of a scene of this name."""
    inputs = {files.real_path(name) for name in names if isinstance(name, Path)}
    preview, item = _places_beside(out)
    for path, is_own in ((preview, _is_preview), (item, partial(_is_item, name=out.name))):
        if files.real_path(path) in inputs:
            raise OutputError(
                f"{path} is an input, and the place of what is written beside {out.name}: name the "
                "output otherwise"
            )
        if path.exists() and not is_own(path):
            raise OutputError(
                f"{path} exists, and nec encode did not write it: move it, or name the output "
                "otherwise"
            )


def _is_preview(path: Path) -> bool:
    """Whether it is the preview of a scene."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(path) as dataset:
            return "nec" in dataset.tags()
    except (OSError, RasterioError):
        return False


def _is_item(path: Path, name: str) -> bool:
    """Whether it is the STAC Item of a scene in a folder of this name."""
    try:
        return bool(json.loads(path.read_text())["assets"]["embeddings"]["href"] == name)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _beside(out: Path, source: RasterScene, time_of: np.datetime64 | None) -> dict[str, Any]:
    """Write a preview and a STAC Item beside a scene, for programs that do not know its codec."""
    scene = coder.open_scene(out)
    last = None if scene.times is None else len(scene.times) - 1
    preview, item = _places_beside(out)
    with about(preview), locked(preview):  # which removes what killed processes left
        raster_export.write_preview(part_of(scene, time=last), preview, overwrite=True)
    print(f"{preview}: a picture of three principal components")
    taken: Any = None if time_of is not None or source.time is None else source.time.item()
    if time_of is None and taken is None:
        print(
            "the files state no time, which a STAC Item needs: nec export "
            f"{out} --out {item} --time TIME writes one"
        )
        return {"preview": str(preview), "item": None}
    try:
        content = stac_item(scene, out.name, preview=preview.name, time=taken)
    except InputError as error:  # such as no place on Earth; the scene itself is complete
        print(f"no STAC Item is written: {error}")
        return {"preview": str(preview), "item": None}
    with about(item), locked(item):
        files.write_text(item, f"{json.dumps(content, indent=2)}\n", overwrite=True)
    print(f"{item}: a STAC Item")
    return {"preview": str(preview), "item": str(item)}


def _rasters(inputs: tuple[str, ...], out: Path) -> list[str | Path]:
    """The files of a scene: files, URLs, folders (at any depth) and patterns, each once.

    Previews of scenes are left out of folders and patterns, that of `out` too.
    """
    own = files.real_path(_places_beside(out)[0])

    def is_source(path: Path) -> bool:
        if not path.name.endswith(raster_export.PREVIEW):
            return True
        return files.real_path(path) != own and not _is_preview(path)

    found: dict[str | Path, None] = {}
    for name in inputs:
        if is_url(name):
            found[name] = None
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            inner = [path / one for one in find_images(path) if one.lower().endswith(_ENDINGS)]
            inner = list(filter(is_source, inner))
            if not inner:
                raise DataError(f"no rasters under {name}: {' '.join(_ENDINGS)}")
            found |= dict.fromkeys(sorted(inner))
        elif path.exists():
            found[path] = None
        elif glob.has_magic(name):
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            matches = [one for one in matches if is_source(Path(one))]
            if not matches:
                raise DataError(f"no file fits the pattern {name}")
            found |= dict.fromkeys(map(Path, matches))
        else:
            raise FileNotFoundError(f"there is no file or folder {name}")
    return list(found)


def _time(text: str | None, scene: RasterScene) -> np.datetime64 | None:
    """The time that is asked for, in UTC."""
    if text is None:
        return None
    if text == "auto":
        if scene.time is None:
            raise InputError(
                "--time auto: the files state no time, or different ones: give the time, such as "
                "--time 2026-05-01"
            )
        return scene.time
    return np.datetime64(parsed_time(text), "us")


def _told(out: Path, scene: RasterScene, done: EncodedScene) -> dict[str, Any]:
    """Print what was done; the facts of it."""
    height, width = done.shape
    payload = done.bytes - done.metadata_bytes - done.overview_bytes
    total = height * width
    per_cell = payload / max(done.cells, 1)
    print(
        f"{out}: {height:,} x {width:,} cells in {done.bytes:,} bytes: {done.metadata_bytes:,} for "
        f"the codec, its refiner and metadata, {done.overview_bytes:,} for overviews, and "
        f"{per_cell:.1f} per cell with an embedding"
    )
    if done.cells < total:
        rest = total - done.cells
        print(f"{rest:,} cells have no embedding: more than half of their pixels are missing")
    if done.written:
        passes = done.side**2 / (done.side - 2 * done.halo) ** 2
        print(
            f"{done.written:,} cells in {done.seconds:.0f} s; windows of {done.side} x {done.side} "
            f"cells, which overlap by {2 * done.halo}: each cell is encoded {passes:.1f} times"
        )
    else:
        print("it was complete, and nothing was written")
    facts = {"out": str(out), **done._asdict(), "bytes_per_cell": per_cell}
    return facts | {"crs": scene.code, "preparation": scene.preparation}


class _Bar(ProgressBar):
    """The progress of a scene."""

    def __init__(self) -> None:
        super().__init__(TextColumn("{task.fields[told]}, left:"))
        self._first: int | None = None

    def __call__(self, done: int, total: int, stored: int) -> None:
        """Show how many of the cells are in the scene, and how many bytes were written."""
        now = time.monotonic()
        if self._first is None:
            self._first, self.start = done, now
            if done:
                print(f"{done:,} of {total:,} cells are there", file=sys.stderr)
        speed = (done - self._first) / max(now - self.start, 1e-9)
        told = f"{done:,} of {total:,} cells, {speed:,.0f} per second"
        told += f", {filesize.decimal(stored)} written"
        self.show(done, total, told, told, speed)
