"""Run the peer of a benchmark, in its own interpreter."""

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 3
"""How often the two sides take turns, because the speed of a shared machine varies."""


def parse(doc: str | None) -> argparse.Namespace:
    """The options `peer` and `json`; the first line of `doc` describes the benchmark."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--peer", help="Python interpreter with the peer's packages")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    return parser.parse_args()


def run_peer(python: str, script: str, *arguments: object) -> dict[str, float]:
    """Run a script of this folder; return the JSON of its last line."""
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [python, "-W", "ignore", str(path), *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def best_seconds(run: Callable[[], object], seconds: float) -> float:
    """The fastest of at least two runs that together take `seconds`."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
