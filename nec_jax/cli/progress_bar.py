"""Progress on the standard error: a bar on a terminal, otherwise a line now and then."""

import sys
import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from coder.cli.progress_lines import EVERY


class ProgressBar:
    """What the progress of images and of scenes share; a subclass is called with what is done.

    Attributes:
        start: when it was made, by `time.monotonic`; a subclass may set it anew.
    """

    def __init__(self, *columns: ProgressColumn):
        """Take the columns after the bar; one of them shows `task.fields[told]`."""
        self._progress = Progress(
            TextColumn("encoding"),
            BarColumn(),
            *columns,
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("", total=None, told="")
        self.start = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)

    def show(self, done: int, total: int, told: str, line: str, speed: float) -> None:
        """Update the bar, or print a line if it is time to.

        Args:
            done, total: of what is counted.
            told: what the bar says beside it.
            line: the beginning of a line, where there is no terminal.
            speed: done per second; 0 before anything is.
        """
        now = time.monotonic()
        self._progress.update(self._task, completed=done, total=total, told=told)
        is_due = now - self._said > EVERY or done == total
        if self._progress.disable and speed and is_due:
            left = (total - done) / speed
            print(f"{line}, {left:.0f} s left", file=sys.stderr, flush=True)
            self._said = now
