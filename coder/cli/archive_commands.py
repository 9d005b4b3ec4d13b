"""The commands for an archive, or for any Zarr group or array."""

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from coder import files
from coder.archive import (
    contents,
    image_columns,
    manifest,
    refiner_array,
    zarr_nodes,
)
from coder.archive.zarr_codec import nec_codec, refined
from coder.cli import codec_names, refiner_facts, scene_facts
from coder.cli.arguments import Decode, Info, Verify
from coder.errors import (
    FileError,
    InputError,
    NoPermission,
    OutputError,
    StoreError,
    one_line,
)
from coder.fitting import StatedError
from coder.refiner import Refiner, load_refiner
from coder.scenes import scene_layout

Region = tuple[slice, ...]
_UNKNOWN = "completeness unknown: written by an earlier version"
_UNPLACED = "whether each shard is in its place is unknown: finished by an earlier version"


class _Opened(NamedTuple):
    """A store, and what is wrong with it before anything is read.

    Attributes:
      group: the archive, if it is one.
      scene: the scene, if it is one.
      state: of `manifest.read_state`.
      arrays: those that can be opened.
      problems: what cannot be opened or is lost, a line each.
      lost: keys of shards that are lost, or may not be read.
      unreadable: keys of files and folders that may not be read.
      changed: of shards that are not those that were finished, by key; filled when they are read.
      refiner: that of the archive; None if there is none, it is damaged, or nobody asked for it.
    """

    path: Path | str  # or a URL
    group: zarr.Group | None
    scene: zarr.Group | None
    state: dict[str, Any] | None
    arrays: dict[str, zarr.Array]
    problems: list[str]
    lost: set[str]
    unreadable: set[str]
    changed: dict[str, str]
    refiner: Refiner | None

    @property
    def kind(self) -> str:
        if self.scene is not None:
            return "scene"
        return "zarr" if self.group is None else "archive"

    @property
    def whole(self) -> zarr.Group | None:
        """The archive or scene. (`group or scene` would list its members to count them.)"""
        return self.scene if self.group is None else self.group

    @property
    def unfinished(self) -> bool:
        state = self.state if self.scene is None else scene_layout.state_of(self.scene)
        return state is not None and state["state"] == "writing"


def run(options: Info) -> tuple[int, dict[str, Any]]:
    """Run one of the commands below; where it is stopped, zarr's reading is too."""
    with zarr_nodes.settled():
        if isinstance(options, Decode):
            return decode(options)
        return verify(options) if isinstance(options, Verify) else info(options)


def info(options: Info) -> tuple[int, dict[str, Any]]:
    """Print arrays, sizes, codecs and lost parts. The status is 1 if anything is lost."""
    opened = _open(options.file)
    total, images, found = 0, 0, {}
    for name, array in sorted(opened.arrays.items()):
        stored = array.nbytes_stored()
        total += stored
        if opened.scene is not None and name.rpartition("/")[2] not in scene_layout.OF_CELLS:
            continue  # coordinates, which are told in words
        names = getattr(array.metadata, "dimension_names", None) or ("",) * array.ndim
        pairs = zip(names, array.shape, strict=True)
        dimensions = ", ".join(f"{n or ''} {s}".strip() for n, s in pairs)
        print(f"{name}: {_type(array)} ({dimensions}), {stored:,} bytes stored")
        of = "shards" if array.shards else "chunks"
        inside = f"{array.path}/".lstrip("/")
        is_known = not any(f"{key}/".startswith(inside) for key in opened.unreadable)
        whole, written = zarr_nodes.count(array), len(zarr_nodes.stored(array))
        inner = f", read in chunks of {list(array.chunks)}" if array.shards else ""
        sides = list(array.shards or array.chunks)
        there = written if is_known else "unknown which"
        print(f"  {there} of {whole} {of} of {sides} written{inner}")
        found[name] = {"dtype": _type(array), "shape": array.shape, "stored_bytes": stored}
        found[name] |= {of: whole, f"{of}_written": written if is_known else None}
        if (codec := nec_codec(array)) is not None:
            # The first side of a raster, of vectors or of times counts no images.
            is_of_images = array.ndim == 4 and opened.scene is None
            images = max(images, array.shape[0] if is_of_images else 0)
            fingerprint, size = codec.fingerprint.hex(), codec.codec_bytes
            print(
                f"  coded by nec: {codec.channels} channels, {len(codec.tables)} tables, "
                f"{size:,} bytes for these"
            )
            found[name] |= {"fingerprint": fingerprint, "quality": codec.quality}
            found[name]["codec_bytes"] = size
    facts = _origin(opened) | _codec(opened, options.codec) | _stated(opened)
    if opened.refiner is not None:
        group = opened.whole
        assert group is not None
        own = zarr.open_array(group.store_path / refiner_array.ARRAY, mode="r")
        total += own.nbytes_stored()
        print(refiner_facts.line(opened.refiner))
        facts["refiner"] = refiner_facts.facts(opened.refiner)
    per_image = f", {total / images:.1f} per image" if images else ""
    print(f"{total:,} bytes in all arrays{per_image}")
    facts |= {"arrays": found, "stored_bytes": total}
    if images:
        facts["bytes_per_image"] = total / images
    return _ended(opened, facts, bool(opened.problems))


