"""`make demo-train`: the paper's method from fresh weights, on NASA's Blue Marble.

Trains a tiny masked autoencoder on 60-pixel tiles, adapts it to compression at three lambdas,
measures bytes against the scores of task heads, and draws the decoded embeddings. Results are
written to `runs/demo-train/`; an interrupted run resumes. Takes minutes on two cores.
"""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from numpy.typing import NDArray

import nec_jax
from examples.demo import PALETTE, draw_views
from nec_jax import heads
from nec_jax.model_file import NecParams
from nec_jax.models import nec
from nec_jax.models.vit import unpatchify
from nec_jax.sources.blue_marble import BlueMarble
from train.configs.options import Compress, OptionsError, Pretrain
from train.configs.study_options import Evaluate
from train.engine.log import messages
from train.engine.pictures import principal_colours
from train.studies import baselines, evaluate, report
from train.studies.methods import load_compressed
from train.tasks import compress, pretrain

WORKDIR = Path("runs/demo-train")
CHIP, PATCH = 60, 10  # 60 divides the image: no tile is left over
LAMBDAS = (1.0, 10.0, 100.0)

PRETRAIN = Pretrain(
    data="blue-marble",
    chip=CHIP,
    image_size=CHIP,
    patch=PATCH,
    depth=6,
    workdir=WORKDIR / "mae",
    steps=300,
    batch=64,
    lr=2e-3,
    warmup=50,
    val_every=150,
    val_images=256,
)


def compress_options(lam: float) -> Compress:
    """Options for one lambda: whole tiles (mask ratio 0), since the picture needs all tokens."""
    return Compress(
        data="blue-marble",
        chip=CHIP,
        init=str(WORKDIR / "mae" / "model.safetensors"),
        workdir=WORKDIR / f"lambda-{lam:g}",
        lam=lam,
        mask_ratio=0.0,
        steps=100,
        batch=32,
        lr=7e-4,
        val_every=50,
        val_images=256,
    )


def evaluate_options(task: str) -> Evaluate:
    """A small study: bytes against scores on the test longitudes."""
    return Evaluate(
        models=tuple(str(compress_options(lam).workdir / "model.safetensors") for lam in LAMBDAS),
        base=str(WORKDIR / "mae" / "model.safetensors"),
        data="blue-marble",
        chip=CHIP,
        task=task,  # type: ignore[arg-type]
        split="test",
        limit=300,
        seeds=2,
        epochs=10 if task == "classification" else 3,
        decoder_heads=task == "classification",
        uqe_bits=(3,),
        jpeg2000=(60.0,),
    )


def main() -> None:
    """Train, evaluate, draw."""
    start = time.monotonic()
    pretrain.run(PRETRAIN)
    for lam in LAMBDAS:
        compress.run(compress_options(lam))
    base = nec_jax.load(evaluate_options("classification").base)
    models = load_compressed(evaluate_options("classification").models)
    results = []
    for task in ("classification", "segmentation"):
        options = evaluate_options(task)
        study = evaluate.open_study(options, base)
        results.append(evaluate.evaluate(options, study, base, models))
    result = results[0] | {"points": [p for r in results for p in r["points"]]}
    report.write(result, WORKDIR)
    draw_earth(models[f"lambda {LAMBDAS[1]:g}"], LAMBDAS[1], WORKDIR / "earth.png")
    print((WORKDIR / "report.md").read_text())
    names = ("report.json", "report.md", "rate_distortion.png", "earth.png")
    print("wrote " + ", ".join(str(WORKDIR / name) for name in names))
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)


