"""The commands `fit` and `encode`: a codec for any embeddings, and a Zarr array of them."""

import itertools
import logging
import math
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from coder import codecs, files
from coder.archive import zarr_nodes
from coder.archive.zarr_codec import NecCodec
from coder.arrays import as_floats, refuse, warn_of_integers, with_mask
from coder.cli import refiner_facts
from coder.cli.arguments import MAX_TOKENS, Encode, Fit
from coder.codecs import EmbeddingCodec, OneQualityCodec, QualityLadder
from coder.errors import FileError, InputError, NoPermission, StoreError, about, one_line
from coder.fitting import (
    HeldOut,
    MaxError,
    StatedError,
    fit_measured,
    fit_refiner,
    missing_tokens,
    refuse_too_few,
)
from coder.format import file_kinds
from coder.format.file_kinds import SAVE
from coder.refiner import load_refiner

if TYPE_CHECKING:
    import pyarrow

_VECTORS = 256  # in a chunk
_TILE = 64  # side of a raster's chunks, tokens
_SCALED = ("scale_factor", "add_offset")  # attributes of CF
_SHARD = 256  # chunks in a shard
_SAMPLE = 64  # chunks that a quality is chosen by
_PART = 1 << 23  # values that are looked at together

_SHAPES = "grids [N, H, W, D], a raster [H, W, D], or vectors [N, D]"
# What other tools take for files of other kinds.
_NOT_ZARR = (
    *(".npy", ".npz", ".parquet", ".geoparquet", ".gpq", ".pq", ".tif", ".tiff", ".safetensors"),
    *(".h5", ".hdf5", ".nc", ".csv", ".json", ".zip", ".pkl", ".pt", ".arrow", ".feather"),
)


def run(options: Fit | Encode) -> tuple[int, dict[str, Any]]:
    """Fit a codec to embeddings; for `Encode`, write them as a Zarr array by it or by --codec."""
    with about(options.file):
        if isinstance(options, Encode):
            return 0, _encode(options)
        assert isinstance(options, Fit)
        return 0, _fit_files(options)


def _fit_files(options: Fit) -> dict[str, Any]:
    inputs = _local([options.file, options.codec])
    kept = {"overwrite": options.overwrite, "inputs": inputs}
    # Checked, like all that follows, before minutes of fitting.
    outputs = [path for path in (options.out, options.refiner) if path is not None]
    paths = [files.check_output(path, **kept) for path in outputs]
    if len(set(paths)) < len(paths):
        raise InputError("--out and --refiner name one file: give two", options.refiner)
    codec = codecs.load(options.codec) if options.codec else None
    y, nodata = _shown(options)
    if options.refiner is not None:
        refuse_too_few(y, nodata=nodata)
    held_out = error = None
    if codec is None:
        codec, held_out = _fit(y, options, nodata, options.count)
        error = _stated(held_out, codec.at())
    facts: dict[str, Any] = {"codec_bytes": codec.codec_bytes, "quality": codec.quality}
    facts |= {"fingerprint": codec.fingerprint.hex(), "num_qualities": codec.num_qualities}
    written, lines = {}, []
    if options.out is not None:
        facts = {"out": str(options.out)} | facts
        written[options.out] = codec.to_bytes()
        lines.append(f"{options.out}: {codec.codec_bytes:,} bytes")
    if held_out is not None and error is not None:
        own, vectors = codec.at(), math.prod(y.shape[:-1])
        payload = round(held_out.bytes_per_vector(own) * vectors)
        lines.append(
            f"at quality {codec.quality}, {vectors:,} vectors take about {payload:,} bytes, and "
            f"its codec {own.codec_bytes:,}"
        )
        facts |= {"payload_bytes": payload, "one_quality_codec_bytes": own.codec_bytes}
        facts["error"] = error.to_json()
    if options.refiner is not None:
        print("training a refiner, which takes minutes", flush=True)
        steps: dict[str, Any] = {}
        if options.refiner_steps is not None:
            steps["steps"] = options.refiner_steps
        with _messages():
            refiner = fit_refiner(codec, y, nodata=nodata, **steps)
        written[options.refiner] = refiner.to_bytes()
        lines.append(f"{options.refiner}: {refiner_facts.line(refiner)}")
        helps = np.count_nonzero(refiner.gains)
        lines.append(f"the refiner helps at {helps} of {refiner.gains.size} qualities")
        facts["refiner"] = {"out": str(options.refiner)} | refiner_facts.facts(refiner)
    with files.writing_all(**kept) as writing:
        for path, data in written.items():
            with writing(path) as file:
                file.write(data)
    print("\n".join(lines))
    return facts