def _origin(opened: _Opened) -> dict[str, Any]:
    """Print what made an archive of `nec encode`; empty for others."""
    names = ("model_name", "model_sha256", "codec", "quality", "image_size", "written_by")
    attributes: Any = {} if opened.group is None else opened.group.attrs
    made = {name: attributes.get(name) for name in names}
    if None in made.values():
        return {}
    print(
        f"made by {made['model_name']} (SHA-256 {str(made['model_sha256'])[:8]} of its file) from "
        f"images of {made['image_size']} px; {made['written_by']}"
    )
    left_out = attributes.get("files_left_out")
    if isinstance(left_out, dict) and (count := left_out.get("unreadable")):
        made["files_left_out"] = left_out
        print(f"image files that could not be read, and have no windows in it: {count}")
    if (sources := attributes.get("copied_from")) is not None:
        made["copied_from"] = sources
        made["copied_from_quality"] = attributes.get("copied_from_quality")
        print(
            f"copied from {', '.join(map(str, sources))}, of quality {made['copied_from_quality']}"
        )
    if opened.group is not None and (added := contents.appended(opened.group)):
        made["appended"] = [
            {name: one.get(name) for name in ("archive", "images")} for one in added
        ]
        listed = ", ".join(f"{one['images']:,} of {one['archive']}" for one in made["appended"])
        print(f"images that were added: {listed}")
    return {"made_by": made}


def _codec(opened: _Opened, given: Path | None) -> dict[str, Any]:
    """Print by which codec and quality the arrays are coded.

    Raises InputError if it is not the given one.
    """
    arrays = sorted(opened.arrays.items(), reverse=True)  # embeddings before class tokens
    parts = [codec for _, array in arrays if (codec := nec_codec(array)) is not None]
    if not parts:
        return {}
    named = codec_names.of_arrays(parts, given)
    attributes: Any = {} if opened.group is None else opened.group.attrs
    recorded = str(attributes.get("codec", ""))
    if named is None and given is not None:
        raise InputError("was not coded by this codec: give the codec or model that made it", given)
    if named is not None:
        print(named)
        recorded = named.codec.fingerprint.hex()
    elif recorded:
        print(f"codec {recorded[:8]}, quality {parts[0].quality}")
    else:
        print(f"quality {parts[0].quality} of a codec {codec_names.UNKNOWN}")
    return {"codec": recorded or None, "quality": parts[0].quality}


def _stated(opened: _Opened) -> dict[str, Any]:
    """Print what coding lost, if `nec encode` stated it."""
    nodes = [opened.whole, *opened.arrays.values()]
    held = (node.attrs.get(zarr_nodes.ERROR) for node in nodes if node is not None)
    error = StatedError.from_json(next((one for one in held if one is not None), None))
    if error is None:
        return {}
    print(f"stated when it was encoded: {error}")
    return {"error": error.to_json()}


