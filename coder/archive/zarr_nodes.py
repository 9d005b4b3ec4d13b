"""Open, list and read Zarr groups and arrays of any kind, with errors that name the cause."""

import asyncio
import dataclasses
import itertools
import json
import math
import os
import re
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.group import AsyncGroup, ConsolidatedMetadata
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, StorePath

from coder import files
from coder.archive.remote_store import RemoteStore, open_url
from coder.errors import CodecError, FileError, NoPermission, StoreError, about

_WAITING: WeakSet[Any] = WeakSet()
"""Tasks that wait for the others: two threads whose reads fail would wait for one another."""
_PATIENCE = 60.0  # seconds; each request ends before
WHOLE = "nec_whole"
"""The attribute of arrays that store all chunks, so that a missing chunk is a lost one."""
MOST_SHARDS, MOST_CHUNKS = 1 << 21, 1 << 20
"""Shards of an array, and chunks of a shard, at most: metadata of a few bytes can claim any."""
EMPTY = "nec_empty"
"""The attribute of such arrays that lists what is not stored, as it is all fill value: ranges
[first, end) of the numbers of chunks, or shards, in C order."""
ERROR = "nec_error"
"""The attribute of arrays of embeddings with what coding lost (`coder.fitting.StatedError`)."""


def open_node(store: Any, *, with_copies: bool = False) -> zarr.Group | zarr.Array:
    """Open a Zarr group or array for reading. Raises FileError if there is none or it is damaged.

    Args:
        store: a path, a URL, a Zarr store, or an open group or array.
        with_copies: take the metadata of a group's members from the copy that it may hold, so that
            opening them costs no request.
    """
    store = place(store)
    path = local_path(store)
    if path is not None and not path.is_dir():
        files.check_input(path, "Zarr group or array")
        raise FileError(
            "is a file, and an archive is a folder: give the folder (a coded table is read by `nec "
            "info`, `verify` and `decode`)",
            path,
        )
    if path is not None:
        check_metadata(path)
    with about_store(store):
        try:
            node = _opened_node(store, None if with_copies else False)
            check_node(node)
            return node
        except (CodecError, StoreError):
            raise
        except FileNotFoundError as error:
            if path is not None and files.is_zarr(path):
                raise FileError(f"its Zarr metadata are damaged: {error}") from error
            found = sorted(p.name for p in path.iterdir() if files.is_zarr(p)) if path else []
            hint = f"; it holds {', '.join(found[:5])}: give one of them" * bool(found)
            if "embedding" in found:
                hint += ", or copy the archive again, because its own zarr.json is lost"
            raise FileError(f"a folder without a Zarr array or group{hint}") from error
        except Exception as error:  # damaged metadata raise anything
            raise FileError(f"its Zarr metadata are damaged: {error}") from error


def _opened_node(store: Any, use_consolidated: bool | None) -> zarr.Group | zarr.Array:
    """One request for a group of Zarr v3, two for such an array: zarr.open takes up to seven."""
    try:
        return zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=use_consolidated)
    except FileNotFoundError:
        return zarr.open(store, mode="r", use_consolidated=False)  # Zarr v2
    except ValueError:  # an array, or damaged metadata
        return zarr.open(store, mode="r", zarr_format=3)


def check_metadata(folder: Path) -> None:
    """Raise FileError if a node's metadata file is a pipe or device: zarr would wait for ever."""
    for name in (*files.ZARR_METADATA, ".zattrs", ".zmetadata"):
        try:
            exists = (folder / name).exists()
        except PermissionError as error:
            raise NoPermission(path=folder) from error
        if exists:
            files.check_input(folder / name, "file of Zarr metadata")


def unreadable(array: zarr.Array) -> list[str]:
    """Keys of an array's files and folders that may not be read; zarr lists no such folder.

    The list is empty for a store that is not a local folder.

    Raises FileError if a file is a pipe or device: zarr would wait for ever.
    """
    root = local_path(array.store)
    if root is None:
        return []
    found: list[str] = []
    walk = os.walk(root / array.path, onerror=lambda error: found.append(error.filename))
    for folder, _, names in walk:
        for path in (f"{folder}/{name}" for name in sorted(names)):
            if not os.access(path, os.R_OK):
                found.append(path)
            elif not Path(path).is_file():
                raise FileError("is a pipe or a device: copy the array again", path)
    return [Path(path).relative_to(root).as_posix() for path in found]


