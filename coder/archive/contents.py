"""Make, finish, open and read archives."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.abc.store import Store, SuffixByteRequest
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError, ContainsGroupError
from zarr.storage import StorePath

from coder import files
from coder.archive import image_columns, manifest, refiner_array, zarr_nodes
from coder.archive.lock import locked
from coder.archive.manifest import (
    ATTRIBUTE,
    COORDINATES,
    shard_key,
    shard_size,
    shard_slices,
    written_shards,
)
from coder.archive.remote_store import RemoteStore
from coder.archive.stored_chunks import EMPTY, index_of
from coder.archive.zarr_codec import NecCodec, nec_codec, refined
from coder.arrays import as_grid, check_whole
from coder.codecs import OneQualityCodec
from coder.errors import (
    CodecError,
    FileError,
    InputError,
    NoPermission,
    OutputError,
    StoreError,
)
from coder.refiner import Refiner, check_refiner

SHARD = 256
APPENDING = "nec_appending"
"""The attribute of an archive to which images are being added (`append`)."""
ADDING = (
    "images are being added to it, or that was stopped: give the same `nec append` again, or take "
    "it back by `nec append ARCHIVE --undo`"
)
APPENDED = "nec_appended"
"""The attribute that lists what was added (`append`)."""
OWN = (ATTRIBUTE, APPENDING, APPENDED, refiner_array.ATTRIBUTE, "coordinates")
"""The attributes of a group that an archive writes itself."""
_MOST = 1 << 16  # images per shard, whose index is read as a whole


def even_shard(count: int, most: int = SHARD) -> int:
    """The number of images per shard, at most `most`, such that the last shard is nearly full.

    Raises InputError if `count` or `most` is below 1.
    """
    count, most = check_whole("count", count), check_whole("shard", most)
    shards = -(-count // most)
    return -(-count // shards)


@dataclass(frozen=True)
class Plan:
    """What an archive is made of; checked by `planned`."""

    codec: OneQualityCodec
    count: int
    grid: tuple[int, int]
    shard: int
    attributes: Mapping[str, Any]
    columns: Mapping[str, np.dtype]


def planned(
    codec: Any,
    count: int,
    grid: tuple[int, int],
    shard: int | None,
    attributes: Mapping[str, Any] | None,
    columns: Mapping[str, DTypeLike] | None,
) -> Plan:
    """Check the arguments of `create`. Raises CodecError and InputError, as it does."""
    if not isinstance(codec, OneQualityCodec):
        raise CodecError("an archive has one quality: cut one out of the codec, codec.at(quality)")
    for name in OWN:
        if name in (attributes or {}):
            raise InputError(f"the attribute {name} is the archive's own: choose another name")
    try:
        as_read = json.loads(json.dumps(dict(attributes or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"attributes that are not JSON: {error}") from error
    count = check_whole("count", count)
    shard = even_shard(count) if shard is None else check_whole("shard", shard, 1, _MOST)
    height, width = as_grid(grid)
    if height * width > codec.max_tokens:
        raise InputError(
            f"a grid of {height} x {width} tokens: this codec takes at most {codec.max_tokens}"
        )
    if codec.class_token and shard > codec.max_tokens:
        raise InputError(
            f"the class tokens of a shard of {shard} images are one blob, and this codec takes "
            f"at most {codec.max_tokens} tokens: give a smaller shard"
        )
    if codec.refiner is not None:
        refiner_array.check_serves(codec.refiner, codec.split()[0])
    own_columns = image_columns.checked(columns or {})
    return Plan(codec, count, (height, width), shard, as_read, own_columns)


def check_store(store: Any) -> None:
    """Raise OutputError if files of a store cannot be written again, as in a zip file."""
    if isinstance(store, StorePath):
        store = store.store
    if not isinstance(store, Store):
        return
    if isinstance(store, RemoteStore) and not store.supports_writes:
        raise OutputError("cannot be written, only read: choose another place")
    if not store.supports_deletes:
        raise OutputError(
            f"{type(store).__name__} deletes nothing, and an archive's record is written again "
            "when it is complete: write a folder (give its path), and zip that; a zip file can be "
            "read"
        )
    if store.read_only:
        raise OutputError("the store is open for reading only: open it for writing")


def create(
    store: Any,
    codec: OneQualityCodec,
    count: int,
    grid: tuple[int, int],
    *,
    shard: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    columns: Mapping[str, DTypeLike] | None = None,
) -> zarr.Group:
    """Make an archive in a Zarr store or path. Assign to its arrays, then call `finish`.

    Args:
      store: a path, a URL, or a Zarr store, with nothing in it. A zip store cannot be used: write a
        folder, and zip that.
      codec: a codec of one quality, with or without a class token. If it has a refiner, the
        archive gets it.
      count: number of images.
      grid: tokens (height, width) of every image.
      shard: images per shard, the smallest part to write at once; None for `even_shard(count)`.
      attributes: further attributes of the group, as JSON.
      columns: names and dtypes of further arrays [images]: `str`, or a dtype of bools, numbers or
        times (datetime64, in UTC). See `coder.archive.image_columns`.

    Raises:
      CodecError: a codec of several qualities.
      InputError: `count` or `shard` below 1; more tokens in a grid, or more images in a shard of
        class tokens, than the codec takes; attributes that are not JSON; a column that cannot be
        stored. Nothing is made.
      OutputError: there is something in the store, it cannot be written again, or another process
        makes or writes it.
    """
    store = zarr_nodes.place(store)
    with zarr_nodes.about_store(store):
        plan = planned(codec, count, grid, shard, attributes, columns)
        check_store(store)
        with locked(zarr_nodes.local_path(store)):
            return create_locked(store, plan)


def create_locked(store: Any, plan: Plan) -> zarr.Group:
    """`create`, for a caller that has checked the store and holds its lock."""
    path = zarr_nodes.local_path(store)
    if path is None:
        if isinstance(store, RemoteStore) and (there := zarr_nodes.sizes(store)):
            raise OutputError(f"exists, and holds {min(there)}: choose another place")
        return _make(store, plan)
    refuse_inside(path)
    is_empty = zarr_nodes.is_empty(path)
    if path.exists() and not is_empty:
        raise OutputError(
            "exists: choose another place, or delete it first. A coder.archive.Writer goes on with "
            "an archive that is not complete"
        )
    # Whole or not at all; a folder that is there may be empty.
    with files.writing_folder(path, overwrite=is_empty) as part:
        _make(part, plan)
    return zarr.open_group(store, mode="r+")


def refuse_inside(path: Path) -> None:
    """Raise OutputError for a place inside another archive, or inside a Zarr array."""
    for parent in files.real_path(path).parents:
        if (parent / "zarr.json").is_file():
            node = files.read_json(parent / "zarr.json", "Zarr node")
            if node.get("node_type") == "array" or ATTRIBUTE in node.get("attributes", {}):
                raise OutputError(f"lies in {parent}, another archive: choose a place beside it")


def open_archive(store: Any) -> zarr.Group:
    """Open a complete archive for reading; `store` is a path, a URL, a Zarr store or an open group.

    Raises:
      StoreError: (an OSError) an object store failed; what it holds may be whole.
      NoPermission: (a FileError) a part of it may not be read.
      FileError: not an archive of images, one that is still being written, or one that lost a
        part. Archives of earlier versions do not list what they must hold: there, a shard of
        embeddings, class tokens or ids that is not stored was lost or never written. No shard is
        read: `read_array` and `nec verify` check the content of shards.
    """
    store = zarr_nodes.place(store)
    group = zarr_nodes.open_node(store)
    with zarr_nodes.about_store(store):
        if not isinstance(group, zarr.Group):
            raise FileError("a Zarr array, not an archive: give the group that holds it")
        arrays = zarr_nodes.opened(group, but=refiner_array.own_members(group))
        state = manifest.read_state(group)
        if state is None and not manifest.is_earlier(group, arrays):
            if "nec_scene" in group.attrs:
                raise FileError(
                    "a scene, and not an archive of images: open it with coder.open_scene; `nec "
                    "copy` without --codec copies it, and `nec encode` makes one of another quality"
                )
            raise FileError("not an archive of images: it has no embedding, label and id")
        if state and state["state"] == "writing":
            raise FileError(ADDING if is_in_last_step(group) else manifest.progress(arrays))
        refuse_lost(group, arrays, state, "copy the archive again, or write it again")
    return group


def is_in_last_step(group: zarr.Group) -> bool:
    """Whether images are being added to an archive, in the step in which it cannot be opened."""
    state, begun = manifest.read_state(group), group.attrs.get(APPENDING)
    is_last = isinstance(begun, dict) and bool(begun.get("is_last_step"))
    return is_last and state is not None and state["state"] == "writing"


def appended(group: zarr.Group) -> list[dict[str, Any]]:
    """What was added to an archive: the name, number of images, and digest of each source."""
    listed = group.attrs.get(APPENDED)
    rows = listed if isinstance(listed, list) else []
    return [one for one in rows if isinstance(one, dict) and {"archive", "digest"} <= set(one)]


def finish(group: zarr.Group) -> None:
    """Mark an archive as complete, after checking that all its parts are there.

    Reads all shards once, for their digests, and takes their present content as correct; decodes no
    embedding. Copies the metadata of all arrays into those of the group (Zarr's consolidated
    metadata), where xarray looks for them. Call it again after writing to a complete archive: until
    then, readers refuse what was written.

    Args:
      group: the group of `create`, open for writing. In every shard, `valid` and the embeddings of
        all valid images must be written.

    Raises:
      FileError: something is missing; the message names it.
    """
    with zarr_nodes.about_store(group.store):
        state = manifest.read_state(group)
        if state is None:
            raise FileError("not an archive, or one of an earlier version: make it with `create`")
        if is_in_last_step(group):
            raise FileError(ADDING)
        # As they are stored: arrays may have changed, and a refiner may have been added since.
        mode = "r" if group.store.read_only else "r+"
        now = zarr.open_group(group.store_path, mode=mode, use_consolidated=False)
        arrays = zarr_nodes.opened(now, but=refiner_array.own_members(now))
        # Only whole arrays: the shards that there must be are counted below.
        refuse_lost(group, arrays, manifest.begun(state["shards"]), "write a new archive")
        _check_shards(arrays)
        new = manifest.completed({name: arrays[name] for name in state["shards"]})
        if new != state or zarr_nodes.copies(now) is None or zarr_nodes.outdated(now, arrays):
            _put(group, zarr_nodes.with_copies(now, arrays), {ATTRIBUTE: new})


def finish_longer(
    group: zarr.Group, first: int, new: Mapping[str, Any], without: Collection[str]
) -> None:
    """Mark an archive as complete to which images were added. Reads the new shards alone.

    Args:
      group: the archive, opened for writing without its copies of metadata. Its record has what the
        archive held before.
      first: the first shard that is new, or was written again.
      new: attributes to write.
      without: attributes to remove.

    Raises FileError: something is missing; the message names it.
    """
    state = manifest.read_state(group)
    assert state is not None
    arrays = zarr_nodes.opened(group, but=refiner_array.own_members(group))
    refuse_lost(group, arrays, state, "copy the archive again")
    _check_shards(arrays, first)
    own = {name: arrays[name] for name in state["shards"]}
    record = manifest.completed(own, state, first)
    kept = {name: one for name, one in group.attrs.items() if name not in without}
    zarr_nodes.with_copies(group, arrays).attrs.put({**kept, **new, ATTRIBUTE: record})


def add_refiner(group: zarr.Group, refiner: Refiner) -> None:
    """Add a refiner to a complete archive. Nothing else in it changes.

    Adding the refiner that it has already changes nothing, or mends it if it is damaged.

    Args:
      group: the archive, open for writing: `zarr.open_group(path, mode="r+")`.
      refiner: a refiner of the codec of its embeddings.

    Raises:
      InputError: the refiner of another codec.
      OutputError: the archive has another refiner; it cannot be written; another process writes
        it, or has changed it since the group was opened.
      FileError: not a complete archive.
    """
    name, attribute = refiner_array.GROUP, refiner_array.ATTRIBUTE
    check_refiner(refiner)
    if not isinstance(group, zarr.Group):
        raise InputError(f"{group!r:.80} is no group: give coder.archive.open_archive(PATH)")
    with zarr_nodes.about_store(group.store):
        check_store(group.store_path)
        with locked(zarr_nodes.local_path(group.store_path)):
            open_archive(group)
            now = zarr.open_group(group.store_path, mode="r", use_consolidated=False)
            if now.attrs.asdict() != group.attrs.asdict():
                raise OutputError("has changed since the group was opened: open it again")
            refiner_array.check_serves(refiner, nec_codec(array_of(group, "embedding")))
            has, fingerprint = group.attrs.get(attribute), refiner.fingerprint.hex()
            if has == fingerprint:
                with suppress(FileError):
                    refiner_array.read_refiner(group)
                    return
            elif has is not None or (
                name in zarr_nodes.names(group) and not refiner_array.holds(group, refiner)
            ):
                raise OutputError(
                    f"has another refiner, or a part of one: to replace it, first run "
                    f'del group.attrs["{attribute}"], if it is there, and del group["{name}"]'
                )
            own = zarr.open_group(group.store_path, mode="r+", use_consolidated=False)
            refiner_array.write_array(own, refiner)
            _put(group, zarr.open_group(group.store_path, mode="r+"), {attribute: fingerprint})


def _put(group: zarr.Group, stored: zarr.Group, attributes: Mapping[str, Any]) -> None:
    """Write attributes of a group with its copies; `group` is the caller's object of it."""
    stored.attrs.update(attributes)
    group.metadata.attributes.clear()
    group.metadata.attributes.update(stored.attrs.asdict())
    ours, theirs = (one.metadata.consolidated_metadata for one in (stored, group))
    if ours is not None and theirs is not None:  # which the caller's object would write again
        theirs.metadata.clear()
        theirs.metadata.update(ours.metadata)


