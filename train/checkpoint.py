"""Checkpoints of a run. The only file that imports orbax's v1 interface, which still changes.

Precedence at the start of a run: 1. the newest whole checkpoint in the work folder; 2. the model
given by `--init`; 3. fresh weights.
"""

import gc
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from coder.safefile import canonical_json, digest
from train.processes import is_main_process


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or none that can be read; says what to do."""


class Checkpoints:
    """Numbered checkpoints of (state, position) in one folder; the newest two are kept.

    The state is a tree of arrays, the position what JSON can hold: where in the data the run was.
    A SHA-256 over both is kept with them, because orbax loads a flipped bit silently.
    """

    # Not orbax's own Checkpointer: it reads the metadata of all checkpoints before anything else,
    # so that one damaged file would stop every start of the run.
    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        self._saving: Any = None  # the response of the save that is under way
        if is_main_process() and folder.exists():
            for cut_off in folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(cut_off)

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, the oldest first."""
        if not self._folder.exists():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Save in the background; waits for a save that is still under way.

        Raises:
          CheckpointError: this one, or the one that was under way, cannot be written.
        """
        self.close()
        if step in self.steps:
            return
        record = {"position": position, "sha256": _digest(state, position)}
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._saving = ocp.save_checkpointables_async(
                str(self._folder / str(step)), {"state": state}, custom_metadata=record
            )

    def close(self) -> None:
        """Wait until everything is on disk. Raises as `save`."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        with self._writing():
            saving.result()
        for old in self.steps[:-2]:
            self._delete(old)

    def restore(self, like: Any, sharding: jax.sharding.Sharding) -> tuple[int, Any, dict]:
        """The newest checkpoint that is whole, in the shapes of `like`, on `sharding`.

        Checkpoints after it, which are damaged, are named on stderr and deleted.

        Returns:
          Step, state, position.

        Raises:
          CheckpointError: none is whole.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            with _quiet():
                try:
                    state, position = self._load(step, abstract)
                except Exception as error:  # whatever orbax makes of damaged files
                    damaged[step] = _reason(error)
                    continue
            for bad, reason in damaged.items():
                print(
                    f"the checkpoint of step {bad} is damaged ({reason}): going on from {step}",
                    file=sys.stderr,
                )
                self._delete(bad)
            return step, state, position
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise CheckpointError(
            f"no checkpoint in {self._folder} can be read ({reasons}): restore the folder from a "
            "copy, or delete the work folder to start again"
        )

    def _load(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        path = str(self._folder / str(step))
        state = ocp.load_checkpointables(path, {"state": abstract})["state"]
        record: Any = ocp.checkpointables_metadata(path).custom_metadata or {}
        position = record.get("position")
        if record.get("sha256") != _digest(state, position):
            raise ValueError("its SHA-256 does not match")
        return state, position

    def _delete(self, step: int) -> None:
        if is_main_process():
            shutil.rmtree(self._folder / str(step))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # OSError, or what tensorstore makes of it
            raise CheckpointError(
                f"cannot write a checkpoint to {self._folder} ({error}). Earlier ones are whole: "
                "make space, and give the same command again"
            ) from error


def _digest(state: Any, position: Any) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return digest(arrays, canonical_json(position)).hex()


@contextmanager
def _quiet() -> Iterator[None]:
    """Where orbax fails to load, it logs, and leaves tasks behind that do so when collected."""
    hook = sys.unraisablehook
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
            gc.collect()
    finally:
        sys.unraisablehook = hook
        logging.disable(logging.NOTSET)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".split("[")[0].strip()[:200]
