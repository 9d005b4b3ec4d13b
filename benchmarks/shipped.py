"""Images per second of the shipped model, from image files to blobs and back, and of JPEG 2000.

    python -m benchmarks.shipped IMAGES [--model nec-vit-ti] [--limit 420] [--json]

IMAGES is any data set of `nec compress`. Both work on all cores. The peer (OpenJPEG in imagecodecs)
codes the pixels that the model sees, at the quality whose codestreams are nearest to the blobs in
size, as far as they can be so small.
"""

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import imagecodecs
import numpy as np

import nec_jax
from benchmarks.peer import best_seconds
from coder import Pool
from nec_jax.sources import at_most, open_source
from train.data import read_all

SECONDS = 10.0  # seconds of runs per row; at least two runs
LEVELS = range(10, 50)  # qualities to try, dB


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", help="data set, as for nec compress --data")
    parser.add_argument("--model", default="nec-vit-ti")
    parser.add_argument("--limit", type=int, default=420)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    start = time.perf_counter()
    params = nec_jax.load(arguments.model)
    load_s = time.perf_counter() - start
    source = at_most(open_source(arguments.images, "test"), arguments.limit)
    side = params.config.image_size
    images = read_all(source, side).images
    if params.codec is None:
        parser.error(f"{arguments.model} has no codec")
    codec = params.codec.at()
    with Pool(codec) as pool, ThreadPoolExecutor(os.cpu_count()) as threads:
        blobs = nec_jax.encode(params, images, pool=pool)
        bytes_per_image = float(np.mean([len(blob) for blob in blobs]))
        level = _level(images, bytes_per_image)

        def jpeg(image: np.ndarray) -> bytes:
            return bytes(imagecodecs.jpeg2k_encode(image, level=level, codecformat="J2K"))

        streams = list(threads.map(jpeg, images))
        runs: dict[str, Any] = {
            "read and resize files": lambda: read_all(source, side),
            "files to blobs": lambda: nec_jax.encode(
                params, read_all(source, side).images, pool=pool
            ),
            "pixels to blobs": lambda: nec_jax.encode(params, images, pool=pool),
            "blobs to embeddings": lambda: pool.decode(blobs),
            "blobs to embeddings, one process": lambda: [codec.decode(blob) for blob in blobs],
            "JPEG 2000: pixels to streams": lambda: list(threads.map(jpeg, images)),
            "JPEG 2000: streams to pixels": lambda: list(
                threads.map(imagecodecs.jpeg2k_decode, streams)
            ),
        }
        if codec.refiner is not None:
            runs |= {
                "blobs to refined embeddings": lambda: pool.decode(blobs, refine=True),
                "the same, one process": lambda: [codec.decode(b, refine=True) for b in blobs],
            }
        speed = {name: len(images) / best_seconds(run, SECONDS) for name, run in runs.items()}
    row = {"bytes": bytes_per_image, "jpeg2000_bytes": float(np.mean([len(s) for s in streams]))}
    if arguments.json:
        print(json.dumps(row | {"load_s": load_s, "images_per_s": speed}))
        return
    print(
        f"{len(images)} images of {source.name}, {os.cpu_count()} cores, loaded in {load_s:.2f} s"
    )
    print(f"{row['bytes']:.0f} bytes per image, JPEG 2000 {row['jpeg2000_bytes']:.0f}")
    for name, value in speed.items():
        print(f"{name:34s} {value:8.1f} images/s")


def _level(images: np.ndarray, wanted: float) -> int:
    """The quality whose mean size on some images is nearest to `wanted` bytes."""
    some = images[:: max(1, len(images) // 16)]

    def size(level: int) -> float:
        return float(
            np.mean(
                [len(imagecodecs.jpeg2k_encode(i, level=level, codecformat="J2K")) for i in some]
            )
        )

    return min(LEVELS, key=lambda level: abs(size(level) - wanted))


if __name__ == "__main__":
    main()