def refuse_lost(
    group: zarr.Group,
    arrays: Mapping[str, zarr.Array],
    state: Mapping[str, Any] | None,
    remedy: str,
) -> None:
    """Raise FileError, with this remedy, if a part of an archive is lost (`manifest.lost`)."""
    for where, what, _ in manifest.lost(group, arrays, state):
        raise FileError(f"{where} {what}: {remedy}")


def valid_images(group: zarr.Group, images: Any = None) -> NDArray[np.bool_]:
    """Which images have an embedding: bool [images]; all, in archives of earlier versions.

    `images` as for `read_array`.
    """
    if "valid" in group:
        return read_array(group, "valid", images)
    count = array_of(group, "embedding").shape[0]
    return np.ones(count, np.bool_)[selected(count, images)]


def labelled(group: zarr.Group) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    """Which images are valid and have a label: bool [images]; and all labels, int32 [images].

    Raises:
      InputError: none are, or all have one label: nothing can be learned from them.
    """
    labels = read_array(group, "label")
    use = valid_images(group) & (labels >= 0)
    classes = len(np.unique(labels[use]))
    if classes < 2:
        text = "one class only" if classes else "no labels"
        with zarr_nodes.about_store(group.store):
            raise InputError(f"{text}, in {use.sum()} images: give an archive of labelled images")
    return use, labels


