"""The assignment of images to train, val and test."""

import hashlib
from collections.abc import Iterable

from nec_jax.images.record import DataError

ALL = "all"
HASH_SPLITS = ("train", "val", "test")


def hash_split(image_id: str) -> str:
    """Return "train", "val" or "test" (80/10/10) from the SHA-256 of an image's id.

    It depends only on the id: adding images to a data set moves none of the others.
    """
    bucket = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") % 10
    return {8: "val", 9: "test"}.get(bucket, "train")


def check_split(split: str, existing: Iterable[str], name: str) -> None:
    """Raise DataError, which names the splits, unless `split` is "all" or one of them."""
    names = [*dict.fromkeys(existing), ALL]
    if split not in names:
        raise DataError(f"{name} has no split {split!r}; it has: {', '.join(names)}")


def check_filled(count: int, split: str, name: str, total: int) -> None:
    """Raise DataError when a split that exists holds no image."""
    if count == 0:
        raise DataError(
            f"split {split!r} of {name} is empty ({total} images in all): "
            f"use split 'all', or say what belongs where in a split.csv"
        )