def verify(options: Verify) -> tuple[int, dict[str, Any]]:
    """Read everything; name damaged, lost and unwritten parts. The status is 1 if there are any."""
    opened = _open(options.file)
    _look_for_changes(opened)
    valid = _valid(opened)
    damaged, other = 0, 0
    for name, array in sorted(opened.arrays.items()):
        for path, text, count in _faults(opened, name, array, valid):
            damaged += count
            other += count == 0
            print(f"{path}: {text}", file=sys.stderr)
        shards = _to_read(opened, array)
        chunks = sum(_chunks_in(array, shard) for _, shard in shards)
        whole, note = zarr_nodes.count(array), ""
        missing = whole - len(zarr_nodes.stored(array))
        if missing and opened.state is None and opened.scene is None:
            note = f", {missing} of {whole} not stored: they are all fill value"
            if len(shards) < whole:
                note = f", {missing} of {whole} shards are not stored (lost, or never written)"
        print(f"{name}: {chunks:,} chunks read{note}")
    if opened.refiner is not None:
        print(f"{refiner_facts.line(opened.refiner)}, read")
    counts = {
        "damaged chunks": damaged,
        "shards that are not those that were finished": other,
        "parts lost or unreadable": len(opened.problems),
    }
    wrong = [f"{count} {what}" for what, count in counts.items() if count]
    wrong += ["not finished"] * opened.unfinished
    facts = {"good": not wrong, "damaged_chunks": damaged, "changed_shards": other}
    if opened.refiner is not None:
        facts["refiner"] = refiner_facts.facts(opened.refiner)
    ended = _ended(opened, facts, bool(wrong))
    if opened.unfinished and opened.scene is None:
        print(f"{opened.path}: {manifest.progress(opened.arrays)}", file=sys.stderr)
    print(", ".join(wrong) or "good: no damage")
    return ended


def decode(options: Decode) -> tuple[int, dict[str, Any]]:
    """Write each array as .npy, shard by shard; no file unless all arrays can be decoded."""
    opened = _open(options.file, plain=True)
    if opened.scene is not None and options.out.suffix.lower() in (".tif", ".tiff"):
        raise InputError(
            "a folder of .npy files is written; `nec export` makes a GeoTIFF", options.out
        )
    if opened.problems:
        _print_problems(opened)
        return 1, {"kind": opened.kind, "problems": opened.problems}
    if opened.unfinished:
        raise FileError(manifest.progress(opened.arrays))
    # An archive's errors are text of any length, and nearly all empty: they stay in it.
    names = sorted(set(opened.arrays) - ({"error"} if opened.state else set()))
    paths = {name: options.out / f"{name}.npy" for name in names}
    if isinstance(options.file, Path):
        source, out = options.file.resolve(), options.out.resolve()
        if source in (out, *out.parents):
            raise OutputError(f"lies inside the input {options.file}: choose another", options.out)
    if not options.out.is_dir():
        files.check_output(options.out, folder=True)
    for path in paths.values():
        if path.parent.is_dir():
            files.check_output(path, overwrite=options.overwrite)
    marks = opened.arrays["valid"] if opened.state else None
    valid = None if marks is None else _read(opened, "valid", marks, _whole(marks), None)
    refiner = _refiner(opened, options)
    _look_for_changes(opened)
    if opened.changed:
        for name in paths:
            _refuse_faults(opened, name, valid)
    refiners = {name: refiner for name in names if _is_refined(opened.arrays[name], refiner)}
    inputs = [options.refiner] if options.refiner else []
    with files.writing_all(overwrite=options.overwrite, inputs=inputs) as writing:
        for name, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with writing(path) as file:
                _write_npy(opened, name, valid, refiners.get(name), file)
    written = {}
    for name, path in paths.items():
        array, used = opened.arrays[name], refiners.get(name)
        note = "" if used is None else f", refined by {used.fingerprint[:4].hex()}"
        print(f"{path}: {_type(array)} {list(array.shape)}{note}")
        written[str(path)] = {"dtype": _type(array), "shape": array.shape}
        if used is not None:
            written[str(path)]["refiner"] = used.fingerprint.hex()
    return _ended(opened, {"files": written}, wrong=False)


def _refiner(opened: _Opened, options: Decode) -> Refiner | None:
    """What to refine by; None if nobody asks for it.

    Raises:
      InputError: the archive has no refiner, or --refiner serves none of the arrays.
      FileError: the refiner is damaged, lost or another file.
    """
    if options.refiner is not None:
        refiner = load_refiner(options.refiner)
    elif not options.refine:
        return None
    elif (group := opened.whole) is None or not refiner_array.own_members(group):
        raise InputError("holds no refiner: give one with --refiner")
    else:
        refiner = refiner_array.read_refiner(group)
    if not any(_is_refined(array, refiner) for array in opened.arrays.values()):
        text = f"the refiner belongs to another codec than those of {options.file}"
        raise InputError(text, options.refiner or options.file)
    return refiner


def _is_refined(array: zarr.Array, refiner: Refiner | None) -> bool:
    codec = nec_codec(array)
    return refiner is not None and codec is not None and codec.is_served_by(refiner)


