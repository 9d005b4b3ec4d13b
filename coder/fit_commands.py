"""`fit` and `encode` of the command line: a codec, and an archive, of anybody's embeddings."""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from coder import files
from coder.codec import EmbeddingCodec
from coder.errors import FileError, InputError
from coder.fitting import fit
from coder.one_rate import OneRateCodec
from coder.zarr_codec import NecCodec

_VECTORS = 256  # in a chunk
_TILE = 64  # side of a raster's chunks, tokens
_SHARD = 256  # chunks in a shard


def run(options: argparse.Namespace) -> int:
    """Fit a codec to embeddings, or write them as a Zarr array, by one if it is given."""
    inputs = [options.file]
    if options.command == "encode" and options.codec is not None:
        inputs.append(options.codec)
    # Before minutes of fitting.
    kept = {"overwrite": options.overwrite, "inputs": inputs}
    files.check_output(options.out, folder=options.command == "encode", **kept)
    y = read(options.file, options.column)
    print(f"{options.file}: {y.dtype} {list(y.shape)}")
    if options.command == "fit":
        codec = _fit(y, options.max_tokens)
        with files.writing(options.out, **kept) as file:
            file.write(codec.to_bytes())
        print(f"{options.out}: {options.out.stat().st_size:,} bytes")
        return 0
    codec = EmbeddingCodec.load(options.codec) if options.codec else _fit(y, options.max_tokens)
    array = write(y, codec.at(options.rate), options.out, **kept)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    metadata = (options.out / "zarr.json").stat().st_size
    print(
        f"{options.out}: {size:,} bytes, {y.nbytes / size:.1f} times smaller; {metadata:,} of them "
        f"are the codec, {8 * (size - metadata) / math.prod(array.shape):.4f} bits a value the rest"
    )
    return 0


def read(path: Path, column: str | None = None) -> Any:
    """Embeddings of a file, to be read in parts where it can be.

    Args:
      path: `.npy`; a Zarr array; or (Geo)Parquet, of which `column` holds lists of one length.

    Raises:
      FileError: not such a file.
    """
    if path.is_dir():
        try:
            values = zarr.open_array(path, mode="r")
        except (FileNotFoundError, ValueError) as error:
            raise FileError("a folder without a Zarr array: give the array's own folder") from error
    elif path.suffix in (".parquet", ".geoparquet"):
        values = _read_parquet(path, column)
    else:
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise FileError(f"not a .npy file, a Zarr array or Parquet ({error})") from error
        if not isinstance(values, np.ndarray):
            raise FileError("several arrays: save the one of the embeddings as .npy (np.save)")
    if values.ndim not in (2, 3, 4) or 0 in values.shape:
        raise InputError(
            f"an array of shape {list(values.shape)}: give grids [N, H, W, D], a raster [H, W, D], "
            "or vectors [N, D]"
        )
    return values


def write(
    y: Any,
    codec: OneRateCodec,
    path: Path,
    *,
    overwrite: bool = False,
    inputs: Iterable[files.PathLike] = (),
) -> zarr.Array:
    """A new Zarr array [N, H, W, D], [H, W, D] or [N, D] of embeddings, part by part.

    It takes its name when it is whole. Raises OutputError as `files.check_output`.
    """
    if y.ndim == 4:
        chunks = (1, *y.shape[1:])
        shards = (min(_SHARD, y.shape[0]), *y.shape[1:])
    elif y.ndim == 3:
        chunks = (*(min(_TILE, side) for side in y.shape[:2]), y.shape[2])
        shards = chunks
    else:
        chunks = (min(_VECTORS, y.shape[0]), y.shape[1])
        shards = chunks
    with files.writing_folder(path, overwrite=overwrite, inputs=inputs) as part:
        array = zarr.create_array(
            part,
            shape=y.shape,
            dtype="float32",
            chunks=chunks,
            shards=None if shards == chunks else shards,
            serializer=NecCodec(codec),
            compressors=None,
            fill_value=0.0,
        )
        for start in range(0, y.shape[0], shards[0]):
            array[start : start + shards[0]] = np.asarray(y[start : start + shards[0]], np.float32)
    return zarr.open_array(path, mode="r")


def _fit(y: Any, max_tokens: int) -> EmbeddingCodec:
    codec = fit(y, max_tokens=max_tokens)
    print(f"fitted {codec.rates} rates, {codec.rate_index} if not told")
    return codec


def _read_parquet(path: Path, column: str | None) -> np.ndarray:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        message = "Parquet files need pyarrow: pip install nec-jax[parquet]"
        raise ModuleNotFoundError(message) from error
    if column is None:
        names = parquet.read_schema(path).names
        raise InputError(f"which column? --column, one of {', '.join(names)}")
    from pyarrow import ArrowException

    try:
        values = parquet.read_table(path, columns=[column]).column(column).combine_chunks()
        lengths = values.value_lengths().unique()
        flat = values.flatten().to_numpy(zero_copy_only=False)
    except (ArrowException, KeyError) as error:
        raise FileError(f"no Parquet file with lists in a column {column} ({error})") from error
    if values.null_count or len(lengths) != 1 or not lengths[0].as_py():
        raise InputError(f"column {column} does not hold lists of one length")
    return flat.reshape(len(values), -1)
