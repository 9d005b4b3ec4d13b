"""Entropy coding of one ViT-B embedding (768 channels x 197 tokens) against CompressAI's rANS.

    make bench
    python -m benchmarks.coder --peer PYTHON [--json]

PYTHON is an interpreter that has compressai (`make bench` makes one). Both sides code the same
symbols under the same pmfs on one core; the peer gets them requantised to its 16 bits. Ours
includes framing, checksum and the exact round trip; the best of several runs is taken.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coder import EmbeddingCodec, Tables

CHANNELS, TOKENS = 768, 197
RATES = (0.02, 0.1, 0.5, 2.5)  # bits an element
REPEATS = 15


def gaussian_pmf(sigma: float) -> np.ndarray:
    """Unit bins of a normal distribution, as far as 1e-9 of its mass."""
    reach = max(1, int(np.ceil(6 * sigma)))
    k = np.arange(-reach, reach + 1)
    density = np.exp(-0.5 * (np.linspace(-0.5, 0.5, 33)[:, None] + k) ** 2 / sigma**2)
    pmf = density.sum(0)
    return pmf / pmf.sum()


def entropy(sigma: float) -> float:
    """Bits of one symbol."""
    pmf = gaussian_pmf(sigma)
    return float(-(pmf * np.log2(np.maximum(pmf, 1e-300))).sum())


def problem(bits: float, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Channels of unequal spread that average `bits` an element: pmfs and symbols [n, D]."""
    spread = np.exp(rng.normal(0, 0.7, CHANNELS))
    low, high = 1e-3, 1e3
    for _ in range(40):
        middle = np.sqrt(low * high)
        mean = np.mean([entropy(max(0.05, s * middle)) for s in spread])
        low, high = (middle, high) if mean < bits else (low, middle)
    pmfs = [gaussian_pmf(max(0.05, s * low)) for s in spread]
    symbols = [rng.choice(len(p), TOKENS, p=p) - len(p) // 2 for p in pmfs]
    return pmfs, np.stack(symbols, axis=1).astype(np.int32)


def best_ms(run: Callable[[], object]) -> float:
    """The fastest of several runs, milliseconds."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def measure(bits: float, peer: str | None) -> dict[str, float]:
    """One row of the table."""
    pmfs, symbols = problem(bits, np.random.default_rng(0))
    layout = np.arange(CHANNELS, dtype=np.int32)
    codec = EmbeddingCodec(
        offsets=np.zeros(CHANNELS, np.float32),
        steps=np.ones(CHANNELS, np.float32),
        tables=Tables.from_pmfs([(-(len(p) // 2), p, 1e-9) for p in pmfs]),
        grid_layout=layout,
    )
    blob = codec.encode_symbols(symbols, (1, TOKENS))
    if not np.array_equal(codec.decode_symbols(blob)[0], symbols):
        raise RuntimeError("the round trip is not exact")
    row = {
        "bits_per_element": bits,
        "encode_ms": best_ms(lambda: codec.encode_symbols(symbols, (1, TOKENS))),
        "decode_ms": best_ms(lambda: codec.decode_symbols(blob)),
        "bytes": len(blob),
    }
    return row | (peer_row(peer, pmfs, symbols) if peer else {})


def peer_row(python: str, pmfs: list[np.ndarray], symbols: np.ndarray) -> dict[str, float]:
    """The peer's times and bytes for the same symbols, from its own interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        sizes = np.array([len(p) for p in pmfs])
        np.savez(path, sizes=sizes, pmf=np.concatenate(pmfs), symbols=symbols)
        script = Path(__file__).with_name("peer_compressai.py")
        done = subprocess.run(
            [python, "-W", "ignore::FutureWarning", str(script), str(path), str(REPEATS)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peer", help="a Python interpreter that has compressai")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    arguments = parser.parse_args()
    rows = [measure(bits, arguments.peer) for bits in RATES]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{CHANNELS} channels x {TOKENS} tokens, one core; CompressAI -> nec-jax (ratio)")
    print(f"{'bits/element':>12} {'bytes':>18} {'encode ms':>26} {'decode ms':>26}")
    for row in rows:
        cells = [f"{row['bits_per_element']:12.2f}"]
        if arguments.peer:
            cells.append(f"{row['peer_bytes']:8.0f} -> {row['bytes']:6.0f}")
            for kind in ("encode", "decode"):
                peer, ours = row[f"peer_{kind}_ms"], row[f"{kind}_ms"]
                cells.append(f"{peer:8.1f} -> {ours:5.2f} ({peer / ours:5.1f}x)")
        else:
            cells.append(f"{row['bytes']:18.0f}")
            cells += [f"{row['encode_ms']:26.2f}", f"{row['decode_ms']:26.2f}"]
        print(" ".join(cells))


if __name__ == "__main__":
    main()
