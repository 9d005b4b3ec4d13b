"""One run as it is, and one that is cut off and started again: `resume_case.py MODEL FOLDER`."""

import os
import sys

from train import loop
from train.main import main

write = loop.MetricsLog.write


class CutOff(Exception):
    """Stands for a crash."""


def stop_at_five(self: loop.MetricsLog, step: int, name: str, values: dict) -> None:
    """Write metrics up to step four."""
    if step == 5:
        raise CutOff
    write(self, step, name, values)


def compress(model: str, folder: str) -> None:
    """Six steps, with a checkpoint after every second one."""
    main([
        "compress", "--init", model, "--data", "blue-marble", "--chip", "32", "--workdir", folder,
        "--steps", "6", "--batch", "8", "--val-images", "16", "--calibration-images", "32",
        "--log-every", "1", "--val-every", "4", "--checkpoint-every", "2",
        "--gain", "identity",
    ])  # fmt: skip


if __name__ == "__main__":
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    compress(sys.argv[1], f"{sys.argv[2]}/a")
    setattr(loop.MetricsLog, "write", stop_at_five)  # noqa: B010
    try:
        compress(sys.argv[1], f"{sys.argv[2]}/b")
    except CutOff:
        setattr(loop.MetricsLog, "write", write)  # noqa: B010
        compress(sys.argv[1], f"{sys.argv[2]}/b")
    else:
        sys.exit("the run was not cut off")
