"""The commands `fit` and `encode`: a codec for any embeddings, and coded files of them."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from coder import codecs, files
from coder.archive import zarr_nodes
from coder.arrays import warn_of_integers
from coder.cli import refiner_facts
from coder.cli.arguments import MAX_TOKENS, Encode, Fit
from coder.codecs import EmbeddingCodec, OneQualityCodec, QualityLadder
from coder.embedding_files import (
    ROWS_PER_BLOB,
    TILE,
    EmbeddingFile,
    checked_part,
    chunks_of,
    open_embeddings,
    sampled_parts,
    scene_chunk,
    write_array,
    write_scene,
    write_table,
)
from coder.errors import InputError, about
from coder.fitting import (
    HeldOut,
    MaxError,
    StatedError,
    fit_measured,
    fit_refiner,
    refuse_too_few,
)
from coder.refiner import load_refiner

_SAMPLE = 64  # chunks that a quality is chosen by
_PART = 1 << 23  # values that are looked at together

_PARQUET = (".parquet", ".geoparquet", ".gpq", ".pq")
# What other tools take for files of other kinds.
_NOT_ZARR = (
    *(".npy", ".npz", ".tif", ".tiff", ".safetensors"),
    *(".h5", ".hdf5", ".nc", ".csv", ".json", ".zip", ".pkl", ".pt", ".arrow", ".feather"),
)


def run(options: Fit | Encode) -> tuple[int, dict[str, Any]]:
    """Fit a codec to embeddings; for `Encode`, code them by it or by --codec."""
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
    opened = _shown(options)
    y, nodata = opened.y, opened.nodata
    if options.refiner is not None:
        refuse_too_few(y, nodata=nodata)
    held_out = error = None
    if codec is None:
        codec, held_out = _fit(opened, options, options.count)
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
    is_table = out.suffix.lower() in _PARQUET
    files.check_output(out, folder=not is_table, **kept)
    if out.suffix.lower() in _NOT_ZARR:
        raise InputError(
            f"a Zarr array is written, which is a folder: name it {out.stem}.zarr; or "
            f"{out.stem}.parquet for a table that was one",
            out,
        )
    given = _given_codec(options.codec, options.quality) if options.codec else None
    if given is not None and options.refiner is not None:
        with about(options.refiner):
            given = given.with_refiner(load_refiner(options.refiner))
    opened = _shown(options)
    chunk = _chunk(opened, options, is_table)
    _check_codable(opened, chunk, given, options)
    whole, held_out = (given, None) if given is not None else _fitted(opened, options)
    if held_out is None:
        held_out = HeldOut.of(opened.y, nodata=opened.nodata)
    codec = _at_quality(whole, opened, chunk, options, held_out)
    error = _stated(held_out, codec)
    facts = _written(opened, codec, chunk, error, options, **kept)
    if facts["missing"]:
        print(f"{facts['missing']:,} tokens are missing, and stay so (NaN, or null)")
    codec_facts = {"fingerprint": codec.fingerprint.hex(), "quality": codec.quality}
    if codec.refiner is not None:
        print(f"symbols were chosen for readers with {refiner_facts.line(codec.refiner)}")
        codec_facts["refiner"] = codec.refiner.fingerprint.hex()
    return {"out": str(out), "shape": opened.y.shape} | facts | codec_facts


def _chunk(opened: EmbeddingFile, options: Encode, is_table: bool) -> tuple[int, ...]:
    """The shape of what becomes one blob. Raises InputError: the output does not fit the input."""
    y, out = opened.y, Path(options.out)
    if not is_table:
        if options.rows_per_blob is not None:
            raise InputError("--rows-per-blob is for a table, --out NAME.parquet: leave it out")
        return chunks_of(y.shape) if opened.place is None else scene_chunk(y.shape)
    if opened.column is None:
        raise InputError(
            f"a table is made of a Parquet table alone: name the output {out.stem}.zarr", out
        )
    if y.ndim == 4:
        if options.rows_per_blob not in (None, 1):
            raise InputError("--rows-per-blob is for vectors, and each row has a grid of its own")
        return (1, *y.shape[1:])
    return (min(options.rows_per_blob or ROWS_PER_BLOB, y.shape[0]), y.shape[1])


def _written(
    opened: EmbeddingFile,
    codec: OneQualityCodec,
    chunk: tuple[int, ...],
    error: StatedError,
    options: Encode,
    **kept: Any,
) -> dict[str, Any]:
    """Write the embeddings, and print what they take; the facts of it."""
    y, out = opened.y, Path(options.out)
    kind = opened.facts["dtype"]  # not that of `y`, which is float32 if it was dequantised
    source = math.prod(y.shape) * np.dtype(kind).itemsize
    notes: dict[str, Any] = {"nec_source": opened.facts, zarr_nodes.ERROR: error.to_json()}
    if out.suffix.lower() in _PARQUET:
        assert opened.column is not None
        with files.writing(out, **kept) as file:
            found = write_table(
                file, opened.column, y, codec, opened.nodata, rows_per_blob=chunk[0], notes=notes
            )
        size = out.stat().st_size
        coded, missing = found.blob_bytes + found.codec_bytes, found.missing
        per_row = found.blob_bytes / max(1, y.shape[0] - missing)
        print(
            f"{out}: {size:,} bytes; {found.blob_bytes:,} of them are vectors, {per_row:.2f} each, "
            f"and {found.codec_bytes:,} the codec, {_times(source, coded)} than {kind}; the others "
            "are the other columns"
        )
        _compare_with_int8(coded, (y.shape[0] - missing) * math.prod(y.shape[1:]), y.shape[-1])
        facts = {"codec_bytes": found.codec_bytes, "payload_bytes": found.blob_bytes}
        facts |= {"bytes_in": source, "bytes": size, "missing": missing}
        bits = 8 * found.blob_bytes / math.prod(y.shape)
        return facts | {"bits_per_value": bits, "error": error.to_json()}
    with files.writing_folder(out, **kept) as part:
        if opened.place is None:
            missing = write_array(part, y, codec, opened.nodata, notes)
        else:
            missing = write_scene(part, y, codec, opened.nodata, opened.place, notes)
    sizes = zarr_nodes.sizes(out)
    size = sum(sizes.values())
    metadata = sum(n for key, n in sizes.items() if key.endswith("zarr.json"))
    bits = 8 * (size - metadata) / math.prod(y.shape)
    of = "zarr.json, which holds the codec" if opened.place is None else "metadata with the codec"
    print(
        f"{out}: {size:,} bytes, {_times(source, size)} than {kind}; {metadata:,} of them are "
        f"{of}; the others are {bits:.4f} bits per value"
    )
    _compare_with_int8(size, math.prod(y.shape) - missing * y.shape[-1], y.shape[-1])
    if opened.column is not None and len(names := opened.column.file.schema_arrow.names) > 1:
        rest = ", ".join(name for name in names if name != opened.column.name)
        print(f"without the columns {rest}: --out {out.stem}.parquet keeps them")
    if opened.place is not None:
        print(f"a scene of {opened.place.grid.shape[0]} x {opened.place.grid.shape[1]} cells")
    facts = {"bytes_in": source, "bytes": size, "missing": missing, "codec_bytes": metadata}
    facts |= {"payload_bytes": size - metadata, "bits_per_value": bits}
    return facts | {"error": error.to_json()}


def _times(source: int, size: int) -> str:
    """How a size compares with that of the source."""
    if size <= source:
        return f"{source / size:.1f} times smaller"
    return f"{size / source:.1f} times larger"


def _compare_with_int8(size: int, values: int, channels: int) -> None:
    """Say so if a byte per value would have been smaller, as for a few hundred vectors."""
    if size > (plain := values + 4 * channels):
        print(
            f"int8, with a scale for each channel, would take {plain:,} bytes: for so few "
            "embeddings, or an error so small, this does not pay"
        )


def _local(inputs: Sequence[Path | str | None]) -> list[Path]:
    """The inputs that are local files."""
    return [path for path in inputs if isinstance(path, Path)]


def _shown(options: Fit | Encode) -> EmbeddingFile:
    """The embeddings of the file; prints what they are."""
    opened = open_embeddings(
        options.file,
        options.column,
        nodata=options.nodata,
        scale=options.scale,
        is_companded=options.companded,
        channel_first=options.channel_first,
    )
    for line in opened.lines:
        print(f"{options.file}: {line}")
    y, facts = opened.y, opened.facts
    rule = facts.get("dequantised")
    of = "" if rule is None else f" of {facts['dtype']}, dequantised ({rule})"
    print(f"{options.file}: {y.dtype} {list(y.shape)}{of}")
    if y.ndim == 3 and opened.place is None and "tags" not in facts:
        # Tokens of many images have this form too.
        print(
            f"read as one raster of {y.shape[0]} x {y.shape[1]} tokens; for {y.shape[0]} images of "
            f"{y.shape[1]} tokens, make grids [N, H, W, D] of them"
        )
    return opened


def _fit(
    opened: EmbeddingFile, options: Fit | Encode, count: int | None = None
) -> tuple[QualityLadder, HeldOut]:
    nodata = opened.nodata
    if nodata is None and isinstance(options, Encode) and opened.y.dtype.kind == "f":
        nodata = math.nan  # those of all channels; NaN in some of them is refused
    codec, held_out = fit_measured(
        opened.y,
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


def _fitted(opened: EmbeddingFile, options: Encode) -> tuple[QualityLadder, HeldOut]:
    """A fitted codec that has --quality. Raises InputError if it does not have this quality."""
    whole, held_out = _fit(opened, options)
    if options.quality is not None and options.quality >= whole.num_qualities:
        raise InputError(
            f"--quality is {options.quality}, and the codec that was fitted has qualities 0 to "
            f"{whole.num_qualities - 1}: give one of those. To fit only once, write the codec "
            "first, `fit EMBEDDINGS --out CODEC`, and encode with --codec CODEC"
        )
    return whole, held_out


def _at_quality(
    whole: EmbeddingCodec,
    opened: EmbeddingFile,
    chunk: tuple[int, ...],
    options: Encode,
    held_out: HeldOut,
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
    some = sampled_parts(opened.y, chunk, opened.nodata, _SAMPLE)
    quality = whole.quality_for(
        some,
        (some.shape[1] // chunk[-2], chunk[-2]) if len(chunk) > 2 else (1, some.shape[1]),
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
    opened: EmbeddingFile, chunk: tuple[int, ...], codec: EmbeddingCodec | None, options: Encode
) -> None:
    """Raise InputError for what would be refused only after minutes of fitting."""
    y = opened.y
    if codec is not None and codec.channels != y.shape[-1]:
        raise InputError(
            f"embeddings of {y.shape[-1]} channels, and the codec {options.codec} is for "
            f"{codec.channels}"
        )
    tokens = math.prod(chunk[:-1])
    most = (options.max_tokens or MAX_TOKENS) if codec is None else codec.max_tokens
    if tokens > most:
        raise InputError(
            f"chunks of {tokens} tokens, and the codec takes {most}: "
            + ("raise --max-tokens" if codec is None else "fit one with larger --max-tokens")
        )
    if codec is not None:
        warn_of_integers(y.dtype, stacklevel=2)  # `fit` does, otherwise
    if not isinstance(y, np.ndarray) and codec is not None:
        return  # nothing is fitted: writing finds it just as early
    # In parts, such that few chunks are read twice and the rows fit in memory.
    rows = 1 if isinstance(y, np.ndarray) else min(y.chunks[0], TILE)
    size = -(-max(1, _PART // math.prod(y.shape[1:])) // rows) * rows
    for start in range(0, y.shape[0], size):
        checked_part(y, slice(start, start + size), opened.nodata)