def draw_earth(params: NecParams, lam: float, path: Path) -> None:
    """Draw four views of the Earth, three of them from the same bytes.

    The accuracy is that on the test longitudes, which no head saw.
    """
    earth = BlueMarble("all", CHIP)
    tiles = np.stack([earth[i]["image"] for i in range(len(earth))])
    blobs = nec_jax.encode(params, tiles)
    y_hat = nec_jax.decode(params, blobs)
    size = sum(map(len, blobs))
    raw = int(baselines.raw_zstd(tiles).bytes_per_image.sum())
    water, accuracy = land_and_water(
        params, earth, y_hat, every=(4, 5), kind="conv", with_decoder=True, epochs=8
    )
    codec = "" if params.codec is None else f" + codec {params.codec.codec_bytes / 1e3:,.0f} kB"
    same = f"{size / 1e3:,.0f} kB"
    views = [
        (f"Blue Marble, 8 bit + zstd: {raw / 1e6:,.1f} MB", mosaic(earth, tiles)),
        (
            f"decoded embeddings, three principal components: {same}{codec}",
            mosaic(earth, principal_colours(y_hat[:, 1:])),
        ),
        (
            f"painted from the same {same} by the decoder ({raw / size:,.0f} times smaller)",
            mosaic(earth, paint(params, y_hat)),
        ),
        (
            f"ocean, land and lake from the same {same}: accuracy {100 * accuracy:.1f} %",
            mosaic(earth, PALETTE[water]),
        ),
    ]
    draw_views(
        views, f"{len(tiles):,} tiles, lambda {lam:g}: {size / len(tiles):.0f} bytes each", path
    )


def paint(params: NecParams, y_hat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Decoded embeddings [N, 1 + T, D] -> the MAE decoder's pixels uint8 [N, S, S, 3]."""
    config = params.config
    grid = config.grid(config.image_size, config.image_size)

    @jax.jit
    def pixels(tokens: jax.Array) -> jax.Array:
        patches = nec.reconstruct(config, params.weights, tokens, grid)
        image = unpatchify(patches, grid, config.patch)
        return image * np.array(config.std) + np.array(config.mean)

    chunks = np.array_split(y_hat, max(1, len(y_hat) // 256))
    painted = np.concatenate([np.asarray(pixels(chunk)) for chunk in chunks])
    return np.clip(np.round(painted), 0, 255).astype(np.uint8)


def mosaic(earth: BlueMarble, tiles: NDArray) -> NDArray:
    """Put tiles [N, h, w, ...] at their places in one image."""
    h, w = tiles.shape[1:3]
    rows = [row // earth.chip for row, _ in earth.windows]
    cols = [col // earth.chip for _, col in earth.windows]
    canvas = np.zeros(((max(rows) + 1) * h, (max(cols) + 1) * w, *tiles.shape[3:]), tiles.dtype)
    for row, col, tile in zip(rows, cols, tiles, strict=True):
        canvas[row * h : (row + 1) * h, col * w : (col + 1) * w] = tile
    return canvas


def land_and_water(
    params: NecParams,
    earth: BlueMarble,
    y_hat: NDArray[np.float32],
    every: tuple[int, int] = (1, 1),
    **head: Any,
) -> tuple[NDArray[np.int32], float]:
    """Segment every tile from its decoded embedding.

    The head is trained on the training longitudes only, on a regular part of the tiles of train and
    val; `head` are the further arguments of `heads.fit`.

    Returns:
      The class of each pixel int32 [N, CHIP, CHIP], and the accuracy over the pixels of the test
      longitudes.
    """
    where = {window: i for i, window in enumerate(earth.windows)}
    train, val, test = (
        np.array([where[w] for w in BlueMarble(split, earth.chip).windows])
        for split in ("train", "val", "test")
    )
    masks = np.stack([earth[i].get("mask", np.empty(0)) for i in range(len(earth))])
    fit, choose = train[:: every[0]], val[:: every[1]]
    trained = heads.fit(
        params,
        y_hat[fit],
        masks[fit],
        classes=earth.mask_classes,
        val=(y_hat[choose], masks[choose]),
        **head,
    )
    predicted = heads.predict(trained, y_hat)
    return predicted, float(np.mean(predicted[test] == masks[test]))


if __name__ == "__main__":
    try:
        with messages():
            tyro.cli(main, prog="python -m examples.demo_train", description=__doc__)
    except OptionsError as error:
        sys.exit(f"error: {error}")