def _open(path: Path | str, plain: bool = False) -> _Opened:
    """Open a store; with `plain`, the refiner of an archive is not looked at."""
    node, refiner = zarr_nodes.open_node(path), None
    if isinstance(node, zarr.Array):
        last = path.resolve().name if isinstance(path, Path) else path.rpartition("/")[2]
        name = node.basename or last.removesuffix(".zarr")
        group, scene, state, arrays, damaged = None, None, None, {name: node}, {}
    else:
        arrays, damaged = zarr_nodes.members(node, but=refiner_array.own_members(node))
        state = manifest.read_state(node)
        group = node if state or manifest.is_earlier(node, arrays) else None
        scene = node if scene_layout.state_of(node) else None
    if scene is not None:
        damaged |= (unlike := scene_layout.unlike(scene, arrays))
        arrays = {name: array for name, array in arrays.items() if name not in unlike}
    hidden = {name: zarr_nodes.unreadable(array) for name, array in arrays.items()}
    problems = [(name, f"cannot be opened: {one_line(error)}") for name, error in damaged.items()]
    if isinstance(node, zarr.Group):
        problems += [
            one
            for one in manifest.lost(node, arrays, state)
            if one.array not in damaged and not hidden.get(one.array)
        ]
        named = {f"{where.removesuffix('/zarr.json')}" for where, *_ in problems}
        for name in sorted({*zarr_nodes.outdated(node, arrays)} - named):
            text = (
                "is not what zarr.json holds as a copy (consolidated metadata, for xarray): copy "
                "the archive again; if it was changed on purpose, call coder.archive.finish"
            )
            problems.append((f"{name}/zarr.json", text))
        if scene is not None:
            of_scene = [*scene_layout.lost(scene), *scene_layout.misplaced(scene)]
            problems += [one for one in of_scene if one[0] not in named]
        if group is None and manifest.may_be_earlier(node):
            print(f"no archive, or one that lost its embeddings: {_UNKNOWN}")
        is_known = group is not None or scene is not None
        if is_known and refiner_array.own_members(node) and not plain:
            try:
                refiner = refiner_array.read_refiner(node)
            except FileError as error:
                name = refiner_array.ARRAY
                problems.append((name, str(error.args[0]).removeprefix(f"{name} ")))
    unreadable = {name for name, error in damaged.items() if isinstance(error, NoPermission)}
    no_shards: set[str] = set()
    for name, array in arrays.items():
        if here := hidden[name]:
            unreadable.update(here)
            problems += [(key, str(NoPermission())) for key in here]
            keys = (zarr_nodes.key(array, place) for place in zarr_nodes.places(array))
            no_shards |= {k for k in keys if any(f"{k}/".startswith(f"{one}/") for one in here)}
        problems += [(key, "is an empty file") for key in zarr_nodes.empty_keys(array)]
        if not here:
            problems += [(key, "is lost: copy the array again") for key in zarr_nodes.lost(array)]
    if not any(nec_codec(array) for array in arrays.values()):
        print("holds no array of the nec codec")
    lines = [f"{problem[0]} {problem[1]}" for problem in problems]
    gone = {problem[0] for problem in problems} | no_shards
    return _Opened(path, group, scene, state, arrays, lines, gone, unreadable, {}, refiner)


def _look_for_changes(opened: _Opened) -> None:
    """Fill `changed` for a finished archive or scene; reads all its bytes."""
    if opened.scene is not None:
        opened.changed.update(scene_facts.changes(opened.scene, opened.arrays))
        return
    for name, array in opened.arrays.items():
        places = [place for place in zarr_nodes.places(array) if place]
        gone = {place[0] for place in places if zarr_nodes.key(array, place) in opened.lost}
        numbers = {place[0] for place in places} - gone
        found = manifest.changed(name, array, opened.state, numbers)
        opened.changed.update((where, what) for where, what, _ in found)


def _ended(opened: _Opened, facts: dict[str, Any], wrong: bool) -> tuple[int, dict[str, Any]]:
    """Print what the archive holds and lost; return the status, and the facts with these too."""
    whole = {"kind": opened.kind} | facts
    if opened.scene is not None:
        is_whole = not (opened.problems or opened.changed or opened.unfinished)
        whole |= scene_facts.described(opened.scene, is_whole)
    whole |= _print_archive(opened)
    _print_problems(opened)
    return int(wrong), whole | {"problems": opened.problems}


