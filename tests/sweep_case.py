"""One sweep as it is, and one that is cut off and started again: `sweep_case.py MODEL FOLDER`."""

import os
import sys
from pathlib import Path

from train.engine import log
from train.main import main
from train.tasks import compress

write = log.MetricsLog.write
STUDY = """
[compress]
data = "blue-marble"
chip = 32
batch = 8
steps = 4
gain = "identity"
val_images = 16
val_every = 4
log_every = 1
checkpoint_every = 2
calibration_images = 32

[axes]
lambda = [1, 100.0]

[evaluate]
data = "blue-marble"
chip = 32
limit = 40
heads = ["linear"]
decoder_heads = false
uqe_bits = [3]
jpeg2000 = []
"""


class CutOff(Exception):
    """Stands for a crash."""


def sweep(model: str, folder: Path) -> None:
    """Two lambdas, four steps each."""
    study = folder.with_suffix(".toml")
    study.write_text(STUDY)
    main(["sweep", str(study), "--workdir", str(folder), "--compress.init", model])


if __name__ == "__main__":
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    model, root = sys.argv[1], Path(sys.argv[2])
    sweep(model, root / "a")

    def stop_in_the_second(self: log.MetricsLog, step: int, name: str, values: dict) -> None:
        """Stop at the third step of the second point."""
        if step == 3 and (root / "b" / "results.csv").exists():
            raise CutOff
        write(self, step, name, values)

    setattr(log.MetricsLog, "write", stop_in_the_second)  # noqa: B010
    try:
        sweep(model, root / "b")
    except CutOff:
        setattr(log.MetricsLog, "write", write)  # noqa: B010
    else:
        sys.exit("the sweep was not cut off")
    first, runs = (root / "b" / "results.csv").read_text(), []
    run = compress.run
    setattr(compress, "run", lambda options: (runs.append(options.lam), run(options)))  # noqa: B010
    sweep(model, root / "b")
    print(first.count("\n"), runs)
