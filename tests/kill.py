"""Kills runs at random moments, starts them again, and compares what is left in the end.

    python tests/kill.py [--kills 20] [--seed N]

`compress --config smoke` runs twice untouched; then it is killed by SIGKILL, in start-up, between
steps, while a checkpoint or the model is written, and started again until it ends. Model and
metrics must be the same bytes each time. The same with a run from that model's features by way of
a cache, which is made anew each time. Prints one line per kill. Takes a quarter of an
hour on two cores.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

COMPRESS = [sys.executable, "-m", "train.main", "compress"]
SMOKE = ["--config", "smoke"]
CACHED = [
    *("--proxy", "features", "--trainable", "decoder/.*,bottleneck/.*", "--gain", "identity"),
    *("--data", "blue-marble", "--chip", "32", "--steps", "24", "--batch", "16", "--lr", "1e-3"),
    *("--val-images", "64", "--val-every", "12", "--log-every", "4", "--checkpoint-every", "5"),
    *("--calibration-images", "64"),
]
RESULTS = ("model.safetensors", "metrics.jsonl")


@dataclass(frozen=True)
class Case:
    """One run, wherever its folder is.

    Attributes:
      options: of `compress`.
      cached: whether it has a cache, beside its folder.
      programs: folder of compiled programs.
    """

    options: list[str]
    cached: bool
    programs: Path

    def start(self, folder: Path) -> subprocess.Popen:
        """Begin it, or go on with it."""
        # Programs are compiled once: most of the time is then that of the run itself.
        kept = {
            "JAX_COMPILATION_CACHE_DIR": str(self.programs),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        cache = ["--cache", f"{folder}-cache"] if self.cached else []
        command = [*COMPRESS, *self.options, *cache, "--workdir", str(folder)]
        with Path(f"{folder}.log").open("a") as log:
            return subprocess.Popen(command, env=os.environ | kept, stderr=log)


def finish(run: subprocess.Popen) -> None:
    if run.wait():
        sys.exit(f"the run ended with status {run.returncode}")


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def results(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in RESULTS}


def kill_once(case: Case, folder: Path) -> bool:
    """Start the run and kill it some lines of metrics later; False if it came to its end first."""
    run = case.start(folder)
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


def kill_often(case: Case, root: Path, wanted: int) -> None:
    """Kill a case so often, in as many runs as that takes, beside two that nobody cuts off."""
    root.mkdir()
    for name in ("whole", "again"):
        finish(case.start(root / name))
    expected = results(root / "whole")
    if results(root / "again") != expected:
        sys.exit("two runs that nobody cut off differ")
    kills, runs = 0, 0
    while kills < wanted:
        runs += 1
        folder = root / f"cut-{runs}"
        while kills < wanted and kill_once(case, folder):
            kills += 1
        finish(case.start(folder))
        if results(folder) != expected:
            sys.exit(f"run {runs}, cut off and started again, differs from one that was not")
        print(f"run {runs} ended like one that was not cut off", flush=True)
    print(f"{root.name}: {kills} kills, {runs} runs: all ended with the same bytes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each of the two runs")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    random.seed(options.seed)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        kill_often(Case(SMOKE, False, root / "programs"), root / "smoke", options.kills)
        init = ["--init", str(root / "smoke" / "whole" / "model.safetensors")]
        kill_often(Case([*CACHED, *init], True, root / "programs"), root / "cached", options.kills)


if __name__ == "__main__":
    main()
