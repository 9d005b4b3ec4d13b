"""Embeddings that exist: files of any kind in, coded files out.

`opening` opens a file by its first bytes: `npy_file`, `zarr_arrays` or `parquet_columns`.
`array_writer` writes a plain Zarr array.
"""

from coder.embedding_files.array_writer import TILE, checked_part, chunks_of, write_array
from coder.embedding_files.opening import open_embeddings

__all__ = ["TILE", "checked_part", "chunks_of", "open_embeddings", "write_array"]
