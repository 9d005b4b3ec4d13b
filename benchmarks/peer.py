"""The other side of a benchmark, in an interpreter of its own."""

import json
import subprocess
from pathlib import Path


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
