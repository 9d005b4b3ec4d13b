"""Open a `.npy` file as an array that is read when it is sliced."""

import tokenize
from pathlib import Path

import numpy as np

from coder.errors import FileError, one_line


def open_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file, as a memory map. Raises FileError: damaged, or of objects."""
    try:
        with np.errstate(over="raise"):  # of the size of an array
            values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, ArithmeticError, tokenize.TokenError) as error:
        raise FileError(
            f"a damaged .npy file, or one of objects instead of numbers ({one_line(error)}): save "
            "one whole array of floats again (numpy.save; numpy.stack makes one array of many)"
        ) from error
    there, needed = path.stat().st_size, values.offset + values.nbytes
    if there > needed:
        raise FileError(
            f"longer than its array: {values.dtype} {list(values.shape)} ends after {needed:,} "
            f"bytes, and {there:,} are there: was it copied as text, or are there two arrays in "
            "it? Save one array"
        )
    return values
