"""Embeddings that exist: files of any kind in, coded files out, with all else that the files hold.

`opening` opens a file by its first bytes: `npy_file`, `zarr_arrays`, `geotiff_file` or
`parquet_columns`. `quantised` makes floats of integers with scales, or companded; `array_views`
has what arrays are seen through. `georeference` says where rasters lie. `chunk_parts` cuts
embeddings in parts of one blob each. These are written by `array_writer` (a plain Zarr array),
`raster_writer` (a scene) or `blob_table` (Parquet, which it also reads). `number_csv` writes the
CSV of NeuCo-Bench.
"""

from coder.embedding_files.array_writer import write_array
from coder.embedding_files.blob_table import ROWS_PER_BLOB, BlobTable, write_decoded, write_table
from coder.embedding_files.chunk_parts import TILE, checked_part, chunks_of, sampled_parts
from coder.embedding_files.number_csv import with_vectors, write_csv
from coder.embedding_files.opening import EmbeddingFile, open_embeddings
from coder.embedding_files.raster_writer import scene_chunk, write_scene

__all__ = [
    "ROWS_PER_BLOB",
    "TILE",
    "BlobTable",
    "EmbeddingFile",
    "checked_part",
    "chunks_of",
    "open_embeddings",
    "sampled_parts",
    "scene_chunk",
    "with_vectors",
    "write_array",
    "write_csv",
    "write_decoded",
    "write_scene",
    "write_table",
]