def read_array(
    group: zarr.Group, name: str, images: Any = None, *, refine: bool = False
) -> NDArray[Any]:
    """Read an array of an archive; embeddings of images that are not valid are NaN.

    Text is `str`. Times are datetime64[us], in UTC.

    Args:
      group: the archive.
      name: the name of the array.
      images: which images to read, as NumPy takes an index: a slice, whole numbers, or bool
        [images]; None for all. Only their shards are read.
      refine: bring embeddings closer to those that were encoded, by the refiner of the archive.
        Class tokens stay as they are. Do not encode refined embeddings again.

    Raises:
      StoreError: (an OSError) an object store failed.
      FileError: it is damaged, or a shard was lost or has changed since the archive was finished;
        refine, and the refiner is damaged.
      InputError: no such images; refine, and the archive has no refiner, or the array has no
        embeddings.
    """
    array = array_of(group, name)
    numbers = selected(array.shape[0], images)
    if refine and name not in ("embedding", "class_token"):
        raise InputError(f"refine is for embeddings, and {name} holds none: leave it out")
    refiner = refiner_array.read_refiner(group) if refine else None
    values = read_stored(group, array, None if images is None else numbers)
    if values.dtype.kind == "T":  # which NumPy does not convert: values.astype(str) is an error
        return values.astype(object)
    values = image_columns.values_of(array, values)
    if name in ("embedding", "class_token"):
        valid = valid_images(group, images)
        values[~valid] = np.nan
        if refiner is not None and name == "embedding":
            codec = nec_codec(array)
            refiner_array.check_serves(refiner, codec)
            assert codec is not None
            for i in np.flatnonzero(valid):
                values[i] = refined(values[i], codec, refiner, array.fill_value)
    return values


