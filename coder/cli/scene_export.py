"""`nec export` of a scene: GeoTIFF, GeoParquet, STAC Item."""

import json
import os
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import zarr

from coder import files
from coder.archive import zarr_nodes
from coder.archive.lock import locked
from coder.cli.arguments import Export
from coder.errors import InputError, about
from coder.scenes import cell_table, class_map, raster_export, scene_layout
from coder.scenes.scene_part import ScenePart, part_of, time_number
from coder.scenes.scene_reader import Scene
from coder.scenes.stac_item import stac_item, utc
from coder.task_heads import load_head


def is_scene(place: Path | str) -> bool:
    """Whether a Zarr store is a scene. Raises FileError if it is damaged or there is none."""
    node = zarr_nodes.open_node(place)
    return isinstance(node, zarr.Group) and scene_layout.state_of(node) is not None


def export(options: Export) -> tuple[int, dict[str, Any]]:
    """Write a scene in another format."""
    if options.pool is not None:
        raise InputError("--pool is for archives, and this is a scene: leave it out")
    if options.out.suffix == ".zarr":
        raise InputError(
            "a scene is exported to NAME.tif, NAME.parquet or NAME.json; `nec copy` copies it",
            options.out,
        )
    inputs = [one for one in (options.file, options.part.head) if isinstance(one, Path)]
    files.check_output(options.out, overwrite=options.overwrite, inputs=inputs)
    scene = Scene(options.file, refine=options.refine)
    write = {".json": _write_item, ".parquet": _write_table}.get(options.out.suffix, _write_raster)
    with ExitStack() as stack:
        with about(options.out):
            stack.enter_context(locked(options.out))  # removes what killed processes left
        what = write(scene, options)
    size = options.out.stat().st_size
    print(f"{options.out}: {what}, {size:,} bytes")
    return 0, {"out": str(options.out), "bytes": size}


def _write_item(scene: Scene, options: Export) -> str:
    time = None if options.part.time is None else parsed_time(options.part.time)
    where = options.file
    if isinstance(where, Path):  # relative to the Item
        found = os.path.relpath(files.real_path(where), files.real_path(options.out).parent)
        href = Path(found).as_posix()
    else:
        href = files.without_query(where)
    text = json.dumps(stac_item(scene, href, time=time, preview=_preview(scene, options)), indent=2)
    files.write_text(options.out, f"{text}\n", overwrite=options.overwrite)
    return "a STAC Item"


def _preview(scene: Scene, options: Export) -> str | None:
    """The preview that `nec encode` wrote beside a scene of at most one time, from the Item on."""
    where = options.file
    if not isinstance(where, Path) or (scene.times is not None and len(scene.times) > 1):
        return None
    path = where.with_name(f"{where.stem}{raster_export.PREVIEW}")
    if not path.is_file():
        return None
    folder = files.real_path(options.out).parent
    return Path(os.path.relpath(files.real_path(path), folder)).as_posix()


def _write_table(scene: Scene, options: Export) -> str:
    number = _number(scene, options.part.time)
    numbers = [number]
    if number is None and scene.times is not None:
        numbers = list(range(len(scene.times)))
    parts = [_part(scene, options, one) for one in numbers]
    cell_table.write_table(parts, options.out, overwrite=options.overwrite)
    return f"cells of {_size(parts[0])}" + (f" at {len(parts)} times" if len(parts) > 1 else "")


def _write_raster(scene: Scene, options: Export) -> str:
    part, out, own = _part(scene, options, _number(scene, options.part.time)), options.out, options
    asked, overwrite = own.part, own.overwrite
    if asked.head is not None:
        class_map.write_map(part, load_head(asked.head), out, overwrite=overwrite)
        return f"classes of {_size(part)}"
    if asked.preview:
        raster_export.write_preview(part, out, overwrite=overwrite)
        return f"a preview of {_size(part)}"
    if asked.components is not None:
        raster_export.write_components(part, out, asked.components, overwrite=overwrite)
        return f"{asked.components} components of {_size(part)}"
    raster_export.write_channels(part, out, channels=asked.channels, overwrite=overwrite)
    return f"{len(asked.channels) or scene.codec.channels} channels of {_size(part)}"


def _part(scene: Scene, options: Export, time: int | None) -> ScenePart:
    return part_of(scene, options.part.bbox, level=options.part.level or 1, time=time)


def _size(part: ScenePart) -> str:
    height, width = part.shape
    return f"{height:,} x {width:,} cells"


def _number(scene: Scene, text: str | None) -> int | None:
    """The number of a time of the scene, which must be exactly the given one."""
    return None if text is None else time_number(scene, parsed_time(text))


def parsed_time(text: str) -> datetime:
    """The time that `--time` gives, in UTC and without its offset. Raises InputError: none."""
    try:
        return utc(datetime.fromisoformat(text))
    except (OverflowError, ValueError) as error:
        raise InputError(f"--time {text}: give a time such as 2026-05-01T10:30") from error
