"""The run of arXiv 2403.17886, for a ViT-B on a GPU.

    python -m train.main compress --config paper --init MAE_VIT_B --data IMAGES --lambda 10.2

The trainable set, rounding and schedule are the paper's: noise for the distortion too, gain one, a
batch of 256, lr 1.5e-4. Its lambdas 1e7, 1e8, 1e9, 1e10 are about 1.02, 10.2, 102, 1017 here. It
adapts on MillionAID for 20 epochs: set --steps to 20 epochs of your data (780 steps are 20 epochs
of 10,000 images). Not run here yet, so no figure to expect.
"""

from pathlib import Path

from train.config import Compress

CONFIG = Compress(
    workdir=Path("runs/paper"),
    lam=10.2,
    rounding="noise",
    trainable="paper",
    gain="identity",
    steps=780,
    batch=256,
    lr=1.5e-4,
    density_lr=1e-3,
)
