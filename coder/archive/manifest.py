"""The record of an archive: the shards that it must hold, and what is lost or changed."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import zarr
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync

from coder.archive.zarr_codec import nec_codec
from coder.archive.zarr_nodes import key, members, names, places, settled, stored
from coder.errors import FileError

ATTRIBUTE = "nec_archive"
VERSION = 1
_EARLIER = ("embedding", "id", "label")  # in archives of all versions
COORDINATES = ("id", "label", "valid", "error")
"""The arrays that are coordinates, before the columns; listed in an attribute of the group."""
_EARLIER_COORDINATES = "id label"
_WRITTEN = ("embedding", "class_token", "id")  # and in these, every shard was written
DIGITS = 8  # of a shard's digest: the first 4 bytes of a SHA-256, as of a blob's codec
_AT_ONCE = 8  # shards that are read at once for their digests


class Lost(NamedTuple):
    """A part that an archive must hold and that is not in its store."""

    key: str  # of what is lost, relative to the group
    what: str
    array: str  # its name


def begun(arrays: Iterable[str]) -> dict[str, Any]:
    """The initial state of an archive with these arrays, which is being written."""
    return {"version": VERSION, "state": "writing", "shards": {name: [] for name in arrays}}


def completed(
    arrays: Mapping[str, zarr.Array], before: Mapping[str, Any] | None = None, first: int = 0
) -> dict[str, Any]:
    """The state of an archive whose shards are all there. Reads them, for their digests.

    Args:
      arrays: its arrays, by name.
      before: its state before shards from `first` on were written; those before are not read.
      first: the number of the first shard to read.
    """
    found = {}
    for name, array in arrays.items():
        kept = _recorded(name, before) if before is not None and "sha256" in before else {}
        kept = {number: one for number, one in kept.items() if number < first}
        numbers = None if not kept else set(range(first, len(shard_slices(array))))
        found[name] = kept | dict(_digests(array, numbers))
    return {
        "version": VERSION,
        "state": "complete",
        "shards": {name: ranges_of(set(own)) for name, own in found.items()},
        "sha256": {name: "".join(own.values()) for name, own in found.items()},
    }


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
        listed = str(group.attrs.get("coordinates")).split(" ")
        is_own = tuple(listed[: len(COORDINATES)]) == COORDINATES
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
            if not re.fullmatch(f"[0-9a-f]{{{DIGITS * count}}}", text):
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
    if state is None and not is_earlier(group, arrays):
        return
    others = list(_of_others(arrays))
    yield from others
    if others:  # the record is about other arrays
        return
    if state is not None:
        required, what = set(state["shards"]), "is lost"
    else:
        # Whether there were class tokens, only what is left of them says.
        required = {*_EARLIER, *({"class_token"} & {*arrays, *names(group)})}
        what = "is not stored (lost, or never written)"
    for name in sorted(required):
        if name not in arrays:
            yield Lost(f"{name}/zarr.json", "is lost, and with it the whole array", name)
            continue
        array, parts = arrays[name], shard_slices(arrays[name])
        if state is not None:
            expected = expected_shards(array, state["shards"][name])
        else:
            expected = set(range(len(parts))) if name in _WRITTEN else set()
        is_whole = len(expected) == len(parts)
        if name == "valid" and state and state["state"] == "complete" and not is_whole:
            text = (
                f"says that {len(expected)} of {len(parts)} shards of `valid` were written: it was "
                "copied or resized by another program, which must call coder.archive.finish"
            )
            yield Lost("zarr.json", text, name)
        for i in sorted(expected - written_shards(array)):
            yield Lost(shard_key(array, i), f"{what}: {images_of(parts[i])}", name)


def _of_others(arrays: Mapping[str, zarr.Array]) -> Iterator[Lost]:
    """Arrays whose number of images is not that of the ids: of another archive, or resized."""
    if "id" not in arrays:
        return
    count = arrays["id"].shape[0]
    for name, array in sorted(arrays.items()):
        dimensions = getattr(array.metadata, "dimension_names", None) or ("",)
        is_own = dimensions[0] == "image" or name in ("class_token", "embedding", *COORDINATES)
        if is_own and (own := array.shape[0]) != count:
            text = f"has {own} images, and `id` has {count}: one is of another archive, or resized"
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
    if has_digests(name, state):
        yield from differing(name, array, state, _digests(array, numbers))


def has_digests(name: str, state: Mapping[str, Any] | None) -> bool:
    """Whether the record has digests of the shards of an array."""
    return state is not None and state["state"] == "complete" and name in state.get("sha256", {})


def differing(
    name: str,
    array: zarr.Array,
    state: Mapping[str, Any] | None,
    digests: Iterable[tuple[int, str]],
) -> Iterator[Lost]:
    """The shards, of these numbers and digests, that are not those that were finished."""
    assert state is not None
    recorded, parts = _recorded(name, state), shard_slices(array)
    if max(recorded, default=-1) >= len(parts):  # of another array: `lost` says so
        return
    for number, digest in digests:
        if digest == recorded.get(number):
            continue
        other = next((n for n, one in recorded.items() if one == digest), None)
        then, own = "when the archive was finished", images_of(parts[number])
        if other is not None:
            held = shard_key(array, other)
            what = f"holds what {held} held {then}, {images_of(parts[other])} in place of {own}"
        elif number in recorded:
            what = f"does not hold what it held {then}, {own}"
        else:
            what = f"was not there {then}, for {own}"
        remedy = (
            "copy the archive again; if it was written on purpose, call coder.archive.finish; if "
            "images were added to it, open it again"
        )
        yield Lost(shard_key(array, number), f"{what}: {remedy}", name)


def _recorded(name: str, state: Mapping[str, Any]) -> dict[int, str]:
    """The digest of each shard of an array that has digests, by number, in order."""
    text, ranges = state["sha256"][name], state["shards"][name]
    listed = itertools.chain.from_iterable(range(first, end) for first, end in ranges)
    return {n: text[DIGITS * i : DIGITS * (i + 1)] for i, n in enumerate(listed)}


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
    return ATTRIBUTE not in group.attrs and group.attrs.get("coordinates") == _EARLIER_COORDINATES


def expected_shards(array: zarr.Array, ranges: Iterable[Sequence[int]]) -> set[int]:
    """The shards in ranges [first, end). Raises FileError if the array cannot have them."""
    count, numbers = len(shard_slices(array)), set()
    for first, end in ranges:
        if end > count:
            raise FileError(
                f"{array.path} has {count} shards, and the attribute {ATTRIBUTE} lists {end}: it "
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


def images_of(part: slice) -> str:
    """Consecutive images, as errors name them."""
    return f"images {part.start} to {part.stop - 1}"


def read_shards(array: zarr.Array, numbers: Iterable[int]) -> dict[int, dict[str, Buffer]]:
    """The stored objects of some shards, by number and key. All are read, and none is decoded.

    An array that another program cut in more dimensions has several chunks for some images.
    """
    wanted = set(numbers)
    keys = [(place[0], key(array, place)) for place in places(array) if place[0] in wanted]

    async def read(number: int, name: str) -> tuple[int, str, Buffer | None]:
        return number, name, await array.store_path.store.get(name, default_buffer_prototype())

    found: dict[int, dict[str, Buffer]] = {number: {} for number in sorted(wanted)}
    with settled():
        for number, name, data in sync(concurrent_map(keys, read, limit=_AT_ONCE)):
            if data is not None:
                found[number][name] = data
    return found


def digest_of(chunks: Iterable[Buffer]) -> str:
    """The digest of a shard, whose stored bytes these are.

    A CRC would not do: a blob, and a chunk with a checksum, ends with its own CRC, and the CRC of
    such data is the same number for all of them.
    """
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk.to_bytes())
    return sha.hexdigest()[:DIGITS]


def _digests(array: zarr.Array, numbers: set[int] | None = None) -> list[tuple[int, str]]:
    """The number of each stored shard, in order, and the digest of its bytes."""
    found = sorted(p for p in stored(array) if numbers is None or p[0] in numbers)
    shards = [(n, [*chunks]) for n, chunks in itertools.groupby(found, lambda place: place[0])]

    async def digest(number: int, chunks: Iterable[tuple[int, ...]]) -> tuple[int, str]:
        data = []
        for place in chunks:
            one = await array.store_path.store.get(key(array, place), default_buffer_prototype())
            if one is None:  # deleted since it was listed
                raise FileError(f"{key(array, place)} is being written, or was deleted: try again")
            data.append(one)
        return number, digest_of(data)

    with settled():
        return sync(concurrent_map(shards, digest, limit=_AT_ONCE))


def ranges_of(numbers: set[int]) -> list[list[int]]:
    """Numbers as rising ranges [first, end)."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] += 1
        else:
            ranges.append([number, number + 1])
    return ranges
