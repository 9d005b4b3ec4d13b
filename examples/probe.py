"""Train a scikit-learn probe on an archive of embeddings; no JAX, no PyTorch.

    python examples/probe.py ARCHIVE.zarr

ARCHIVE is an archive of `nec encode`, with labels. Every fifth image is held out. Images
without a label or an embedding are left out.
"""

import argparse

import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from coder import CodecError, archive


def main() -> None:
    """Print held-out accuracy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archive", metavar="ARCHIVE.zarr", help="archive of labelled images")
    parser.add_argument("--refine", action="store_true", help="use the refiner of the archive")
    options = parser.parse_args()
    group = archive.open_archive(options.archive)
    use, labels = archive.labelled(group)
    if left_out := np.count_nonzero(~use):
        print(f"{left_out} images are left out: they have no label, or are not valid")
    y_hat = archive.read_array(group, "embedding", refine=options.refine)
    x = y_hat.mean(axis=(1, 2))  # [images, channels]
    if "class_token" in group:
        x = np.concatenate([x, archive.read_array(group, "class_token")], axis=1)
    x, y = x[use], labels[use]
    held_out = np.arange(len(x)) % 5 == 4
    if not held_out.any() or len(set(y[~held_out])) < 2:
        raise SystemExit(f"{options.archive}: {len(x)} labelled images are too few")
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(np.geomspace(0.1, 1e4, 11)))
    probe.fit(x[~held_out], y[~held_out])
    right = probe.score(x[held_out], y[held_out])
    accuracy = f"accuracy of {100 * right:.1f} % on held-out images"
    print(f"{len(x)} images, {len(set(y))} classes: {accuracy}")


if __name__ == "__main__":
    try:
        main()
    except (CodecError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
