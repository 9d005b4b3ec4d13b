"""What a run says, by `logging`, and records: `metrics.jsonl` and TensorBoard's curves."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.logging import RichHandler
from tensorboardX import SummaryWriter
from tensorboardX.record_writer import register_writer_factory

from coder import FileError, OutputError, files
from train.engine.processes import is_main_process

CONSOLE = Console(stderr=True, emoji=False, markup=False, soft_wrap=True)
"""The terminal, which messages and the progress bar share."""
log = logging.getLogger(__name__)


@contextmanager
def messages() -> Iterator[None]:
    """Show the messages of these packages in the block; of other processes only warnings."""
    handler: logging.Handler = logging.StreamHandler()
    if CONSOLE.is_terminal:
        handler = RichHandler(console=CONSOLE, show_time=False, show_level=False, show_path=False)
    loggers = [logging.getLogger(name) for name in ("train", "nec_jax", "coder")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO if is_main_process() else logging.WARNING)
        # Other libraries may have given the root a handler, which would show each message again.
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without a last line that was cut short, as by a crash.

    Such a line is reported. The file may be missing.

    Raises:
      FileError: as `files.read_bytes`, or a line that no run wrote.
    """
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return []
    lines = []
    *whole, rest = files.read_bytes(path).split(b"\n")
    if rest:
        number = len(whole) + 1
        log.warning(f"{path}: line {number} is cut short, and left out")
    for number, line in enumerate(whole, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("step"), int):
            raise FileError(f"line {number} holds no metrics of a step: delete that line", path)
        lines.append(value)
    return lines


class _EventFile:
    """A file of TensorBoard events. When the disk is full, further events are dropped.

    tensorboardX writes in its own thread, and once more at the end of the process. There, an error
    would neither stop the run nor give a clear message.
    """

    def __init__(self, path: str):
        self._path = path.removeprefix(_SCHEME)
        self._file = open(self._path, "wb", buffering=0)  # noqa: SIM115, PTH123
        self._whole = True

    def write(self, data: bytes) -> None:
        self._unless_full(lambda: self._file.write(data))

    def flush(self) -> None:
        self._unless_full(lambda: os.fsync(self._file.fileno()))

    def close(self) -> None:
        self._unless_full(self._file.close)

    def _unless_full(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            if self._whole:
                message = f"cannot be written ({error.strerror}): TensorBoard will lack the rest"
                log.warning(f"{self._path}: {message}")
            self._whole = False


class _EventFiles:
    """Lets tensorboardX open files whose paths begin with `_SCHEME`."""

    def open(self, path: str) -> _EventFile:
        return _EventFile(path)

    def directory_check(self, path: str) -> None:
        files.make_folder(path.removeprefix(_SCHEME))


_SCHEME = "nec-jax:"
register_writer_factory(_SCHEME[:-1], _EventFiles())


class MetricsLog:
    """Writes `metrics.jsonl` and TensorBoard events; drops lines after the step of a resumed run.

    The file holds results only, so that equal runs write equal bytes; timings go to TensorBoard.

    Attributes:
      lines: the number of lines written so far.
    """

    def __init__(self, workdir: Path, start: int, lines: int | None = None):
        """Open the file of a run.

        Args:
          workdir: the run's folder.
          start: the step to resume from; 0 for a new run.
          lines: the number of lines at that step, if known.

        Raises:
          FileError: as `read_metrics`; or some of these lines are missing.
          OutputError: the file cannot be written.
        """
        self._path = workdir / "metrics.jsonl"
        self._board = None
        self.lines = lines or 0
        if not is_main_process():
            return
        kept = [line for line in read_metrics(self._path) if line["step"] <= start] if start else []
        if lines is not None and len(kept) < lines:
            if self._path.exists():
                raise FileError(
                    f"line {len(kept) + 1} of the {lines} up to step {start} is missing or cut "
                    "short: bring the file back from a copy; or delete it, to go on with the lines "
                    "of later steps alone",
                    self._path,
                )
            log.warning(f"{self._path} is gone: it begins after step {start}")
        self.lines = len(kept)
        if not start and self._path.exists() and self._path.stat().st_size:
            log.warning(
                f"{workdir} has metrics but no checkpoint: the run starts again from its first step"
            )
        text = "".join(json.dumps(line) + "\n" for line in kept)
        files.write_text(self._path, text, overwrite=True)
        folder = _SCHEME + str(workdir / "tensorboard")
        # An unbounded queue: with a bound, a slow disk would stall training.
        self._board = SummaryWriter(folder, max_queue=0, purge_step=start + 1)

    def write(self, step: int, split_name: str, values: dict[str, float]) -> None:
        """Write a line, and a point of each curve. Raises OutputError if it cannot be written."""
        self.lines += 1
        if is_main_process():
            with self._appending() as file:
                file.write(json.dumps({"step": step, "split": split_name, **values}) + "\n")
        self.draw(step, split_name, values)

    def sync(self) -> None:
        """Flush the lines to disk, before a checkpoint counts them. Raises as `write`."""
        if is_main_process():
            with self._appending() as file:
                os.fsync(file.fileno())

    @contextmanager
    def _appending(self) -> Iterator[IO[str]]:
        try:
            with self._path.open("a") as file:
                yield file
        except OSError as error:
            raise OutputError(
                f"cannot be written ({error.strerror}). Checkpoints are whole: check the disk, "
                "and give the same command again",
                self._path,
            ) from error

    def draw(self, step: int, split_name: str, values: dict[str, float]) -> None:
        """Draw a point of each curve."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split_name}/{name}", value, step)

    def show(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Write pictures uint8 [H, W, 3] to TensorBoard."""
        if self._board is not None:
            for name, picture in pictures.items():
                self._board.add_image(f"pictures/{name}", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush the events."""
        if self._board is not None:
            self._board.close()