def _print_archive(opened: _Opened) -> dict[str, Any]:
    """Print one line about an archive, and one for each of the first images not valid."""
    group, arrays = opened.group, opened.arrays
    if group is None:
        return {}
    if opened.unfinished:
        state = contents.ADDING if contents.is_in_last_step(group) else manifest.progress(arrays)
    elif opened.unreadable:
        state = "unknown whether whole: parts may not be read"
    elif opened.problems or opened.changed:
        state = "not whole"
    elif opened.state is None:
        state = _UNKNOWN
    else:
        state = "complete" if "sha256" in opened.state else f"complete; {_UNPLACED}"
    try:
        valid = contents.valid_images(group)
        bad, first = contents.not_valid(group)
        labels = int((zarr_nodes.read(arrays["label"]) >= 0).sum())
    except (NoPermission, StoreError):
        raise
    except Exception as error:  # of damaged or lost arrays, which are named elsewhere
        print(f"archive: {state}; images cannot be counted: {one_line(error)}")
        return {"state": state}
    known = opened.state is not None
    if opened.unfinished:
        print(f"archive: {valid.size:,} images, {valid.sum():,} valid so far; {state}")
    else:
        good = f"{valid.sum():,} valid" if known else "valid unknown"
        print(f"archive: {valid.size:,} images, {good}, {labels:,} labelled; {state}")
    for number, name, error in first:
        print(f"  image {number}, {name}, is not valid: {error}")
    if bad > len(first):
        print(f"  and {bad - len(first):,} more: the array `error` says why")
    counts = {"images": valid.size, "labelled": labels, "state": state}
    return counts | ({"valid": int(valid.sum())} if known else {})


def _print_problems(opened: _Opened) -> None:
    for problem in opened.problems:
        print(f"{opened.path}: {problem}", file=sys.stderr)


def _valid(opened: _Opened) -> np.ndarray | None:
    """Which images are valid; None if unknown or unreadable."""
    if opened.state is not None and "valid" in opened.arrays:
        try:
            return zarr_nodes.read(opened.arrays["valid"])
        except (NoPermission, StoreError):
            raise
        except Exception:  # named when the array itself is read
            return None
    return None


def _marks(array: zarr.Array, valid: np.ndarray | None) -> np.ndarray | None:
    """Which images are valid, if an array holds their embeddings; else None."""
    is_own = valid is not None and nec_codec(array) is not None and len(valid) == array.shape[0]
    return valid if is_own else None


def _to_read(opened: _Opened, array: zarr.Array) -> list[tuple[str, Region]]:
    """Keys and regions of the shards, or chunks, that are not known to be missing."""
    sizes, there = array.shards or array.chunks, zarr_nodes.stored(array)
    regions = zip(zarr_nodes.places(array), _regions(array.shape, sizes), strict=True)
    keys = (
        (zarr_nodes.key(array, p), r) for p, r in regions if p in there or not opened.unfinished
    )
    return [(key, region) for key, region in keys if key not in opened.lost]


def _faults(
    opened: _Opened,
    name: str,
    array: zarr.Array,
    valid: np.ndarray | None,
    within: Region = (),
) -> Iterator[tuple[str, str, int]]:
    """What is wrong with shards of an array: a path, the reason, and how many chunks are damaged.

    Reads all of them, or those of a row of shards if `within` is one. No chunk is damaged in a
    shard that is not the one that was finished.
    """
    for key, shard in _to_read(opened, array):
        if within and within[0] not in (shard[0], _whole(array)[0]):
            continue
        changed = opened.changed.get(key)
        # Another's shard would also lack embeddings that are valid here.
        found = list(_damage(array, shard, None if changed else _marks(array, valid)))
        for region, error, count in found:
            yield f"{opened.path}/{key}", f"{name}{_text(region)}: {error}", count
        if changed and not found:
            yield f"{opened.path}", f"{key} {changed}", 0


def _refuse_faults(
    opened: _Opened, name: str, valid: np.ndarray | None, within: Region = ()
) -> None:
    """Raise FileError for the first fault of an array, or of one row of its shards."""
    for path, text, _ in _faults(opened, name, opened.arrays[name], valid, within):
        raise FileError(text, path)


