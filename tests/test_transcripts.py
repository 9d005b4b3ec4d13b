"""The transcripts of the pages run as written: each `$` command of a ```console block.

A line of the output is as on the page, but for its numbers: speeds and times may differ, and other
numbers by 2 %, as floats differ between machines.
"""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from folders import ROOT

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def blocks(page: str) -> list[list[tuple[str, list[str]]]]:
    """The commands of each transcript of a page, and the lines that each command prints."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M):
        steps: list[tuple[str, list[str]]] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
        found.append(steps)
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


def test_all_transcripts_are_run():
    assert len(blocks("docs/producer.md")) == 2


@pytest.mark.parametrize(
    ("page", "part"),
    [
        ("docs/producer.md", slice(0, 1)),
        pytest.param("docs/producer.md", slice(1, 2), marks=pytest.mark.slow),
        pytest.param("docs/results/archives.md", slice(None), marks=pytest.mark.slow),
    ],
)
def test_a_transcript_runs_as_written(page: str, part: slice, tmp_path: Path) -> None:
    if "results" in page and "NEC_DATA" not in os.environ:
        pytest.skip("NEC_DATA names no folder with ucmerced/ and aid/")
    for program, module in {"nec": "-m coder", "dask": "-m dask", "python": ""}.items():
        (tmp_path / program).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (tmp_path / program).chmod(0o755)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        free = str(one.getsockname()[1])
    work = tmp_path / "work"
    work.mkdir()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("XLA_FLAGS", None)  # programs of low effort would encode for minutes
    try:
        for command, expected in itertools.chain(*blocks(page)[part]):
            done = subprocess.run(
                ["bash", "-c", command.replace("8786", free)],
                cwd=work,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            # What is on standard error may come before what is on standard output.
            printed = done.stdout.splitlines()
            # A slow machine prints its progress more often.
            for line in [one for one in printed if one.endswith(" s left")][:-1]:
                printed.remove(line)
            for line in expected:
                assert any(is_alike(one, line) for one in printed), (command, line, done.stdout)
            assert len(printed) == len(expected), (command, done.stdout)
    finally:  # what a failed transcript left
        for file in (*work.glob("scheduler"), *work.glob("worker-[12]")):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)
