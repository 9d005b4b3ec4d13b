"""Checkpoints of a run. The only file that imports orbax's v1 interface, which still changes.

Precedence at the start of a run: 1. the newest whole checkpoint in the work folder; 2. the model
given by `--init`; 3. fresh weights.
"""

import errno
import itertools
import logging
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from coder import files
from train.engine.processes import is_main_process
from train.engine.run_record import sha256

_PART = ".part"  # ends the name of a checkpoint until its sums are written
_SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NUMBER = re.compile(r"os_error_code='(\d+)'")  # as tensorstore says it, in errors of its own kinds
# What orbax cannot do it raises, and logs as well, with the traceback of each of its threads.
log = logging.getLogger(__name__)
logging.getLogger("absl").addFilter(
    lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname
)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none can be read; the message says what to do."""


class Checkpoints:
    """Numbered checkpoints of (state, position) in one folder; the newest two are kept.

    The state is a tree of arrays. The position, which JSON can hold, says where in the data the run
    was. Each checkpoint lists the SHA-256 of its files, because orbax loads a flipped bit silently.
    It gets its name once the list is written, so that a checkpoint without a list is damaged. It
    holds its step, so that a renamed or copied checkpoint is detected.
    """

    # Not orbax's own Checkpointer: it reads the metadata of all checkpoints before anything else,
    # so that one damaged file would stop every start of the run.
    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        self._thread = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        if is_main_process() and folder.exists():
            for ending in (_PART, f"{_PART}.orbax-checkpoint-tmp*", ".orbax-checkpoint-tmp*"):
                for cut_off in folder.glob(f"*{ending}"):
                    shutil.rmtree(cut_off)

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, the oldest first."""
        if not self._folder.exists():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Save in the background, after waiting for the last save to end.

        Raises:
          CheckpointError: this checkpoint, or the last one, cannot be written.
        """
        self.close()
        if step in self.steps:
            return
        part = self._folder / f"{step}{_PART}"
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)
            response = ocp.save_checkpointables_async(
                str(part),
                {"state": state},
                custom_metadata={"position": position, "step": step},
            )
            self._saving = self._thread.submit(self._finish, response, part)

    def close(self) -> None:
        """Wait until everything is on disk. Raises as `save`."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            with self._writing():
                saving.result()

    def restore(self, like: Any, sharding: jax.sharding.Sharding) -> tuple[int, Any, dict]:
        """The newest checkpoint that is whole, in the shapes of `like`, on `sharding`.

        Checkpoints after it, which are damaged, are named and set aside: renamed to
        STEP.damaged. An error of reading is no damage: it may pass, and nothing is changed.

        Returns:
          Step, state, position.

        Raises:
          CheckpointError: none is whole, or one cannot be read.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            path = self._folder / str(step)
            whole = False
            try:
                _check_sums(path)
                record: Any = ocp.checkpointables_metadata(str(path)).custom_metadata
                # Checkpoints of earlier versions do not say their step.
                if (own := record.get("step", step)) != step:
                    raise ValueError(f"it is of step {own}: its folder was renamed or copied")
                whole = True
                state = ocp.load_checkpointables(str(path), {"state": abstract})["state"]
                position = record["position"]
            except Exception as error:  # ours, or whatever orbax makes of files
                if _is_of_the_system(error):
                    raise CheckpointError(
                        f"the checkpoint {path} cannot be read now ({error}). Nothing was changed: "
                        "check the disk or the network, and give the same command again"
                    ) from error
                if whole:
                    raise CheckpointError(
                        f"the checkpoint {path} is whole, but of another run ({error}): choose "
                        "another --workdir"
                    ) from error
                damaged[step] = str(error)
                continue
            for bad, reason in damaged.items():
                aside = self._set_aside(bad)
                log.warning(
                    f"the checkpoint of step {bad} is damaged ({reason}): it is kept as {aside}; "
                    f"resuming from step {step}"
                )
            return step, state, position
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise CheckpointError(
            f"no checkpoint in {self._folder} can be read ({reasons}): restore the folder from a "
            "copy, or delete the work folder to start again"
        )

    def _finish(self, response: Any, part: Path) -> None:
        response.result()
        if is_main_process():
            written = sorted(file for file in part.rglob("*") if file.is_file())
            sums = "".join(f"{sha256(file)}  {file.relative_to(part)}\n" for file in written)
            files.write_text(part / _SUMS, sums, overwrite=True)
            part.rename(part.with_suffix(""))
            for old in self.steps[:-2]:
                shutil.rmtree(self._folder / str(old))

    def _set_aside(self, step: int) -> Path:
        path = self._folder / str(step)
        names = (f"{step}.damaged{'' if i == 1 else f'-{i}'}" for i in itertools.count(1))
        aside = next(p for p in map(self._folder.joinpath, names) if not p.exists())
        if is_main_process():
            path.rename(aside)
        return aside

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # OSError, or what tensorstore makes of it
            number = _number_of(error)
            reason = os.strerror(number) if number else str(error)
            remedy = "make space" if number in _FULL else "check the disk or the network"
            raise CheckpointError(
                f"cannot write a checkpoint to {self._folder} ({reason}). Earlier ones are whole: "
                f"{remedy}, and give the same command again"
            ) from error


def _check_sums(path: Path) -> None:
    """Raise ValueError unless the sums are there and match."""
    sums = path / _SUMS
    if not sums.exists():
        raise ValueError(f"{_SUMS} is missing, the list of checksums")
    for line in sums.read_text().splitlines():
        expected, name = line.split("  ", 1)
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        if sha256(path / name) != expected:
            raise ValueError(f"the SHA-256 of {name} does not match")


def _is_of_the_system(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, is the operating system's."""
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _number_of(error: BaseException | None) -> int | None:
    """The system's number (errno) of an error, or of one that it comes from, if there is one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := _NUMBER.search(str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None
