"""A writer of a scene that is killed at any moment goes on to the same bytes, leaving nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from folders import ROOT

pytest.importorskip("rasterio")
OWN = Path(__file__).parent


def killed(folder: Path, kills: int) -> list[str]:
    """What `kill_points` says of so many kills; it runs by itself, since it forks."""
    done = subprocess.run(
        [sys.executable, OWN / "kill_points.py", folder, str(kills)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", OWN)))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_writer_that_is_killed_goes_on_to_the_same_bytes_and_leaves_nothing(tmp_path):
    assert len(killed(tmp_path, 6)) == 6


@pytest.mark.slow
def test_a_writer_may_be_killed_at_each_change(tmp_path):
    assert len(killed(tmp_path, 0)) > 100
