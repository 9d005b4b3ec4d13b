"""Write the arrays of one shard of an archive, in the order that lets a writer go on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

from coder.archive.manifest import shard_key


def put(
    arrays: Mapping[str, zarr.Array],
    images: slice,
    y: NDArray[np.float32],
    ids: Sequence[str],
    labels: NDArray[np.int32],
    errors: Sequence[str],
    columns: Mapping[str, NDArray[Any]],
) -> None:
    """Write the images of one shard, or of a part of it; `valid` is written last.

    Args:
      arrays: the arrays of the archive, by name.
      images: which images.
      y: [valid, n, D], of the images without an error; the class token, if it is coded, first.
      ids, labels, errors: of all these images; "" for no error.
      columns: the values of each column, as they are stored.
    """
    count, tokens = images.stop - images.start, "class_token" in arrays
    good = np.array([not error for error in errors])
    shape = arrays["embedding"].shape[1:]
    grids = np.full((count, *shape), np.nan, np.float32)
    if good.any():
        grids[good] = y[:, tokens:].reshape(-1, *shape)
    arrays["embedding"][images] = grids
    if tokens:
        classes = np.full((count, shape[-1]), np.nan, np.float32)
        if good.any():
            classes[good] = y[:, 0]
        arrays["class_token"][images] = classes
    # As objects: NumPy's text of a fixed length takes the memory of the longest for each.
    arrays["id"][images] = np.array(ids, object)
    arrays["label"][images] = labels
    arrays["error"][images] = np.array(errors, object)
    for name, values in columns.items():
        arrays[name][images] = values
    arrays["valid"][images] = good


def delete(array: zarr.Array, number: int) -> None:
    """Delete a shard of an array, if it is there."""
    sync(array.store_path.store.delete(shard_key(array, number)))


def is_stored(array: zarr.Array, number: int) -> bool:
    """Whether a shard of an array is there."""
    return sync(array.store_path.store.exists(shard_key(array, number)))


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers were writing, which nobody writes now.

    zarr renames a file once it is whole.
    """
    for part in folder.rglob("*.partial"):
        part.unlink()
