"""A tiny model from fresh weights on the Blue Marble, to try that training works.

    python -m train.main compress --config smoke --workdir runs/smoke

Half a minute on two cores. It teaches nothing: expect a model file, and the same bytes each time.
"""

from pathlib import Path

from train.config import Compress

CONFIG = Compress(
    data="blue-marble",
    chip=32,
    workdir=Path("runs/smoke"),
    arch="vit-ti",
    image_size=32,
    patch=8,
    depth=1,
    decoder_depth=1,
    trainable="all",
    gain="identity",
    steps=24,
    batch=16,
    lr=1e-3,
    val_images=64,
    val_every=12,
    log_every=4,
    checkpoint_every=5,
    calibration_images=64,
)
