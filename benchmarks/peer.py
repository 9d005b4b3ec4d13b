"""The other side of a benchmark, in an interpreter of its own."""

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 3
"""How often the two sides take turns: a machine that others share has good and bad moments."""


def parse(doc: str | None) -> argparse.Namespace:
    """The options of a benchmark, `peer` and `json`; its first line says what it measures."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--peer", help="a Python interpreter that has the peer's packages")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    return parser.parse_args()


def run_peer(python: str, script: str, *arguments: object) -> dict[str, float]:
    """Runs a script of this folder; returns the JSON of its last line."""
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [python, "-W", "ignore", str(path), *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def best_seconds(run: Callable[[], object], seconds: float) -> float:
    """The fastest of some runs, two at least, that take so long together."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