@contextmanager
def _messages() -> Iterator[None]:
    """Show what fitting logs, on the standard error."""
    logger, handler = logging.getLogger("coder"), logging.StreamHandler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _encode(options: Encode) -> dict[str, Any]:
    out = Path(options.out)  # no URL: `check` refuses one
    others = [options.file, options.codec, options.refiner]
    kept = {"overwrite": options.overwrite, "inputs": _local(others)}
    files.check_output(out, folder=True, **kept)
    if out.suffix.lower() in _NOT_ZARR:
        raise InputError(
            f"a Zarr array is written, which is a folder: name it {out.stem}.zarr", out
        )
    given = _given_codec(options.codec, options.quality) if options.codec else None
    if given is not None and options.refiner is not None:
        with about(options.refiner):
            given = given.with_refiner(load_refiner(options.refiner))
    y, nodata = _shown(options)
    _check_codable(y, given, options, nodata)
    whole, held_out = (given, None) if given is not None else _fitted(y, options, nodata)
    if held_out is None:
        held_out = HeldOut.of(y, nodata=nodata)
    codec = _at_quality(whole, y, options, nodata, held_out)
    error = _stated(held_out, codec)
    with files.writing_folder(out, **kept) as part:
        _write(part, y, codec, nodata, error)
    size = sum(zarr_nodes.sizes(out).values())
    metadata = (out / "zarr.json").stat().st_size
    bits = 8 * (size - metadata) / math.prod(y.shape)
    print(
        f"{out}: {size:,} bytes, {y.nbytes / size:.1f} times smaller; {metadata:,} of them "
        f"are zarr.json, which holds the codec; the others are {bits:.4f} bits per value"
    )
    facts = {"bytes_in": y.nbytes, "bytes": size, "codec_bytes": metadata}
    facts |= {"payload_bytes": size - metadata, "bits_per_value": bits, "error": error.to_json()}
    codec_facts = {"fingerprint": codec.fingerprint.hex(), "quality": codec.quality}
    if codec.refiner is not None:
        print(f"symbols were chosen for readers with {refiner_facts.line(codec.refiner)}")
        codec_facts["refiner"] = codec.refiner.fingerprint.hex()
    return {"out": str(out), "shape": y.shape} | facts | codec_facts


def _local(inputs: Sequence[Path | str | None]) -> list[Path]:
    """The inputs that are local files."""
    return [path for path in inputs if isinstance(path, Path)]


def read(path: Path | str, column: str | None = None) -> Any:
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
            values = _read_zarr(path)
        else:
            start = file_kinds.start_of(files.check_input(path, "file of embeddings"))
            if start.startswith(file_kinds.PARQUET):
                values, column = _read_parquet(path, column), None
            elif start.startswith(file_kinds.NPY):
                values = _read_npy(path)
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


def _write(
    path: Path, y: Any, codec: OneQualityCodec, nodata: float | None, error: StatedError
) -> None:
    """Write embeddings [N, H, W, D], [H, W, D] or [N, D] as a Zarr array, part by part.

    Raises InputError for tokens that are missing (see `coder.fit`) or infinite; says where.
    """
    chunks = _chunks(y.shape)
    shards = (min(_SHARD, y.shape[0]), *y.shape[1:]) if y.ndim == 4 else chunks
    array = zarr.create_array(
        path,
        shape=y.shape,
        dtype="float32",
        chunks=chunks,
        shards=None if shards == chunks else shards,
        serializer=NecCodec(codec),
        compressors=None,
        fill_value=np.nan,  # no embedding is, so that every chunk is stored
        attributes={zarr_nodes.WHOLE: True, zarr_nodes.ERROR: error.to_json()},
    )
    with zarr_nodes.settled():
        for start in range(0, y.shape[0], shards[0]):
            part = _checked(y, start, start + shards[0], nodata)
            array[start : start + shards[0]] = (
                part if codec.refiner is None else _aimed(part, codec, chunks)
            )