def check_readable(array: zarr.Array) -> None:
    """Raise NoPermission if a part of an array may not be read: it would be taken for lost.

    Raises FileError as `unreadable`.
    """
    root, found = local_path(array.store), unreadable(array)
    if root is not None and found:
        raise NoPermission(path=root / found[0])


def members(
    group: zarr.Group, prefix: str = "", but: Collection[str] = ()
) -> tuple[dict[str, zarr.Array], dict[str, Exception]]:
    """All arrays of a group, by name; and, by name, why other members cannot be opened.

    Other files, and the members named in `but`, are left out.
    """
    arrays, damaged = {}, {}
    root = local_path(group.store)
    metadata = ("zarr.json",) if group.metadata.zarr_format == 3 else (".zarray", ".zgroup")
    for name in sorted(set(names(group)) - {*but, *metadata}):
        try:
            if root is not None:
                check_metadata(root / group.path / name)
            try:
                node = group[name]
            except KeyError:
                if not any(sync((group.store_path / name / m).exists()) for m in metadata):
                    continue  # no member
                raise
            check_node(node)
        except StoreError:
            raise
        except Exception as error:  # codecs that are unknown, damaged metadata: anything
            damaged[prefix + name] = error
            continue
        if isinstance(node, zarr.Array):
            arrays[prefix + name] = node
        else:
            below = members(node, f"{prefix}{name}/")
            arrays.update(below[0])
            damaged.update(below[1])
    return arrays, damaged


def opened(group: zarr.Group, but: Collection[str] = ()) -> dict[str, zarr.Array]:
    """All arrays of a group, by name, each of which can be opened and read, without those in `but`.

    Raises:
      NoPermission: (a FileError) a part of one may not be read.
      FileError: a member cannot be opened.
    """
    arrays, damaged = members(group, but=but)
    for name, error in damaged.items():
        if isinstance(error, NoPermission):
            raise error
        raise FileError(f"{name} cannot be opened: {error}")
    for array in arrays.values():
        check_readable(array)
    return arrays


def names(group: zarr.Group) -> list[str]:
    """The names directly below a group in its store, members or not."""
    return sorted(sync(_listed(group.store_path.store.list_dir(group.path))))


def with_copies(group: zarr.Group, nodes: Mapping[str, zarr.Array | zarr.Group]) -> zarr.Group:
    """The group with a copy of the metadata of these members, where xarray looks for them.

    It is written when attributes of the result are. Of groups, all members below are copied too.
    """
    held = _copies_of(nodes) if group.store.supports_consolidated_metadata else None
    metadata = dataclasses.replace(group.metadata, consolidated_metadata=held)
    return zarr.Group(AsyncGroup(metadata, group.store_path))


def without_copies(group: zarr.Group) -> zarr.Group:
    """The same group, whose members are opened by their own metadata."""
    metadata = dataclasses.replace(group.metadata, consolidated_metadata=None)
    return zarr.Group(AsyncGroup(metadata, group.store_path))


def _copies_of(nodes: Mapping[str, zarr.Array | zarr.Group]) -> ConsolidatedMetadata:
    found: dict[str, Any] = {}
    for name, node in nodes.items():
        found[name] = node.metadata
        if isinstance(node, zarr.Group):
            plain = zarr.open_group(node.store_path, mode="r", use_consolidated=False)
            below = _copies_of(dict(plain.members()))
            found[name] = dataclasses.replace(plain.metadata, consolidated_metadata=below)
    return ConsolidatedMetadata(found)


def copies(group: zarr.Group) -> dict[str, Any] | None:
    """The metadata of arrays that a group holds as a copy, by name; None if it has no copy."""
    held = (_metadata(group.store_path) or {}).get("consolidated_metadata")
    found = held.get("metadata") if isinstance(held, dict) else None
    if not isinstance(found, dict):
        return None
    nodes = {name: one if isinstance(one, dict) else {} for name, one in found.items()}
    return {name: one for name, one in nodes.items() if one.get("node_type") != "group"}


def outdated(group: zarr.Group, arrays: Iterable[str]) -> list[str]:
    """The arrays whose own metadata differ from the group's copy, or are missing in either.

    There is none if the group has no copy. `arrays` are the names of its arrays.
    """
    held = copies(group)
    if held is None:
        return []
    names = sorted({*arrays, *held})
    return [name for name in names if _metadata(group.store_path / name) != held.get(name)]


