"""`encode_scene`: a georeferenced scene to a grid of embeddings; called again, it goes on.

The scene is encoded in parts of at most 256 x 256 cells, each of which is one shard. While one part
is read and encoded, another thread codes and writes the part before.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

import nec_jax
from coder import InputError, QualityLadder
from coder.archive import zarr_nodes
from coder.codecs import OneQualityCodec
from coder.files import without_query
from coder.scenes import scene_layout
from coder.scenes.scene_grid import SceneGrid
from coder.scenes.scene_writer import Part, SceneWriter
from nec_jax.images.record import DataError
from nec_jax.jax_defaults import jax_defaults
from nec_jax.model_file import NecParams, digest_of
from nec_jax.models.architecture import ModelConfig
from nec_jax.scene_encoding.raster_scene import RasterScene
from nec_jax.scene_encoding.tiles import region_latents, windows_of

_SAMPLE = 64  # chunks that a quality is chosen by


class Progress(Protocol):
    """What is told as a scene grows."""

    def __call__(self, done: int, total: int, stored: int) -> None:
        """Take the cells that are in the scene, all cells, and the bytes this call has written."""
        ...


class EncodedScene(NamedTuple):
    """What `encode_scene` did.

    Attributes:
        shape: height and width of the scene, cells.
        cells: how many of them have an embedding (at this time).
        written: how many cells this call wrote, with or without an embedding.
        side, halo: of the encoder's windows, cells.
        bytes: the size of all files of the scene.
        metadata_bytes: that of the codec, the refiner and other metadata, whatever the cells.
        overview_bytes: that of the overviews, without metadata.
        seconds: how long reading, encoding and writing took.
    """

    shape: tuple[int, int]
    cells: int
    written: int
    side: int
    halo: int
    bytes: int
    metadata_bytes: int
    overview_bytes: int
    seconds: float


@jax_defaults()
def encode_scene(
    params: NecParams,
    scene: RasterScene,
    out: Path,
    *,
    quality: int | None = None,
    side: int | None = None,
    halo: int | None = None,
    time_of: np.datetime64 | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total, stored: None,
) -> EncodedScene:
    """Encode a scene to a Zarr group with one cell per patch (`coder.scenes`), or go on with one.

    Args:
        params: a model with a codec.
        scene: the pixels.
        out: folder of the result. One that is there must have been begun with the same scene,
            model, quality and windows.
        quality: quality of the model's codec; None for its default.
        side, halo: of the encoder's windows, in cells (`scene_encoding.tiles`); None for the
            defaults.
        time_of: the time of the embeddings, in UTC: the result has a dimension `time`, and one
            that is there gets one more. None: it has none.
        notes: further attributes of the group, as JSON.
        progress: called after each part.

    Raises:
        CodecError: the scene cannot be written or does not fit (`SceneWriter`); the model has no
            codec, not that quality, or does not take such windows.
        DataError: no pixel of the scene is valid, a file cannot be read or changed meanwhile, or
            pixels that the model does not take.
        OSError: the disk or the network failed. The same call goes on.
    """
    codec, config = _codec(params, quality), params.config
    side, halo = windows_of(config, side, halo)  # refuses them before anything is written
    grid = grid_of(scene, config)
    made = {
        "model": (model := digest_of(params)),
        "codec": "" if params.codec is None else params.codec.fingerprint.hex(),
        "quality": codec.quality,
        "patch": config.patch,
        "side": side,
        "halo": halo,
        "bands": [number for number, _ in scene.preparation["bands"]],
        "value_range": scene.preparation.get("value_range"),
        "resolution": scene.preparation.get("resolution"),
    }
    writer = SceneWriter(
        out,
        codec,
        grid,
        made=made,
        step={"preparation": scene.preparation, "files": scene.digests},
        attributes={**_geoemb(config, model, scene, grid), **(notes or {})},
        time=time_of,
    )
    start = time.monotonic()
    total = grid.shape[0] * grid.shape[1]
    written = 0
    with writer:
        missing = writer.missing()
        there = total - sum(map(_size, missing))
        progress(there, total, 0)
        for size, stored in _written(params, scene, writer, missing, side, halo):
            written += size
            progress(there + written, total, stored)
        cells = writer.valid_count()
        if not cells:
            writer.discard()
            raise DataError(
                f"{_named(scene)}: no cell of the scene has data, at least half of its pixels: is "
                "the value of --nodata right?"
            )
        writer.finish()
    sizes = zarr_nodes.sizes(out)
    metadata = sum(
        size
        for key, size in sizes.items()
        if key.endswith("zarr.json") or key.startswith("refiner/")
    )
    overviews = sum(
        size
        for key, size in sizes.items()
        if key.startswith(scene_layout.OVERVIEWS) and not key.endswith("zarr.json")
    )
    return EncodedScene(
        shape=grid.shape,
        cells=cells,
        written=written,
        side=side,
        halo=halo,
        bytes=sum(sizes.values()),
        metadata_bytes=metadata,
        overview_bytes=overviews,
        seconds=time.monotonic() - start,
    )


@jax_defaults()
def quality_for_scene(
    params: NecParams,
    scene: RasterScene,
    *,
    max_bytes: float | None = None,
    max_mse: float | None = None,
    side: int | None = None,
    halo: int | None = None,
) -> int:
    """The quality that fits the chunks of a scene on average, by at most 64 whole chunks with data.

    Args:
        params, scene, side, halo: as for `encode_scene`.
        max_bytes, max_mse: of a chunk of 16 x 16 cells; as `coder.QualityLadder.quality_for`.

    Raises:
        InputError: as `quality_for`; the model has no codec of many qualities.
        DataError: no whole chunk of those that were looked at has data.
    """
    if not isinstance(params.codec, QualityLadder):
        raise InputError("the model has no codec of many qualities: leave max_bytes, max_mse out")
    side, halo = windows_of(params.config, side, halo)
    height, width = grid_of(scene, params.config).shape
    high, wide = min(scene_layout.CHUNK, height), min(scene_layout.CHUNK, width)
    count = (height // high) * (width // wide)
    found = []
    for number in np.unique(np.linspace(0, count - 1, min(count, 2 * _SAMPLE)).astype(int)):
        row, column = divmod(int(number), width // wide)
        rows = slice(row * high, (row + 1) * high)
        columns = slice(column * wide, (column + 1) * wide)
        y, _ = region_latents(params, scene.read, scene.shape, rows, columns, side=side, halo=halo)
        if not np.isnan(y).any():
            found.append(y.reshape(-1, y.shape[-1]))
        if len(found) == _SAMPLE:
            break
    if not found:
        raise DataError(
            f"{_named(scene)}: of {count} chunks of {high} x {wide} cells none that was looked at "
            "has data everywhere: give --quality in place of --max-bytes or --max-mse"
        )
    return params.codec.quality_for(
        np.stack(found), (high, wide), max_bytes=max_bytes, max_mse=max_mse, of_grids=True
    )


def grid_of(scene: RasterScene, config: ModelConfig) -> SceneGrid:
    """The grid of a scene's cells, one per patch; the last may reach beyond the scene's edge."""
    a, _, c, _, e, f = scene.transform
    height, width = (-(-side // config.patch) for side in scene.shape)
    transform = (a * config.patch, 0.0, c, 0.0, e * config.patch, f)
    return SceneGrid(scene.crs, scene.code, transform, (height, width))


def _codec(params: NecParams, quality: int | None) -> OneQualityCodec:
    """The codec of the model's grids, at one quality, with its refiner."""
    if params.codec is None:
        raise InputError("the model has no codec: train it with `nec compress`")
    whole = params.codec.at(quality)
    codec = whole.split()[0].with_refiner(whole.refiner)
    assert isinstance(codec, OneQualityCodec)
    return codec


