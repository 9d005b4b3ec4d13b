"""What a run writes while it goes: metrics as lines and as curves."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from coder import FileError, files
from train.engine.processes import is_main_process


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, but for a last one that a crash has torn; it may be missing.

    Raises:
      FileError: as `files.read_bytes`, or a line that no run wrote.
    """
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return []
    lines = []
    for number, line in enumerate(files.read_bytes(path).split(b"\n")[:-1], 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("step"), int):
            raise FileError(f"line {number} holds no metrics of a step: delete that line", path)
        lines.append(value)
    return lines


class MetricsLog:
    """`metrics.jsonl` and TensorBoard events; lines beyond the resumed step are cut off.

    The file holds results alone, so that equal runs write equal bytes; timings are only drawn.
    """

    def __init__(self, workdir: Path, start: int):
        self._path = workdir / "metrics.jsonl"
        self._board = None
        if not is_main_process():
            return
        kept = [line for line in read_metrics(self._path) if line["step"] <= start] if start else []
        if not start and self._path.exists() and self._path.stat().st_size:
            print(
                f"{workdir} has metrics but no checkpoint: the run starts again from its first "
                "step",
                file=sys.stderr,
            )
        text = "".join(json.dumps(line) + "\n" for line in kept)
        files.write_text(self._path, text, overwrite=True)
        # Without a bound on its queue, which would block once a full disk has ended its thread.
        files.make_folder(workdir / "tensorboard")
        self._board = SummaryWriter(str(workdir / "tensorboard"), max_queue=0, purge_step=start + 1)

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