def _metadata(node: StorePath) -> Any:
    """The JSON of a node's metadata; None if there is none, or it is damaged."""
    path = local_path(node)
    try:
        if path is not None:
            check_metadata(path)
        data = sync((node / "zarr.json").get(default_buffer_prototype()))
        return None if data is None else json.loads(data.to_bytes())
    except (FileError, RecursionError, ValueError):
        return None


def check_node(node: zarr.Group | zarr.Array) -> None:
    """Raise FileError for what zarr opens all the same: attributes that are none, or any size."""
    attributes: Any = node.metadata.attributes
    if not isinstance(attributes, dict):
        raise FileError(f"its attributes are {attributes!r:.80}, and no JSON object")
    if isinstance(node, zarr.Array):
        check_size(node)


def check_size(array: zarr.Array) -> None:
    """Raise FileError if an array claims more shards, or chunks per shard, than can be listed."""
    what = "shards" if array.shards else "chunks"
    # A side of 0 would hide the others.
    count = math.prod(max(1, side) for side in _sides(array))
    if count > MOST_SHARDS:
        raise FileError(
            f"its shape {array.shape} makes {count:,} {what}, and at most {MOST_SHARDS:,} can be "
            "read: copy it again, or write it in larger ones"
        )
    inner = math.prod(
        max(1, side // part)
        for side, part in zip(array.shards or array.chunks, array.chunks, strict=True)
    )
    if inner > MOST_CHUNKS:
        raise FileError(
            f"its shards of {array.shards} have {inner:,} chunks each, and at most "
            f"{MOST_CHUNKS:,} can be read: copy it again, or write it in smaller shards"
        )


def _sides(array: zarr.Array) -> tuple[int, ...]:
    """How many shards (or chunks, without shards) an array has along each axis."""
    sizes = array.shards or array.chunks
    return tuple(-(-n // size) for n, size in zip(array.shape, sizes, strict=True))


def count(array: zarr.Array) -> int:
    """How many shards (or chunks, without shards) an array has, stored or not."""
    return math.prod(_sides(array))


def places(array: zarr.Array) -> Iterator[tuple[int, ...]]:
    """The places of all shards (or chunks, without shards) of an array, stored or not, in order.

    Raises FileError as `check_size`.
    """
    check_size(array)
    return itertools.product(*map(range, _sides(array)))


def place_at(array: zarr.Array, number: int) -> tuple[int, ...]:
    """The place of the shard (or chunk, without shards) with this number among `places`."""
    return tuple(map(int, np.unravel_index(number, _sides(array))))


def stored(array: zarr.Array) -> set[tuple[int, ...]]:
    """The places of an array's shards (or of its chunks, without shards) that are in its store."""
    prefix = f"{array.path}/" if array.path else ""
    there = sync(_listed(array.store_path.store.list_prefix(prefix)))
    found = (_place_of(array, name, len(prefix)) for name in there)
    return {place for place in found if place is not None}


def _place_of(array: zarr.Array, name: str, start: int) -> tuple[int, ...] | None:
    """The place of the shard, or chunk, with this key; None if it is the key of none."""
    numbers = map(int, re.findall("[0-9]{1,19}", name[start:]))
    place = tuple(numbers)[: array.ndim]  # without axes there is one, whose key may be "0"
    if len(place) < array.ndim or key(array, place) != name:
        return None
    return place if all(map(int.__lt__, place, _sides(array))) else None


def lost(array: zarr.Array) -> list[str]:
    """Keys of shards, or chunks, that an array must have (`WHOLE`) and does not."""
    if not array.attrs.get(WHOLE):
        return []
    there, empty = stored(array), _empty(array)
    return [
        key(array, place)
        for number, place in enumerate(places(array))
        if place not in there and number not in empty
    ]


def _empty(array: zarr.Array) -> set[int]:
    """The numbers of the chunks, or shards, that an array lists as all fill value."""
    listed: Any = array.attrs.get(EMPTY, [])
    most = count(array)
    try:
        ranges = [range(max(0, first), min(end, most)) for first, end in listed]
        return set(itertools.chain.from_iterable(ranges))
    except (TypeError, ValueError) as error:
        raise FileError(f"its attribute {EMPTY} is damaged: copy the array again") from error


def key(array: zarr.Array, place: tuple[int, ...]) -> str:
    """The key of an array's shard, or chunk, in its store."""
    return f"{array.path}/{array.metadata.encode_chunk_key(place)}".lstrip("/")


def empty_keys(array: zarr.Array) -> list[str]:
    """Keys of an array's shards, or chunks, without bytes: zarr reads some as fill value."""
    store = array.store_path.store
    if isinstance(store, RemoteStore):  # one request for many
        found = sync(store.sizes(array.path))
        start = len(f"{array.path}/".lstrip("/"))
        empty = (name for name, size in found.items() if size == 0)
        return sorted(name for name in empty if _place_of(array, name, start) is not None)
    keys = [(key(array, place),) for place in sorted(stored(array))]
    sizes = sync(concurrent_map(keys, store.getsize, limit=64))
    return [name for (name,), size in zip(keys, sizes, strict=True) if size == 0]


def held(array: zarr.Array, objects: Mapping[str, Buffer]) -> zarr.Array:
    """The same array, whose shards or chunks are these objects, by key, and no others."""
    store = MemoryStore(dict(objects))
    metadata: Any = array.metadata  # of either version
    return zarr.Array(zarr.AsyncArray(metadata, StorePath(store, array.path)))


def read(array: zarr.Array, region: Any = slice(None)) -> Any:
    """`array[region]`; if it fails, no reading goes on after the error."""
    with settled():
        return np.asarray(array[region])


@contextmanager
def settled() -> Iterator[None]:
    """After an error of the block, or where it is stopped, nothing that zarr began in it goes on.

    zarr works on chunks at once, and leaves the others to themselves: they would go on to write,
    or print at the end of the process that they were destroyed.
    """
    try:
        yield
    except Exception:
        sync(_others())
        raise
    except BaseException:  # Ctrl-C, SIGTERM
        sync(_others(cancelled=True))
        raise


def place(store: Any) -> Any:
    """A store as a path, if it is a local folder in another form; as a `RemoteStore`, if remote.

    Other forms of a local folder are an open group or array, `file://` addresses, which zarr gives
    to fsspec, and fsspec's stores of local files. Otherwise they would bypass the lock and the
    checks of folders. Other stores stay as they are.

    Raises:
      ImportError: a URL whose protocol needs a package that is not installed.
      InputError: a URL that cannot be opened.
    """
    if isinstance(store, zarr.Group | zarr.Array):
        store = store.store_path
    if files.is_url(store):
        return open_url(store)
    if isinstance(store, str) and (path := files.without_scheme(store)) != store:
        return Path(path)
    if isinstance(store, FsspecStore):
        protocol = store.fs.protocol  # a text, or several
        if "file" not in ([protocol] if isinstance(protocol, str) else protocol):
            return RemoteStore(store)
        return store if store.read_only else Path(store.path)
    if isinstance(store, ObjectStore):
        return RemoteStore(store)
    if isinstance(store, StorePath):
        inner = place(store.store)
        folder = local_path(inner)
        if folder is not None:
            return folder / store.path
        return StorePath(inner, store.path) if store.path else inner
    return store


def local_path(store: Any) -> Path | None:
    """The folder of a store, if it is one on this machine."""
    if files.is_url(store):
        return None
    store = place(store)
    if isinstance(store, LocalStore):
        return Path(store.root)
    if isinstance(store, os.PathLike | str):
        return Path(store)
    return None


def sizes(store: Any) -> dict[str, int]:
    """The bytes of every object of a store, by key: of a path, a URL or a Zarr store.

    The files of a folder are its objects.
    """
    store = place(store)
    folder = local_path(store)
    if folder is not None:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    return sync(_sizes(store))


def is_empty(path: Path) -> bool:
    """Whether it is a folder with nothing in it."""
    return path.is_dir() and not any(path.iterdir())


def about_store(store: Any) -> AbstractContextManager[None]:
    """`errors.about`, for anything that zarr opens."""
    path = local_path(store)
    return about(str(store) if path is None else path)


async def _listed(names: AsyncIterator[str]) -> set[str]:
    return {name async for name in names}


async def _sizes(store: Store) -> dict[str, int]:
    if isinstance(store, RemoteStore):
        found = await store.sizes()
    else:
        found = {key: None async for key in store.list()}
    return {k: await store.getsize(k) if size is None else size for k, size in found.items()}


async def _others(*, cancelled: bool = False) -> None:
    """Waits for whatever else runs in zarr's event loop, but not for those that wait here."""
    _WAITING.add(asyncio.current_task())
    tasks = asyncio.all_tasks() - set(_WAITING)
    if cancelled:
        for task in tasks:
            task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_PATIENCE)
