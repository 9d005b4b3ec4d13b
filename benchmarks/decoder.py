"""What a refiner saves, and what it does to the scores of heads, beside the practices.

    python -m benchmarks.decoder errors MODEL --fit ucmerced aid --score ucmerced dubai --out FILE
    python -m benchmarks.decoder cost MODEL --fit ucmerced --score ucmerced --out FILE
    python -m benchmarks.decoder segment MODEL --data dubai --fit ucmerced aid --out FILE
    python -m benchmarks.decoder scenes MODEL --data ucmerced --fit ucmerced --out FILE

MODEL is any model file. Its codec is not used: codecs and refiners are fitted on the grids of
tokens of the training splits of --fit, in units of each channel's standard deviation there. A data
set may have a limit, as `aid:600`. `errors --fit model` is of the codec and the refiner of the
model itself, with its class tokens; the error is that of the grid.

- errors: bytes at equal mean squared error, with and without the refiner, on validation splits.
- cost: the CPU time of decoding and encoding one embedding, plain and with the refiner, in turns:
  the fastest of six rounds over 40 embeddings. Set OPENBLAS_NUM_THREADS=1, for one thread.
- segment: the mean IoU of heads on each token, by leave-one-tile-out. A tile is a folder of
  images, or one of eight bands of longitude of Blue Marble. With `--fit own`, the codec, the
  refiner and the practices are fitted in each fold, on the tiles that the head is trained on.
- scenes: top-1 accuracy of heads on the mean of the tokens' features, from the training split to
  the validation split; with --multilabels FILE, the mean average precision of several labels.

Heads are ridge regressions: "linear" on the features, and "random" on 1,536 random ReLU features of
them. Latents, codecs and refiners are kept in --cache.
"""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import coder
import nec_jax
from benchmarks import token_methods
from coder import QualityLadder
from coder.fitting import fit_for_model
from nec_jax.heads.ridge import signs, token_labels
from nec_jax.images.record import IGNORE
from nec_jax.sources import open_source, spread
from train.data import read_all
from train.studies import common_baselines
from train.studies.scores import Scores, mean_iou
from train.tasks import refine

log = logging.getLogger("benchmarks.decoder")

AT = (60, 75, 150, 330, 557, 800, 1148, 2000)
"""Bytes per image at which savings are shown."""
_STRENGTHS = tuple(10.0**k for k in range(-6, 2))
_RANDOM = 1536
_PER_TILE = 60
_TIMED, _ROUNDS = 40, 6
_MARBLE = "blue-marble"
_PQ = (4, 8, 16, 48)
_VQ = (256, 1024)
_PCA = (8, 32, 96)


@dataclass(frozen=True)
class Embedded:
    """Grids of tokens float16 [N, n, D] with what is known of their images."""

    y: NDArray[np.float16]
    labels: NDArray[np.int64] | None
    masks: NDArray[np.uint8] | None
    ids: list[str]


