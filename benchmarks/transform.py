"""`TransformCodec` against the per-channel codec, on one core, at equal bytes.

    python -m benchmarks.transform EMBEDDINGS [--class-token] [--json]

EMBEDDINGS is a .npy file float [N, H, W, D] of real embeddings (or [N, 1 + H * H, D], class token
first). Both codecs are fitted on the first half. `per channel` quantises every channel with a step
in proportion to its deviation; the factor is searched for so that the second half needs as many
bytes as the transform at a given quality. Milliseconds per embedding, from floats to a blob and
back, the best of several turns that both take.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer import ROUNDS, best_seconds
from coder import ScalarCodec
from coder.codecs import OneQualityCodec
from coder.fitting import fit_for_model
from train.studies.baselines import per_channel

QUALITIES = (4, 6, 8, 10, 12)
SEARCH_STEPS = 18
TIMED = 32  # embeddings
SECONDS = 1.0
Grid = tuple[int, int]


def mean_bytes(codec: OneQualityCodec, y: NDArray[np.float32], grid: Grid) -> float:
    """Mean bytes of the blobs of embeddings [N, n, D]."""
    return float(np.mean([len(codec.encode(one, grid)) for one in y]))


def of_equal_bytes(
    fit: NDArray[np.float32], y: NDArray[np.float32], grid: Grid, target: float
) -> ScalarCodec:
    """The per-channel codec whose mean size is nearest to `target` bytes."""
    low, high = 1 / 64, 64.0
    for _ in range(SEARCH_STEPS):
        middle = math.sqrt(low * high)
        larger = mean_bytes(per_channel(fit, 1 / middle, 0), y, grid) > target
        low, high = (middle, high) if larger else (low, middle)
    return per_channel(fit, 1 / high, 0)


def measure(
    codec: OneQualityCodec, other: OneQualityCodec, y: NDArray[np.float32], grids: tuple[Grid, Grid]
) -> dict[str, float]:
    """Bytes, and milliseconds per embedding, of both codecs."""
    row: dict[str, float] = {}
    runs: dict[str, Callable[[], object]] = {}
    for name, one, grid in zip(("transform", "per_channel"), (codec, other), grids, strict=True):
        blobs = [one.encode(x, grid) for x in y]
        row[f"{name}_bytes"] = float(np.mean([len(blob) for blob in blobs]))
        runs[f"{name}_encode_ms"] = lambda c=one, g=grid: [c.encode(x, g) for x in y]
        runs[f"{name}_decode_ms"] = lambda c=one, b=blobs: [c.decode(blob) for blob in b]
    for _ in range(ROUNDS):
        for name, run in runs.items():
            took = 1e3 * best_seconds(run, SECONDS) / len(y)
            row[name] = min(row.get(name, math.inf), took)
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("embeddings", type=Path, help=".npy file of embeddings")
    parser.add_argument(
        "--class-token", action="store_true", help="the first token is a class token"
    )
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    arguments = parser.parse_args()
    values = np.load(arguments.embeddings, mmap_mode="r")
    half = len(values) // 2
    fit, y = np.asarray(values[:half], np.float32), np.asarray(values[half:], np.float32)
    if arguments.class_token:
        side = math.isqrt(fit.shape[1] - 1)
        ladder = fit_for_model(fit[:, 1:].reshape(half, side, side, -1), fit[:, 0])
        grid = (side, side)
    else:
        ladder, grid = fit_for_model(fit), fit.shape[1:3]
        fit, y = (part.reshape(len(part), -1, part.shape[-1]) for part in (fit, y))
    some, whole = y[:: max(1, len(y) // TIMED)][:TIMED], (1, y.shape[1])
    rows = []
    for quality in QUALITIES:
        codec = ladder.at(quality)
        other = of_equal_bytes(fit, some, whole, mean_bytes(codec, some, grid))
        rows.append({"quality": float(quality)} | measure(codec, other, some, (grid, whole)))
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{y.shape[1]} tokens of {y.shape[2]} channels; ms per embedding, one core")
    print("| quality | bytes | per channel | encode | per channel | decode | per channel |")
    print("| ---: " * 7 + "|")
    for row in rows:
        cells = [f"{row['quality']:.0f}", f"{row['transform_bytes']:,.0f}"]
        cells.append(f"{row['per_channel_bytes']:,.0f}")
        for kind in ("encode", "decode"):
            ours, theirs = row[f"transform_{kind}_ms"], row[f"per_channel_{kind}_ms"]
            cells += [f"{ours:.2f} ({ours / theirs:.2f}x)", f"{theirs:.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
