"""What copying an archive to a lower quality costs against encoding the images anew.

    python -m benchmarks.copying MODEL DATA [--split val] [--limit 420]

Prints bytes per image and the mean squared error of the grid, in units of each channel's scale in
the codec: of embeddings that are coded at a quality, and of decoded ones of a higher quality that
are coded again.
"""

import argparse
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import nec_jax
from coder import QualityLadder, UnusualEmbedding
from nec_jax.sources import open_source
from train.data import read_all

_FROM = (10, 12, 14)
_TO = (4, 5, 6, 7, 8, 9)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="model file, or name of a shipped model")
    parser.add_argument("data", help="data set, as for nec encode")
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, default=420, help="images")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", UnusualEmbedding)
    params = nec_jax.load(options.model)
    size = params.config.image_size
    images = read_all(open_source(options.data, options.split), size, limit=options.limit).images
    y, grid = nec_jax.latents(params, images), params.config.grid(size, size)
    codec = params.codec
    assert isinstance(codec, QualityLadder)

    def coded(values: NDArray[np.float32], quality: int) -> tuple[float, NDArray[np.float32]]:
        blobs = [codec.encode(one, grid, quality=quality) for one in values]
        y_hat = np.stack([codec.decode(blob) for blob in blobs])
        return float(np.mean([len(blob) for blob in blobs])), y_hat

    def shown(values: NDArray[np.float32], quality: int) -> str:
        size, y_hat = coded(values, quality)
        error = ((y_hat - y) / codec.transform.scale)[:, int(codec.class_token) :]
        return f"{size:.0f} B, {np.mean(np.square(error, dtype=np.float64)):.3f}"

    decoded = {quality: coded(y, quality)[1] for quality in _FROM}
    print(f"| quality | anew | {' | '.join(f'from quality {q}' for q in _FROM)} |")
    print("| ---: " * (2 + len(_FROM)) + "|")
    for quality in _TO:
        cells = [shown(values, quality) for values in (y, *decoded.values())]
        print(f"| {quality} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
