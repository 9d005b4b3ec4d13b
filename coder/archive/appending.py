"""`append`: add images to a complete archive, in place.

New shards lie beyond the end of the archive's arrays, where no reader looks, until the arrays are
made longer. The archive's last shard, if it is not full, is written again with its images and new
ones. So, whatever is interrupted, the archive keeps its images, and the same call goes on:

1. The attribute `nec_appending` says what is added. New shards are written; without them, the
   archive is complete.
2. The archive's state is "writing". Its last shard is filled, and the arrays are made longer.
3. One write of the group's metadata makes it complete again.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import zarr

from coder.archive import archived_images, contents, image_columns, manifest, shards, zarr_nodes
from coder.archive.archived_images import ArchivedImages
from coder.archive.contents import APPENDING
from coder.archive.lock import locked
from coder.archive.manifest import ATTRIBUTE
from coder.errors import FileError, InputError, OutputError

_APPENDED = "appended"
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

    Embeddings keep their blobs. Of the archive's shards, only the last is written again, at the
    end. While it is written, and after an interruption there until the call is repeated, the
    archive cannot be opened. Who opened it before opens it again, as its last shard has changed.

    Args:
      store: the archive: a path, a URL, or a Zarr store that can rewrite and delete what it holds.
        As with `Writer`, see that no other process writes to a URL.
      sources: archives of its codec, quality, grid and encoder, as `open_archive` takes them.
      progress: called after each shard, with the new images that are written and all new ones.

    New classes follow those of the archive. Columns that a source lacks are missing for its images.
    The attribute `appended` gets, for each source, its name, its number of images, and those of its
    attributes that differ from the archive's. Attributes of `nec encode` about all images are
    removed. If exactly these images were added before, nothing is written.

    Raises:
      FileError: an archive is damaged or not complete.
      InputError: archives that do not fit, a column that the archive lacks, or an id that two
        images have.
      OutputError: the archive cannot be written, another process writes it, or the addition of
        other images to it was interrupted.
    """
    if not sources:
        raise InputError("no archive to append")
    place = zarr_nodes.place(store)
    parts = [ArchivedImages(source) for source in sources]
    with zarr_nodes.about_store(place):
        contents.check_store(place)
        with locked(zarr_nodes.local_path(place)):
            return _Appending(place, parts).run(progress)