def _written(
    params: NecParams,
    scene: RasterScene,
    writer: SceneWriter,
    parts: list[Part],
    side: int,
    halo: int,
) -> Any:
    """Encode and write parts; yield the cells of each, and the bytes that were written so far."""
    stored = 0

    def write(part: Part, y: NDArray[np.float32], coverage: NDArray[np.uint8]) -> tuple[int, int]:
        nonlocal stored
        stored += writer.write(part, y, coverage)
        return _size(part), stored

    waiting: Future[tuple[int, int]] | None = None
    with ThreadPoolExecutor(1) as background:
        for part in parts:
            y, coverage = region_latents(
                params, scene.read, scene.shape, *part, side=side, halo=halo
            )
            scene.refuse_changes()  # so that no part is written of which it is not known
            if waiting is not None:
                yield waiting.result()
            waiting = background.submit(write, part, y, coverage)
        if waiting is not None:
            yield waiting.result()


def _geoemb(config: ModelConfig, model: str, scene: RasterScene, grid: SceneGrid) -> dict[str, Any]:
    """The attributes of the convention geoemb: (version 1); `model` is its digest."""
    found = {
        "geoemb:type": "chip",
        "geoemb:dimensions": config.embedding_width,
        "geoemb:model": f"urn:nec-jax:model:{model}",
        "geoemb:source_data": [_uri(name) for name in scene.preparation["files"]],
        "geoemb:data_type": "float32",
        "geoemb:chip_layout": {
            "layout_type": "regular_grid",
            "chip_size": [config.patch, config.patch],
            "stride": [config.patch, config.patch],
        },
        "geoemb:quantization": {"method": "nec", "original_dtype": "float32"},
        "geoemb:build_version": nec_jax.__version__,
    }
    if (metres := _metres(grid)) is not None:
        found["geoemb:gsd"] = metres / config.patch
    return found


def _metres(grid: SceneGrid) -> float | None:
    """The height of a cell in metres; None in degrees, and in Web Mercator, which stretches."""
    from rasterio.crs import CRS

    crs = CRS.from_wkt(grid.crs)
    if not crs.is_projected or grid.code == "EPSG:3857":
        return None
    return -grid.transform[4] * crs.linear_units_factor[1]


def _uri(name: str) -> str:
    from urllib.parse import quote

    return without_query(name) if "://" in name else f"file:{quote(name)}"


def _named(scene: RasterScene) -> str:
    files = scene.preparation["files"]
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _size(part: Part) -> int:
    rows, columns = part
    return (rows.stop - rows.start) * (columns.stop - columns.start)
