"""Train a scikit-learn probe on an archive of embeddings; no JAX, no PyTorch.

    python examples/probe.py ARCHIVE.zarr

ARCHIVE is what examples/archive.py writes, with labels. Every fifth image is held out.
"""

import argparse
from typing import Any

import numpy as np
import zarr
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("archive", metavar="ARCHIVE.zarr")
group: Any = zarr.open_group(parser.parse_args().archive, mode="r")
labels = group["label"][:]
x = group["embedding"][:].mean(axis=(1, 2))  # [images, channels]
if "class_token" in group:
    x = np.concatenate([x, group["class_token"][:]], axis=1)
held_out = np.arange(len(x)) % 5 == 4
probe = make_pipeline(StandardScaler(), RidgeClassifierCV(np.geomspace(0.1, 1e4, 11)))
probe.fit(x[~held_out], labels[~held_out])
right = probe.score(x[held_out], labels[held_out])
print(f"{len(x)} images, {len(set(labels))} classes: {100 * right:.1f} % of held-out images right")
