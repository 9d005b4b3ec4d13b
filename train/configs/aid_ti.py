"""A tiny masked autoencoder on AID, the start of the first study.

    python -m train.main pretrain --config aid-ti --data AID

AID: 10,000 aerial images in 30 class folders. ViT-Ti, 128 px, patches of 16. About an hour on two
cores; expect a validation mse of 0.45 of hidden patches.
"""

from pathlib import Path

from train.config import Pretrain

CONFIG = Pretrain(
    workdir=Path("runs/aid-ti"),
    arch="vit-ti",
    image_size=128,
    patch=16,
    steps=3000,
    batch=64,
    lr=1e-3,
    warmup=100,
    checkpoint_every=250,
)
