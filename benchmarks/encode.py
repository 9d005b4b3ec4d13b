"""Images per second of `nec_jax.encode`, from pixels to blobs, against PyTorch and CompressAI.

    make bench
    python -m benchmarks.encode --peer PYTHON [--json]

PYTHON is an interpreter that has torch, transformers and compressai (`make bench` makes one): its
ViTMAE, nothing masked, then `EntropyBottleneck.compress`. Both sides have the same weights, images,
steps and pmfs, so that their blobs hold the same symbols. All cores; the sides take turns, and the
best run of each counts.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import jax
import numpy as np

import nec_jax
from benchmarks.peer import ROUNDS, best_seconds, parse, run_peer
from coder import ScalarCodec, Tables
from coder.pool import available_cores
from nec_jax import NecParams, convert_checkpoint
from nec_jax.models.architecture import ModelConfig, model_config
from nec_jax.models.nec import init_weights

ARCHITECTURES = ("vit-ti", "vit-b")
RATES = (0.1, 0.5)  # bits per element
IMAGES = 16
SECONDS = 10.0  # seconds of runs per case, side and round; at least two runs
ESCAPE = 1e-6


def images_of(config: ModelConfig) -> np.ndarray:
    """Blobs of random colour and noise: uint8 [IMAGES, H, W, C]."""
    rng, side = np.random.default_rng(0), config.image_size
    coarse = rng.integers(0, 200, (IMAGES, side // 16, side // 16, config.channels))
    smooth = coarse.repeat(16, axis=1).repeat(16, axis=2)
    return (smooth + rng.integers(0, 56, smooth.shape)).astype(np.uint8)


def pmf(symbols: np.ndarray) -> tuple[int, np.ndarray]:
    """The smallest symbol, and the frequency of each symbol from it on."""
    low = int(symbols.min())
    counts = np.bincount(symbols.ravel() - low)
    return low, counts / counts.sum()


def fit_codec(y: np.ndarray, bits: float) -> tuple[ScalarCodec, list[tuple[int, np.ndarray]]]:
    """A codec of embeddings [N, n, D] at `bits` per element, and the pmfs of its tables.

    Channels have unequal spreads, as in `benchmarks.coder`.
    """
    channels = y.shape[-1]
    unit = y.std((0, 1)) / np.exp(np.random.default_rng(0).normal(0, 0.7, channels))
    offsets = y.mean((0, 1))

    def pmfs(step: float, part: np.ndarray) -> list[tuple[int, np.ndarray]]:
        q = np.rint((part - offsets) / (step * unit)).astype(np.int32)
        return [pmf(q[..., d]) for d in range(channels)]

    low, high = 1e-2, 1e2
    for _ in range(20):
        middle = np.sqrt(low * high)
        p = [p for _, p in pmfs(middle, y[::8])]
        mean = np.mean([-(x * np.log2(np.maximum(x, 1e-300))).sum() for x in p])
        low, high = (low, middle) if mean < bits else (middle, high)
    rows = pmfs(high, y)
    layout = np.arange(channels, dtype=np.int32)
    tables = Tables.from_pmfs([(first, p * (1 - ESCAPE), ESCAPE) for first, p in rows])
    steps = (high * unit).astype(np.float32)
    return ScalarCodec(offsets, steps, tables, layout, class_layout=layout), rows


def write_problem(folder: Path, images: np.ndarray, codec: ScalarCodec, pmfs: list) -> None:
    """Write the file that the peer reads."""
    np.savez(
        folder / "problem.npz",
        images=images,
        offsets=codec.offsets,
        steps=codec.steps,
        first=np.array([first for first, _ in pmfs]),
        sizes=np.array([len(p) for _, p in pmfs]),
        pmf=np.concatenate([p for _, p in pmfs]),
        escape=ESCAPE,
    )


def measure(arch: str, python: str | None, folder: Path) -> list[dict[str, float | str]]:
    """The rows of one architecture."""
    config = model_config(arch, image_size=224, decoder_target="none")
    if python:
        names = ("width", "depth", "heads", "image_size", "patch")
        case = {name: getattr(config, name) for name in names}
        run_peer(python, "peer_encode.py", folder, json.dumps(case))
        params = convert_checkpoint(folder, normalisation="imagenet")
    else:
        params = NecParams(init_weights(config, jax.random.key(0)), config)
    images = images_of(config)
    y = nec_jax.latents(params, images)
    rows = []
    for bits in RATES:
        codec, pmfs = fit_codec(y, bits)
        coded = dataclasses.replace(params, codec=codec)
        blobs = nec_jax.encode(coded, images)
        row: dict[str, float | str] = {"arch": arch, "bits_per_element": bits}
        row["bytes"] = float(np.mean([len(blob) for blob in blobs]))
        write_problem(folder, images, codec, pmfs)
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(best_seconds(lambda p=coded: nec_jax.encode(p, images), SECONDS))
            if python:
                theirs.append(
                    run_peer(python, "peer_encode.py", folder, SECONDS, available_cores())
                )
        row["images_per_s"] = IMAGES / min(ours)
        if theirs:
            fastest = max(theirs, key=lambda found: found["images_per_s"])
            row |= {f"peer_{name}": value for name, value in fastest.items()}
        rows.append(row)
    return rows


def main() -> None:
    """Print the table."""
    arguments = parse(__doc__)
    rows = []
    for arch in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(arch, arguments.peer, Path(folder))
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"images/s from pixels to blobs, {IMAGES} images of 224 px, {available_cores()} cores")
    names = ["bits/element", "bytes", "nec-jax", "peer bytes", "PyTorch", "ratio"]
    print(f"{'model':8s}" + "".join(f"{name:>13s}" for name in names))
    for row in rows:
        ours, peer = row["images_per_s"], row.get("peer_images_per_s", float("nan"))
        cells = [f"{row['bits_per_element']:.2f}", f"{row['bytes']:.0f}", f"{ours:.2f}"]
        cells += [f"{row.get('peer_bytes', float('nan')):.0f}", f"{peer:.2f}"]
        cells.append(f"{float(ours) / float(peer):.2f}")
        print(f"{row['arch']:8s}" + "".join(f"{cell:>13s}" for cell in cells))


if __name__ == "__main__":
    main()
