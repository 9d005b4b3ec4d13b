"""Copy an archive or scene exactly, object by object, between folders and object stores.

What was read is compared with the archive's digests before it is written. The archive's own
`zarr.json` is written last, so that no reader takes a part of a copy for an archive. Until then the
object `copying.json` says of which archive it is a part.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync
from zarr.storage import LocalStore

from coder.archive import contents, manifest, refiner_array, zarr_nodes
from coder.archive.lock import locked
from coder.errors import FileError, InputError, OutputError

RECORD = "zarr.json"
"""The key of an archive's own metadata, which make it one."""
MARK = "copying.json"
"""The key of an object that names the archive, while a copy of it is not complete."""
_AT_ONCE = 8  # shards that are copied at once
_LISTED = 64  # shards between two reports of progress


class ExactCopy(NamedTuple):
    """What `copy_exactly` did.

    Attributes:
      images: the images of the archive; 0 for a scene.
      objects: its objects: the files of its folder.
      bytes: their size.
      copied: how many of them this call copied; the others were there.
      checked: whether the archive has digests of its shards, as all but the first versions have.
    """

    images: int
    objects: int
    bytes: int
    copied: int
    checked: bool


class Shard(NamedTuple):
    """Objects that are read together: those of one shard, with its digest, or one other."""

    keys: list[str]
    digest: str | None = None


