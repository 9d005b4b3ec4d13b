"""Make, open and check archives: what an archive must hold, and whether it does."""

import asyncio
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store, SuffixByteRequest
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError, ContainsGroupError
from zarr.storage import StorePath

from coder import files
from coder.archive.lock import locked
from coder.archive.zarr_codec import NecCodec, nec_codec
from coder.archive.zarr_nodes import (
    about_store,
    check_readable,
    is_empty,
    key,
    local_path,
    members,
    names,
    open_node,
    place,
    read,
    stored,
)
from coder.arrays import as_grid, check_whole
from coder.codecs import OneQualityCodec
from coder.errors import CodecError, FileError, InputError, NoPermission, OutputError

SHARD = 256
ATTRIBUTE = "nec_archive"
VERSION = 1
_OWN = (ATTRIBUTE, "coordinates")
_EARLIER = ("embedding", "id", "label")  # in archives of all versions
_COORDINATES = ("id label", "id label valid error")  # their attribute, earlier and now
_WRITTEN = ("embedding", "class_token", "id")  # and in these, every shard was written
NOT_STORED = "is not stored (lost, or never written)"
_MOST = 1 << 16  # images per shard, whose index is read as a whole
_DIGITS = 8  # of a shard's digest: the first 4 bytes of a SHA-256, as of a blob's codec
_AT_ONCE = 8  # shards that are read at once for their digests
_EMPTY = 2**64 - 1  # the offset of a chunk that a shard does not hold


class Lost(NamedTuple):
    """A part that an archive must hold and that is not in its store."""

    key: str  # of what is lost, relative to the group
    what: str
    array: str  # its name


