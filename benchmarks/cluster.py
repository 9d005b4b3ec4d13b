"""Times `nec encode` alone and on local dask workers, and compares the archives.

    python -m benchmarks.cluster nec-vit-ti IMAGES [--rounds 3]

Each round runs every case once, from the command's start to its end: in one process; with one and
two worker processes; and with two whose XLA uses one thread (PJRT_NPROC) and which read by one
thread. All archives must have the same bytes. Prints a row for each case: seconds from start to
end, and the CPU seconds of all processes, which depend less on what else runs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES: dict[str, tuple[list[str], dict[str, str]]] = {
    "one process": ([], {}),
    "one worker": (["--scheduler", "local:1"], {}),
    "two workers": (["--scheduler", "local:2"], {}),
    "two workers of one thread": (
        ["--scheduler", "local:2", "--workers", "1"],
        {"PJRT_NPROC": "1"},
    ),
}


def encode(model: str, images: str, out: Path, case: str) -> tuple[float, float]:
    """Run one case. Returns seconds, and CPU seconds."""
    more, settings = CASES[case]
    command = [sys.executable, "-m", "coder", "encode", images, "--model", model, "--out", str(out)]
    start, before = time.monotonic(), os.times()
    subprocess.run(
        [*command, *more], env=os.environ | settings, check=True, stdout=subprocess.DEVNULL
    )
    after = os.times()
    used = after.children_user - before.children_user
    used += after.children_system - before.children_system
    return time.monotonic() - start, used


def content(out: Path) -> dict[str, bytes]:
    """The files of an archive."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def main() -> None:
    """Run all cases, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        whole: dict[str, bytes] | None = None
        for round_ in range(options.rounds):
            for number, case in enumerate(CASES):
                out = Path(folder, f"{round_}-{number}.zarr")
                seconds[case].append(encode(options.model, options.images, out, case))
                print(f"{case}: {seconds[case][-1]} s", file=sys.stderr, flush=True)
                whole = whole or content(out)
                if content(out) != whole:
                    sys.exit(f"{case}: another archive than that of one process")
    print("| case | seconds | CPU seconds |\n| --- | ---: | ---: |")
    for case, times in seconds.items():
        elapsed, used = (
            ", ".join(f"{one:.0f}" for one in some) for some in zip(*times, strict=True)
        )
        print(f"| {case} | {elapsed} | {used} |")


if __name__ == "__main__":
    main()
