"""NEC on AID from the tiny masked autoencoder of `aid-ti`: one lambda, one way of rounding.

    python -m train.main compress --config aid-nec --data AID --lambda 5 --workdir runs/nec-5

A batch of 32 images is far from the paper's 256 a device, hence a learning rate of its own (the
paper's rule gives 1.9e-5, which learns nothing in a short run). Minutes on two cores; results in
docs/results/first.md.
"""

from pathlib import Path

from train.config import Compress

CONFIG = Compress(
    workdir=Path("runs/aid-nec"),
    init="runs/aid-ti/model.safetensors",
    steps=400,
    batch=32,
    lr=5e-4,
    density_lr=2e-3,
    val_every=100,
    checkpoint_every=200,
)
