"""Kills `nec encode` at random moments, starts it again, and compares the archives in the end.

    python tests/kill_archive.py [--kills 10] [--processes 2] [--seed N]

The Earth in 882 tiles is encoded once untouched. Then one process, and after that several that
share the work, are killed by SIGKILL again and again, and started again until the archive is
complete. All files must be the same bytes, and nothing may be left beside the archive. Prints one
line per kill. Takes some minutes on two cores.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NEC = [sys.executable, "-m", "coder"]
ENCODE = [*NEC, "encode", "blue-marble", "--model", "nec-vit-ti", "--chip", "128", "--shard", "32"]
LONGEST = 9.0  # seconds until a kill


def start(out: Path) -> subprocess.Popen:
    """Begin the archive, go on with it, or share the work on it."""
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen([*ENCODE, "--out", str(out)], stdout=log, stderr=log)


def killed(out: Path, whole: Path, kills: int, processes: int, rng: random.Random) -> None:
    """Encode with so many processes, one of which is killed so many times; compare at each end."""
    running = [start(out) for _ in range(processes)]
    done = 0
    while done < kills:
        time.sleep(rng.uniform(0, LONGEST))
        place = rng.randrange(processes)
        if running[place].poll() is None:
            running[place].kill()
            running[place].wait()
            done += 1
            shards = len(list((out / "valid").rglob("c/*"))) if out.exists() else 0
            print(f"{out.name}: kill {done} of {kills}, {shards} of 28 shards", flush=True)
        if all(one.poll() == 0 for one in running):
            compare(out, whole)
            print(f"{out.name}: complete after {done} kills, and begun anew", flush=True)
            shutil.rmtree(out)
            running = [start(out) for _ in range(processes)]
        elif running[place].poll() is not None:
            running[place] = start(out)
    for one in running:
        if one.wait() != 0:
            sys.exit(out.with_suffix(".log").read_text())
    compare(out, whole)


def compare(out: Path, whole: Path) -> None:
    """End the program if an archive differs from that of an uninterrupted run."""
    if content(out) != content(whole):
        sys.exit(f"{out.name} differs from the archive of an uninterrupted run")
    if subprocess.run([*NEC, "verify", str(out)], stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"{out.name} is damaged")
    if left := [path.name for path in out.parent.glob(".*")]:
        sys.exit(f"left beside {out.name}: {left}")


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def main() -> None:
    """Run all, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole.zarr")
        if start(whole).wait() != 0:
            sys.exit(whole.with_suffix(".log").read_text())
        for processes in (1, options.processes):
            out = Path(folder, f"{processes}-processes.zarr")
            killed(out, whole, options.kills, processes, rng)
    print("the same bytes each time")


if __name__ == "__main__":
    main()
