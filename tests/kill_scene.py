"""Kills `nec encode` of a scene at random moments, starts it again, and compares in the end.

    python tests/kill_scene.py [--kills 10] [--seed N]

A part of the Earth is encoded twice untouched, as two times of one scene. Then each time is killed
by SIGKILL again and again: in start-up, while cells or overviews are written, or the preview and
the STAC Item beside them; and started again until it is complete. All files must be the same bytes,
and nothing may be left beside the scene. Prints one line per kill. Takes some minutes on two cores.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rasterio
from kill_archive import content

from nec_jax.sources.blue_marble import BlueMarble

NEC = [sys.executable, "-m", "coder"]
SIDES = (3000, 4400)  # pixels: two shards, and two overviews
TIMES = ("2026-05-01", "2026-06-01")


def make(path: Path) -> None:
    """Write a part of Blue Marble as a GeoTIFF."""
    height, width = SIDES
    place = {"crs": "EPSG:4326", "transform": rasterio.Affine(1 / 15, 0, -180, 0, -1 / 15, 90)}
    bands = BlueMarble().image[:height, :width].transpose(2, 0, 1)
    with rasterio.open(path, "w", "GTiff", width, height, 3, dtype="uint8", **place) as file:
        file.write(bands)


def start(scene: Path, out: Path, when: str) -> subprocess.Popen:
    """Begin a time of the scene, or go on with it."""
    command = [*NEC, "encode", str(scene), "--model", "nec-vit-ti", "--halo", "0", "--time", when]
    programs = {  # compiled once
        "JAX_COMPILATION_CACHE_DIR": str(scene.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with scene.with_name(f"{out.parent.name}.log").open("a") as log:
        return subprocess.Popen(
            [*command, "--out", str(out)], stdout=log, stderr=log, env=os.environ | programs
        )


def finish(run: subprocess.Popen, scene: Path, out: Path) -> None:
    """End the program if a run failed."""
    if run.wait():
        sys.exit(scene.with_name(f"{out.parent.name}.log").read_text())


def compare(out: Path, whole: Path) -> None:
    """End the program if a scene, or what is beside it, differs from that of untouched runs."""
    found, expected = content(out.parent), content(whole.parent)
    if differing := sorted(k for k in found | expected if found.get(k) != expected.get(k)):
        sys.exit(f"these differ from those of an untouched run: {differing}")
    if subprocess.run([*NEC, "verify", str(out)], stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"{out} is damaged")


def main() -> None:
    """Run all, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder, "earth.tif")
        make(scene)
        whole = Path(folder, "whole", "a.zarr")
        whole.parent.mkdir()
        begin = 0.0
        for when in TIMES:
            begin = time.monotonic()
            finish(start(scene, whole, when), scene, whole)
        longest = time.monotonic() - begin  # of the second, for which nothing is compiled
        out = Path(folder, "killed", "a.zarr")
        out.parent.mkdir()
        done = 0
        while done < options.kills:
            for when in TIMES:
                run = start(scene, out, when)
                while run.poll() is None:
                    time.sleep(rng.uniform(0, longest))
                    if run.poll() is None and done < options.kills:
                        run.kill()
                        run.wait()
                        done += 1
                        left = [path.name for path in out.parent.glob(".*")]
                        print(f"kill {done} of {options.kills} at {when}; {left}", flush=True)
                        run = start(scene, out, when)
                finish(run, scene, out)
            compare(out, whole)
            shutil.rmtree(out.parent)
            out.parent.mkdir()
    print("the same bytes each time")


if __name__ == "__main__":
    main()
