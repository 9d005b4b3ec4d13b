"""Open, list and read Zarr groups and arrays of any kind, with errors that name the cause."""

import asyncio
import dataclasses
import itertools
import json
import os
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
ERROR = "nec_error"
"""The attribute of arrays of embeddings with what coding lost (`coder.fitting.StatedError`)."""


def open_node(store: Any) -> zarr.Group | zarr.Array:
    """Open a Zarr group or array for reading. Raises FileError if there is none or it is damaged.

    `store` may be an open group or array.
    """
    store = place(store)
    path = local_path(store)
    if path is not None and not path.is_dir():
        files.check_input(path, "Zarr group or array")
        raise FileError("is a file, and an archive is a folder: give the folder", path)
    if path is not None:
        check_metadata(path)
    with about_store(store):
        try:
            # Each array's own metadata, not the copy of them that a group may hold.
            return zarr.open(store, mode="r", use_consolidated=False)
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
    except (FileError, ValueError):
        return None


def places(array: zarr.Array) -> list[tuple[int, ...]]:
    """The places of all shards (or chunks, without shards) of an array, stored or not."""
    sizes = array.shards or array.chunks
    sides = (range(-(-n // size)) for n, size in zip(array.shape, sizes, strict=True))
    return list(itertools.product(*sides))


def stored(array: zarr.Array) -> set[tuple[int, ...]]:
    """The places of an array's shards (or of its chunks, without shards) that are in its store."""

    prefix = f"{array.path}/" if array.path else ""
    there = sync(_listed(array.store_path.store.list_prefix(prefix)))
    return {place for place in places(array) if key(array, place) in there}


def lost(array: zarr.Array) -> list[str]:
    """Keys of shards, or chunks, that an array must have (`WHOLE`) and does not."""
    if not array.attrs.get(WHOLE):
        return []
    there = stored(array)
    return [key(array, place) for place in places(array) if place not in there]


def key(array: zarr.Array, place: tuple[int, ...]) -> str:
    """The key of an array's shard, or chunk, in its store."""
    return f"{array.path}/{array.metadata.encode_chunk_key(place)}".lstrip("/")


def empty_keys(array: zarr.Array) -> list[str]:
    """Keys of an array's shards, or chunks, without bytes: zarr reads some as fill value."""
    store = array.store_path.store
    if isinstance(store, RemoteStore):  # one request for many
        found = sync(store.sizes(array.path))
        own = {key(array, place) for place in places(array)}
        return sorted(name for name, size in found.items() if size == 0 and name in own)
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
