"""The processes of a run, and the signals that stop it between two steps. Process 0 writes."""

import logging
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from train.configs.options import OptionsError

log = logging.getLogger(__name__)
_ADDRESS, _COUNT, _ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join_processes() -> None:
    """Join the other processes of this run, if there are any. Call it before any other use of JAX.

    JAX_COORDINATOR_ADDRESS is HOST:PORT of process 0; JAX_NUM_PROCESSES and JAX_PROCESS_ID give the
    number of processes and the index of this one. Or the address is `auto`, where JAX can find all
    three: under Slurm and Open MPI, on TPU pods, in Kubernetes jobs. On CPUs the processes
    communicate by gloo.

    Raises:
      OptionsError: variables are missing or inconsistent, or some processes did not join.
    """
    address = os.environ.pop(_ADDRESS, "")  # JAX would read it too, and does not know `auto`
    if not address:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if address == "auto":
            jax.distributed.initialize()
        else:
            count, own = int(os.environ[_COUNT]), int(os.environ[_ID])
            jax.distributed.initialize(address, count, own)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise OptionsError(
            f"cannot join the processes of {_ADDRESS}={address} ({error}): set {_COUNT} and {_ID} "
            f"too, or unset {_ADDRESS} for one process"
        ) from error


def wait_for_others(what: str) -> None:
    """Wait until every process has reached the point called `what`, at most an hour.

    Call it before the first collectives: on CPUs these wait for only 30 seconds (gloo), and
    processes that compile and calibrate can be further apart.
    """
    multihost.get_barrier_sync_fn()(key=what, timeout_ms=3_600_000)


def own_share(batch: int) -> tuple[int, int, int]:
    """The images of a batch that this process reads, its index, and the number of processes."""
    count = jax.process_count()
    if batch % count:
        raise OptionsError(f"--batch {batch} is not a multiple of {count} processes")
    return batch // count, jax.process_index(), count


def is_main_process() -> bool:
    """Whether this process writes reports, metrics and models: only one of a run does."""
    return jax.process_index() == 0


def fail(message: str) -> NoReturn:
    """End this process with an error, without waiting for other processes, which wait for it."""
    if jax.process_count() == 1:
        sys.exit(message)
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def log_devices() -> None:
    """Say which devices this run uses."""
    devices = jax.devices()
    kinds = ", ".join(sorted({d.device_kind for d in devices}))
    several = f", process {jax.process_index()} of {jax.process_count()}"
    log.info(f"on {len(devices)} {kinds}" + (several if jax.process_count() > 1 else ""))


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
