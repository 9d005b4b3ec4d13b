"""What a run writes while it goes: metrics as lines and as curves."""

import json
import sys
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from coder import files
from train.processes import is_main_process


class MetricsLog:
    """`metrics.jsonl` and TensorBoard events; lines beyond the resumed step are cut off.

    The file holds results alone, so that equal runs write equal bytes; timings are only drawn.
    """

    def __init__(self, workdir: Path, start: int):
        self._path = workdir / "metrics.jsonl"
        self._board = None
        if not is_main_process():
            return
        # A crash may have torn the last line: it lacks its end.
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= start] if start else []
        if whole and not start:
            print(
                f"{workdir} has metrics but no checkpoint: the run starts again from its first "
                "step",
                file=sys.stderr,
            )
        files.write_text(self._path, "".join(kept), overwrite=True)
        # Without a bound on its queue, which would block once a full disk has ended its thread.
        folder = str(workdir / "tensorboard")
        self._board = SummaryWriter(folder, max_queue=0, purge_step=start + 1)

    def write(self, step: int, split_name: str, values: dict[str, float]) -> None:
        """One line, and one point a curve."""
        if is_main_process():
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, "split": split_name, **values}) + "\n")
        self.draw(step, split_name, values)

    def draw(self, step: int, split_name: str, values: dict[str, float]) -> None:
        """One point a curve."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split_name}/{name}", value, step)

    def show(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """TensorBoard images, uint8 [H, W, 3]."""
        if self._board is not None:
            for name, picture in pictures.items():
                self._board.add_image(f"pictures/{name}", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush the events."""
        if self._board is not None:
            self._board.close()
