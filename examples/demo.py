"""`make demo`: the Earth as embeddings of the shipped model, in some hundred kilobytes.

NASA's Blue Marble is encoded as one georeferenced scene, with an embedding per 16 x 16 pixels. From
that alone come a picture of principal components and a map of land and water, as GeoTIFFs. Then
tiles of it are coded one by one, and scores are compared with those of usual ways to store pixels
and embeddings. Only linear heads are trained. Results are written to `runs/demo/`.
"""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

import coder
import nec_jax
from coder import CodecError, files
from coder.scenes import class_map, raster_export
from coder.scenes.scene_part import part_of
from coder.scenes.scene_reader import Scene
from nec_jax import heads
from nec_jax.images.record import DataError
from nec_jax.model_file import NecParams
from nec_jax.scene_encoding.raster_scene import RasterScene
from nec_jax.scene_encoding.scene_archive import encode_scene
from nec_jax.sources.blue_marble import BlueMarble
from train.configs.options import OptionsError
from train.configs.study_options import Evaluate
from train.engine.log import messages
from train.studies import evaluate, report
from train.studies.curves import save

WORKDIR = Path("runs/demo")
MODEL = "nec-vit-ti"
SIDE, CELLS = 128, 8  # of the windows that the head of land and water reads: pixels, cells
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
    map_earth(params, WORKDIR / "earth.png")
    study = evaluate.open_study(OPTIONS, params)
    report.write(evaluate.evaluate(OPTIONS, study, params, {"": params}), WORKDIR)
    print((WORKDIR / "report.md").read_text())
    names = ("report.md", "rate_distortion.png", "earth.png", "earth.zarr", "land-and-water.tif")
    print("wrote " + ", ".join(str(WORKDIR / name) for name in names))
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)


def map_earth(params: NecParams, path: Path) -> None:
    """Encode the Earth as one georeferenced scene, and draw maps made of embeddings alone."""
    picture, out = WORKDIR / "earth.tif", WORKDIR / "earth.zarr"
    splits = {name: BlueMarble(name, SIDE) for name in ("train", "val", "test")}
    earth = splits["train"]  # each has the whole image
    write_picture(earth.image, picture)
    shutil.rmtree(out, ignore_errors=True)
    print("encoding the Earth as a scene, one or two minutes", file=sys.stderr)
    done = encode_scene(params, RasterScene([picture], params.config), out)
    scene = coder.open_scene(out)
    train, val = (cells_and_masks(scene, splits[name]) for name in ("train", "val"))
    head = heads.fit(params, *train, classes=earth.mask_classes, val=val, kind="token-linear")
    heads.save(head, WORKDIR / "land-and-water.safetensors")
    whole = part_of(scene)
    preview, land = WORKDIR / "earth.preview.tif", WORKDIR / "land-and-water.tif"
    raster_export.write_preview(whole, preview, overwrite=True)
    trained = coder.load_head(WORKDIR / "land-and-water.safetensors")
    class_map.write_map(whole, trained, land, overwrite=True)
    classes = read_raster(land)[0, : earth.mask.shape[0], : earth.mask.shape[1]]
    held = np.zeros(earth.mask.shape, bool)
    for row, column in splits["test"].windows:
        held[row : row + SIDE, column : column + SIDE] = True
    right = classes == earth.mask
    raw = earth.image.nbytes
    payload = done.bytes - done.metadata_bytes - done.overview_bytes
    views = [
        (f"Blue Marble: {raw / 1e6:,.1f} MB of pixels", earth.image),
        (
            f"embeddings, three principal components: {payload / 1e3:,.0f} kB "
            f"(+ {(done.bytes - payload) / 1e3:,.0f} kB codec, refiner, metadata, overviews)",
            np.moveaxis(read_raster(preview)[:3], 0, -1),
        ),
        (
            f"land and water by a linear head: {100 * right[held].mean():.1f} % right on unseen "
            "longitudes",
            np.vstack([PALETTE, np.full((253, 3), 255, np.uint8)])[classes],  # 255: no embedding
        ),
        ("where that map is right (green) and wrong (red)", painted(right)),
    ]
    height, width = done.shape
    each = payload / done.cells
    draw_views(views, f"{MODEL}: {height} x {width} cells of {each:.1f} bytes", path)


def write_picture(image: NDArray[np.uint8], path: Path) -> None:
    """Write the Earth [H, W, 3] as a GeoTIFF in degrees."""
    import rasterio
    from rasterio.transform import from_bounds

    height, width = image.shape[:2]
    settings: dict[str, Any] = {"driver": "GTiff", "dtype": "uint8", "count": 3, "tiled": True}
    settings |= {"crs": "EPSG:4326", "photometric": "RGB", "compress": "deflate"}
    settings |= {"transform": from_bounds(-180, -90, 180, 90, width, height)}
    with rasterio.open(path, "w", height=height, width=width, **settings) as dataset:
        dataset.write(np.moveaxis(image, -1, 0))


def read_raster(path: Path) -> NDArray:
    """All bands of a raster [C, H, W]."""
    import rasterio

    with rasterio.open(path) as dataset:
        return dataset.read()


def cells_and_masks(
    scene: Scene, earth: BlueMarble
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Windows of 8 x 8 cells of a split, and their pixels' classes.

    A head of this model expects a class token, which a scene does not have. Heads for maps drop it:
    zeros stand in its place.
    """
    patch, cells = SIDE // CELLS, []
    for row, column in earth.windows:
        top, left = row // patch, column // patch
        y = scene.read(slice(top, top + CELLS), slice(left, left + CELLS)).reshape(CELLS**2, -1)
        cells.append(np.concatenate([np.zeros_like(y[:1]), y]))
    masks = [earth.mask[r : r + SIDE, c : c + SIDE] for r, c in earth.windows]
    return np.stack(cells), np.stack(masks)


def painted(right: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Colours [..., 3]: green where it is right, red where it is not."""
    colours = np.full((*right.shape, 3), (200, 225, 205), np.uint8)
    colours[~right] = (200, 30, 30)
    return colours


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


if __name__ == "__main__":
    try:
        with messages():
            tyro.cli(main, prog="python -m examples.demo", description=__doc__)
    except (CodecError, DataError, ModuleNotFoundError, OSError, OptionsError) as error:
        sys.exit(f"error: {error}")
