"""How far a command is, on the standard error."""

import sys
import time

EVERY = 30.0
"""Seconds between two lines, where there is no terminal."""
_EVERY_TERMINAL = 0.5  # and between two states of the line of a terminal


class ProgressLines:
    """Called with what is done and the total: prints a line now and then, and the last.

    On a terminal, it is one line that changes.
    """

    def __init__(self, what: str):
        """Take what is counted, such as "images"."""
        self._what = what
        self._said = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        """Print how far it is, if it is time to."""
        now = time.monotonic()
        if done < total and now - self._said < (_EVERY_TERMINAL if self._is_terminal else EVERY):
            return
        self._said = now
        end = "\r" if self._is_terminal and done < total else "\n"
        print(f"{done:,} of {total:,} {self._what}", end=end, file=sys.stderr, flush=True)
