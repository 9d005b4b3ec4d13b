"""Entropy coding of one ViT-B embedding (768 channels x 197 tokens) against CompressAI's rANS.

    make bench
    python -m benchmarks.coder --peer PYTHON [--json]

PYTHON is an interpreter that has compressai (`make bench` makes one). Both sides code the same
symbols under the same pmfs on one core; the peer gets them requantised to its 16 bits, and is
called as CompressAI calls it (`bare`: its C++ alone). nec-jax includes framing, checksum and every
check. Batches go from floats to blobs and back, on one core and on all. The best of several runs.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.peer import parse, run_peer
from coder import Pool, ScalarCodec, Tables
from coder.pool import available_cores

CHANNELS, TOKENS = 768, 197
RATES = (0.02, 0.1, 0.5, 2.5)  # bits per element
REPEATS = 30
BATCH = 256


def gaussian_pmf(sigma: float) -> np.ndarray:
    """Unit bins of a normal distribution, up to 1e-9 of its mass."""
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
    """Channels of unequal spread with `bits` per element on average: pmfs and symbols [n, D]."""
    spread = np.exp(rng.normal(0, 0.7, CHANNELS))
    low, high = 1e-3, 1e3
    for _ in range(40):
        middle = np.sqrt(low * high)
        mean = np.mean([entropy(max(0.05, s * middle)) for s in spread])
        low, high = (middle, high) if mean < bits else (low, middle)
    pmfs = [gaussian_pmf(max(0.05, s * low)) for s in spread]
    symbols = [rng.choice(len(p), TOKENS, p=p) - len(p) // 2 for p in pmfs]
    return pmfs, np.stack(symbols, axis=1).astype(np.int32)


def best_ms(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """The fastest of several runs, milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def measure(bits: float, peer: str | None) -> dict[str, float]:
    """One row of the table."""
    pmfs, symbols = problem(bits, np.random.default_rng(0))
    layout = np.arange(CHANNELS, dtype=np.int32)
    codec = ScalarCodec(
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
        "ideal_bytes": codec.estimate_bits(symbols) / 8,
    }
    row |= batch_row(codec, symbols)
    return row | (peer_row(peer, pmfs, symbols) if peer else {})


def batch_row(codec: ScalarCodec, symbols: np.ndarray) -> dict[str, float]:
    """Milliseconds per embedding of a batch, on one core and on all."""
    y = np.repeat(codec.dequantise(symbols)[None], BATCH, axis=0)
    grid = (1, TOKENS)
    blobs = [codec.encode(y[0], grid)] * BATCH
    out = np.empty_like(y)

    def decode_one_by_one() -> None:
        for i, blob in enumerate(blobs):
            out[i] = codec.decode(blob)

    with Pool(codec) as pool:
        if pool.encode(y, grid) != blobs or not np.array_equal(pool.decode(blobs), y):
            raise RuntimeError("the pool's round trip is not exact")
        runs: dict[str, Callable[[], object]] = {
            "one_core_encode_ms": lambda: [codec.encode(image, grid) for image in y],
            "all_cores_encode_ms": lambda: pool.encode(y, grid),
            "one_core_decode_ms": decode_one_by_one,
            "all_cores_decode_ms": lambda: pool.decode(blobs),
        }
        return {name: best_ms(run, 5) / BATCH for name, run in runs.items()}


def peer_row(python: str, pmfs: list[np.ndarray], symbols: np.ndarray) -> dict[str, float]:
    """The peer's times and bytes for the same symbols, from its own interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        sizes = np.array([len(p) for p in pmfs])
        np.savez(path, sizes=sizes, pmf=np.concatenate(pmfs), symbols=symbols)
        return run_peer(python, "peer_compressai.py", path, REPEATS)


def main() -> None:
    """Print the table."""
    arguments = parse(__doc__)
    rows = [measure(bits, arguments.peer) for bits in RATES]
    if arguments.json:
        print(json.dumps(rows))
        return
    cores = available_cores()
    print(
        f"{CHANNELS} channels x {TOKENS} tokens; ms per embedding, one core unless it says {cores}"
    )
    names = [
        "bits/element",
        "ideal bytes",
        "bytes",
        "encode",
        "decode",
        "batch encode",
        f"{cores} cores",
    ]
    names += ["batch decode", f"{cores} cores"]
    if arguments.peer:
        names += ["CompressAI bytes", "encode", "decode", "bare encode", "bare decode"]
    print(f"| {' | '.join(names)} |")
    print("| ---: " * len(names) + "|")
    for row in rows:
        cells = [f"{row['bits_per_element']:.2f}", f"{row['ideal_bytes']:.0f}"]
        cells.append(f"{row['bytes']:.0f}")
        cells += [f"{row['encode_ms']:.2f}", f"{row['decode_ms']:.2f}"]
        for kind in ("encode", "decode"):
            one, many = row[f"one_core_{kind}_ms"], row[f"all_cores_{kind}_ms"]
            cells += [f"{one:.2f}", f"{many:.2f} ({one / many:.1f}x)"]
        if arguments.peer:
            cells.append(f"{row['peer_bytes']:.0f}")
            for peer in ("peer", "bare"):
                for kind in ("encode", "decode"):
                    time_, ours = row[f"{peer}_{kind}_ms"], row[f"{kind}_ms"]
                    cells.append(f"{time_:.1f} ({time_ / ours:.1f}x)")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
