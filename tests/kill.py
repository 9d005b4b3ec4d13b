"""Kills a run at random moments, starts it again, and compares what is left in the end.

    python tests/kill.py [--kills 20] [--seed N]

`compress --config smoke` runs twice untouched; then it is killed by SIGKILL, in start-up, between
steps, while a checkpoint or the model is written, and started again until it ends. Model and
metrics must be the same bytes each time. Prints a line a kill; ten minutes on two cores.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "train.main", "compress", "--config", "smoke", "--workdir"]
RESULTS = ("model.safetensors", "metrics.jsonl")


def start(folder: Path, cache: Path) -> subprocess.Popen:
    # Programs are compiled once: most of the time is then that of the run itself.
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        return subprocess.Popen([*COMMAND, str(folder)], env=os.environ | kept, stderr=log)


def finish(run: subprocess.Popen) -> None:
    if run.wait():
        sys.exit(f"the run ended with status {run.returncode}")


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def results(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in RESULTS}


def kill_once(folder: Path, cache: Path) -> bool:
    """Start the run and kill it some lines of metrics later; False if it came to its end first."""
    run = start(folder, cache)
    wanted = lines(folder) + random.randrange(4)
    while run.poll() is None and lines(folder) < wanted:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 2) ** 2)
    if run.poll() is not None:
        finish(run)
        return False
    run.kill()
    run.wait()
    left = sorted(path.name for path in (folder / "checkpoints").glob("*"))
    print(f"killed after {lines(folder)} lines; checkpoints {' '.join(left) or 'none'}", flush=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    random.seed(options.seed)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as root:
        cache, kills, runs = Path(root, "cache"), 0, 0
        for name in ("whole", "again"):
            finish(start(Path(root, name), cache))
        expected = results(Path(root, "whole"))
        if results(Path(root, "again")) != expected:
            sys.exit("two runs that nobody cut off differ")
        while kills < options.kills:
            runs += 1
            folder = Path(root, f"cut-{runs}")
            while kills < options.kills and kill_once(folder, cache):
                kills += 1
            finish(start(folder, cache))
            if results(folder) != expected:
                sys.exit(f"run {runs}, cut off and started again, differs from one that was not")
            print(f"run {runs} ended like one that was not cut off", flush=True)
    print(f"{kills} kills, {runs} runs: all ended with the same bytes")


if __name__ == "__main__":
    main()
