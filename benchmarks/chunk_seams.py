"""Seams between the chunks in which a scene's embeddings are coded, and filters against them.

    python -m benchmarks.chunk_seams [--dubai FOLDER]

Codes latents of Blue Marble and, with --dubai, of Dubai in chunks, at several qualities. Prints two
tables for each in Markdown, which docs/results/scenes.md explains: chunks as they are decoded, and
after two filters across the borders of chunks.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

import nec_jax
from benchmarks.scene_images import Latents, marble, mosaics, whole
from coder.codecs import OneQualityCodec
from coder.scenes.scene_layout import CHUNK
from nec_jax.scene_encoding.tiles import windows_of

PARTS = 3  # of a data set
QUALITIES = (4, 7, 10, 12, 14, 16)
FILTERED = (7, 10, 12)
DEEP = CHUNK // 4  # cells from a border from which a cell is deep within its chunk
HEAD = "lost variance | seam ratio | jump there | within | error at borders |"

Filter = Callable[[OneQualityCodec, Latents], Latents]


@dataclass
class Options:
    dubai: Path | None = None
    model: str = "nec-vit-ti"
    pixels: int = 1024  # largest side of a mosaic of Dubai


def chunks_of(y: Latents, corner: tuple[int, int] = (0, 0)) -> Iterator[tuple[slice, slice]]:
    """The whole chunks of a grid that is cut from a corner on."""
    sides = ((side - start) // CHUNK for side, start in zip(y.shape[:2], corner, strict=True))
    for place in np.ndindex(*sides):
        starts = [start + CHUNK * one for start, one in zip(corner, place, strict=True)]
        yield slice(starts[0], starts[0] + CHUNK), slice(starts[1], starts[1] + CHUNK)


def coded(codec: OneQualityCodec, y: Latents) -> tuple[Latents, int]:
    """Latents as they are decoded from chunks, and the bytes of these."""
    decoded, size = np.empty_like(y), 0
    for part in chunks_of(y):
        blob = codec.encode(y[part].reshape(CHUNK**2, -1), (CHUNK, CHUNK))
        decoded[part] = codec.decode(blob).reshape(CHUNK, CHUNK, -1)
        size += len(blob)
    return decoded, size


def mean_of_shifts(codec: OneQualityCodec, decoded: Latents) -> Latents:
    """The mean of the latents and of what they become in chunks that are shifted by half a side.

    The method of Nosratinia (2001), "Enhancement of JPEG-compressed images by re-application of
    JPEG".
    """
    total = decoded.astype(np.float64)
    for corner in ((0, CHUNK // 2), (CHUNK // 2, 0), (CHUNK // 2, CHUNK // 2)):
        again = decoded.copy()
        for part in chunks_of(decoded, corner):
            q = codec.quantise(decoded[part].reshape(CHUNK**2, -1), (CHUNK, CHUNK))
            again[part] = codec.dequantise(q, (CHUNK, CHUNK)).reshape(CHUNK, CHUNK, -1)
        total += again
    return (total / 4).astype(np.float32)


def blended(codec: OneQualityCodec, decoded: Latents) -> Latents:
    """Latents whose jumps at borders are halved, as far as they are above those beside them.

    One cell on either side takes a quarter of the jump.
    """
    result = decoded.copy()
    for axis in (0, 1):
        y = np.moveaxis(result, axis, 0)
        for border in range(CHUNK, len(y), CHUNK):
            beside = (y[border + 1] - y[border] + y[border - 1] - y[border - 2]) / 2
            excess = y[border] - y[border - 1] - beside
            y[border] -= excess / 4
            y[border - 1] += excess / 4
    return result


def row(name: str, ys: list[Latents], found: list[Latents]) -> None:
    """Print a row of a table: the latents that were found, against those that were coded."""
    ratios = [seam_ratio(one, CHUNK, worst=False) for one in found]
    within_before = np.array([jumps_of(one)[1] for one in ys])
    there, within = np.mean([jumps_of(one) for one in found] / within_before[:, None], axis=0)
    errors = [np.square(one - y).sum(-1) for one, y in zip(found, ys, strict=True)]
    variance = sum(float(np.square(y - y.mean((0, 1))).sum()) for y in ys)
    lost = sum(float(error.sum()) for error in errors) / variance
    at_border = ""
    if lost:
        depths = [depth(error.shape) for error in errors]
        sums = [
            sum(e[where].sum() for e, where in pairs) / sum(where.sum() for _, where in pairs)
            for pairs in (
                [(e, d == 0) for e, d in zip(errors, depths, strict=True)],
                [(e, d >= DEEP) for e, d in zip(errors, depths, strict=True)],
            )
        ]
        at_border = f"{sums[0] / sums[1]:.2f}"
    print(
        f"| {name} | {100 * lost:.1f} % | {np.mean(ratios):.2f} ± {np.std(ratios):.2f} | "
        f"{there:.2f} | {within:.2f} | {at_border} |",
        flush=True,
    )


def seam_ratio(y: Latents, core: int, worst: bool) -> float:
    """Mean jump between neighbours where cores meet, over that within cores.

    Args:
      y: latents of a scene.
      core: side of the cores.
      worst: take the place in the core with the largest mean jump, not its border.
    """
    sums, counts = np.zeros(core), np.zeros(core)
    for axis in (0, 1):
        jumps = np.linalg.norm(np.diff(y, axis=axis), axis=-1)
        places = (np.arange(jumps.shape[axis]) + 1) % core
        np.add.at(sums, places, jumps.mean(1 - axis))
        np.add.at(counts, places, 1)
    means = sums / counts
    border = int(means.argmax()) if worst else 0
    return float(means[border] / np.delete(means, border).mean())


def depth(shape: tuple[int, int]) -> NDArray[np.int64]:
    """How many cells of its chunk lie between each cell and the nearest border."""
    places = (np.arange(side) % CHUNK for side in shape)
    rows, columns = (np.minimum(place, CHUNK - 1 - place) for place in places)
    return np.minimum(rows[:, None], columns)


def jumps_of(y: Latents) -> tuple[float, float]:
    """The mean jump between neighbours where chunks meet, and within chunks."""
    there, within = [], []
    for axis in (0, 1):
        jumps = np.linalg.norm(np.diff(y, axis=axis), axis=-1).mean(1 - axis)
        is_border = (np.arange(len(jumps)) + 1) % CHUNK == 0
        there.append(jumps[is_border])
        within.append(jumps[~is_border])
    return float(np.concatenate(there).mean()), float(np.concatenate(within).mean())


def main(options: Options) -> None:
    """Measure, and print tables."""
    params = nec_jax.load(options.model)
    assert params.codec is not None
    patch, windows = params.config.patch, windows_of(params.config, None, None)
    sets = {"Blue Marble": marble(patch)}
    if options.dubai is not None:
        sets["Dubai"] = mosaics(options.dubai, patch, options.pixels)
    for name, scenes in sets.items():
        ys = [whole(params, scene.image, *windows) for scene in scenes[:PARTS]]
        ys = [y[: len(y) // CHUNK * CHUNK, : y.shape[1] // CHUNK * CHUNK] for y in ys]
        cells = sum(y.shape[0] * y.shape[1] for y in ys)
        codecs = {quality: params.codec.at(quality).split()[0] for quality in QUALITIES}
        found = {q: [coded(codec, y) for y in ys] for q, codec in codecs.items()}
        print(f"\n## {name}\n\n| quality | bytes per cell | {HEAD}\n{'| ---: ' * 7}|")
        row("not coded | 0.00", ys, ys)
        for quality, pairs in found.items():
            size = sum(size for _, size in pairs) / cells
            row(f"{quality} | {size:.2f}", ys, [y for y, _ in pairs])
        print(f"\n| quality | filter | {HEAD}\n| ---: | --- {'| ---: ' * 5}|")
        filters: dict[str, Filter] = {
            "none": lambda codec, y: y,
            "mean of shifts": mean_of_shifts,
            "one cell blended": blended,
        }
        for quality, (told, apply) in itertools.product(FILTERED, filters.items()):
            after = [apply(codecs[quality], y) for y, _ in found[quality]]
            row(f"{quality} | {told}", ys, after)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
