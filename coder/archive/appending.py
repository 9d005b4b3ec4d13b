"""`append`: add images to a complete archive, in place.

New shards lie beyond the end of the archive's arrays, where no reader looks, until the arrays are
made longer. The archive's last shard, if it is not full, is written again with its images and new
ones. Whatever is interrupted, the archive keeps its images:

1. The attribute `nec_appending` says what is added. New shards are written; without them, the
   archive is complete. The same call goes on.
2. The archive's state is "writing", in its last step. Its last shard is filled, and the arrays are
   made longer. The next call, of whatever images, or `undo_append`, first takes this step back.
3. One write of the group's metadata makes it complete again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import zarr
from zarr.core.sync import sync

from coder.archive import archived_images, contents, image_columns, manifest, shards, zarr_nodes
from coder.archive.archived_images import ArchivedImages
from coder.archive.contents import APPENDED, APPENDING
from coder.archive.lock import locked
from coder.archive.manifest import ATTRIBUTE
from coder.errors import FileError, InputError

_IDS = 1 << 16  # ids to read at once


class Appended(NamedTuple):
    """What `append` did.

    Attributes:
      images: the number of images of the archive.
      added: how many of them were added; 0 if they had been added before.
      not_valid: how many of those that were added have no embedding.
    """

    images: int
    added: int
    not_valid: int


def append(
    store: Any,
    sources: Sequence[Any],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Appended:
    """Add the images of complete archives to a complete archive; called again, it goes on.

    Embeddings keep their blobs. Only the archive's last shard is written again, at the end. While
    it is written, and after an interruption there, the archive cannot be opened: repeat the call,
    or call `undo_append`. Who opened it before opens it again, as its last shard has changed.

    Args:
      store: the archive: a path, a URL, or a Zarr store that can rewrite and delete what it holds.
        As with `Writer`, see that no other process writes to a URL.
      sources: archives of its codec, quality, grid and encoder, as `open_archive` takes them.
      progress: called after each shard, with the new images that are written and all new ones.

    New classes follow those of the archive. Columns that a source lacks are missing for its images.
    The attribute `nec_appended` gets, for each source, its name, its number of images, and those of
    its attributes that differ from the archive's. Attributes of `nec encode` about all images are
    removed. A source that was added before is left out.

    Raises:
      FileError: an archive is damaged or not complete.
      InputError: archives that do not fit, a column that the archive lacks, or an id that two
        images have.
      OutputError: the archive cannot be written, or another process writes it.
    """
    if not sources:
        raise InputError("no archive to append")
    place = zarr_nodes.place(store)
    parts = [ArchivedImages(source) for source in sources]
    with zarr_nodes.about_store(place):
        contents.check_store(place)
        with locked(zarr_nodes.local_path(place)):
            _take_last_step_back(place)
            return _Appending(place, parts).run(progress)


def undo_append(store: Any) -> bool:
    """Take back an addition that was interrupted: the archive has the bytes that it had before.

    Args:
      store: as for `append`.

    Returns:
      Whether there was one.

    Raises:
      FileError: it is damaged, or no archive.
      OutputError: it cannot be written, or another process writes it.
    """
    place = zarr_nodes.place(store)
    with zarr_nodes.about_store(place):
        contents.check_store(place)
        with locked(zarr_nodes.local_path(place)):
            _take_last_step_back(place)
            group = contents.open_archive(place)
            if APPENDING not in group.attrs:
                return False
            _delete_new_shards(place, group)
            _put_attributes(zarr.open_group(place, mode="r+"), {}, without=[APPENDING])
            return True


class _Appending:
    """A complete archive and the images to add; the caller holds its lock."""

    def __init__(self, store: Any, sources: Sequence[ArchivedImages]):
        """Look at the archives; nothing is written. Raises as `append`."""
        self._store = store
        self._archive = ArchivedImages(store)
        state = manifest.read_state(self._archive.group)
        if state is None:
            raise InputError("of an earlier version: make a new archive of it (`nec copy`)")
        self._listed = contents.appended(self._archive.group)
        known = {one["digest"] for one in self._listed}
        there = self._present({name for part in sources for name in part.ids})
        self._parts = [
            part for part in sources if _digest(part) not in known or not there.issuperset(part.ids)
        ]
        self._added = archived_images.count_unique(self._parts)
        for part in self._parts:
            if found := there.intersection(part.ids):
                raise InputError(
                    f"{self._archive.store} has the id {min(found)!r}, and so has {part.store}: to "
                    "replace the image, join both to a new archive (`nec copy --replace`)"
                )
        self._before, self._after = self._archive.count, self._archive.count + self._added
        self._size = manifest.shard_size(contents.array_of(self._archive.group, "embedding"))
        # What the attribute `nec_appending` has.
        self._begun = {
            "digest": archived_images.digest(self._parts),
            "before": self._before,
            "images": self._added,
            "archives": [part.name for part in self._parts],
            "is_last_step": False,
        }
        if self._parts:
            self._classes = archived_images.classes_of([self._archive, *self._parts])
            self._check(state)

    def run(self, progress: Callable[[int, int], None]) -> Appended:
        """Take all steps that are left."""
        if not self._parts:
            return Appended(self._before, 0, 0)
        start = -(-self._before // self._size) * self._size  # of the first new shard
        last = slice(self._before, min(start, self._after))
        rows = self._rows(last) if last.start < last.stop else None  # before anything is written
        self._begin()
        arrays, done = _longer(self._store, self._after), 0
        for first in range(start, self._after, self._size):
            images = slice(first, min(first + self._size, self._after))
            if not shards.is_stored(arrays["valid"], first // self._size):
                shards.delete(arrays["embedding"], first // self._size)
                shards.put(arrays, images, *self._rows(images))
            done += images.stop - images.start
            progress(done, self._added)
        group = _opened(self._store)
        record = {**(manifest.read_state(group) or {}), "state": "writing"}
        _put_attributes(
            group, {ATTRIBUTE: record, APPENDING: {**self._begun, "is_last_step": True}}
        )
        if rows is not None:
            shards.put(arrays, last, *rows)
        for name, array in arrays.items():
            contents.array_of(group, name).resize(array.shape)
        new: dict[str, Any] = {APPENDED: [*self._listed, *map(self._entry, self._parts)]}
        new |= {"classes": self._classes} if self._classes else {}
        whole = self._before // self._size
        contents.finish_longer(
            _opened(self._store), whole, new, (APPENDING, *archived_images.OF_ALL)
        )
        progress(self._added, self._added)
        not_valid = sum(int((~part.valid).sum()) for part in self._parts)
        return Appended(self._after, self._added, not_valid)

    def _present(self, wanted: set[str]) -> set[str]:
        """Those of some ids that the archive has."""
        found: set[str] = set()
        for start in range(0, self._archive.count, _IDS):
            some = contents.read_array(self._archive.group, "id", slice(start, start + _IDS))
            found |= wanted.intersection(map(str, some))
        return found

    def _check(self, state: Mapping[str, Any]) -> None:
        """Raise InputError if the archives do not fit, FileError if the last shard has changed."""
        archive = self._archive
        archived_images.refuse_different([archive, *self._parts])
        archived_images.columns_of([archive, *self._parts])
        for part in self._parts:
            if more := part.columns.keys() - archive.columns.keys():
                raise InputError(
                    f"{part.store} has the column {min(more)}, which {archive.store} lacks: join "
                    "both to a new archive (`nec copy`)"
                )
        last = {(self._before - 1) // self._size}  # what it holds is taken over as right
        for name in state["shards"]:
            array = contents.array_of(archive.group, name)
            for where, what, _ in manifest.changed(name, array, state, last):
                raise FileError(f"{where} {what}")

    def _begin(self) -> None:
        """Say what is added, and delete what is left of other images."""
        group = zarr.open_group(self._store, mode="r+")
        if group.attrs.get(APPENDING) != self._begun:
            _delete_new_shards(self._store, group, self._after)
            _put_attributes(group, {APPENDING: self._begun})

    def _rows(self, images: slice) -> tuple[Any, ...]:
        """What `shards.put` takes of images, which are counted with those of the archive."""
        inside = slice(images.start - self._before, images.stop - self._before)
        *rows, values = archived_images.rows(
            self._parts, inside, self._classes, self._archive.columns
        )
        columns = {
            name: image_columns.as_stored(name, dtype, values[name], images)
            for name, dtype in self._archive.columns.items()
        }
        return *rows, columns

    def _entry(self, part: ArchivedImages) -> dict[str, Any]:
        """What the attribute `nec_appended` has of a source."""
        shared = {**self._archive.attributes, "classes": part.attributes.get("classes")}
        differing = {k: v for k, v in part.attributes.items() if shared.get(k) != v}
        own = {"archive": part.name, "images": part.count, "digest": _digest(part)}
        return differing | own


def _digest(part: ArchivedImages) -> str:
    return archived_images.digest([part])


def _opened(store: Any) -> zarr.Group:
    """An archive's group for writing, without its copies of metadata."""
    return zarr.open_group(store, mode="r+", use_consolidated=False)


