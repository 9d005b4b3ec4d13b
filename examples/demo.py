"""`make demo`: the Earth as embeddings of the shipped model, in some hundred kilobytes.

NASA's Blue Marble is cut into tiles and each tile is coded as a blob of a few hundred bytes. All
results are made of the decoded blobs: principal colours, a map of land and water, and scores next
to those of usual ways to store pixels and embeddings. Only linear heads are trained. Results are
written to `runs/demo/`.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

import nec_jax
from coder import CodecError, QualityLadder, files
from nec_jax import heads
from nec_jax.images.record import DataError
from nec_jax.model_file import NecParams
from nec_jax.sources.blue_marble import BlueMarble
from train.configs.options import OptionsError
from train.configs.study_options import Evaluate
from train.engine.log import messages
from train.engine.pictures import principal_colours
from train.studies import baselines, evaluate, report
from train.studies.curves import save
from train.studies.study import Study

WORKDIR = Path("runs/demo")
MODEL = "nec-vit-ti"
SMALL = 7  # quality of the map of land and water
PALETTE = np.array([[20, 60, 120], [200, 180, 120], [90, 200, 230]], np.uint8)
CHIP = 90  # divides the image: no tile is left over

OPTIONS = Evaluate(
    model=MODEL,
    data="blue-marble",
    chip=CHIP,
    split="test",
    heads=("class-linear",),
    refine="own",
    uqe_bits=(3,),
    jpeg2000=(60.0,),
)
"""Bytes against the accuracy of classifying ocean, land and coast, on held-out longitudes."""


def main() -> None:
    """Encode, decode, evaluate, draw."""
    start = time.monotonic()
    params = nec_jax.load(MODEL)
    files.make_folder(WORKDIR)
    study = evaluate.open_study(OPTIONS, params)
    draw_earth(params, study, WORKDIR / "earth.png")
    report.write(evaluate.evaluate(OPTIONS, study, params, {"": params}), WORKDIR)
    print((WORKDIR / "report.md").read_text())
    names = ("report.json", "report.md", "rate_distortion.png", "earth.png")
    print("wrote " + ", ".join(str(WORKDIR / name) for name in names))
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)


def draw_earth(params: NecParams, study: Study, path: Path) -> None:
    """Draw views of the Earth: one of pixels, and what is made of blobs alone.

    The accuracy is that on the test longitudes, which the head did not see.
    """
    print("encoding the Earth, half a minute", file=sys.stderr)
    earth = BlueMarble("all", CHIP)
    records = [earth[i] for i in range(len(earth))]
    tiles = np.stack([record["image"] for record in records])
    # The splits of the study are all tiles of the Earth, in another order.
    ids = [name for split in study.splits() for name in split.ids]
    place = {name: i for i, name in enumerate(ids)}
    y = np.concatenate(study.embedded(params))[[place[record["id"]] for record in records]]
    assert isinstance(params.codec, QualityLadder)
    codec = params.codec.codec_bytes / 1e3
    grid = study.grid(params)
    default = params.codec.quality
    coded = {
        quality: [params.codec.encode(one, grid, quality=quality) for one in y]
        for quality in (default, SMALL)
    }
    decoded = {quality: nec_jax.decode(params, blobs) for quality, blobs in coded.items()}
    size = {quality: sum(map(len, blobs)) for quality, blobs in coded.items()}
    raw = int(baselines.raw_zstd(tiles).bytes_per_image.sum())
    maps = [
        land_and_water(params, earth, decoded[SMALL], kind="token-linear", refine=refine)
        for refine in (True, False)
    ]
    masks = np.stack([record.get("mask", np.empty(0)) for record in records])

    def says(what: str, quality: int) -> str:
        times = f"{raw / size[quality]:,.0f} times smaller"
        return f"{what}: {size[quality] / 1e3:,.0f} kB (+ codec {codec:,.0f} kB), {times}"

    assert params.codec.refiner is not None
    kinds = (f"refined (+ {params.codec.refiner.refiner_bytes / 1e3:,.0f} kB)", "plain")
    # In the colours of the higher quality, so that the two can be compared.
    both = np.concatenate([decoded[default][:, 1:], decoded[SMALL][:, 1:]])
    colours = principal_colours(both)
    views = [
        (f"Blue Marble, 8 bit + zstd: {raw / 1e6:,.1f} MB", mosaic(earth, tiles)),
        (
            says("plain embeddings, three principal components", default),
            mosaic(earth, colours[: len(tiles)]),
        ),
        (
            says("the same at a lower quality", SMALL),
            mosaic(earth, colours[len(tiles) :]),
        ),
        *(
            (
                f"land and water by a linear head, {kind}: {100 * accuracy:.1f} % right on "
                "unseen longitudes",
                mosaic(earth, PALETTE[predicted]),
            )
            for kind, (predicted, accuracy) in zip(kinds, maps, strict=True)
        ),
        (
            "where only the map with the refiner is right (green), or only the other (red)",
            mosaic(earth, differences(*(predicted == masks for predicted, _ in maps))),
        ),
    ]
    each = " and ".join(f"{size[quality] / len(tiles):.0f}" for quality in (default, SMALL))
    draw_views(views, f"{MODEL}: {len(tiles):,} tiles of {each} bytes", path)


def draw_views(views: list[tuple[str, NDArray]], title: str, path: Path) -> None:
    """Draw pictures of the whole Earth, two in a row, each with its caption."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = -(-len(views) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(16, 4.4 * rows), layout="constrained")
    for axis, (caption, image) in zip(axes.ravel(), views, strict=True):
        axis.imshow(image, extent=(-180, 180, -90, 90), interpolation="antialiased")
        axis.set_title(caption, fontsize=11)
        axis.set_xticks(range(-180, 181, 60))
        axis.set_yticks(range(-90, 91, 30))
    figure.suptitle(title, fontsize=13)
    save(figure, path, dpi=120)
    plt.close(figure)


def mosaic(earth: BlueMarble, tiles: NDArray) -> NDArray:
    """Put tiles [N, h, w, ...] at their places in one image."""
    h, w = tiles.shape[1:3]
    rows = [row // earth.chip for row, _ in earth.windows]
    cols = [col // earth.chip for _, col in earth.windows]
    canvas = np.zeros(((max(rows) + 1) * h, (max(cols) + 1) * w, *tiles.shape[3:]), tiles.dtype)
    for row, col, tile in zip(rows, cols, tiles, strict=True):
        canvas[row * h : (row + 1) * h, col * w : (col + 1) * w] = tile
    return canvas


def differences(one: NDArray[np.bool_], two: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Colours [.., 3]: green where only `one` is true, red where only `two` is, else grey."""
    colours = np.full((*one.shape, 3), 235, np.uint8)
    colours[one & ~two] = (0, 130, 60)
    colours[two & ~one] = (200, 30, 30)
    return colours


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
            tyro.cli(main, prog="python -m examples.demo", description=__doc__)
    except (CodecError, DataError, ModuleNotFoundError, OSError, OptionsError) as error:
        sys.exit(f"error: {error}")