def columns_of(group: zarr.Group) -> dict[str, np.dtype]:
    """Names and dtypes of the columns of an archive (`coder.archive.image_columns`)."""
    state = manifest.read_state(group)
    names = {} if state is None else state["shards"]
    return image_columns.of({name: array_of(group, name) for name in names})


def read_stored(
    group: zarr.Group, array: zarr.Array, numbers: NDArray[np.intp] | None
) -> NDArray[Any]:
    """Images of these numbers, or all, of an array of an archive, as they are stored.

    Raises FileError as `read_array`.
    """
    name, state = array.basename, manifest.read_state(group)
    shards: dict[int, dict[str, Buffer]] = {}
    with zarr_nodes.about_store(group.store):
        try:
            if manifest.has_digests(name, state):
                # The bytes that are compared are those that are decoded.
                shards = manifest.read_shards(array, _shards_of(array, numbers))
                _refuse_unread(name, array, state, shards)
                objects = {k: data for chunks in shards.values() for k, data in chunks.items()}
                array = zarr_nodes.held(array, objects)
            source: Any = array if numbers is None else array.oindex
            values = zarr_nodes.read(source, slice(None) if numbers is None else numbers)
        except (FileError, StoreError):
            raise
        except PermissionError as error:
            raise NoPermission(path=error.filename) from error
        except Exception as error:  # whatever any codec raises is damage here
            text = f"{name} is damaged ({error}): `nec verify` says where"
            raise FileError(text) from error
        digests = [(n, manifest.digest_of(some.values())) for n, some in shards.items() if some]
        if digests:
            for where, what, _ in manifest.differing(name, array, state, digests):
                raise FileError(f"{where} {what}")
    return values