class Bench:
    """A model, and what is computed with it once."""

    def __init__(self, model: str, cache: Path, steps: int):
        self.params = nec_jax.load(model)
        self.cache, self.steps = cache / Path(model).stem, steps
        self.cache.mkdir(parents=True, exist_ok=True)

    def embedded(self, data: str, *splits: str, class_token: bool = False) -> Embedded:
        """The latents of the images of some splits, with or without class tokens."""
        name, _, limit = data.partition(":")
        config, parts = self.params.config, []
        first = 0 if class_token else int(config.code_class_token)
        for split in splits:
            source = open_source(name, split, chip=config.image_size if name == _MARBLE else None)
            read = read_all(source, config.image_size, limit=int(limit) if limit else None)
            kind = "-class" if class_token else ""
            path = self.cache / f"{Path(name).name}-{split}-{len(read.ids)}{kind}.npy"
            if not path.exists():
                log.info(f"computing latents of {len(read.ids)} images: {name}, {split}")
                y = nec_jax.latents(self.params, read.images)
                np.save(path, y[:, first:].astype(np.float16))
            parts.append((np.load(path), read))
        y, read = zip(*parts, strict=True)
        return Embedded(
            np.concatenate(y),
            _joined([one.labels for one in read]),
            _joined([one.masks for one in read]),
            [name for one in read for name in one.ids],
        )

    def units(self, y: NDArray[np.float16], name: str) -> "Units":
        """A codec with its refiner for these embeddings, kept under a name."""
        folder = self.cache / name
        folder.mkdir(exist_ok=True)
        codec_path, refiner_path = (
            folder / "codec.safetensors",
            folder / f"refiner-{self.steps}.safetensors",
        )
        mean = y.mean((0, 1), dtype=np.float64).astype(np.float32)
        std = np.maximum(y.std((0, 1), dtype=np.float64), 1e-6).astype(np.float32)
        side = grid_of(y)
        scaled = (y - mean) / std
        if not codec_path.exists():
            log.info(f"fitting a codec: {name}, {len(y)} embeddings")
            fit_for_model(scaled.reshape(len(y), *side, -1)).save(codec_path)
        codec = coder.load(codec_path)
        if not refiner_path.exists():
            log.info(f"fitting a refiner: {name}, {len(y)} embeddings")
            refine.fitted(codec, scaled, side, steps=self.steps).save(refiner_path)
        assert isinstance(codec, QualityLadder)
        return Units(mean, std, codec.with_refiner(coder.load_refiner(refiner_path)))

    def own(self) -> "Units":
        """The codec of the model."""
        codec = self.params.codec
        assert isinstance(codec, QualityLadder), "the model has no codec of many qualities"
        assert codec.refiner is not None, "the model has no refiner"
        zero = np.zeros(codec.channels, np.float32)
        return Units(zero, zero + 1, codec, codec.transform.scale)

    def others(self, sets: Sequence[str]) -> tuple["Units", NDArray[np.float32]]:
        """What is fitted to the training splits of some data sets, and their embeddings."""
        y = np.concatenate([self.embedded(one, "train").y for one in sets])
        name = "-".join(Path(one).name.replace(":", "") for one in sets)
        units = self.units(y, name)
        return units, units.of(y)


def _joined(parts: list[NDArray | None]) -> NDArray | None:
    there = [one for one in parts if one is not None]
    return np.concatenate(there) if len(there) == len(parts) else None


