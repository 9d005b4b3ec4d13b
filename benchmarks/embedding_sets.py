"""Embeddings of real images, on which `benchmarks.embedding_peers` measures.

    python -m benchmarks.embedding_sets MODEL DATA --out FILE.npz [--images N] [--grids N]

MODEL is a model file or the name of one that ships, DATA a folder of images. The file holds, as
float32:

- `mean_tokens` [N, D] and `class_tokens` [N, D] of the images of DATA, evenly spread,
- `tokens` [n, h, w, D], the grids of the first so many of these, evenly spread again,
- `raster` [H, W, D], the cells of Blue Marble from 60 N to 8 S.
"""

import argparse
from pathlib import Path

import numpy as np

import nec_jax
from benchmarks.scene_images import marble, whole
from nec_jax.sources import open_source, spread
from train.data import read_all

AT_ONCE = 512
HALO = 2  # cells around a window that the encoder sees


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--grids", type=int, default=512)
    arguments = parser.parse_args()
    params = nec_jax.load(arguments.model)
    side, patch = params.config.image_size, params.config.patch
    images = read_all(open_source(arguments.data), side, limit=arguments.images).images
    height, width = params.config.grid(side, side)
    chosen = set(spread(len(images), min(arguments.grids, len(images))))
    mean_tokens, class_tokens, tokens = [], [], []
    for start in range(0, len(images), AT_ONCE):
        y = nec_jax.latents(params, images[start : start + AT_ONCE])
        grids = y[:, -height * width :]
        mean_tokens.append(grids.mean(1))
        class_tokens.append(y[:, : y.shape[1] - height * width].reshape(len(y), -1))
        tokens.extend(grids[i] for i in range(len(y)) if start + i in chosen)
        print(f"{start + len(y)} of {len(images)} images", flush=True)
    raster = [
        whole(params, scene.image[: len(scene.image) // patch * patch], side // patch, HALO)
        for scene in marble(patch)
    ]
    np.savez(
        arguments.out,
        mean_tokens=np.concatenate(mean_tokens),
        class_tokens=np.concatenate(class_tokens),
        tokens=np.stack(tokens).reshape(len(tokens), height, width, -1),
        raster=np.concatenate(raster, axis=1),
    )


if __name__ == "__main__":
    main()
