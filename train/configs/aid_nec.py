"""NEC on AID from the tiny model of `aid-ti`, at one lambda.

    python -m train.main compress --config aid-nec --data AID --lambda 5 --workdir runs/nec-5

A batch of 32 images is far from the paper's 256 a device, hence a learning rate of its own (the
paper's rule gives 1.9e-5, which learns nothing in a short run). Four minutes on two
cores. Expect on validation, rounded: lambda 1: 0.04 bits an element, mse 0.51; 5: 0.19, 0.48; 25:
0.62, 0.465; 100: 1.26, 0.459. More in docs/results/first.md.
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
