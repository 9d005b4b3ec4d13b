"""Stop a run between two steps on SIGTERM or Ctrl-C, in one process or in many."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

RESUMABLE = 75
"""Exit status of a run that was stopped: EX_TEMPFAIL, "try again later"."""


class Stopped(KeyboardInterrupt):
    """The run was asked to stop; the same command resumes it."""


class StopSignals:
    """A context in which the first SIGTERM or Ctrl-C asks to stop; a second Ctrl-C stops at once.

    Processes agree on the step after which all of them stop, whichever got the signal.
    """

    def __enter__(self) -> "StopSignals":
        self._asked = False
        self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._note)}
        if jax.process_count() == 1:  # with many processes, JAX handles SIGTERM itself
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, step: int) -> bool:
        """Whether to stop now, after `step`: the same answer in every process."""
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)


def raise_stopped(number: int, frame: FrameType | None) -> None:
    """A handler of SIGTERM for code without steps: stops at once."""
    raise Stopped
