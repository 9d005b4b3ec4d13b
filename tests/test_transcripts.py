"""The transcripts of the pages run as written: each `$` command of a ```console block.

A line of the output is as on the page, but for its numbers: speeds and times may differ, and other
numbers by 2 %, as floats differ between machines.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from folders import ROOT

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def steps(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page, and the lines that each prints."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def is_alike(here: str, there: str) -> bool:
    """Whether two lines are the same but for their numbers."""
    if NUMBER.sub("0", here) != NUMBER.sub("0", there):
        return False
    if "per second" in here:
        return True
    numbers = ([float(n.replace(",", "")) for n in NUMBER.findall(s)] for s in (here, there))
    return all(abs(a - b) <= 0.02 * abs(b) for a, b in zip(*numbers, strict=True))


def test_lines_are_compared():
    assert is_alike("12 images in 3.0 s", "12 images in 3.05 s")
    assert not is_alike("12 images", "13 images")
    assert not is_alike("12 images", "12 image")
    assert is_alike("90 images, 5 per second", "90 images, 70 per second")


@pytest.mark.parametrize("page", ["docs/producer.md"])
def test_a_transcript_runs_as_written(page: str, tmp_path: Path) -> None:
    (tmp_path / "nec").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m coder "$@"\n')
    (tmp_path / "nec").chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert steps(page)
    for command, expected in steps(page):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # What is on standard error may come before what is on standard output.
        printed = done.stdout.splitlines()
        for line in expected:
            assert any(is_alike(one, line) for one in printed), (command, line, done.stdout)
        assert len(printed) == len(expected), (command, done.stdout)
