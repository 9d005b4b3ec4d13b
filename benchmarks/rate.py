"""Where the bytes of trained models go: densities, integer tables, recalibration, framing.

    python -m benchmarks.rate MODEL.safetensors [...] --data IMAGES [--split val] [--limit 200]

For each model: bits per element; then real blobs with tables of the densities as trained, and real
blobs with the model's own tables, which were counted on whole training images. Both are compared
with the ideal code length of the same symbols under the float densities as trained. The class token
is coded and counted in all of them.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import nec_jax
from coder import ScalarCodec, Tables
from nec_jax import NecParams
from nec_jax.calibration import density_pmfs
from nec_jax.models import density
from nec_jax.sources import open_source
from train.data import read_all

Pmf = tuple[int, NDArray[np.float64]]
"""The smallest symbol, and the probabilities of it and those that follow."""


def as_trained(own: ScalarCodec, pmfs: Sequence[Pmf]) -> ScalarCodec:
    """The codec with the learned densities as tables, for the class token too."""
    tables = Tables.from_pmfs([(low, pmf, max(0.0, 1 - pmf.sum())) for low, pmf in pmfs])
    channels = np.arange(own.channels, dtype=np.int32)
    return ScalarCodec(
        own.offsets, own.steps, tables, channels, None if own.class_layout is None else channels
    )


def float_bits(params: NecParams, q: NDArray[np.int32]) -> float:
    """Ideal code length of symbols [..., D] under the densities as they are, in float64."""
    learned = params.weights["bottleneck"]["density"]
    arrays = {name: np.asarray(value, np.float64) for name, value in learned.items()}
    centre = q.reshape(-1, q.shape[-1]) + np.asarray(density.quantile(learned, 0.5), np.float64)
    low, high = (np.asarray(density.logits_cdf(arrays, centre + d, np)) for d in (-0.5, 0.5))
    # P = s(high) - s(low) in logarithms, on the side where neither is near 1.
    sign = np.where(low + high > 0, -1.0, 1.0)
    a, b = -np.logaddexp(0, -sign * high), -np.logaddexp(0, -sign * low)
    large, small = np.maximum(a, b), np.minimum(a, b)
    return float(-(large + np.log1p(-np.exp(small - large))).sum() / np.log(2))


def table_loss(tables: Tables, pmfs: Sequence[Pmf]) -> float:
    """The relative cost of integer tables over the densities that they are made of.

    It is the worst channel's extra bits per symbol, over the mean bits per symbol of all channels.
    """
    extra, bits = [], []
    for k, (_, pmf) in enumerate(pmfs):
        p = np.append(pmf, max(0.0, 1 - pmf.sum()))
        some = p > 0
        extra.append(float((p[some] * np.log2(p[some] / tables.pmf(k)[some])).sum()))
        bits.append(float(-(p[some] * np.log2(p[some])).sum()))
    return max(extra) / float(np.mean(bits))


def measure(params: NecParams, images: NDArray) -> dict[str, float]:
    """One row: bytes per image, and ratios."""
    own = params.codec
    assert isinstance(own, ScalarCodec)
    pmfs = density_pmfs(params.weights["bottleneck"]["density"])
    learned = as_trained(own, pmfs)
    blobs = nec_jax.encode(params, images)
    decoded = [own.decode_symbols(blob) for blob in blobs]
    real = sum(len(blob) for blob in blobs)
    trained = sum(len(learned.encode_symbols(q, grid)) for q, grid in decoded)
    q = np.stack([symbols for symbols, _ in decoded])
    count = len(q)
    dead = (q == q[:1, :1]).all((0, 1))
    dead_bits = 24 - np.log2(own.tables.mode_weights[own.grid_layout[dead]].astype(float))
    return {
        "bits_per_element": 8 * real / q.size,
        "ideal": float_bits(params, q) / 8 / count,
        "trained": trained / count,
        "real": real / count,
        "table_loss": table_loss(learned.tables, pmfs),
        "dead": float(dead.mean()),
        "dead_bits": float(dead_bits.mean()) if dead.any() else 0.0,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="files of compressed models")
    parser.add_argument("--data", required=True, help="images, as for nec compress --data")
    parser.add_argument("--split", default="val", help="split to code (val)")
    parser.add_argument("--limit", type=int, default=200, help="maximum number of images (200)")
    options = parser.parse_args(arguments)
    print(
        "| bits/element | ideal, B | tables of densities, B | over ideal + 16 B | tables over "
        "densities | shipped tables, B | saved | silent channels | bits each |"
    )
    print("| --- " * 9 + "|")
    for path in options.models:
        params = nec_jax.load(path)
        source = open_source(options.data, options.split)
        images = read_all(source, params.config.image_size, limit=options.limit).images
        row = measure(params, images)
        cells = [
            f"{row['bits_per_element']:.3f}",
            f"{row['ideal']:.1f}",
            f"{row['trained']:.1f}",
            f"{100 * ((row['trained'] - 16) / row['ideal'] - 1):+.2f} %",
            f"{100 * row['table_loss']:.4f} %",
            f"{row['real']:.1f}",
            f"{100 * (1 - row['real'] / row['trained']):.1f} %",
            f"{100 * row['dead']:.0f} %",
            f"{row['dead_bits']:.0e}",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