def even_shard(count: int, most: int = SHARD) -> int:
    """The number of images per shard, at most `most`, such that the last shard is nearly full.

    Raises InputError if `count` or `most` is below 1.
    """
    count, most = check_whole("count", count), check_whole("shard", most)
    shards = -(-count // most)
    return -(-count // shards)


def check_one_quality(codec: Any) -> None:
    """Raise CodecError unless this is a codec of one quality."""
    if not isinstance(codec, OneQualityCodec):
        raise CodecError("an archive has one quality: cut one out of the codec, codec.at(quality)")


def check_store(store: Any) -> None:
    """Raises OutputError for a store in which nothing can be written again, as a zip file."""
    if isinstance(store, StorePath):
        store = store.store
    if not isinstance(store, Store):
        return
    if not store.supports_deletes:
        raise OutputError(
            f"{type(store).__name__} deletes nothing, and an archive's record is written again "
            "when it is complete: write a folder (give its path), and zip that; it can be read so"
        )
    if store.read_only:
        raise OutputError("a store that is open for reading alone: open it for writing")


def create(
    store: Any,
    codec: OneQualityCodec,
    count: int,
    grid: tuple[int, int],
    *,
    shard: int | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> zarr.Group:
    """Make an archive in a Zarr store or path. Assign to its arrays, then call `finish`.

    Args:
      store: a path, or a store of zarr; there must be nothing in it. None of a zip file: write a
        folder, and zip that.
      codec: of one quality; may code a class token or not.
      count: images.
      grid: tokens (height, width) of every image.
      shard: images per shard, the smallest part to write at once; None for `even_shard(count)`.
      attributes: further attributes of the group, as JSON.

    Raises:
      CodecError: a codec of several qualities.
      InputError: no images, shards of none, more tokens in a grid, or images in a shard of class
        tokens, than the codec takes, attributes that are not JSON; nothing is made.
      OutputError: there is something in the store, it cannot be written again, or another process
        makes or writes it.
    """
    store = place(store)
    path = local_path(store)
    if path is None:
        return create_locked(store, codec, count, grid, shard, attributes)
    with about_store(store), locked(path):
        return create_locked(store, codec, count, grid, shard, attributes)


def create_locked(
    store: Any,
    codec: OneQualityCodec,
    count: int,
    grid: tuple[int, int],
    shard: int | None,
    attributes: Mapping[str, Any] | None,
) -> zarr.Group:
    """`create`, for a caller that holds the lock of the folder."""
    check_store(store)
    attributes = check_attributes(attributes)
    check_one_quality(codec)
    count = check_whole("count", count)
    shard = even_shard(count) if shard is None else check_whole("shard", shard, 1, _MOST)
    height, width = as_grid(grid)
    if height * width > codec.max_tokens:
        raise InputError(
            f"a grid of {height} x {width}: this codec takes {codec.max_tokens} tokens"
        )
    if codec.class_token and shard > codec.max_tokens:
        raise InputError(
            f"the class tokens of a shard of {shard} images are one blob, and this codec takes "
            f"{codec.max_tokens} tokens: give a smaller shard"
        )
    settings = (codec, count, (height, width), shard, attributes)
    path = local_path(store)
    if path is None:
        return _make(store, *settings)
    if path.exists() and not is_empty(path):
        raise OutputError(
            "exists: choose another place, or delete it first. A coder.archive.Writer goes on with "
            "an archive that is not complete"
        )
    # Whole or not at all; a folder that is there may be empty.
    with files.writing_folder(path, overwrite=is_empty(path)) as part:
        _make(part, *settings)
    return zarr.open_group(store, mode="r+")


def open_archive(store: Any) -> zarr.Group:
    """Open a complete archive for reading; `store` may be an open group.

    Raises:
      NoPermission: (a FileError) a part of it may not be read.
      FileError: not an archive of images, one that is still being written, or one that lost a
        part. Archives of earlier versions do not list what they must hold: there, a shard of
        embeddings, class tokens or ids that is not stored was lost or never written. No shard is
        read: `read_array` and `python -m coder verify` check the content of shards.
    """
    store = place(store)
    group = open_node(store)
    with about_store(store):
        if not isinstance(group, zarr.Group):
            raise FileError("a Zarr array, not an archive: give the group that holds it")
        arrays, damaged = members(group)
        if damaged:
            name, error = next(iter(damaged.items()))
            raise FileError(f"{name} cannot be opened: {error}")
        state = read_state(group)
        if state is None and not is_earlier(group, arrays):
            raise FileError("not an archive of images: it has no embedding, label and id")
        if state and state["state"] == "writing":
            raise FileError(progress(arrays))
        for array in arrays.values():
            check_readable(array)
        for where, what, _ in lost(group, arrays, state):
            raise FileError(f"{where} {what}: copy the archive again, or write it again")
    return group


def finish(group: zarr.Group) -> None:
    """Mark an archive as complete, after checking that all its parts are there.

    Reads all shards once, for their digests, and takes their present content as correct; decodes no
    embedding. Call it again after writing to a complete archive: until then, readers refuse what
    was written.

    Args:
      group: the group of `create`, open for writing; of every shard, `valid` and all valid images
        must be written.

    Raises:
      FileError: something is missing; the message names it.
    """
    with about_store(group.store):
        arrays, damaged = members(group)
        for name, error in damaged.items():
            raise FileError(f"{name} cannot be opened: {error}")
        state = read_state(group)
        if state is None:
            raise FileError("not an archive, or one of an earlier version")
        for name in state["shards"]:
            if name not in arrays:
                raise FileError(f"{name}/zarr.json is lost, and with it the whole array")
            check_readable(arrays[name])
        present = {name: written_shards(arrays[name]) for name in state["shards"]}
        _check_shards(arrays, present)
        digests = {name: dict(_digests(arrays[name])) for name in state["shards"]}
        new = {
            "version": VERSION,
            "state": "complete",
            "shards": {name: _ranges(set(found)) for name, found in digests.items()},
            "sha256": {name: "".join(found.values()) for name, found in digests.items()},
        }
        if new != state:
            group.attrs[ATTRIBUTE] = new


def read_state(group: zarr.Group) -> dict[str, Any] | None:
    """The state that an archive records; None if it is no archive, or of an earlier version.

    Returns:
      `state`: "writing" or "complete". `shards`: for each required array, the ranges [first, end)
      of shards that must exist. `sha256`, if known: for each array, the digests of these shards,
      concatenated.

    Raises:
      FileError: the record is damaged, or of a newer version.
    """
    if ATTRIBUTE not in group.attrs:
        is_own = group.attrs.get("coordinates") == _COORDINATES[-1]
        if is_own or {"embedding", "valid", "error"} <= set(members(group)[0]):
            raise FileError(f"its attribute {ATTRIBUTE} is lost: copy the archive again")
        return None
    data: Any = group.attrs[ATTRIBUTE]
    version = data.get("version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise FileError(f"an archive of version {version}, this reads {VERSION}: update nec-jax")
    try:
        if version != VERSION or data["state"] not in ("writing", "complete"):
            raise ValueError(f"version {version}, state {data.get('state')}")
        for ranges in data["shards"].values():
            for first, end in ranges:
                if not (type(first) is type(end) is int and 0 <= first < end):
                    raise ValueError(f"shards {first} to {end}")
        if "sha256" in data and set(data["sha256"]) != set(data["shards"]):
            raise ValueError("digests of other arrays")
        for name, text in data.get("sha256", {}).items():
            count = sum(end - first for first, end in data["shards"][name])
            if not re.fullmatch(f"[0-9a-f]{{{_DIGITS * count}}}", text):
                raise ValueError(f"digests of {name}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"its attribute {ATTRIBUTE} is damaged: {error}") from error
    return data


def lost(
    group: zarr.Group, arrays: Mapping[str, zarr.Array], state: Mapping[str, Any] | None
) -> Iterator[Lost]:
    """The parts that an archive must hold and does not; reads no shard.

    Args:
      group: the archive, or any group.
      arrays: the arrays of the group that can be opened, by name.
      state: the result of `read_state`; None for an archive of an earlier version, or another
        group.
    """
    earlier = state is None and is_earlier(group, arrays)
    if state is not None or earlier:
        others = list(_of_others(arrays))
        yield from others
        if others:  # what is recorded is of other arrays
            return
    if earlier:
        listed = names(group)
        for name in (*_EARLIER, "class_token"):
            # Whether there were class tokens, only what is left of them says.
            if name not in arrays and (name in _EARLIER or name in listed):
                yield Lost(f"{name}/zarr.json", "is lost, and with it the whole array", name)
        for name in (name for name in _WRITTEN if name in arrays):
            array = arrays[name]
            parts = shard_slices(array)
            for i in sorted(set(range(len(parts))) - written_shards(array)):
                yield Lost(shard_key(array, i), f"{NOT_STORED}: {_images(parts[i])}", name)
    for name, ranges in sorted((state or {"shards": {}})["shards"].items()):
        array = arrays.get(name)
        if array is None:
            yield Lost(f"{name}/zarr.json", "is lost, and with it the whole array", name)
            continue
        parts = shard_slices(array)
        expected = expected_shards(array, ranges)
        if (
            state
            and state["state"] == "complete"
            and name == "valid"
            and len(expected) < len(parts)
        ):
            text = (
                f"says that {len(expected)} of {len(parts)} shards of `valid` were written: it was "
                "copied or resized by another program, which must call coder.archive.finish"
            )
            yield Lost("zarr.json", text, name)
        for i in sorted(expected - written_shards(array)):
            yield Lost(shard_key(array, i), f"is lost: {_images(parts[i])}", name)


def _of_others(arrays: Mapping[str, zarr.Array]) -> Iterator[Lost]:
    """Arrays whose number of images is not that of the ids: of another archive, or resized."""
    if "id" not in arrays:
        return
    count = arrays["id"].shape[0]
    for name in ("class_token", "embedding", "error", "label", "valid"):
        if name in arrays and arrays[name].shape[0] != count:
            text = f"has {arrays[name].shape[0]} images, and `id` has {count}: it is not its array"
            yield Lost(f"{name}/zarr.json", text, name)


def changed(
    name: str, array: zarr.Array, state: Mapping[str, Any] | None, numbers: set[int] | None = None
) -> Iterator[Lost]:
    """The shards of an array whose content has changed since the archive was finished.

    Yields nothing for shards without a recorded digest. Reads all bytes of the stored shards.

    Args:
      name: name of the array.
      state: the result of `read_state`.
      numbers: the shards to check; None for all.
    """
    if state is None or state["state"] != "complete" or name not in state.get("sha256", {}):
        return
    text, parts = state["sha256"][name], shard_slices(array)
    places = [n for first, end in state["shards"][name] for n in range(first, end)]
    if places and places[-1] >= len(parts):  # of another array: `lost` says so
        return
    recorded = {n: text[_DIGITS * i : _DIGITS * (i + 1)] for i, n in enumerate(places)}
    for number, digest in _digests(array, numbers):
        if digest == recorded.get(number):
            continue
        other = next((n for n in places if recorded[n] == digest), None)
        then, own = "when the archive was finished", _images(parts[number])
        if other is not None:
            held = shard_key(array, other)
            what = f"holds what {held} held {then}, {_images(parts[other])} in place of {own}"
        elif number in recorded:
            what = f"does not hold what it held {then}, {own}"
        else:
            what = f"was not there {then}, for {own}"
        remedy = "copy the archive again; if it was written on purpose, call coder.archive.finish"
        yield Lost(shard_key(array, number), f"{what}: {remedy}", name)


def is_earlier(group: zarr.Group, arrays: Mapping[str, zarr.Array]) -> bool:
    """Whether a group without state, with these arrays, is an archive of an earlier version.

    Decided by its arrays. If some are lost, by its attribute together with what is left of its
    embeddings or class tokens, since xarray writes such an attribute too.
    """
    if set(_EARLIER) <= set(arrays):
        return True
    coded = any(nec_codec(array) for array in arrays.values())
    return may_be_earlier(group) and (coded or "embedding" in names(group))


def may_be_earlier(group: zarr.Group) -> bool:
    """Whether a group's attributes are those of an earlier version's archive."""
    return ATTRIBUTE not in group.attrs and group.attrs.get("coordinates") == _COORDINATES[0]


def expected_shards(array: zarr.Array, ranges: Iterable[Sequence[int]]) -> set[int]:
    """The shards in ranges [first, end). Raises FileError if the array cannot have them."""
    count, numbers = len(shard_slices(array)), set()
    for first, end in ranges:
        if end > count:
            raise FileError(
                f"{array.path} has {count} shards, and the attribute {ATTRIBUTE} is of {end}: it "
                "is a part of an archive, or another program changed it, which must call "
                "coder.archive.finish; or the attribute is damaged"
            )
        numbers.update(range(first, end))
    return numbers


def progress(arrays: Mapping[str, zarr.Array]) -> str:
    """The progress of an archive whose state is "writing", as text."""
    text = "still being written, or its writer was stopped"
    if "embedding" not in arrays or "valid" not in arrays:
        return text
    # Shards without a valid image have no embeddings: what is written last says what is done.
    there, count = len(written_shards(arrays["valid"])), len(shard_slices(arrays["valid"]))
    return f"{text}: {there} of {count} shards of `embedding` are there; run the writer again"


def written_shards(array: zarr.Array) -> set[int]:
    """The numbers of the shards of the first dimension that are in the store."""
    return {place[0] for place in stored(array)}


def shard_key(array: zarr.Array, number: int) -> str:
    """The key of a shard of the first dimension."""
    return key(array, (number, *(0,) * (array.ndim - 1)))


def shard_slices(array: zarr.Array) -> list[slice]:
    """The images of each shard."""
    size, count = shard_size(array), array.shape[0]
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def shard_size(array: zarr.Array) -> int:
    """Images per shard, or per chunk."""
    return (array.shards or array.chunks)[0]


def valid_images(group: zarr.Group) -> NDArray[np.bool_]:
    """Which images have an embedding: bool [images]; all, in archives of earlier versions."""
    if "valid" in group:
        return read_array(group, "valid")
    return np.ones(array_of(group, "embedding").shape[0], np.bool_)


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
        with about_store(group.store):
            raise InputError(f"{text}, in {use.sum()} images: give an archive of labelled images")
    return use, labels


def read_array(group: zarr.Group, name: str) -> NDArray[Any]:
    """Read a whole array of an archive; floats of images that are not valid are NaN.

    Raises FileError if it is damaged, or if a shard has changed since the archive was finished.
    """
    array = array_of(group, name)
    try:
        values = read(array)
    except PermissionError as error:
        raise NoPermission(path=error.filename) from error
    except Exception as error:  # whatever any codec raises is damage here
        with about_store(group.store):
            text = f"{name} is damaged ({error}): `python -m coder verify` says where"
            raise FileError(text) from error
    with about_store(group.store):
        for where, what, _ in changed(name, array, read_state(group)):
            raise FileError(f"{where} {what}")
    if name in ("embedding", "class_token"):
        values[~valid_images(group)] = np.nan
    return values


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


def begun(arrays: Iterable[str]) -> dict[str, Any]:
    """The initial state of an archive with these arrays, which is being written."""
    return {"version": VERSION, "state": "writing", "shards": {name: [] for name in arrays}}


def array_of(group: zarr.Group, name: str) -> zarr.Array:
    """A member of a group that is an array."""
    node = group[name]
    assert isinstance(node, zarr.Array), name
    return node


def check_attributes(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Attributes as they will be read. Raises InputError if JSON cannot hold them."""
    for name in _OWN:
        if name in (attributes or {}):
            raise InputError(f"the attribute {name} is the archive's own: choose another name")
    try:
        return json.loads(json.dumps(dict(attributes or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"attributes that are not JSON: {error}") from error


def _make(
    store: Any,
    codec: OneQualityCodec,
    count: int,
    grid: tuple[int, int],
    shard: int,
    attributes: Mapping[str, Any],
) -> zarr.Group:
    for_grid, for_class = codec.split()
    own_names = ["id", "label", "valid", "error", "embedding"]
    own_names += ["class_token"] * (for_class is not None)
    own = {
        # xarray reads this, and makes them coordinates.
        "coordinates": "id label valid error",
        ATTRIBUTE: begun(own_names),
    }
    try:
        group = zarr.create_group(store, attributes={**attributes, **own})
    except (ContainsGroupError, ContainsArrayError) as error:
        raise OutputError("there is a Zarr group or array in this store: choose another") from error

    def add(name: str, dimensions: Sequence[str], shape: Sequence[int], **settings) -> None:
        group.create_array(
            name,
            shape=(count, *shape),
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
    shape = (*grid, codec.channels)
    whole = {"chunks": (1, *shape), "shards": (shard, *shape), "serializer": NecCodec(for_grid)}
    add("embedding", ("y", "x", "channel"), shape, **floats, **whole)
    if for_class is not None:
        add("class_token", ("channel",), shape[2:], **floats, serializer=NecCodec(for_class))
    return group


def _check_shards(arrays: Mapping[str, zarr.Array], present: Mapping[str, set[int]]) -> None:
    """Raise FileError unless each shard is written, with all valid embeddings."""
    valid, embedding = arrays["valid"], arrays["embedding"]
    for i, part in enumerate(shard_slices(valid)):
        images = _images(part)
        if i not in present["valid"]:
            raise FileError(f"{images} are not written: `valid` has no shard {i}")
        marks = read(valid, part)
        for name in ("embedding", "class_token"):
            if name in arrays and marks.any() and i not in present[name]:
                raise FileError(f"{images} are not written: `{name}` has no shard {i}")
        there = np.zeros_like(marks)
        if i in present["embedding"]:
            there = _in_shard(embedding, i)[: len(marks)]
        if (bad := np.flatnonzero(there != marks)).size:
            text = "is valid, and has no embedding"
            if there[bad[0]]:
                text = "has an embedding, and is not marked valid"
            raise FileError(f"image {part.start + bad[0]} {text}")


def _images(part: slice) -> str:
    return f"images {part.start} to {part.stop - 1}"


def _in_shard(embedding: zarr.Array, number: int) -> NDArray[np.bool_]:
    """Which images a shard of embeddings holds, from its index (offsets, lengths, CRC-32C)."""
    size = 16 * shard_size(embedding) + 4
    name = shard_key(embedding, number)
    get = embedding.store_path.store.get
    index = sync(get(name, default_buffer_prototype(), SuffixByteRequest(size)))
    data = b"" if index is None else index.to_bytes()
    if len(data) != size:
        raise FileError(f"{name} is cut short")
    return np.frombuffer(data[:-4], "<u8")[::2] != _EMPTY


def _digests(array: zarr.Array, numbers: set[int] | None = None) -> Iterator[tuple[int, str]]:
    """The number of each stored shard, in order, and the digest of its bytes.

    A CRC would not do: a blob, and a chunk with a checksum, ends with its own CRC, and the CRC of
    such data is the same number for all of them.
    """
    places = sorted(p for p in stored(array) if numbers is None or p[0] in numbers)
    get = array.store_path.store.get

    async def some(part: Sequence[tuple[int, ...]]) -> list[Any]:
        prototype = default_buffer_prototype()
        return await asyncio.gather(*(get(key(array, one), prototype) for one in part))

    def contents() -> Iterator[tuple[int, bytes]]:
        for i in range(0, len(places), _AT_ONCE):
            part = places[i : i + _AT_ONCE]
            for one, data in zip(part, sync(some(part)), strict=True):
                yield one[0], b"" if data is None else data.to_bytes()

    # An array that another program cut in more dimensions has several chunks for some images.
    for number, chunks in itertools.groupby(contents(), lambda one: one[0]):
        sha = hashlib.sha256()
        for _, data in chunks:
            sha.update(data)
        yield number, sha.hexdigest()[:_DIGITS]


def _ranges(numbers: set[int]) -> list[list[int]]:
    """Numbers as rising ranges [first, end)."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] += 1
        else:
            ranges.append([number, number + 1])
    return ranges
