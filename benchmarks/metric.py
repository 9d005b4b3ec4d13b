"""The metrics of `coder.fit` on real embeddings: recall and accuracy against bytes per vector.

    python -m benchmarks.metric MODEL DATA [--images N] [--every N]
        [--kinds KIND ...] [--cache FILE.npz] [--json]

MODEL is a model file or the name of one that ships, DATA a labelled data set with the splits train
and val (docs/training.md). For tokens, their means and class tokens of the images, and for each
metric, codecs are fitted to train. For each quality:

- bytes per vector of val, without the codec, whose bytes are shown apart,
- recall@10 of nearest neighbours by cosine among the vectors of val (`coder.fitting.stated_error`),
- accuracy on val of a ridge classifier on standardised features, fitted to the decoded vectors of
  train; of tokens, to their means. The strength of the ridge penalty is chosen on a part of train.

The last lines compare at equal bytes: the mean of recall and of accuracy over the range of bytes
that both metrics reach, up to the quality that loses 1 % of the variance, in equal parts of the
logarithm.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nec_jax
from coder.codecs import OneQualityCodec
from coder.fitting import METRICS, HeldOut, fit_measured
from nec_jax.sources import open_source
from train.data import read_all

RIDGES = 10.0 ** np.arange(-2, 6)
POINTS = 33
KINDS = ("tokens", "mean tokens", "class tokens")


def latents(model: str, data: str, images: int | None, cache: Path | None) -> dict[str, NDArray]:
    """Embeddings [N, n, D] and labels [N] of both splits, and the grid."""
    if cache is not None and cache.is_file():
        with np.load(cache) as file:
            return dict(file)
    params = nec_jax.load(model)
    side = params.config.image_size
    found: dict[str, Any] = {"grid": np.array(params.config.grid(side, side))}
    for split in ("train", "val"):
        part = read_all(open_source(data, split), side, limit=images)
        assert part.labels is not None, f"{data} has no labels"
        found[split] = nec_jax.latents(params, part.images)
        found[f"{split}_labels"] = part.labels
    if cache is not None:
        np.savez(cache, **found)
    return found


def kinds(found: dict[str, NDArray], split: str) -> dict[str, NDArray[np.float32]]:
    """What is coded of a split: grids [N, h, w, D] and vectors [N, D]."""
    y = found[split].astype(np.float32)
    height, width = found["grid"].tolist()
    first = y.shape[1] - height * width
    grids = y[:, first:].reshape(len(y), height, width, -1)
    parts = {"tokens": grids, "mean tokens": grids.mean((1, 2))}
    return parts | ({"class tokens": y[:, 0]} if first else {})


def accuracy(
    x: NDArray[np.float32], labels: NDArray, x_val: NDArray[np.float32], labels_val: NDArray
) -> float:
    """Accuracy on val of ridge regression to one-hot classes, on standardised features."""
    mean, deviation = x.mean(0), x.std(0) + 1e-6 * x.std()
    x, x_val = (x - mean) / deviation, (x_val - mean) / deviation
    targets = np.eye(labels.max() + 1)[labels] - 1 / (labels.max() + 1)

    def scored(a: NDArray, b: NDArray, c: NDArray, d: NDArray, ridges: Any) -> list[float]:
        values, vectors = np.linalg.eigh(a.T @ a.astype(np.float64))
        there, here = vectors.T @ (a.T @ b), c @ vectors
        return [
            float((((here / (values + ridge)) @ there).argmax(1) == d).mean()) for ridge in ridges
        ]

    chosen = np.arange(len(x)) % 4 == 0
    scores = scored(x[~chosen], targets[~chosen], x[chosen], labels[chosen], RIDGES)
    best = RIDGES[int(np.argmax(scores))]
    return scored(x, targets, x_val, labels_val, [best])[0]


def decoded(codec: OneQualityCodec, y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grids or vectors after coding."""
    if y.ndim == 2:
        return codec.dequantise(codec.quantise(y, (len(y), 1)), (len(y), 1))
    flat = y.reshape(len(y), -1, y.shape[-1])
    return codec.dequantise(codec.quantise(flat, y.shape[1:3]), y.shape[1:3]).reshape(y.shape)


