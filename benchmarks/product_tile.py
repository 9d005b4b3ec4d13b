"""A tile of embeddings as TESSERA has them: bytes, error, seconds, and the latency of one pixel.

    python -m benchmarks.product_tile FOLDER [--side 1000] [--max-error 10%]

Makes a tile of `side` x `side` pixels of 128 channels, int8 with a float32 scale for each pixel, as
two .npy files, which is how TESSERA's are distributed. The products' own tiles cannot be had: these
are embeddings of nec-vit-ti (192 channels, in their first 128 principal components) around every
second pixel of Blue Marble, over Europe and Africa. FOLDER keeps the files for further runs.

Then `nec encode` codes it, at each of the errors, in a process of its own. Prints a row of a table
in Markdown for each, and one for the files themselves and these with zstd.
"""

import json
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
import zarr
from numpy.typing import NDArray

import nec_jax
from benchmarks.embedding_peers import principal
from benchmarks.scene_images import whole
from coder.archive import zarr_nodes
from coder.fitting import measure
from nec_jax.sources.blue_marble import BlueMarble

STRIDE = 2  # pixels of Blue Marble
CHANNELS = 128
ROW, COLUMN = 300, 2600  # of Blue Marble: 70 N, 7 W
REPEATS = 200


@dataclass
class Options:
    folder: Annotated[Path, tyro.conf.Positional]
    side: int = 1000
    max_error: tuple[str, ...] = ("1%", "2%", "5%", "10%", "20%", "30%")


def dense(side: int) -> NDArray[np.float32]:
    """Embeddings [side, side, D] of the patches around every second pixel."""
    params = nec_jax.load("nec-vit-ti")
    patch = params.config.patch
    cells = -(-side * STRIDE // patch)
    image = BlueMarble(chip=patch).image
    result = np.empty((side, side, params.config.embedding_width), np.float32)
    for down in range(0, patch, STRIDE):
        for right in range(0, patch, STRIDE):
            part = image[ROW + down :, COLUMN + right :][: cells * patch, : cells * patch]
            y = whole(params, part, params.config.image_size // patch, 1)
            into = result[down // STRIDE :: patch // STRIDE, right // STRIDE :: patch // STRIDE]
            into[:] = y[: into.shape[0], : into.shape[1]]
        print(f"{down // STRIDE + 1} of {patch // STRIDE} rows of patches", file=sys.stderr)
    return result


def write_tile(folder: Path, side: int) -> None:
    """Write `tile.npy`, int8 [side, side, 128], and `tile_scales.npy`, float32 [side, side]."""
    y = dense(side)
    mean, vectors = principal(y.reshape(-1, y.shape[-1])[::37])
    # A rotation, so that channels are as alike as those of a network.
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(CHANNELS, CHANNELS)))[0]
    y = (y - mean) @ (vectors[:, :CHANNELS] @ turned.astype(np.float32))
    scales = np.abs(y).max(-1) / np.float32(127)
    np.save(folder / "tile.npy", np.rint(y / scales[..., None]).astype(np.int8))
    np.save(folder / "tile_scales.npy", scales)


def latency(path: Path, side: int) -> tuple[float, float]:
    """Median seconds of reading one pixel: of a file just opened, and of one that is open."""
    rng = np.random.default_rng(0)
    times: list[list[float]] = [[], []]
    array = zarr.open_array(path, mode="r")
    array[0, 0]
    for row, column in rng.integers(0, side, (REPEATS, 2)).tolist():
        start = time.perf_counter()
        zarr.open_array(path, mode="r")[row, column]
        middle = time.perf_counter()
        array[row, column]
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
    return float(np.median(times[0])), float(np.median(times[1]))


def main(options: Options) -> None:
    """Measure, and print the tables."""
    import imagecodecs

    folder, side = options.folder, options.side
    folder.mkdir(parents=True, exist_ok=True)
    tile, scales = folder / "tile.npy", folder / "tile_scales.npy"
    if not scales.exists():
        write_tile(folder, side)
    q, steps = np.load(tile), np.load(scales)
    size = tile.stat().st_size + scales.stat().st_size
    start = time.perf_counter()
    packed = sum(len(imagecodecs.zstd_encode(one.tobytes(), level=9)) for one in (q, steps))
    seconds = time.perf_counter() - start
    print("| | bytes | times smaller | relative rms error | worst | encode, s | memory | a pixel |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print(f"| the two .npy files | {size:,} | 1 | 0 | 0 | | | |")
    print(f"| with zstd | {packed:,} | {size / packed:.1f} | 0 | 0 | {seconds:.0f} | | |")
    y = q * steps[..., None]
    for bound in options.max_error:
        out = folder / f"tile-{re.sub('[^0-9a-z.]', '', bound)}.zarr"
        command = [sys.executable, "-m", "coder", "encode", str(tile), "--scale", str(scales)]
        command += ["--max-error", bound, "--out", str(out), "--overwrite", "--json"]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        stated = json.loads(done.stdout)["error"]
        y_hat = np.asarray(zarr.open_array(out, mode="r")[:])
        error = measure(y.reshape(-1, CHANNELS), y_hat.reshape(-1, CHANNELS))
        stored = sum(zarr_nodes.sizes(out).values())
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        cold, warm = latency(out, side)
        print(
            f"| at most {bound} | {stored:,} | {size / stored:.1f} | {error.relative_rms:.4f} "
            f"(stated {stated['relative_rms']:.4f}) | {error.worst:.2f} | {seconds:.0f} | "
            f"{memory:.2f} GB | {1000 * cold:.1f} ms, {1000 * warm:.1f} ms |",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