def _put_attributes(group: zarr.Group, new: Mapping[str, Any], without: Sequence[str] = ()) -> None:
    """Write attributes at once; `Attributes.update` would write one after the other."""
    group.attrs.put({k: v for k, v in {**group.attrs, **new}.items() if k not in without})


def _longer(store: Any, count: int) -> dict[str, zarr.Array]:
    """The arrays of an archive, as if they had so many images."""
    group, longer = _opened(store), {}
    for name in (manifest.read_state(group) or {})["shards"]:
        array = contents.array_of(group, name)
        if name == "valid":  # a shard without valid images says that it is done
            array = array.with_config({"write_empty_chunks": True})
        inner: Any = array.async_array
        metadata = inner.metadata.update_shape((count, *array.shape[1:]))
        longer[name] = zarr.Array(zarr.AsyncArray(metadata, inner.store_path, inner.config))
    return longer


def _delete_new_shards(store: Any, group: zarr.Group, count: int = 0) -> None:
    """Delete shards beyond the end of an archive: of so many images, or of those it names."""
    begun: Any = group.attrs.get(APPENDING)
    before = contents.array_of(group, "embedding").shape[0]
    if begun is not None:
        count = max(count, begun["before"] + begun["images"])
    path = zarr_nodes.local_path(store)
    if path is not None:
        shards.remove_unfinished(path)
    for array in _longer(store, max(count, before)).values():
        size = manifest.shard_size(array)
        for number in manifest.written_shards(array):
            if number * size >= before:
                shards.delete(array, number)


def _take_last_step_back(store: Any) -> None:
    """If an addition was interrupted in its last step, make the archive complete without it."""
    node = zarr_nodes.open_node(store)
    if not isinstance(node, zarr.Group) or not contents.is_in_last_step(node):
        return
    group = _opened(store)
    begun: Any = group.attrs[APPENDING]
    before, size = begun["before"], manifest.shard_size(contents.array_of(group, "embedding"))
    end = -(-before // size) * size
    for name, array in _longer(store, end).items():
        if before < end:
            array[before:end] = array.fill_value
        shape = (before, *array.shape[1:])
        own: Any = contents.array_of(group, name).async_array
        sync(own.resize(shape, delete_outside_chunks=False))  # new shards stay
    begun = {**begun, "is_last_step": False}
    contents.finish_longer(_opened(store), before // size, {APPENDING: begun}, ())
