"""`open_embeddings`: the embeddings of a file of any kind, by its first bytes and not its name."""

from pathlib import Path
from typing import Any

from coder import files
from coder.embedding_files.npy_file import open_npy
from coder.embedding_files.parquet_columns import read_parquet
from coder.embedding_files.zarr_arrays import open_zarr
from coder.errors import FileError, InputError, about
from coder.format import file_kinds
from coder.format.file_kinds import SAVE

_SHAPES = "grids [N, H, W, D], a raster [H, W, D], or vectors [N, D]"


def open_embeddings(path: Path | str, column: str | None = None) -> Any:
    """Open the embeddings of a file; where possible, they are read in parts later.

    The first bytes of a file decide its kind, not its name.

    Args:
      path: a `.npy` file, a Zarr array or a (Geo)Parquet file; a text is the URL of a Zarr array.
      column: the Parquet column, of lists of one length or of tensors. If there is only one such
        column, it may be None.

    Raises:
      FileError: no such file, a damaged one, or one of another kind; says what to do.
      InputError: the array or column does not hold embeddings.
    """
    with about(path):
        if isinstance(path, str) or path.is_dir():
            values = open_zarr(path)
        else:
            start = file_kinds.start_of(files.check_input(path, "file of embeddings"))
            if start.startswith(file_kinds.PARQUET):
                values, column = read_parquet(path, column), None
            elif start.startswith(file_kinds.NPY):
                values = open_npy(path)
            else:
                unknown = ("not a .npy file, a Zarr array or Parquet", SAVE)
                raise FileError(": ".join(file_kinds.described(path) or unknown))
        if column is not None:
            raise InputError(f"not a Parquet file, so it has no column {column}")
        if values.dtype.kind not in "fiu":
            raise InputError(f"an array of {values.dtype}: give floats")
        if values.ndim not in (2, 3, 4) or 0 in values.shape:
            raise InputError(f"an array of shape {list(values.shape)}: give {_SHAPES}")
    return values