def _damage(
    array: zarr.Array, shard: Region, valid: np.ndarray | None
) -> Iterator[tuple[Region, str, int]]:
    """Regions of a shard that cannot be read, the reason, and their number of chunks."""
    inner = _regions(array.shape, array.chunks, shard)
    try:
        values = zarr_nodes.read(array, shard)
    except (NoPermission, StoreError):
        raise
    except Exception as whole:  # whatever any codec of any array raises is damage here
        bad = [(part, one_line(error)) for part in inner if (error := _error(array, part))]
        if len(bad) in (0, len(inner)) and len({error for _, error in bad}) <= 1:
            yield shard, one_line(whole), len(inner)
        else:
            yield from ((part, error, 1) for part, error in bad)
        return
    for i in _not_stored(values, valid, shard):
        region = (slice(shard[0].start + i, shard[0].start + i + 1), *shard[1:])
        yield region, "the image is marked valid, and its embedding is not stored", 1


def _not_stored(values: np.ndarray, valid: np.ndarray | None, region: Region) -> list[int]:
    """Images of a region that are marked valid but have no values."""
    if valid is None:
        return []
    empty = np.isnan(values.reshape(len(values), -1)).any(1)
    return [int(i) for i in np.flatnonzero(empty & valid[region[0]])]


def _write_npy(
    opened: _Opened, name: str, valid: np.ndarray | None, refiner: Refiner | None, file: Any
) -> None:
    """Write an array as .npy, one row of shards at a time, refined if there is a refiner."""
    array = opened.arrays[name]
    rows, valid = (array.shards or array.chunks)[:1], _marks(array, valid)
    bands = _regions(array.shape[:1], rows) if math.prod(array.shape) else []

    def values(band: Region) -> np.ndarray:
        part = _read(opened, name, array, band + _whole(array)[1:], valid)
        if is_text:
            return np.array([str(text) for text in part.flat])
        return image_columns.values_of(array, part)

    is_text = _type(array) == "text"
    dtype = image_columns.values_of(array, np.empty(0, array.dtype)).dtype
    if is_text:
        # Text of any length becomes text of one length, which needs no pickle.
        longest = max((values(band).dtype.itemsize // 4 for band in bands), default=1)
        dtype = np.dtype(f"<U{longest}")
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for band in bands:
        part = values(band)
        if valid is not None:
            part[~valid[band[0]]] = np.nan
        if refiner is not None:
            _refine(part, array, refiner)
        file.write(np.ascontiguousarray(part, dtype).tobytes())


def _refine(part: np.ndarray, array: zarr.Array, refiner: Refiner) -> None:
    """Refine whole rows of chunks in place, each chunk as the embedding that its blob holds."""
    codec = nec_codec(array)
    assert codec is not None
    for region in _regions(part.shape, array.chunks):
        part[region] = refined(part[region], codec, refiner, array.fill_value)


def _read(
    opened: _Opened, name: str, array: zarr.Array, region: Region, valid: np.ndarray | None
) -> np.ndarray:
    """A region of whole shards. Raises FileError, which names the first chunk that is damaged."""
    try:
        values = zarr_nodes.read(array, region)
    except (NoPermission, StoreError):
        raise
    except Exception as error:
        _refuse_faults(opened, name, valid, region)
        raise FileError(f"{name}{_text(region)}: {one_line(error)}") from error
    if _not_stored(values, valid, region):
        _refuse_faults(opened, name, valid, region)
    return values


def _regions(shape: tuple[int, ...], parts: tuple[int, ...], within=None) -> list[Region]:
    """Divide an array, or a region of it, into pieces of a shape; smaller at the end."""
    bounds = within or tuple(slice(0, size) for size in shape)
    axes = [
        [
            slice(start, min(start + part, bound.stop))
            for start in range(bound.start, bound.stop, part)
        ]
        for bound, part in zip(bounds, parts, strict=True)
    ]
    return list(itertools.product(*axes))


def _error(array: zarr.Array, region: Region) -> Exception | None:
    try:
        zarr_nodes.read(array, region)
    except (NoPermission, StoreError):
        raise
    except Exception as error:
        return error
    return None


def _chunks_in(array: zarr.Array, region: Region) -> int:
    """How many chunks a shard of an array has, whose region this is."""
    sides = (part.stop - part.start for part in region)
    return math.prod(-(-n // size) for n, size in zip(sides, array.chunks, strict=True))


def _whole(array: zarr.Array) -> Region:
    return tuple(slice(0, side) for side in array.shape)


def _type(array: zarr.Array) -> str:
    if image_columns.is_time(array):
        return "datetime64[us]"
    return "text" if array.dtype.kind in "OTU" else str(array.dtype)


def _text(region: Region) -> str:
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in region) + "]"