class _Appending:
    """An archive and the images to add, at any of the steps; the caller holds the lock."""

    def __init__(self, store: Any, parts: Sequence[ArchivedImages]):
        """Look at the archive; nothing is written. Raises as `append`."""
        self._store, self._parts = store, parts
        self._added = archived_images.count_unique(parts)
        self._digest = archived_images.digest(parts)
        node: Any = zarr_nodes.open_node(store)
        state = manifest.read_state(node) if isinstance(node, zarr.Group) else None
        begun: Any = node.attrs.get(APPENDING)  # what `_begin` wrote
        is_writing = bool(state and state["state"] == "writing")
        self._is_last_step = is_writing and contents.is_appended(node)
        if self._is_last_step and begun["digest"] != self._digest:
            raise OutputError(
                f"{begun['images']:,} images of {', '.join(begun['archives'])} are being added to "
                "it: append these first"
            )
        # In the last step, it cannot be opened as an archive.
        self._archive = ArchivedImages(store, node if self._is_last_step else None)
        if state is None:
            raise InputError("of an earlier version: make a new archive of it (`nec copy`)")
        self._names = list(state["shards"])
        self._before = begun["before"] if self._is_last_step else self._archive.count
        self._after = self._before + self._added
        both = (self._archive, *parts)
        self._classes = list(dict.fromkeys(name for part in both for name in part.classes))
        self._size = manifest.shard_size(contents.array_of(node, "embedding"))

    def run(self, progress: Callable[[int, int], None]) -> Appended:
        """Take all steps that are left."""
        listed: Any = self._archive.group.attrs.get(_APPENDED, [])
        if {_digest(part) for part in self._parts} <= {one["digest"] for one in listed}:
            return Appended(self._before, 0, 0)
        if not self._is_last_step:
            self._check()
            self._begin()
        arrays = self._longer()
        start, done = -(-self._before // self._size) * self._size, 0
        for first in range(start, self._after, self._size):
            images = slice(first, min(first + self._size, self._after))
            if not shards.is_stored(arrays["valid"], first // self._size):
                shards.delete(arrays["embedding"], first // self._size)
                self._put(arrays, images)
            done += images.stop - images.start
            progress(done, self._added)
        group = self._opened()
        if not self._is_last_step:
            record = {**(manifest.read_state(group) or {}), "state": "writing"}
            both = {ATTRIBUTE: record, APPENDING: self._begun(is_last_step=True)}
            group.attrs.put({**group.attrs, **both})  # `update` would write one after the other
        if self._before < start:
            self._put(arrays, slice(self._before, min(start, self._after)))
        for name, array in arrays.items():
            contents.array_of(group, name).resize(array.shape)
        new: dict[str, Any] = {_APPENDED: [*listed, *map(self._entry, self._parts)]}
        new |= {"classes": self._classes} if self._classes else {}
        whole = self._before // self._size
        contents.finish_longer(self._opened(), whole, new, (APPENDING, *archived_images.OF_ALL))
        progress(self._added, self._added)
        not_valid = sum(int((~part.valid[part.numbers]).sum()) for part in self._parts)
        return Appended(self._after, self._added, not_valid)

    def _check(self) -> None:
        """Raise InputError if the archives do not fit, FileError if the last shard has changed."""
        archive, parts = self._archive, self._parts
        archived_images.refuse_different(archive, parts)
        archived_images.classes_of([archive, *parts])
        archived_images.columns_of([archive, *parts])
        for part in parts:
            if more := part.columns.keys() - archive.columns.keys():
                raise InputError(
                    f"{part.store} has the column {min(more)}, which {archive.store} lacks: join "
                    "both to a new archive (`nec copy`)"
                )
        wanted = {part.ids[i] for part in parts for i in part.numbers}
        for start in range(0, self._before, _IDS):
            some = contents.read_array(archive.group, "id", slice(start, start + _IDS))
            if found := wanted.intersection(map(str, some)):
                raise InputError(
                    f"{archive.store} has the id {min(found)!r}, and so has an image to add: "
                    "replace it by joining both to a new archive (`nec copy --replace`)"
                )
        state = manifest.read_state(archive.group)
        last = {(self._before - 1) // self._size}  # what it holds is taken over as right
        for name in self._names:
            array = contents.array_of(archive.group, name)
            for where, what, _ in manifest.changed(name, array, state, last):
                raise FileError(f"{where} {what}")

    def _begin(self) -> None:
        """Say what is added, and delete what is left of other images."""
        path = zarr_nodes.local_path(self._store)
        if path is not None:
            shards.remove_unfinished(path)
        group = zarr.open_group(self._store, mode="r+")
        begun: Any = group.attrs.get(APPENDING)
        if begun != self._begun():
            count = max(self._after, begun["before"] + begun["images"] if begun else 0)
            for array in self._longer(count).values():
                for number in manifest.written_shards(array):
                    if number * self._size >= self._before:
                        shards.delete(array, number)
            group.attrs[APPENDING] = self._begun()

    def _begun(self, *, is_last_step: bool = False) -> dict[str, Any]:
        """What the attribute `nec_appending` has."""
        return {
            "digest": self._digest,
            "before": self._before,
            "images": self._added,
            "archives": [part.name for part in self._parts],
            "is_last_step": is_last_step,
        }

    def _opened(self) -> zarr.Group:
        return zarr.open_group(self._store, mode="r+", use_consolidated=False)

    def _longer(self, count: int | None = None) -> dict[str, zarr.Array]:
        """The arrays of the archive, as if they had so many images, or all."""
        longer = {}
        for name in self._names:
            array = contents.array_of(self._opened(), name)
            if name == "valid":  # a shard without valid images says that it is done
                array = array.with_config({"write_empty_chunks": True})
            inner: Any = array.async_array
            shape = (count or self._after, *array.shape[1:])
            metadata = inner.metadata.update_shape(shape)
            longer[name] = zarr.Array(zarr.AsyncArray(metadata, inner.store_path, inner.config))
        return longer

    def _put(self, arrays: dict[str, zarr.Array], images: slice) -> None:
        inside = slice(images.start - self._before, images.stop - self._before)
        rows = archived_images.rows(self._parts, inside, self._classes, self._archive.columns)
        columns = {
            name: image_columns.as_stored(name, dtype, rows.columns[name], images)
            for name, dtype in self._archive.columns.items()
        }
        shards.put(arrays, images, rows.embeddings, rows.ids, rows.labels, rows.errors, columns)

    def _entry(self, part: ArchivedImages) -> dict[str, Any]:
        """What the attribute `appended` has of a source."""
        shared = self._archive.attributes
        differing = {k: v for k, v in part.attributes.items() if shared.get(k) != v}
        differing.pop("classes", None)
        return {
            **differing,
            "archive": part.name,
            "images": len(part.numbers),
            "digest": _digest(part),
        }


def _digest(part: ArchivedImages) -> str:
    return archived_images.digest([part])