@dataclass(frozen=True)
class Units:
    """The units of each channel, and a codec of embeddings in these units.

    `scale` is the unit of error of each channel of what the codec takes.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    codec: QualityLadder
    scale: NDArray[np.float32] | float = 1.0

    def error(self, y_hat: NDArray[np.float32], y: NDArray[np.float32]) -> float:
        """The mean squared error of the tokens of the grid."""
        height, width = grid_of(y)
        differ = ((y_hat - y) / self.scale)[:, -height * width :]
        return float(np.mean(np.square(differ), dtype=np.float64))

    def of(self, y: NDArray[np.floating]) -> NDArray[np.float32]:
        """Embeddings in these units."""
        return (y.astype(np.float32) - self.mean) / self.std

    def decoded(
        self, y: NDArray[np.float32], quality: int, *, for_refiner: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
        """Embeddings [N, n, D] decoded plain and refined, and the bytes of the real blobs."""
        one, grid = self.codec.at(quality), grid_of(y)
        blobs = [one.encode(image, grid, for_refiner=for_refiner) for image in y]
        plain, refined = (
            np.stack([one.decode(blob, refine=refine) for blob in blobs])
            for refine in (False, True)
        )
        return plain, refined, np.array([len(blob) for blob in blobs], float)


Method = tuple[str, str, NDArray[np.float32], NDArray[np.float64]]
"""Name, setting, decoded embeddings [N, n, D], and the bytes of each image."""


def ours(units: Units, y: NDArray[np.float32], qualities: Sequence[int]) -> Iterator[Method]:
    """The transform codec: plain, refined, and encoded for readers that refine."""
    for quality in qualities:
        plain, refined, sizes = units.decoded(y, quality)
        yield "transform", f"quality {quality}", plain, sizes
        yield "transform, refined", f"quality {quality}", refined, sizes
        _, refined, sizes = units.decoded(y, quality, for_refiner=True)
        yield "transform, for refiner", f"quality {quality}", refined, sizes


def practices(y: NDArray[np.float32], train: NDArray[np.float32]) -> Iterator[Method]:
    """What is used otherwise, fitted to training embeddings; the strongest form of each."""

    def method(name: str, setting: str, coded: Any) -> Method:
        return name, setting, coded.values, coded.bytes_per_image.astype(float)

    yield "uncompressed", "float16", y, np.full(len(y), 2.0 * y[0].size)
    for parts in _PQ:
        coded = common_baselines.product_quantised(y, parts, train, zstd=False)
        yield method("PQ", f"{parts} bytes per token", coded)
        coded = token_methods.optimised_pq(y, parts, train)
        yield method("OPQ", f"{parts} bytes per token", coded)
    for words in _VQ:
        coded = token_methods.vector_quantised(y, words, train, grid_of(y))
        yield method("VQ with contexts", f"{words} codewords", coded)
    for count in _PCA:
        coded = common_baselines.pca_int8(y, count, train, zstd=True)
        yield method("PCA + int8", f"{count} components", coded)
    yield method("binary", "1 bit", common_baselines.binary(y, train, zstd=True))


def measured(
    units: Units, y: NDArray[np.float32], train: NDArray[np.float32], options: argparse.Namespace
) -> Iterator[Method]:
    """The transform codec, and the practices if they are asked for."""
    yield from ours(units, y, options.qualities or range(units.codec.num_qualities))
    if options.practices:
        yield from practices(y, train)


def errors(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Bytes at equal mean squared error: two rows for each scored data set.

    Of blobs as they always are, and of those that are encoded for readers that refine.
    """
    rows = []
    own = options.fit == ["model"]
    units = bench.own() if own else bench.others(options.fit)[0]
    for data in options.score:
        y = units.of(bench.embedded(data, "val", class_token=own).y)
        before: Curve | None = None
        for for_refiner in (False, True):
            plain, refined = Curve([], []), Curve([], [])
            for quality in options.qualities or range(units.codec.num_qualities):
                *decoded, sizes = units.decoded(y, quality, for_refiner=for_refiner)
                for curve, y_hat in zip((plain, refined), decoded, strict=True):
                    curve.sizes.append(float(sizes.mean()))
                    curve.errors.append(units.error(y_hat, y))
            before = plain if before is None else before
            row = {"score": data, "for_refiner": for_refiner, "sizes": plain.sizes}
            row |= {"plain": plain.errors, "refined": refined.errors}
            row |= {"saved": saved(before, refined), "saved_plain": saved(before, plain)}
            log.info(
                f"{data}, for_refiner {for_refiner}: {row['saved']}, plain {row['saved_plain']}"
            )
            rows.append(row)
    return rows


