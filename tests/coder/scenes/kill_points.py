"""Kills writers of a scene at changes of its folder, goes on, and compares what is left in the end.

    python kill_points.py FOLDER KILLS

The scene gets two times, one after the other, and after each a preview and a STAC Item beside it,
as by `nec encode --time`. A process is killed by SIGKILL just before it opens a file to write,
renames, makes or removes something: at so many of these places, evenly spread; at all if KILLS is
0. Then what it did is done again. All files must be the same bytes, and nothing else be left.
Prints one line per kill, and ends with status 1 at the first difference.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scene_cases

from coder.cli import main
from coder.scenes import scene_layout

TIMES: tuple[str, ...] = ("2026-05-01", "2026-06-01")
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def encode(out: Path, time: str) -> None:
    """Write one time of the scene, and what is beside it, or go on with that."""
    scene_cases.written_part(
        out, by=TIMES.index(time), step={"files": [f"{time}.tif"]}, time=np.datetime64(time)
    )
    beside = out.parent / "a.preview.tif", out.parent / "a.stac.json"
    for path, options in zip(beside, (["--preview", "--time", time], []), strict=True):
        if main(["export", str(out), "--overwrite", "--out", str(path), *options]):
            os._exit(1)


def changes(folder: Path, told: Callable[[], None]) -> None:
    """Tell of each change of the folder by this process, before it happens."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            is_change = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            is_change = event in _CHANGES
        if is_change and str(arguments[0]).startswith(str(folder)):
            told()

    sys.addaudithook(hook)


def forked(task: Callable[[], None]) -> int:
    """Do something in another process, which may be killed; its status."""
    sys.stdout.flush()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    task()
    os._exit(0)


def content(folder: Path) -> dict[str, bytes | None]:
    """The files of a folder, and its folders, which have no bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def counted(folder: Path, log: Path) -> list[int]:
    """Write the scene untouched; the number of changes of the folder for each time."""

    def task() -> None:
        counts = dict.fromkeys(TIMES, 0)

        def told() -> None:
            counts[now] += 1

        changes(folder, told)
        for now in TIMES:
            encode(folder / "a.zarr", now)
        log.write_text(" ".join(map(str, counts.values())))

    if status := forked(task):
        sys.exit(f"an untouched run ended with status {status}")
    return list(map(int, log.read_text().split()))


def killed(folder: Path, first: int, number: int) -> None:
    """Write the scene from one of its times on, killed at a change; then again from there."""

    def task() -> None:
        left = [number]

        def told() -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        changes(folder, told)
        encode(folder / "a.zarr", TIMES[first])

    for time in TIMES[:first]:
        forked(lambda time=time: encode(folder / "a.zarr", time))
    if (status := forked(task)) != -signal.SIGKILL:
        sys.exit(f"the run that was to be killed ended with status {status}")
    for time in TIMES[first:]:
        if status := forked(lambda time=time: encode(folder / "a.zarr", time)):
            sys.exit(f"kill at change {number} of {TIMES[first]}: then status {status}")


def run(folder: Path, kills: int) -> None:
    """Count the changes, kill at some or all of them, and compare."""
    scene_layout.SHARD = scene_layout.LARGEST_OVERVIEW = 32
    scene_cases.ladder()  # once for all processes
    (whole := folder / "whole").mkdir()
    places = [
        (first, number)
        for first, count in enumerate(counted(whole, folder / "changes.txt"))
        for number in range(count)
    ]
    chosen = np.linspace(0, len(places) - 1, kills or len(places)).round().astype(int)
    expected = content(whole)
    for first, number in (places[i] for i in chosen):
        (own := folder / f"{first}-{number}").mkdir()
        killed(own, first, number)
        found = content(own)
        differing = sorted(k for k in found | expected if found.get(k, 0) != expected.get(k, 0))
        print(f"killed at change {number} of {TIMES[first]}: {differing or 'the same'}")
        if differing:
            sys.exit(1)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
