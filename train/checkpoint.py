"""Checkpoints of a run. The only file that imports orbax, whose v1 interface still changes.

Precedence at the start of a run: 1. the newest checkpoint in the work folder; 2. the model given
by `--init`; 3. fresh weights.
"""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


class Checkpoints:
    """Numbered checkpoints of (state, position in the data) in one folder; two are kept."""

    def __init__(self, folder: Path):
        keep: Any = ocp.training.preservation_policies.LatestN(2)
        self._checkpointer = ocp.training.Checkpointer(
            str(folder.absolute()),
            preservation_policy=keep,
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """The newest checkpoint's step, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Save in the background; waits for a save that is still under way."""
        if self.latest != step:
            self._checkpointer.save_checkpointables_async(
                step, {"state": state, "data": position}, force=True
            )

    def restore(self, like: Any, sharding: jax.sharding.Sharding) -> tuple[Any, dict[str, Any]]:
        """The newest checkpoint, in the shapes of `like`, on `sharding`; and the position."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        loaded = self._checkpointer.load_checkpointables(
            self.latest, {"state": abstract, "data": None}
        )
        return loaded["state"], loaded["data"]

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._checkpointer.close()
