"""The cost of BLAS threads for a decoder: `dct.product` against NumPy's plain product.

    python -m benchmarks.threads [--json]

Milliseconds per image, from blobs to floats, one after the other, each case in its own process, on
an idle machine and on one whose cores all run another process too. The embeddings are synthetic: 64
tokens of 192 channels and a class token with the shipped codec, and 196 tokens of 768 channels with
a fitted one. The data loader is PyTorch's, and is left out if torch is not installed.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zarr

import coder
from coder.archive.zarr_codec import NecCodec
from coder.cli import main as command
from coder.pool import available_cores
from coder.transform import dct, klt

REPEATS = 3
IMAGES = 32
PRODUCTS = {"plain": np.matmul, "product": dct.product}
# Here, since processes that start others (a pool, a loader) have those import this again.
klt.product = dct.product = PRODUCTS[os.environ.get("NEC_BENCHMARK_PRODUCT", "product")]


def embeddings(codec: coder.EmbeddingCodec, grid: tuple[int, int]) -> np.ndarray:
    """Embeddings [IMAGES, n, D] with coefficients about as large as the codec is made for."""
    one = codec.at()
    assert isinstance(one, coder.TransformCodec)
    rng = np.random.default_rng(0)
    n = grid[0] * grid[1] + codec.class_token
    zone, _, _ = one.cells(grid)
    size = np.where(np.isfinite(zone), 0.35 * one.step, 0)
    c = (rng.laplace(size=(IMAGES, n, one.symbols_per_token)) * size).astype(np.float32)
    return np.stack([one.transform.inverse(part, grid) for part in c])


def small() -> tuple[coder.EmbeddingCodec, tuple[int, int]]:
    """The shipped codec, and its grid."""
    return coder.load("nec-vit-ti"), (8, 8)


def large(folder: Path) -> tuple[coder.EmbeddingCodec, tuple[int, int]]:
    """A codec of 768 channels, fitted once, at a quality at which most of them are coded."""
    path = folder / "large.codec"
    if not path.exists():
        rng = np.random.default_rng(0)
        mixing = rng.normal(size=(768, 768)) * 0.99 ** np.arange(768)
        walks = rng.laplace(size=(24, 14, 14, 768)).cumsum(1).cumsum(2)
        ladder = coder.fit((walks @ mixing.T).astype(np.float32))
        ladder.at(2 * ladder.num_qualities // 3).save(path)
    return coder.load(path), (14, 14)


def prepare(folder: Path) -> None:
    """Blobs of both, and a Zarr array of the small ones."""
    for name, (codec, grid) in {"small": small(), "large": large(folder)}.items():
        blobs = [codec.encode(y, grid) for y in embeddings(codec, grid)]
        (folder / f"{name}.json").write_text(json.dumps([blob.hex() for blob in blobs]))
    one = small()[0].at().split()[0]
    y = embeddings(one, (8, 8)).reshape(IMAGES, 8, 8, -1)
    array = zarr.create_array(
        str(folder / "array.zarr"),
        shape=y.shape,
        dtype="float32",
        chunks=(1, *y.shape[1:]),
        serializer=NecCodec(one),
        compressors=None,
    )
    array[:] = y


class Blobs:
    """A PyTorch data set that decodes an item on access."""

    def __init__(self, codec: coder.EmbeddingCodec, blobs: list[bytes]):
        self.codec, self.blobs = codec, blobs

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.codec.decode(self.blobs[index])


def seconds(case: str, folder: Path) -> float:
    """The quickest of several runs over all images."""
    kind, _, way = case.partition(", ")
    codec, _ = small() if kind == "small" else large(folder)
    blobs = [bytes.fromhex(text) for text in json.loads((folder / f"{kind}.json").read_text())]
    with contextlib.ExitStack() as stack:
        run: Callable[[], object]
        if way == "one by one":
            run = lambda: [codec.decode(blob) for blob in blobs]  # noqa: E731
        elif way == "nec verify":
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            run = lambda: command(["verify", str(folder / "array.zarr")])  # noqa: E731
        elif way == "Pool":
            pool = stack.enter_context(coder.Pool(codec))
            run = lambda: pool.decode(blobs)  # noqa: E731
        else:
            from torch.utils.data import DataLoader  # type: ignore[import-not-found]

            workers = int(way.split()[-2])
            loader = DataLoader(
                Blobs(codec, blobs),
                16,
                num_workers=workers,
                persistent_workers=workers > 0,
                multiprocessing_context="spawn" if workers else None,
            )
            run = lambda: sum(len(batch) for batch in loader)  # noqa: E731
        run()
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return min(times)


def spin() -> None:
    """Work without end."""
    while True:
        pass


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Run `count` other busy processes."""
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        case, folder = arguments.child
        print(1e3 * seconds(case, Path(folder)) / IMAGES)
        return
    ways = ["one by one", "Pool"]
    if importlib.util.find_spec("torch"):
        ways += ["loader of 0 workers", "loader of 2 workers"]
    cases = [f"{kind}, {way}" for kind in ("small", "large") for way in ways]
    cases.insert(1, "small, nec verify")
    rows: dict[str, dict[str, float]] = {}
    if not arguments.json:
        print("| decoding, ms per image | alone: plain | product | busy: plain | product |")
        print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for case in cases:
            row = rows[case] = {}
            for load, count in {"alone": 0, "busy": available_cores()}.items():
                with busy(count):
                    row |= {f"{load}, {p}": measure(case, name, p) for p in PRODUCTS}
            if not arguments.json:
                cells = []
                for load in ("alone", "busy"):
                    plain, ours = (row[f"{load}, {product}"] for product in PRODUCTS)
                    cells += [f"{plain:.2f}", f"{ours:.2f} ({plain / ours:.1f}x)"]
                print(f"| {case} | {' | '.join(cells)} |", flush=True)
    if arguments.json:
        print(json.dumps(rows))


def measure(case: str, folder: str, product: str) -> float:
    """Milliseconds per image, in its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.threads", "--child", case, folder],
        env=os.environ | {"NEC_BENCHMARK_PRODUCT": product},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