def _aimed(y: np.ndarray, codec: OneQualityCodec, chunks: tuple[int, ...]) -> np.ndarray:
    """Embeddings of whole chunks, moved so that coding them is best for readers that refine."""
    aimed = np.empty(y.shape, np.float32)
    parts = [
        [slice(start, start + width) for start in range(0, side, width)]
        for side, width in zip(y.shape, chunks, strict=True)
    ]
    for place in itertools.product(*parts):
        one = y[place]
        grid = math.prod(one.shape[:-2]), one.shape[-2]
        aimed[place] = codec.aim(one.reshape(-1, y.shape[-1]), grid).reshape(one.shape)
    return aimed


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The chunk shape for an array of embeddings; each chunk becomes one blob."""
    if len(shape) == 4:
        return (1, *shape[1:])
    if len(shape) == 3:
        return (*(min(_TILE, side) for side in shape[:2]), shape[2])
    return (min(_VECTORS, shape[0]), shape[1])


def _shown(options: Fit | Encode) -> tuple[Any, float | None]:
    """The embeddings of the file, and what marks missing data; prints what they are."""
    y, nodata = read(options.file, options.column), options.nodata
    named = getattr(y, "fill_value", None)
    if nodata is None and isinstance(named, int | float):
        print(f"{options.file}: its attribute _FillValue says that {named:g} is missing data")
        nodata = float(named)
    print(f"{options.file}: {y.dtype} {list(y.shape)}")
    if y.ndim == 3:  # tokens of many images have this form too
        print(
            f"read as one raster of {y.shape[0]} x {y.shape[1]} tokens; for {y.shape[0]} images of "
            f"{y.shape[1]} tokens, make grids [N, H, W, D] of them"
        )
    return y, nodata


def _fit(
    y: Any, options: Fit | Encode, nodata: float | None, count: int | None = None
) -> tuple[QualityLadder, HeldOut]:
    codec, held_out = fit_measured(
        y,
        metric=options.metric,
        max_error=options.max_error,
        count=count,
        max_tokens=options.max_tokens or MAX_TOKENS,
        nodata=nodata,
    )
    print(
        f"fitted {codec.num_qualities} qualities, 0 to {codec.num_qualities - 1}; "
        f"quality {codec.quality} is used unless another is given"
    )
    return codec, held_out


def _stated(held_out: HeldOut, codec: OneQualityCodec) -> StatedError:
    """The error of a codec, printed."""
    error = held_out.error(codec)
    print(f"quality {codec.quality}: {error}")
    return error


def _fitted(y: Any, options: Encode, nodata: float | None) -> tuple[QualityLadder, HeldOut]:
    """A fitted codec that has --quality. Raises InputError if it does not have this quality."""
    whole, held_out = _fit(y, options, nodata)
    if options.quality is not None and options.quality >= whole.num_qualities:
        raise InputError(
            f"--quality is {options.quality}, and the codec that was fitted has qualities 0 to "
            f"{whole.num_qualities - 1}: give one of those. To fit only once, write the codec "
            "first, `fit EMBEDDINGS --out CODEC`, and encode with --codec CODEC"
        )
    return whole, held_out


def _at_quality(
    whole: EmbeddingCodec, y: Any, options: Encode, nodata: float | None, held_out: HeldOut
) -> OneQualityCodec:
    """The codec at --quality, or at the one that fits --max-bytes, --max-mse or --max-error."""
    if options.max_bytes is None and options.max_mse is None and options.max_error is None:
        return whole.at(options.quality)
    if not isinstance(whole, QualityLadder):
        raise InputError(
            f"{options.codec} has one quality: leave --max-bytes, --max-mse and --max-error out"
        )
    if options.max_error is not None:
        if options.codec is None:
            return whole.at()  # the fit chose it
        quality = held_out.quality_for(whole, MaxError.of(options.max_error, "--max-error"))
        print(f"quality {quality} fits")
        return whole.at(quality)
    *sides, _ = _chunks(y.shape)
    whole_chunks = [size // side for size, side in zip(y.shape, sides, strict=False)]
    some = []
    for number in np.linspace(0, math.prod(whole_chunks) - 1, _SAMPLE).astype(int).tolist():
        place = np.unravel_index(number, whole_chunks)
        chunk = tuple(slice(side * i, side * (i + 1)) for i, side in zip(place, sides, strict=True))
        some.append(_checked(y[chunk], 0, sides[0], nodata).reshape(-1, y.shape[-1]))
    quality = whole.quality_for(
        np.stack(some),
        (math.prod(sides[:-1]), sides[-1]),
        max_bytes=options.max_bytes,
        max_mse=options.max_mse,
        for_refiner=whole.refiner is not None,
    )
    print(f"quality {quality} fits")
    return whole.at(quality)


def _given_codec(path: Path, quality: int | None) -> EmbeddingCodec:
    whole = codecs.load(path)
    if whole.class_token:
        raise InputError(
            "this codec codes a class token with every grid, and an array has none. A model's "
            "codec is used by nec_jax, on images; arrays of grids and of class tokens make an "
            "archive (coder.archive). For grids alone, fit a codec: leave --codec out",
            path,
        )
    with about(path):
        whole.at(quality)  # refuses a quality that it does not have
    return whole.with_refiner(None)  # which only --refiner asks for


def _check_codable(
    y: Any, codec: EmbeddingCodec | None, options: Encode, nodata: float | None
) -> None:
    """Raise InputError for what `_write` would refuse only after minutes of fitting."""
    if codec is not None and codec.channels != y.shape[-1]:
        raise InputError(
            f"embeddings of {y.shape[-1]} channels, and the codec {options.codec} is for "
            f"{codec.channels}"
        )
    tokens = math.prod(_chunks(y.shape)[:-1])
    most = (options.max_tokens or MAX_TOKENS) if codec is None else codec.max_tokens
    if tokens > most:
        raise InputError(
            f"chunks of {tokens} tokens, and the codec takes {most}: "
            + ("raise --max-tokens" if codec is None else "fit one with larger --max-tokens")
        )
    if codec is not None:
        warn_of_integers(y.dtype, stacklevel=2)  # `fit` does, otherwise
    if not isinstance(y, np.ndarray) and codec is not None:
        return  # nothing is fitted: `_write` finds it just as early
    # In parts, such that few chunks are read twice and the rows fit in memory.
    rows = 1 if isinstance(y, np.ndarray) else min(y.chunks[0], _TILE)
    size = -(-max(1, _PART // math.prod(y.shape[1:])) // rows) * rows
    for start in range(0, y.shape[0], size):
        _checked(y, start, start + size, nodata)


def _checked(y: Any, start: int, stop: int, nodata: float | None) -> np.ndarray:
    """Rows of an array as float32. Raises InputError that says where the first missing token is."""
    values = with_mask(y[start:stop])
    floats = as_floats(np.ma.getdata(values))
    remedy = "an array has no missing tokens: fill them, or leave them out"
    refuse(
        missing_tokens(values, nodata),
        "tokens",
        "missing (NaN, or nodata)",
        remedy=remedy,
        start=(start,),
    )
    bad = np.isinf(floats)
    refuse(bad, "values", "infinite in float32", np.ma.getdata(values), remedy, (start,))
    return floats


class _ZarrReader:
    """A Zarr array whose damage is a FileError."""

    def __init__(self, array: zarr.Array):
        self._array = array
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.nbytes, self.chunks = array.nbytes, array.chunks
        self.fill_value: Any = array.attrs.get("_FillValue")  # of CF, as xarray writes it

    def __getitem__(self, place: Any) -> np.ndarray:
        try:
            return zarr_nodes.read(self._array, place)
        except (NoPermission, StoreError):
            raise
        except Exception as error:  # whatever any codec raises is damage here
            raise FileError(f"damaged ({one_line(error)}): `nec verify` says where") from error


def _read_zarr(path: Path | str) -> _ZarrReader:
    node = zarr_nodes.open_node(path)
    if isinstance(node, zarr.Array):
        zarr_nodes.check_readable(node)
        scaled = [name for name in _SCALED if name in node.attrs]
        if scaled:
            raise FileError(
                f"its attribute {scaled[0]} says that its numbers are scaled: dequantise them, and "
                "save floats"
            )
        return _ZarrReader(node)
    names = ", ".join(zarr_nodes.members(node)[0]) or "none"
    raise FileError(f"a Zarr group: give the folder of one of its arrays ({names})")


def _read_npy(path: Path) -> np.ndarray:
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


def _read_parquet(path: Path, column: str | None) -> np.ndarray:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        message = "Parquet files need pyarrow: install nec-jax[parquet]"
        raise ModuleNotFoundError(message) from error
    # Opened here: pyarrow takes no names that are not UTF-8, and reads keys out of folders' names.
    with path.open("rb") as file:
        try:
            table = parquet.ParquetFile(file, page_checksum_verification=True)
            name = _column(table.schema_arrow, column)
            values = table.read(columns=[name]).column(name)
        except (pyarrow.ArrowException, OSError) as error:
            raise FileError(f"a damaged Parquet file ({error}): copy it again") from error
    parts, row = [], 0
    for chunk in values.chunks:
        if len(chunk):
            parts.append(_rows(f"column {name}", chunk, row))
        row += len(chunk)
    if len(shapes := sorted({part.shape[1:] for part in parts})) > 1:
        raise InputError(f"column {name} does not hold lists of one length: {shapes}")
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def _column(schema: "pyarrow.Schema", column: str | None) -> str:
    """The column asked for, or the only one that may hold embeddings."""
    lists = [field.name for field in schema if _is_list(field.type)]
    if column is None:
        if len(lists) == 1:
            return lists[0]
        if lists:
            raise InputError(f"which column? --column, one of {', '.join(lists)}")
        held = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:4])
        raise InputError(
            f"no column holds lists of numbers, but {held}{', ...' * (len(schema) > 4)}: if each "
            f"column is a dimension, make one array [N, D] of them (to_numpy in pandas); {SAVE}"
        )
    if (count := schema.names.count(column)) != 1:
        raise InputError(f"{count} columns are called {column}: {', '.join(schema.names)}")
    if column not in lists:
        others = f"--column, one of {', '.join(lists)}" if lists else f"no column does; {SAVE}"
        raise InputError(
            f"column {column} holds {schema.field(column).type}, not lists of numbers: {others}"
        )
    return column


def _is_list(type_: Any) -> bool:
    import pyarrow as pa

    lists = (pa.ListType, pa.LargeListType, pa.ListViewType, pa.LargeListViewType)
    return isinstance(type_, (*lists, pa.FixedSizeListType, pa.FixedShapeTensorType))


def _rows(what: str, values: Any, row: int) -> np.ndarray:
    """A chunk of a column as [N, ...]; `row` is the number of its first row in the file."""
    from pyarrow import FixedShapeTensorType, types

    sides, rest = [len(values)], None
    if isinstance(values.type, FixedShapeTensorType):
        rest = values.type.shape
        if values.type.permutation not in (None, list(range(len(rest)))):
            raise InputError(f"{what} holds permuted tensors: {SAVE}")
        values = values.storage
    while True:
        if values.null_count:
            place = int(values.is_null().to_numpy(zero_copy_only=False).argmax())
            at = row + place // math.prod(sides[1:])
            raise InputError(
                f"{what} has {values.null_count} nulls, the first in row {at}: leave those rows "
                "out (table.filter)"
            )
        if not _is_list(values.type):
            break
        lengths = values.value_lengths().unique()
        if len(lengths) != 1 or not lengths[0].as_py():
            raise InputError(
                f"{what} does not hold lists of one length: "
                f"{', '.join(str(length) for length in lengths[:4])} ..."
            )
        sides.append(lengths[0].as_py())
        values = values.flatten()
    if not (types.is_floating(values.type) or types.is_integer(values.type)):
        raise InputError(f"{what} holds lists of {values.type}, not of numbers")
    shape = sides if rest is None else [sides[0], *rest]
    if len(shape) == 3:
        raise InputError(
            f"{what} holds rows of {shape[1]} x {shape[2]}, whose grid is unknown: "
            f"make grids [N, H, W, D] of them, and {SAVE}"
        )
    return values.to_numpy(zero_copy_only=False).reshape(shape)