def pooled(y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors; the mean of a grid."""
    return y.mean((1, 2)) if y.ndim == 4 else y


def measure(
    y: NDArray[np.float32],
    labels: NDArray,
    y_val: NDArray[np.float32],
    labels_val: NDArray,
    every: int,
) -> list[dict[str, Any]]:
    """A row for each metric and every such quality, and one without coding."""
    plain = accuracy(pooled(y), labels, pooled(y_val), labels_val)
    rows: list[dict[str, Any]] = [{"metric": "none", "bytes": 4.0 * y.shape[-1], "codec": 0}]
    rows[0] |= {"quality": 0, "recall": 1.0, "accuracy": plain, "lost": 0.0}
    held = HeldOut.of(y_val)
    for metric in METRICS:
        ladder, held_out = fit_measured(y, metric=metric, count=1 << 30)
        for quality in range(0, ladder.num_qualities, every):
            codec = ladder.at(quality)
            error = held.error(codec)
            score = accuracy(
                pooled(decoded(codec, y)), labels, pooled(decoded(codec, y_val)), labels_val
            )
            row = {"metric": metric, "quality": quality, "bytes": held.bytes_per_vector(codec)}
            row |= {"codec": codec.codec_bytes, "recall": error.recall_at_10, "accuracy": score}
            rows.append(row | {"lost": held_out.error(codec, recall=False).variance_lost})
    return rows


def at_equal_bytes(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each metric the mean recall and accuracy over the range of bytes that all reach."""
    curves = {}
    for metric in METRICS:
        own = [row for row in rows if row["metric"] == metric]
        last = next((i for i, row in enumerate(own) if row["lost"] <= 0.01), len(own) - 1)
        curves[metric] = own[: last + 1]
    low = max(np.log(own[0]["bytes"]) for own in curves.values())
    high = min(np.log(own[-1]["bytes"]) for own in curves.values())
    points = np.linspace(low, high, POINTS)
    found = {}
    for metric, own in curves.items():
        x = np.log([row["bytes"] for row in own])
        found[metric] = {
            name: float(np.interp(points, x, [row[name] for row in own]).mean())
            for name in ("recall", "accuracy")
        } | {"from": float(np.exp(low)), "to": float(np.exp(high))}
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, help="maximum number of images of each split")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--every", type=int, default=1, help="measure every Nth quality")
    parser.add_argument("--cache", type=Path, help=".npz file to keep the embeddings in")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    found = latents(arguments.model, arguments.data, arguments.images, arguments.cache)
    parts, vals = kinds(found, "train"), kinds(found, "val")
    tables = {
        kind: measure(
            parts[kind], found["train_labels"], vals[kind], found["val_labels"], arguments.every
        )
        for kind in parts
        if kind in arguments.kinds
    }
    if arguments.json:
        print(json.dumps(tables))
        return
    for kind, rows in tables.items():
        print(f"{kind}: {parts[kind].shape} of train, {vals[kind].shape} of val")
        print("| metric | quality | bytes per vector | codec | lost | recall@10 | accuracy |")
        print("| --- " + "| ---: " * 6 + "|")
        for row in rows:
            print(
                f"| {row['metric']} | {row['quality']} | {row['bytes']:.2f} | {row['codec']:,} | "
                f"{row['lost']:.4f} | {row['recall']:.3f} | {100 * row['accuracy']:.1f} |"
            )
        for metric, means in at_equal_bytes(rows).items():
            print(
                f"{metric}, {means['from']:.2f} to {means['to']:.2f} bytes: mean recall "
                f"{means['recall']:.3f}, mean accuracy {100 * means['accuracy']:.1f}"
            )


if __name__ == "__main__":
    main()
