"""Short runs of the commands, on real images (NASA's Blue Marble), that tests share."""

from pathlib import Path

import nec_jax
from train.main import main

SMALL = [
    "--data", "blue-marble", "--chip", "32", "--val-images", "16", "--batch", "8",
    "--log-every", "1", "--val-every", "4", "--checkpoint-every", "2",
]  # fmt: skip
TINY = ["--image-size", "32", "--patch", "8", "--depth", "1", "--decoder-depth", "1"]


def run_pretrain(folder: Path) -> Path:
    """A masked autoencoder after four steps: the path of its model."""
    main(["pretrain", *SMALL, *TINY, "--steps", "4", "--workdir", str(folder)])
    return folder / "model.safetensors"


def run_compress(init: Path, folder: Path, *more: str) -> nec_jax.NecParams:
    """NEC after six steps from the model `init`."""
    arguments = ["--init", str(init), "--workdir", str(folder), "--calibration-images", "32"]
    main(["compress", *SMALL, *arguments, "--steps", "6", "--gain", "1", *more])
    return nec_jax.load(folder / "model.safetensors")