def cost(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The time of decoding and encoding: a row for each quality."""
    own = options.fit == ["model"]
    units = bench.own() if own else bench.others(options.fit)[0]
    y = units.of(bench.embedded(options.score[0], "val", class_token=own).y)
    y, rows = y[evenly(np.arange(len(y)), _TIMED)], []
    grid = grid_of(y)
    for quality in options.qualities or range(units.codec.num_qualities):
        one = units.codec.at(quality)
        blobs = [one.encode(image, grid) for image in y]
        calls: dict[str, Callable[[], Any]] = {
            "decode": lambda one=one, blobs=blobs: [one.decode(blob) for blob in blobs],
            "refined": lambda one=one, blobs=blobs: [one.decode(b, refine=True) for b in blobs],
            "encode": lambda one=one: [one.encode(image, grid) for image in y],
            "for_refiner": lambda one=one: [one.encode(i, grid, for_refiner=True) for i in y],
        }
        fastest = dict.fromkeys(calls, float("inf"))
        for _ in range(_ROUNDS):
            for name, call in calls.items():
                start = time.process_time()
                call()
                fastest[name] = min(fastest[name], time.process_time() - start)
        row = {"bytes": float(np.mean([len(blob) for blob in blobs]))}
        row |= {name: 1e3 * seconds / len(y) for name, seconds in fastest.items()}
        log.info(
            f"{row['bytes']:.0f} B: decoding {row['decode']:.2f} ms, refined "
            f"{row['refined'] / row['decode']:.1f} times; encoding {row['encode']:.2f} ms, for "
            f"readers that refine {row['for_refiner'] / row['encode']:.1f} times"
        )
        rows.append(row)
    return rows


class Curve(NamedTuple):
    """Mean bytes and mean squared errors, from quality to quality."""

    sizes: list[float]
    errors: list[float]


def saved(plain: Curve, refined: Curve) -> dict[int, float]:
    """The percentage of bytes that a curve saves at the error of another at AT bytes."""
    found = {}
    for at in AT:
        if plain.sizes[0] <= at <= plain.sizes[-1]:
            error = np.exp(np.interp(np.log(at), np.log(plain.sizes), np.log(plain.errors)))
            logs = np.log(refined.sizes)
            needed = np.exp(np.interp(-np.log(error), -np.log(refined.errors), logs))
            found[at] = round(100 * (1 - float(needed) / at), 1)
    return found


def segment(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The mean IoU by leave-one-tile-out: a row for each method and setting."""
    splits = ("train", "val", "test") if options.data != _MARBLE else ("train", "val")
    data = bench.embedded(options.data, *splits)
    masks = data.masks
    assert masks is not None
    tiles = np.array([tile_of(one) for one in data.ids])
    names = sorted(set(tiles))
    keep = np.concatenate([evenly(np.flatnonzero(tiles == name), _PER_TILE) for name in names])
    latents, masks = data.y[keep], masks[keep]
    tiles = np.array([names.index(tile) for tile in tiles[keep]])
    classes = int(masks[masks != IGNORE].max()) + 1
    scorer = Segmentation(masks, tiles, grid_of(latents), classes)
    if options.fit != ["own"]:
        units, train = bench.others(options.fit)
        y = units.of(latents)
        return [
            scorer.row(method, [method[2]] * len(names))
            for method in measured(units, y, train, options)
        ]
    folds: dict[tuple[str, str], list[tuple[NDArray, NDArray]]] = {}
    for fold, name in enumerate(names):
        mine = latents[tiles != fold]
        units = bench.units(mine, f"{Path(options.data).name}-without-{name}")
        y, train = units.of(latents), units.of(mine)
        for some in measured(units, y, train, options):
            half = some[2].astype(np.float16), some[3]
            folds.setdefault(some[:2], []).append(half)
    return [
        scorer.row((*key, some[0][0], np.mean([one[1] for one in some], 0)), [y for y, _ in some])
        for key, some in folds.items()
    ]


class Segmentation:
    """Ridge regression on tokens, and the mean IoU of each tile that was left out."""

    def __init__(self, masks: NDArray, tiles: NDArray, grid: tuple[int, int], classes: int):
        self.masks, self.tiles, self.grid, self.classes = masks, tiles, grid, classes
        signed = np.where(masks == IGNORE, -1, masks.astype(np.int32))
        self.labels = token_labels(signed, grid, classes).reshape(len(masks), -1)
        self.folds = int(tiles.max()) + 1
        self.up = [bilinear(side, of) for side, of in zip(masks.shape[1:], grid, strict=True)]

    def row(self, method: Method, values: Sequence[NDArray]) -> dict[str, Any]:
        """The scores of a method; `values` has the embeddings [N, n, D] of each fold."""
        name, setting, _, sizes = method
        found = {"method": name, "setting": setting, "bytes": float(sizes.mean())}
        for head, features in HEADS.items():
            counts = [np.zeros((len(self.masks), self.classes), np.int64) for _ in range(2)]
            before, x, sums = None, np.empty(0, np.float32), None
            for fold, y in enumerate(values):
                if before is not y:  # all folds may share their embeddings
                    before, x = y, features(y)
                    sums = self._sums(x)
                here = self.tiles == fold
                predicted = self._predicted(x[here], self._solved(sums, fold, x))
                hits, totals = mean_iou(predicted, self.masks[here], self.classes)
                counts[0][here], counts[1][here] = hits, totals
            scores = [
                Scores(counts[0][None, self.tiles == k], counts[1][None, self.tiles == k])
                for k in range(self.folds)
            ]
            per_tile = [float(one.percent()[0]) for one in scores]
            found[head] = {
                "score": float(np.mean(per_tile)),
                "per_tile": per_tile,
                "hits": counts[0].tolist(),
                "totals": counts[1].tolist(),
                "tiles": self.tiles.tolist(),
            }
        text = ", ".join(f"{head} {found[head]['score']:.1f}" for head in HEADS)
        log.info(f"{name}, {setting}: {found['bytes']:.0f} B, {text}")
        return found

    def _sums(self, x: NDArray[np.float32]) -> list[tuple[NDArray, NDArray, int]]:
        """For each tile: X'X, X'T and the number of tokens."""
        sums = []
        for tile in range(self.folds):
            here = self.tiles == tile
            labels = self.labels[here].ravel()
            some = x[here].reshape(-1, x.shape[2])[labels >= 0]
            targets = signs(labels[labels >= 0], self.classes).astype(np.float32)
            sums.append((some.T @ some, some.T @ targets, len(some)))
        return sums

    def _solved(self, sums: Any, fold: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights [F, K] for a fold; their strength is chosen on the tile after it."""
        held = (fold + 1) % self.folds
        there = self.tiles == held
        labels = self.labels[there].ravel()
        best, chosen = -1.0, _STRENGTHS[0]
        for strength in _STRENGTHS:
            weights = self._ridge(sums, (fold, held), strength)
            guess = (x[there].reshape(-1, x.shape[2]) @ weights).argmax(1)
            right = float(np.mean((guess == labels)[labels >= 0]))
            if right > best:
                best, chosen = right, strength
        return self._ridge(sums, (fold,), chosen)

    def _ridge(self, sums: Any, without: Sequence[int], strength: float) -> NDArray[np.float32]:
        used = [one for i, one in enumerate(sums) if i not in without]
        gram, moments, count = (np.sum(part, axis=0) for part in zip(*used, strict=True))
        gram = gram.astype(np.float64) / count
        gram[np.diag_indices_from(gram)] += strength
        return np.linalg.solve(gram, moments / count).astype(np.float32)

    def _predicted(self, x: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.int64]:
        logits = (x @ weights).reshape(len(x), *self.grid, -1)
        rows, columns = self.up
        return np.stack(
            [
                np.einsum("ab,bck,dc->adk", rows, one, columns, optimize=True).argmax(2)
                for one in logits
            ]
        )


def with_one(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features [N, n, D] with a constant, for the offset of a regression."""
    return np.concatenate([x, np.ones((*x.shape[:2], 1), np.float32)], 2)


def linear(y: NDArray) -> NDArray[np.float32]:
    """The embeddings themselves."""
    return with_one(y.astype(np.float32))


def random_features(y: NDArray) -> NDArray[np.float32]:
    """Random ReLU features of each token (Rahimi and Recht 2007), the same for every method."""
    rng = np.random.default_rng(0)
    d = y.shape[2]
    weights = rng.standard_normal((d, _RANDOM), np.float32) / np.float32(np.sqrt(d))
    x = y.astype(np.float32) @ weights + rng.uniform(-1, 1, _RANDOM).astype(np.float32)
    return with_one(np.maximum(x, 0, out=x))


HEADS: dict[str, Callable[[NDArray], NDArray[np.float32]]] = {
    "linear": linear,
    "random": random_features,
}


def grid_of(y: NDArray) -> tuple[int, int]:
    """The square grid of embeddings [N, n, D], which may have a class token."""
    side = round(y.shape[1] ** 0.5)
    return side, side


def tile_of(name: str) -> str:
    """The tile of an image: its folder, or a band of longitude."""
    if "/" in name:
        return name.split("/")[0]
    return f"band {int(name.split('@')[1].split(',')[1]) * 8 // 5400}"


def evenly(index: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most so many of these, evenly spread."""
    return index[spread(len(index), most)]


def bilinear(size: int, side: int) -> NDArray[np.float32]:
    """The matrix [size, side] that resizes by linear interpolation between pixel centres."""
    at = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(side))).astype(np.float32)


def scenes(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Heads on the mean of the tokens' features: a row for each method and setting."""
    train, val = (bench.embedded(options.data, split) for split in ("train", "val"))
    if options.fit == ["own"]:
        units, fitted_to = bench.others([options.data])
    else:
        units, fitted_to = bench.others(options.fit)
    both = units.of(np.concatenate([train.y, val.y]))
    targets = [targets_of(part, options.multilabels) for part in (train, val)]
    rows = []
    for name, setting, y, sizes in measured(units, both, fitted_to, options):
        row = {"method": name, "setting": setting, "bytes": float(sizes[len(train.y) :].mean())}
        for head, features in HEADS.items():
            x = np.concatenate([features(part).mean(1) for part in np.array_split(y, 16)])
            scores = regressed(x[: len(train.y)], targets[0], x[len(train.y) :])
            if options.multilabels:
                row[head] = {"score": 100 * average_precision(scores, targets[1])}
            else:
                hits = scores.argmax(1) == targets[1].argmax(1)
                row[head] = {"score": 100 * float(hits.mean()), "hits": hits.astype(int).tolist()}
        log.info(f"{name}, {setting}: {row['bytes']:.0f} B, {[row[h]['score'] for h in HEADS]}")
        rows.append(row)
    return rows


def targets_of(data: Embedded, multilabels: str | None) -> NDArray[np.float64]:
    """Targets of +-1: [N, K], the classes or the columns of a tab-separated table by file name."""
    if multilabels is None:
        assert data.labels is not None
        return np.where(data.labels[:, None] == np.unique(data.labels), 1.0, -1.0)
    lines = [line.split("\t") for line in Path(multilabels).read_text().splitlines()[1:]]
    table = {name: np.array(values, float) for name, *values in lines}
    return np.stack([2 * table[Path(one).stem] - 1 for one in data.ids])


def regressed(x: NDArray, targets: NDArray, new: NDArray) -> NDArray[np.float64]:
    """Ridge regression; its strength is the best for leave-one-out predictions of x."""
    mean, std = x.mean(0), np.maximum(x.std(0), 1e-6)
    x, new = (np.asarray((part - mean) / std, np.float64) for part in (x, new))
    offset = targets.mean(0)
    left, values, right = np.linalg.svd(x, full_matrices=False)
    best = None
    for strength in _STRENGTHS:
        shrunk = values**2 / (values**2 + strength * len(x))
        fitted = left @ (shrunk[:, None] * (left.T @ (targets - offset)))
        leverage = (left**2 @ shrunk) + 1 / len(x)
        error = np.mean(((targets - offset - fitted) / (1 - leverage)[:, None]) ** 2)
        if best is None or error < best[0]:
            best = error, strength
    assert best is not None
    inverse = values / (values**2 + best[1] * len(x))
    return new @ (right.T @ (inverse[:, None] * (left.T @ (targets - offset)))) + offset


def average_precision(scores: NDArray, targets: NDArray) -> float:
    """The mean over labels of the average precision."""
    found = []
    for column, truth in zip(scores.T, targets.T > 0, strict=True):
        ranked = truth[np.argsort(-column, kind="stable")]
        precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
        if ranked.any():
            found.append(precision[ranked].mean())
    return float(np.mean(found))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one part, and write its rows as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=("errors", "cost", "segment", "scenes"))
    parser.add_argument("model", help="model file, or name of a shipped model")
    parser.add_argument(
        "--fit",
        nargs="+",
        default=["own"],
        help="data sets, NAME or NAME:LIMIT; own: those of each fold; model: nothing is fitted, "
        "errors and cost are of the model's codec",
    )
    parser.add_argument("--score", nargs="*", default=[], help="data sets of errors")
    parser.add_argument("--data", default="", help="data set of segment and scenes")
    parser.add_argument("--multilabels", help="table of several labels per image")
    parser.add_argument("--qualities", nargs="*", type=int, help="qualities; all if not given")
    parser.add_argument("--practices", action="store_true", help="also PQ, OPQ, VQ, PCA, binary")
    parser.add_argument("--steps", type=int, default=4000, help="training steps of refiners")
    parser.add_argument("--cache", type=Path, default=Path("runs/decoder"))
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    warnings.simplefilter("ignore", coder.UnusualEmbedding)
    bench = Bench(options.model, options.cache, options.steps)
    parts = {"errors": errors, "cost": cost, "segment": segment, "scenes": scenes}
    rows = parts[options.part](bench, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