def copy_exactly(
    source: Any, out: Any, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> ExactCopy:
    """Copy a complete archive; called again, it goes on without copying what is there.

    Args:
      source: a path or URL.
      out: path or URL of the copy.
      progress: called now and then, with the objects that are there and all objects.

    Raises:
      FileError: the archive is not complete, or damaged; or it was changed meanwhile.
      OutputError: there is something else at `out`, or it cannot be written.
      StoreError: a store failed; the same call goes on.
    """
    source = zarr_nodes.place(source)
    group = contents.open_archive(source)
    images = contents.array_of(group, "embedding").shape[0]
    with zarr_nodes.about_store(source):
        state = manifest.read_state(group)
        sizes = _sizes(source)
        shards = _shards(group, state, sizes)
    copied = copy_group(group, out, shards, progress=progress)
    return copied._replace(images=images, checked=state is not None and "sha256" in state)


def copy_group(
    group: zarr.Group,
    out: Any,
    shards: Sequence[Shard],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExactCopy:
    """Copy all objects of a group that is the root of its store, as `copy_exactly` does.

    Args:
      group: a complete archive or scene.
      out: path or URL of the copy.
      shards: the objects that are compared with a digest before they are written.
      progress: as for `copy_exactly`.

    Raises as `copy_exactly`.
    """
    out = zarr_nodes.place(out)
    with zarr_nodes.about_store(group.store):
        if group.path:
            raise InputError("a part of a store: give the path or URL of the archive itself")
        if refiner_array.own_members(group):
            refiner_array.read_refiner(group)
        store = group.store_path.store
        source = zarr_nodes.local_path(store) or store
        record = _read(store, RECORD)
        sizes = _sizes(store)
        if gone := {key for shard in shards for key in shard.keys} - set(sizes):
            raise FileError(f"{min(gone)} is lost: `nec verify` says more")
        rest = set(sizes) - {RECORD} - {key for shard in shards for key in shard.keys}
        if gone := [key for shard in shards for key in shard.keys if key not in sizes]:
            raise FileError(f"{gone[0]} is lost: `nec verify` says more", str(source))
        units = [Shard([key]) for key in sorted(rest)] + list(shards)
    with zarr_nodes.about_store(out), locked(zarr_nodes.local_path(out)):
        contents.check_store(out)
        folder = zarr_nodes.local_path(out)
        target: Store = out if folder is None else LocalStore(folder)
        there = _begun(out, target, record)
        todo = [unit for unit in units if any(there.get(k) != sizes[k] for k in unit.keys)]
        count = sum(len(unit.keys) for unit in todo)
        done = len(sizes) - count - (RECORD not in there)
        progress(done, len(sizes))

        async def copied(unit: Shard) -> None:
            found = [await _whole(store, key, sizes[key]) for key in unit.keys]
            if unit.digest is not None and manifest.digest_of(found) != unit.digest:
                raise FileError(
                    f"{unit.keys[0]} does not hold what it held when the archive was finished: "
                    "`nec verify` says more",
                    str(source),
                )
            for key, data in zip(unit.keys, found, strict=True):
                await target.set(key, data)

        for start in range(0, len(todo), _LISTED):
            some = todo[start : start + _LISTED]
            with zarr_nodes.settled():
                sync(concurrent_map([(unit,) for unit in some], copied, limit=_AT_ONCE))
            done += sum(len(unit.keys) for unit in some)
            progress(done, len(sizes))
        if _read(store, RECORD) != record:
            raise FileError("was changed while it was copied: delete the copy", str(source))
        _refuse_differences(sizes, zarr_nodes.sizes(out))
        if RECORD not in there:
            buffer = default_buffer_prototype().buffer.from_bytes(record)
            sync(target.set(RECORD, buffer))
            count += 1
            progress(len(sizes), len(sizes))
        sync(target.delete(MARK))
    return ExactCopy(0, len(sizes), sum(sizes.values()), count, checked=True)


def _sizes(store: Any) -> dict[str, int]:
    sizes = zarr_nodes.sizes(store)
    sizes.pop(MARK, None)
    return sizes


def _shards(group: Any, state: Any, sizes: dict[str, int]) -> list[Shard]:
    """The shards of an archive that have digests."""
    arrays = zarr_nodes.opened(group, but=refiner_array.own_members(group))
    shards = []
    for name, text in sorted((state or {}).get("sha256", {}).items()):
        array, size = arrays[name], manifest.DIGITS
        numbers = [n for first, end in state["shards"][name] for n in range(first, end)]
        keys: dict[int, list[str]] = {}
        for place in sorted(zarr_nodes.places(array)):
            if (key := zarr_nodes.key(array, place)) in sizes:
                keys.setdefault(place[0], []).append(key)
        for i, number in enumerate(numbers):
            shards.append(Shard(keys.get(number, []), text[size * i : size * (i + 1)]))
    return shards


def _begun(out: Any, target: Store, record: bytes) -> dict[str, int]:
    """The sizes of what is at `out`, which is now marked as a part of a copy of this archive."""
    folder = zarr_nodes.local_path(out)
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise OutputError("is a file: choose another place")
        contents.refuse_inside(folder)
    there = zarr_nodes.sizes(out)
    mark = json.dumps({"sha256 of zarr.json": hashlib.sha256(record).hexdigest()}).encode()
    if RECORD in there:
        if _read(target, RECORD) != record:
            raise OutputError(
                "exists, and is no copy of this archive: choose another place, or delete it first"
            )
    elif MARK in there:
        if _read(target, MARK) != mark:
            raise OutputError(
                "has a part of a copy of another archive, or of this one before it was changed: "
                "choose another place, or delete it first"
            )
    elif there:
        raise OutputError(f"exists, and holds {min(there)}: choose another place")
    else:
        sync(target.set(MARK, default_buffer_prototype().buffer.from_bytes(mark)))
    if folder is not None:
        for part in folder.rglob("*.partial"):  # of this copy, by a process that was killed
            part.unlink()
            there.pop(part.relative_to(folder).as_posix(), None)
    return there


def _refuse_differences(sizes: dict[str, int], there: dict[str, int]) -> None:
    """Raise OutputError unless a store has these objects, and the record and the mark at most."""
    for key in sorted(({*sizes} | {*there}) - {RECORD, MARK}):
        if there.get(key) != sizes.get(key):
            what = "was not in the archive"
            if key in sizes:
                what = f"has {there.get(key, 0):,} bytes of {sizes[key]:,}"
            raise OutputError(f"{key} {what}: delete it, and copy again")


def _read(store: Store, key: str) -> bytes:
    found = sync(store.get(key, default_buffer_prototype()))
    if found is None:
        raise FileError(f"{key} is lost: copy the archive again")
    return found.to_bytes()


async def _whole(store: Store, key: str, size: int) -> Any:
    found = await store.get(key, default_buffer_prototype())
    if found is None or len(found) != size:
        has = (
            "is lost"
            if found is None
            else f"has {len(found):,} bytes, and was listed with {size:,}"
        )
        raise FileError(f"{key} {has}: was it changed meanwhile? Copy again", str(store))
    return found
