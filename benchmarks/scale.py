"""Whether `nec encode` takes constant memory, and time in proportion to the number of images.

    python -m benchmarks.scale FOLDER [--files] [--model nec-vit-ti] [--images 625 1875 6250]

Encodes images of a folder, cut into chips, in a process of its own for each number. With --files,
each chip is a PNG file of its own, written before. Prints chips, CPU time and elapsed time, the
maximum memory of the process, and that of each quarter of its run. The last column is the bytes of
all files of the archive.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from nec_jax.sources import open_inputs
from nec_jax.sources.folder import find_images

_EVERY = 0.5  # seconds between two looks at the memory


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="nec-vit-ti")
    parser.add_argument("--chip", type=int, default=37, help="pixels")
    parser.add_argument("--images", type=int, nargs="+", default=[625, 1875, 6250])
    parser.add_argument("--files", action="store_true", help="write each chip as a file")
    options = parser.parse_args(arguments)
    paths = find_images(options.folder)
    if len(paths) < max(options.images):
        parser.error(f"{options.folder} has {len(paths)} images")
    print("| chips | CPU s | s | chips/s | maximum MB | MB by quarters | archive bytes |")
    print("| ---: " * 7 + "|")
    for count in options.images:
        # Spread over the classes, and in an order of their own.
        some = [options.folder / paths[i * len(paths) // count] for i in range(count)]
        with tempfile.TemporaryDirectory() as folder:
            inputs, chip = list(map(str, some)), ["--chip", str(options.chip)]
            if options.files:
                inputs, chip = [_cut(inputs, options.chip, Path(folder) / "chips")], []
            out = Path(folder) / "archive.zarr"
            print(_row([*inputs, "--model", options.model, *chip], out), flush=True)


def _cut(images: list[str], chip: int, folder: Path) -> str:
    """Write all windows of images to files, a thousand in each folder."""
    source = open_inputs(images, chip=chip)
    for i in range(len(source)):
        file = folder / f"{i // 1000:03}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source[i]["image"]).save(file)
    return str(folder)


def _row(arguments: list[str], out: Path) -> str:
    command = [sys.executable, "-m", "coder", "encode", *arguments, "--out", str(out), "--json"]
    start, memory = time.monotonic(), []
    with (
        tempfile.TemporaryFile() as told,
        subprocess.Popen(command, stdout=told, stderr=subprocess.DEVNULL) as process,
    ):
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            memory.append(_resident(process.pid))
            time.sleep(_EVERY)
        told.seek(0)
        facts = json.loads(told.read() or "{}")
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"nec encode ended with status {process.returncode}")
    quarter = -(-len(memory) // 4)
    quarters = [max(memory[i : i + quarter]) for i in range(0, len(memory), quarter)]
    cells = [
        f"{facts['images']:,}",
        f"{usage.ru_utime + usage.ru_stime:,.0f}",
        f"{seconds:,.0f}",
        f"{facts['images'] / seconds:.1f}",
        f"{1024 * usage.ru_maxrss / 1e6:,.0f}",
        ", ".join(f"{one:,.0f}" for one in quarters),
        f"{facts['archive_bytes']:,}",
    ]
    return f"| {' | '.join(cells)} |"


def _resident(process: int) -> float:
    """The memory that a process has, MB; 0 if it has ended."""
    try:
        text = Path(f"/proc/{process}/statm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
