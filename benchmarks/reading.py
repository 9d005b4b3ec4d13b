"""How fast embeddings of an archive are read, beside reading the images as JPEG 2000.

    python -m benchmarks.reading FOLDER [--model nec-vit-ti] [--images 2000] [--rounds 5]

Encodes images to an archive, and writes the same images as JPEG 2000 (OpenJPEG), without loss and
with a peak signal-to-noise ratio of 40 dB, at the side that the model takes. Reads both on one
thread: one at random places in a new reader and in an open one, and all in order. Prints the median
over rounds, which alternate, and the bytes of all files. Whoever has images still has to run the
encoder.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np

import coder
import nec_jax
from nec_jax.archiving import encode_archive
from nec_jax.images.size_rule import fit_to
from nec_jax.sources import at_most, open_source

_SINGLE = 64  # images that are read one by one


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="data set, as for nec encode")
    parser.add_argument("--model", default="nec-vit-ti")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    params = nec_jax.load(options.model)
    source = at_most(open_source(options.folder), options.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encode_archive(params, source, folder / "archive.zarr")
        sides, count = params.config.image_size, len(source)
        kinds = {"JPEG 2000, lossless": 0, "JPEG 2000, 40 dB": 40}
        for kind, decibels in kinds.items():
            (folder / kind).mkdir()
            for i in range(count):
                pixels = fit_to(source[i]["image"], sides)
                data = imagecodecs.jpeg2k_encode(pixels, level=decibels, reversible=not decibels)
                (folder / kind / f"{i}.jp2").write_bytes(data)
        readers: dict[str, Callable[[], Callable[[int], object]]] = {
            "archive": lambda: coder.open(folder / "archive.zarr").__getitem__,
            **{kind: lambda kind=kind: _decoder(folder / kind) for kind in kinds},
        }
        scans: dict[str, Callable[[], object]] = {
            "archive": lambda: _scan(folder / "archive.zarr"),
            **{kind: lambda kind=kind: _all(_decoder(folder / kind), count) for kind in kinds},
        }
        found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in readers}
        for _ in range(options.rounds):
            for kind in readers:
                found[kind].append(_measured(readers[kind], scans[kind], count))
        print(f"{count:,} images of {sides} px")
        print("| | bytes per image | first, ms | another, ms | images per second |")
        print("| --- " + "| ---: " * 4 + "|")
        for kind, rounds in found.items():
            place = folder / ("archive.zarr" if kind == "archive" else kind)
            size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file()) / count
            first, other, scan = map(statistics.median, zip(*rounds, strict=True))
            print(f"| {kind} | {size:,.0f} | {1e3 * first:.2f} | {1e3 * other:.2f} | {scan:,.0f} |")


def _measured(
    reader: Callable[[], Callable[[int], object]], scan: Callable[[], object], count: int
) -> tuple[float, float, float]:
    """Seconds to the first image of a new reader, to another one, and images per second of all."""
    places = np.random.default_rng(0).integers(0, count, _SINGLE).tolist()
    start = time.perf_counter()
    read = reader()
    read(places[0])
    first = time.perf_counter() - start
    times = []
    for place in places[1:]:
        start = time.perf_counter()
        read(place)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    scan()
    return first, statistics.median(times), count / (time.perf_counter() - start)


def _decoder(folder: Path) -> Callable[[int], object]:
    return lambda i: imagecodecs.jpeg2k_decode((folder / f"{i}.jp2").read_bytes(), numthreads=1)


def _all(read: Callable[[int], object], count: int) -> None:
    for i in range(count):
        read(i)


def _scan(archive: Path) -> None:
    embeddings = coder.open(archive)
    for start in range(0, len(embeddings), 256):
        embeddings.read(slice(start, start + 256))


if __name__ == "__main__":
    main()