def _shards_of(array: zarr.Array, numbers: NDArray[np.intp] | None) -> set[int]:
    """The shards of images; all, if it is None."""
    if numbers is None:
        return set(range(len(shard_slices(array))))
    return set((numbers // shard_size(array)).tolist())


def _refuse_unread(
    name: str, array: zarr.Array, state: Any, shards: Mapping[int, Mapping[str, Buffer]]
) -> None:
    """Raise FileError if a shard that was finished is not there, whose values would be fill."""
    for i in sorted(manifest.expected_shards(array, state["shards"][name]) & set(shards)):
        if not shards[i]:
            images = manifest.images_of(shard_slices(array)[i])
            raise FileError(f"{shard_key(array, i)} is lost: {images}: copy the archive again")


def selected(count: int, images: Any) -> Any:
    """The numbers of images that an index of NumPy selects of so many; a slice for None.

    Raises InputError: no such images.
    """
    if images is None:
        return slice(None)
    if isinstance(images, slice):
        return np.arange(*images.indices(count))
    try:
        given = np.asarray(images)
        if given.ndim == 1 and given.dtype.kind in "iu":  # without a list of all images
            if given.size and not -count <= int(given.min()) <= int(given.max()) < count:
                raise IndexError("out of bounds")
            return np.where(given < 0, given.astype(np.intp) + count, given).astype(np.intp)
        numbers = np.arange(count)[images]
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(f"images {images!r} of {count}: {error}") from error
    if not isinstance(numbers, np.ndarray) or numbers.ndim != 1:
        raise InputError(f"images {images!r}: give a slice, a list of whole numbers, or a mask")
    return numbers


def not_valid(group: zarr.Group, limit: int = 5) -> tuple[int, list[tuple[int, str, str]]]:
    """Images that were written and have no embedding.

    Returns:
      Their count; and number, id and reason of the first `limit`.
    """
    if "valid" not in group:
        return 0, []
    valid = array_of(group, "valid")
    bad = ~valid_images(group)
    there = written_shards(valid)
    for i, images in enumerate(shard_slices(valid)):
        if i not in there:
            bad[images] = False
    ids, errors = array_of(group, "id"), array_of(group, "error")
    first = [int(i) for i in np.flatnonzero(bad)[:limit]]
    return int(bad.sum()), [(i, str(ids[i]), str(errors[i])) for i in first]


def array_of(group: zarr.Group, name: str) -> zarr.Array:
    """A member of a group that is an array."""
    node = group[name]
    assert isinstance(node, zarr.Array), name
    return node


def _make(store: Any, plan: Plan) -> zarr.Group:
    shard = plan.shard
    for_grid, for_class = plan.codec.split()
    names = ["id", "label", "valid", "error", "embedding"]
    names += ["class_token"] * (for_class is not None)
    # xarray makes coordinates of the names in `coordinates`, which end at a space.
    listed = [name for name in plan.columns if " " not in name]
    own: dict[str, Any] = {"coordinates": " ".join((*COORDINATES, *listed))}
    own[ATTRIBUTE] = manifest.begun([*names, *plan.columns])
    if plan.codec.refiner is not None:
        own[refiner_array.ATTRIBUTE] = plan.codec.refiner.fingerprint.hex()
    try:
        group = zarr.create_group(store, attributes={**plan.attributes, **own})
    except (ContainsGroupError, ContainsArrayError) as error:
        raise OutputError("there is a Zarr group or array in this store: choose another") from error
    if plan.codec.refiner is not None:
        refiner_array.write_array(group, plan.codec.refiner)

    def add(name: str, dimensions: Sequence[str], shape: Sequence[int], **settings) -> None:
        group.create_array(
            name,
            shape=(plan.count, *shape),
            chunks=settings.pop("chunks", (shard, *shape)),
            dimension_names=("image", *dimensions),
            **settings,
        )

    # With a checksum: Zstandard alone decodes damaged bytes to other values.
    small = {"compressors": [ZstdCodec(), Crc32cCodec()]}
    add("id", (), (), dtype=str, **small)
    add("label", (), (), dtype="int32", fill_value=-1, **small)
    add("valid", (), (), dtype="bool", fill_value=False, **small)
    add("error", (), (), dtype=str, **small)
    floats = {"dtype": "float32", "fill_value": np.nan, "compressors": None}
    shape = (*plan.grid, plan.codec.channels)
    whole = {"chunks": (1, *shape), "shards": (shard, *shape), "serializer": NecCodec(for_grid)}
    add("embedding", ("y", "x", "channel"), shape, **floats, **whole)
    if for_class is not None:
        add("class_token", ("channel",), shape[2:], **floats, serializer=NecCodec(for_class))
    for name, dtype in plan.columns.items():
        image_columns.make(group, name, dtype, plan.count, shard, **small)
    return group


def _check_shards(arrays: Mapping[str, zarr.Array], first: int = 0) -> None:
    """Raise FileError unless each shard, from one on, is written, with all valid embeddings."""
    coded = [name for name in ("embedding", "class_token") if name in arrays]
    present = {name: written_shards(arrays[name]) for name in (*coded, "valid")}
    for i, part in list(enumerate(shard_slices(arrays["valid"])))[first:]:
        images = manifest.images_of(part)
        if i not in present["valid"]:
            raise FileError(f"{images} are not written: `valid` has no shard {i}")
        marks = zarr_nodes.read(arrays["valid"], part)
        for name in coded:
            if marks.any() and i not in present[name]:
                raise FileError(f"{images} are not written: `{name}` has no shard {i}")
        there = np.zeros_like(marks)
        if i in present["embedding"]:
            there = images_in(arrays["embedding"], i)[: len(marks)]
        if (bad := np.flatnonzero(there != marks)).size:
            text = "is valid, and has no embedding"
            if there[bad[0]]:
                text = "has an embedding, and is not marked valid"
            raise FileError(f"image {part.start + bad[0]} {text}")


def images_in(embedding: zarr.Array, number: int) -> NDArray[np.bool_]:
    """Which images a shard of embeddings holds, from its index (offsets, lengths, CRC-32C).

    Raises FileError if the index is not at the end of the shard: the shard was cut short.
    """
    size = 16 * shard_size(embedding) + 4
    name = shard_key(embedding, number)
    get = embedding.store_path.store.get
    index = sync(get(name, default_buffer_prototype(), SuffixByteRequest(size)))
    data = b"" if index is None else index.to_bytes()
    return index_of(data, shard_size(embedding), name, "write its images again")[:, 0] != EMPTY
