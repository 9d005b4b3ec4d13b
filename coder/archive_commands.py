"""What `python -m coder` does with an archive, or with any Zarr group or array."""

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr

from coder.errors import FileError
from coder.zarr_codec import nec_codec

Region = tuple[slice, ...]


def info(options: argparse.Namespace) -> int:
    """Print arrays, sizes and codecs."""
    total, images = 0, 0
    for name, array in _arrays(options.file):
        stored = array.nbytes_stored()
        total += stored
        names = getattr(array.metadata, "dimension_names", None) or ("",) * array.ndim
        dimensions = ", ".join(f"{n} {s}" for n, s in zip(names, array.shape, strict=True))
        print(f"{name}: {_type(array)} ({dimensions}), {stored:,} bytes stored")
        shape = array.shards or array.chunks
        of = "shards" if array.shards else "chunks"
        print(f"  {_written(array)} of {_count(array)} {of} of {list(shape)} written", end="")
        print(f", read in chunks of {list(array.chunks)}" if array.shards else "")
        codec = nec_codec(array)
        if codec is not None:
            images = max(images, array.shape[0])
            print(
                f"  nec codec {codec.fingerprint[:4].hex()}: {codec.channels} channels, "
                f"{len(codec.tables)} tables, rate {codec.rate_index}, {codec.codec_bytes:,} bytes"
            )
    print(f"{total:,} bytes in all arrays{f', {total / images:.1f} an image' * (images > 0)}")
    return 0


def verify(options: argparse.Namespace) -> int:
    """Read everything; name what is damaged."""
    damaged = 0
    for name, array in _arrays(options.file):
        chunks = 0
        for shard in _regions(array.shape, array.shards or array.chunks):
            inner = list(_regions(array.shape, array.chunks, shard))
            chunks += len(inner)
            if _error(array, shard) is None:
                continue
            bad = [(part, error) for part in inner if (error := _error(array, part))]
            damaged += len(bad)
            for part, error in bad:
                print(f"{name}{_text(part)}: {error}", file=sys.stderr)
        missing = _count(array) - _written(array)
        note = (
            f", {missing} of {_count(array)} not stored: they are all fill value" if missing else ""
        )
        print(f"{name}: {chunks:,} chunks read{note}")
    print(f"{damaged} damaged chunks" if damaged else "good: no damage")
    return 1 if damaged else 0


def decode(options: argparse.Namespace) -> int:
    """Write each array as .npy, a shard at a time."""
    options.out.mkdir(parents=True, exist_ok=True)
    for name, array in _arrays(options.file):
        path = options.out / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        if array.dtype.kind not in "biuf":
            # Text of any length becomes text of one length, which needs no pickle.
            np.save(path, np.array([str(text) for text in np.ravel(array[...])]))
        elif array.size:
            out = np.lib.format.open_memmap(path, "w+", array.dtype, array.shape)
            for region in _regions(array.shape, array.shards or array.chunks):
                out[region] = array[region]
            out.flush()
        print(f"{path}: {_type(array)} {list(array.shape)}")
    return 0


def _arrays(path: Path) -> list[tuple[str, zarr.Array]]:
    try:
        node = zarr.open(path, mode="r")
    except FileNotFoundError as error:
        raise FileError("a folder without a Zarr array or group") from error
    if isinstance(node, zarr.Array):
        return [(node.basename or path.stem, node)]
    return sorted((name, a) for name, a in node.members(None) if isinstance(a, zarr.Array))


def _regions(shape: tuple[int, ...], parts: tuple[int, ...], within=None) -> Iterator[Region]:
    """Pieces of that shape of an array, or of a region of it; smaller at the end."""
    bounds = within or tuple(slice(0, size) for size in shape)
    axes = [
        [
            slice(start, min(start + part, bound.stop))
            for start in range(bound.start, bound.stop, part)
        ]
        for bound, part in zip(bounds, parts, strict=True)
    ]
    yield from itertools.product(*axes)


def _error(array: zarr.Array, region: Region) -> Exception | None:
    try:
        array[region]
    except Exception as error:  # whatever any codec of any array raises is damage here
        return error
    return None


def _count(array: zarr.Array) -> int:
    return len(list(_regions(array.shape, array.shards or array.chunks)))


def _written(array: zarr.Array) -> int:
    # zarr counts a shard as all the chunks it may hold.
    whole = math.prod(array.shards or array.chunks)
    return array.nchunks_initialized * math.prod(array.chunks) // whole


def _type(array: zarr.Array) -> str:
    return str(array.dtype) if array.dtype.kind in "biuf" else "text"


def _text(region: Region) -> str:
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in region) + "]"
