"""The arrays and attributes of a scene: an ordinary, georeferenced Zarr v3 group.

| member | dimensions | content |
| --- | --- | --- |
| `embedding` | (time,) y, x, channel | float32, coded by `nec`; NaN where a cell has no embedding |
| `coverage` | (time,) y, x | uint8: percent of a cell's pixels that are valid |
| `valid` | (time,) y, x | bool: whether a cell has an embedding |
| `y`, `x` | y; x | float64: the cells' centres in map units |
| `time` | time | int64 (CF): only if the scene has this dimension |
| `spatial_ref` | | the coordinate reference system (CF) |
| `overviews/2`, .. | | groups of the same members: the mean of the valid cells of 2 x 2, .. |

Chunks of embeddings have at most 16 x 16 cells, so that none cuts a block of the transform, and
lie in shards of at most 256 x 256 cells.
"""

import base64
import itertools
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync

from coder.archive import manifest, zarr_nodes
from coder.archive.exact_copy import Shard
from coder.archive.zarr_codec import NecCodec, nec_codec
from coder.codecs import OneQualityCodec
from coder.errors import CodecError, FileError, one_line
from coder.scenes.cf_attributes import cf_attributes
from coder.scenes.scene_grid import SceneGrid

ATTRIBUTE = "nec_scene"
VERSION = 1
CHUNK = 16
SHARD = 256
"""The sides of chunks and shards, in cells, at most."""
OVERVIEWS = "overviews"
LARGEST_OVERVIEW = 256  # cells: the longer side of the last overview, at most
SOURCES = "geoemb:source_data"
OF_CELLS = ("embedding", "coverage", "valid")
"""The arrays of a value, or vector, for each cell."""
NOT_STORED = "-" * manifest.DIGITS
_AT_ONCE = 8  # shards that are read at once for their digests
_TIMES = 1024  # times per chunk
_TYPES = {"embedding": "float32", "coverage": "uint8", "valid": "bool"}
_TYPES |= {"x": "float64", "y": "float64", "time": "int64"}
REMEDY = "copy the scene again, or encode it again in another place"
_GEOEMB = {
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/"
    "refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}
_LISTED = {"coordinates": "spatial_ref valid coverage"}  # which xarray makes coordinates
NAN = base64.b64encode(struct.pack("<d", math.nan)).decode()
"""How xarray writes the fill value of floats as an attribute, without which it knows of none."""
_TIME = {"units": "microseconds since 1970-01-01", "calendar": "proleptic_gregorian"}


def levels_of(shape: tuple[int, int], *, has_overviews: bool = True) -> tuple[int, ...]:
    """The levels of a scene of height x width cells: 1, and the factors of its overviews."""
    levels, factor = [1], 1
    while has_overviews and -(-max(shape) // factor) > LARGEST_OVERVIEW:
        factor *= 2
        levels.append(factor)
    return tuple(levels)


def levels_in(root: zarr.Group, grid: SceneGrid) -> tuple[int, ...]:
    """The levels of a scene, by its own record of whether it has overviews."""
    has_overviews = (state_of(root) or {}).get("overviews", True) is not False
    return levels_of(grid.shape, has_overviews=has_overviews)


def path_of(level: int) -> str:
    """The path of a level's group in the scene's group."""
    return "" if level == 1 else f"{OVERVIEWS}/{level}"


def create(
    store: Any,
    codec: OneQualityCodec,
    grid: SceneGrid,
    *,
    has_times: bool,
    attributes: Mapping[str, Any],
    has_overviews: bool = True,
) -> zarr.Group:
    """Make the group of a scene, with no cell written and no time.

    Args:
        store: a path or Zarr store with nothing in it.
        codec: a codec of one quality, without class token.
        grid: where the cells lie.
        has_times: whether there is a dimension `time`; its length is 0.
        attributes: further attributes of the group, as JSON.
        has_overviews: whether there are overviews.
    """
    levels = levels_of(grid.shape, has_overviews=has_overviews)
    root = zarr.create_group(store)
    for level in levels:
        group = root if level == 1 else root.require_group(path_of(level))
        _make_level(group, codec, grid if level == 1 else grid.coarser(level), has_times)
    is_geoemb = any(name.startswith(_GEOEMB["name"]) for name in attributes)
    root.attrs.put({**_conventions(grid, levels, is_geoemb), **_LISTED, **attributes})
    return root


def _make_level(
    group: zarr.Group, codec: OneQualityCodec, grid: SceneGrid, has_times: bool
) -> None:
    small: Any = {"compressors": [ZstdCodec(), Crc32cCodec()]}
    lead, names = ((0,), ("time",)) if has_times else ((), ())
    one = (1,) * len(lead)
    chunk = tuple(min(CHUNK, side) for side in grid.shape)
    shard = tuple(
        part * min(SHARD // CHUNK, -(-side // part))
        for side, part in zip(grid.shape, chunk, strict=True)
    )
    of_cf = cf_attributes(grid)
    on_map: dict[str, Any] = {"grid_mapping": "spatial_ref", "coordinates": "valid coverage"}
    group.create_array(
        "embedding",
        shape=(*lead, *grid.shape, codec.channels),
        chunks=(*one, *chunk, codec.channels),
        shards=(*one, *shard, codec.channels),
        dtype="float32",
        fill_value=np.nan,
        serializer=NecCodec(codec),
        compressors=None,
        dimension_names=(*names, "y", "x", "channel"),
        attributes=on_map | {"_FillValue": NAN},
    )
    for name, dtype, text in (
        ("coverage", "uint8", "percent of a cell's pixels that are valid"),
        ("valid", "bool", "whether a cell has an embedding"),
    ):
        group.create_array(
            name,
            shape=(*lead, *grid.shape),
            chunks=(*one, *shard),
            dtype=dtype,
            fill_value=0 if dtype == "uint8" else False,
            attributes={"grid_mapping": "spatial_ref", "long_name": text},
            dimension_names=(*names, "y", "x"),
            **small,
        )
    for name, values in (("y", grid.y), ("x", grid.x)):
        group.create_array(
            name,
            data=values,
            chunks=values.shape,
            fill_value=np.nan,
            dimension_names=(name,),
            attributes={
                "axis": name.upper(),
                "long_name": f"{name} of a cell's centre",
                **of_cf[name],
                zarr_nodes.WHOLE: True,
            },
            **small,
        )
    of_crs: dict[str, Any] = {"crs_wkt": grid.crs, "spatial_ref": grid.crs}
    of_crs |= {"GeoTransform": _geotransform(grid), **of_cf["spatial_ref"]}
    group.create_array("spatial_ref", shape=(), dtype="int64", fill_value=0, attributes=of_crs)
    if has_times:
        group.create_array(
            "time",
            shape=(0,),
            chunks=(_TIMES,),
            dtype="int64",
            fill_value=np.iinfo(np.int64).min,  # no time
            dimension_names=("time",),
            attributes={**_TIME, "axis": "T", "standard_name": "time", zarr_nodes.WHOLE: True},
            **small,
        )
    if group.path:
        group.attrs.put({**_georeference(grid), **_LISTED})


def _georeference(grid: SceneGrid) -> dict[str, Any]:
    """The attributes of the conventions proj: and spatial: of a group."""
    try:
        from zarr_cm import proj, spatial
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "writing a scene needs zarr-cm: install nec-jax[scenes]"
        ) from error
    data = proj.create(code=grid.code) if grid.code else proj.create(wkt2=grid.crs)
    where = spatial.create(
        dimensions=["y", "x"],
        bbox=list(grid.bounds),
        transform_type="affine",
        transform=list(grid.transform),
        shape=list(grid.shape),
        registration="pixel",
    )
    attributes: Any = spatial.insert(proj.insert({}, data), where)
    return dict(attributes)


def _conventions(grid: SceneGrid, levels: tuple[int, ...], is_geoemb: bool) -> dict[str, Any]:
    """The attributes of all conventions of the root, but those of geoemb: that say of what."""
    attributes = _georeference(grid)
    if is_geoemb:
        attributes["zarr_conventions"] = [*attributes["zarr_conventions"], _GEOEMB]
    if len(levels) > 1:
        from zarr_cm import multiscales

        layout: list[Any] = [{"asset": "."}]
        for before, level in itertools.pairwise(levels):
            one = {"asset": path_of(level), "derived_from": path_of(before) or "."}
            layout.append(one | {"transform": {"scale": [2.0, 2.0], "translation": [0.0, 0.0]}})
        held = multiscales.create(layout=layout, resampling_method="average")
        attributes = dict(multiscales.insert(attributes, held))
    return attributes


def group_at(root: zarr.Group, level: int) -> zarr.Group:
    """The group of a level. Raises FileError if it is lost."""
    if level == 1:
        return root
    try:
        # By its arrays' own metadata, not the copy of them that the group holds for xarray.
        group = zarr.open_group(
            root.store_path / path_of(level),
            mode="r" if root.read_only else "r+",
            use_consolidated=False,
        )
        zarr_nodes.check_node(group)
        return group
    except FileNotFoundError as error:
        raise FileError(f"{path_of(level)} is lost: {REMEDY}") from error
    except OSError:
        raise
    except Exception as error:  # damaged metadata raise anything
        raise _damaged(path_of(level), error) from error


def array_in(group: zarr.Group, name: str) -> zarr.Array:
    """An array of a scene. Raises FileError if it is lost, or cannot be opened."""
    path = f"{group.path}/{name}".lstrip("/")
    try:
        if (root := zarr_nodes.local_path(group.store)) is not None:
            zarr_nodes.check_metadata(root / path)
        node = group[name]
        zarr_nodes.check_node(node)
    except KeyError:
        node = None
    except CodecError as error:
        if error.path is not None:
            raise
        raise _damaged(path, error) from error
    except OSError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    if not isinstance(node, zarr.Array):
        raise FileError(f"{path} is lost: {REMEDY}")
    return node


def _damaged(path: str, error: Exception) -> FileError:
    """The error of a member whose metadata cannot be read."""
    return FileError(f"{path}/zarr.json is damaged ({one_line(error)}): {REMEDY}".lstrip("/"))


def check_shape(array: zarr.Array, grid: SceneGrid, state: Mapping[str, Any]) -> None:
    """Raise FileError if an array is not of its level's grid, or has larger chunks than a scene's.

    Metadata of a few bytes can claim any shape: what is listed and read is bounded by the grid's.

    Args:
        array: an array of cells, or of coordinates; others are not checked.
        grid: that of its level.
        state: what the scene records of itself.
    """
    name, count = array.basename, len(state["steps"])
    times = (count, count + 1) if state["state"] == "writing" else (count,)
    parts = array.shards or array.chunks
    if name in OF_CELLS:
        codec, last = nec_codec(array), ()
        if name == "embedding":
            last = array.shape[-1:] if codec is None else (codec.channels,)
        expected, most = (*grid.shape, *last), (SHARD, SHARD, *last)
        if array.ndim > len(expected):
            lead = array.shape[:1] if array.shape[0] in times else times[:1]
            expected, most = (*lead, *expected), (1, *most)
    elif name in ("y", "x", "time"):
        expected = (grid.shape["yx".index(name)],) if name != "time" else array.shape[:1]
        most = expected if name != "time" else (_TIMES,)
        if name == "time" and expected not in {(one,) for one in times}:
            expected = times[:1]
    else:
        return
    if array.shape != expected or any(map(int.__gt__, parts, most)) or array.dtype != _TYPES[name]:
        raise FileError(
            f"{array.path}/zarr.json says {array.dtype} of the shape {array.shape} in parts of "
            f"{parts}, and the scene has {_TYPES[name]} of {expected} in parts of at most {most}: "
            f"{REMEDY}"
        )


def unlike(root: zarr.Group, arrays: Mapping[str, zarr.Array]) -> dict[str, FileError]:
    """The arrays, by path, that do not have the shape of the scene, and why (`check_shape`)."""
    try:
        grid, state = grid_of(root), state_of(root)
    except FileError:  # `misplaced` says so
        return {}
    found, levels = {}, {path_of(level): level for level in levels_of(grid.shape)}
    for path, array in arrays.items():
        if state is None or (level := levels.get(path.rpartition("/")[0])) is None:
            continue
        try:
            check_shape(array, grid.coarser(level), state)
        except FileError as error:
            found[path] = error
    return found


def state_of(group: zarr.Group) -> dict[str, Any] | None:
    """What a scene records of itself; None if the group is no scene.

    Raises FileError: the record is damaged, or of a newer version.
    """
    if ATTRIBUTE not in group.attrs:
        return None
    state: Any = group.attrs[ATTRIBUTE]
    version = state.get("version") if isinstance(state, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise FileError(f"a scene of version {version}, this reads {VERSION}: update nec-jax")
    if version != VERSION or not _is_record(state):
        raise FileError(f"its attribute {ATTRIBUTE} is damaged: {REMEDY}")
    return state


def _is_record(state: dict[str, Any]) -> bool:
    """Whether the parts of a scene's record have their kinds."""
    steps, sha256 = state.get("steps"), state.get("sha256", {})
    return (
        state.get("state") in ("writing", "complete")
        and isinstance(state.get("overviews", True), bool)
        and isinstance(state.get("made"), dict)
        and isinstance(steps, list)
        and all(isinstance(one, dict) for one in [*steps, state.get("begun", {})])
        and isinstance(sha256, dict)
        and all(isinstance(text, str) for text in sha256.values())
        and (state["state"] == "writing" or bool(steps and sha256))
    )


def grid_of(group: zarr.Group) -> SceneGrid:
    """The grid of a level's group. Raises FileError: its attributes are damaged."""
    attributes = group.attrs
    try:
        crs = array_in(group, "spatial_ref").attrs["crs_wkt"]
        height, width = map(int, attributes["spatial:shape"])  # type: ignore[arg-type]
        transform = tuple(map(float, attributes["spatial:transform"]))  # type: ignore[arg-type]
        code = attributes.get("proj:code")
        grid = SceneGrid(str(crs), None if code is None else str(code), transform, (height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"its georeference is damaged: {error}: {REMEDY}") from error
    shape = array_in(group, "embedding").shape[-3:-1]
    if shape != grid.shape:
        raise FileError(f"its embeddings have {shape} cells, and its attributes say {grid.shape}")
    return grid


def arrays_of(root: zarr.Group, levels: tuple[int, ...]) -> Iterator[tuple[str, zarr.Array]]:
    """The arrays of cells of all levels, with their paths."""
    for level in levels:
        group = group_at(root, level)
        for name in OF_CELLS:
            yield f"{path_of(level)}/{name}".lstrip("/"), array_in(group, name)


def digests_of(array: zarr.Array) -> str:
    """The digests of an array's shards (or chunks) in C order, 8 digits each. Reads them all.

    Each is the first 4 bytes of a SHA-256; "--------" for a shard that is not stored.
    """
    keys = [(zarr_nodes.key(array, place),) for place in zarr_nodes.places(array)]

    async def digest(key: str) -> str:
        data = await array.store_path.store.get(key, default_buffer_prototype())
        return NOT_STORED if data is None else manifest.digest_of([data])

    with zarr_nodes.settled():
        return "".join(sync(concurrent_map(keys, digest, limit=_AT_ONCE)))


def are_stored(root: zarr.Group, path: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which shards [shape] of an array are stored, by the record of a complete scene.

    All, if the record has not this number of them: `lost` says so.
    """
    text = (state_of(root) or {}).get("sha256", {}).get(path, "")
    parts = [text[i : i + manifest.DIGITS] for i in range(0, len(text), manifest.DIGITS)]
    if len(parts) != math.prod(shape):
        return np.ones(shape, np.bool_)
    return np.array([one != NOT_STORED for one in parts], np.bool_).reshape(shape)


def lost(root: zarr.Group) -> Iterator[tuple[str, str]]:
    """Keys of what a complete scene must hold and does not, and why; reads no shard.

    None of a scene that is being written: its digests are those of before.
    """
    state = state_of(root)
    if state is None or state["state"] != "complete":
        return
    recorded = state.get("sha256", {})
    for path, text in recorded.items():
        try:
            array = array_in(root, path)
        except FileError as error:
            yield f"{path}/zarr.json", str(error.args[0])
            continue
        if len(text) != len(NOT_STORED) * zarr_nodes.count(array):
            yield f"{path}/zarr.json", "has another shape than when the scene was finished"
            continue
        there = zarr_nodes.stored(array)
        for i, place in enumerate(zarr_nodes.places(array)):
            one = text[len(NOT_STORED) * i : len(NOT_STORED) * (i + 1)]
            if one != NOT_STORED and place not in there:
                yield zarr_nodes.key(array, place), "is lost: copy the scene again"


def misplaced(root: zarr.Group) -> Iterator[tuple[str, str]]:
    """Keys of what says that the cells lie elsewhere than the scene's grid, and why."""
    try:
        grid = grid_of(root)
    except CodecError as error:
        yield "zarr.json", str(error.args[0])
        return
    for level in levels_in(root, grid):
        own, prefix = grid.coarser(level), f"{path_of(level)}/".lstrip("/")
        try:
            group = group_at(root, level)
            if grid_of(group) != own:
                yield f"{prefix}zarr.json", "has another georeference than the scene"
            for name, centres in (("y", own.y), ("x", own.x)):
                array = array_in(group, name)
                is_own = array.shape == centres.shape and array.dtype == centres.dtype
                if not is_own or (zarr_nodes.read(array) != centres).any():
                    yield f"{prefix}{name}", f"is not the {name} of the cells of {own.transform}"
            said = array_in(group, "spatial_ref").attrs.get("GeoTransform")
            if said != _geotransform(own):
                yield f"{prefix}spatial_ref/zarr.json", "has another GeoTransform than the scene"
        except CodecError as error:
            yield f"{prefix}zarr.json", str(error.args[0])
        except OSError:
            raise
        except Exception as error:  # whatever damage makes codecs raise
            yield f"{prefix}zarr.json", f"its coordinates cannot be read: {error}"


def _geotransform(grid: SceneGrid) -> str:
    """The six numbers of a grid in GDAL's order."""
    a, b, c, d, e, f = grid.transform
    return " ".join(repr(float(one)) for one in (c, a, b, f, d, e))


def shards_of(root: zarr.Group) -> list[Shard]:
    """The shards of a scene that have digests, in an order in which `valid` comes last."""
    found = []
    for path, text in (state_of(root) or {}).get("sha256", {}).items():
        array, size = array_in(root, path), len(NOT_STORED)
        if len(text) != size * zarr_nodes.count(array):
            raise FileError(f"{path} has another shape than when the scene was finished: {REMEDY}")
        for i, place in enumerate(zarr_nodes.places(array)):
            if (one := text[size * i : size * (i + 1)]) != NOT_STORED:
                found.append(Shard([zarr_nodes.key(array, place)], one))
    return found


def changed(root: zarr.Group, path: str) -> Iterator[tuple[tuple[int, ...], str]]:
    """Places of an array's shards that are stored and are not those that were finished, and why."""
    recorded = (state_of(root) or {}).get("sha256", {}).get(path)
    if recorded is None:
        return
    array, size = array_in(root, path), len(NOT_STORED)
    if len(recorded) != size * zarr_nodes.count(array):  # `lost` says so
        return
    found = digests_of(array)
    parts = [recorded[i : i + size] for i in range(0, len(recorded), size)]
    for i, place in enumerate(zarr_nodes.places(array)):
        now = found[size * i : size * (i + 1)]
        if now in (NOT_STORED, parts[i]):
            continue
        other = parts.index(now) if now in parts else None
        text = "does not hold what it held when the scene was finished"
        if other is not None:
            held = zarr_nodes.key(array, zarr_nodes.place_at(array, other))
            text = f"holds what {held} held when the scene was finished"
        yield place, f"{text}: copy the scene again"
