"""The commands `fit` and `encode`: a codec for any embeddings, and a Zarr array of them."""

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
from coder.embedding_files import TILE, checked_part, chunks_of, open_embeddings, write_array
from coder.errors import InputError, about
from coder.fitting import fit, fit_refiner, refuse_too_few
from coder.refiner import load_refiner

_SAMPLE = 64  # chunks that a quality is chosen by
_PART = 1 << 23  # values that are looked at together

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
    codec = codec or _fit(y, options, nodata)
    facts: dict[str, Any] = {"codec_bytes": codec.codec_bytes, "quality": codec.quality}
    facts |= {"fingerprint": codec.fingerprint.hex(), "num_qualities": codec.num_qualities}
    written, lines = {}, []
    if options.out is not None:
        facts = {"out": str(options.out)} | facts
        written[options.out] = codec.to_bytes()
        lines.append(f"{options.out}: {codec.codec_bytes:,} bytes")
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
    codec = _at_quality(given or _fitted(y, options, nodata), y, options, nodata)
    with files.writing_folder(out, **kept) as part:
        write_array(part, y, codec, nodata)
    size = sum(zarr_nodes.sizes(out).values())
    metadata = (out / "zarr.json").stat().st_size
    bits = 8 * (size - metadata) / math.prod(y.shape)
    print(
        f"{out}: {size:,} bytes, {y.nbytes / size:.1f} times smaller; {metadata:,} of them "
        f"are zarr.json, which holds the codec; the others are {bits:.4f} bits per value"
    )
    facts = {"bytes_in": y.nbytes, "bytes": size, "codec_bytes": metadata, "bits_per_value": bits}
    codec_facts = {"fingerprint": codec.fingerprint.hex(), "quality": codec.quality}
    if codec.refiner is not None:
        print(f"symbols were chosen for readers with {refiner_facts.line(codec.refiner)}")
        codec_facts["refiner"] = codec.refiner.fingerprint.hex()
    return {"out": str(out), "shape": y.shape} | facts | codec_facts


def _local(inputs: Sequence[Path | str | None]) -> list[Path]:
    """The inputs that are local files."""
    return [path for path in inputs if isinstance(path, Path)]


def _shown(options: Fit | Encode) -> tuple[Any, float | None]:
    """The embeddings of the file, and what marks missing data; prints what they are."""
    y, nodata = open_embeddings(options.file, options.column), options.nodata
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


def _fit(y: Any, options: Fit | Encode, nodata: float | None) -> EmbeddingCodec:
    codec = fit(y, max_tokens=options.max_tokens or MAX_TOKENS, nodata=nodata)
    print(
        f"fitted {codec.num_qualities} qualities, 0 to {codec.num_qualities - 1}; "
        f"quality {codec.quality} is used unless another is given"
    )
    return codec


def _fitted(y: Any, options: Encode, nodata: float | None) -> EmbeddingCodec:
    """A fitted codec that has --quality. Raises InputError if it does not have this quality."""
    whole = _fit(y, options, nodata)
    if options.quality is not None and options.quality >= whole.num_qualities:
        raise InputError(
            f"--quality is {options.quality}, and the codec that was fitted has qualities 0 to "
            f"{whole.num_qualities - 1}: give one of those. To fit only once, write the codec "
            "first, `fit EMBEDDINGS --out CODEC`, and encode with --codec CODEC"
        )
    return whole


def _at_quality(
    whole: EmbeddingCodec, y: Any, options: Encode, nodata: float | None
) -> OneQualityCodec:
    """The codec at --quality, or at the one that fits --max-bytes or --max-mse."""
    if options.max_bytes is None and options.max_mse is None:
        return whole.at(options.quality)
    if not isinstance(whole, QualityLadder):
        raise InputError(f"{options.codec} has one quality: leave --max-bytes and --max-mse out")
    *sides, _ = chunks_of(y.shape)
    whole_chunks = [size // side for size, side in zip(y.shape, sides, strict=False)]
    some = []
    for number in np.linspace(0, math.prod(whole_chunks) - 1, _SAMPLE).astype(int).tolist():
        place = np.unravel_index(number, whole_chunks)
        chunk = tuple(slice(side * i, side * (i + 1)) for i, side in zip(place, sides, strict=True))
        some.append(checked_part(y[chunk], 0, sides[0], nodata).reshape(-1, y.shape[-1]))
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
    """Raise InputError for what `write_array` would refuse only after minutes of fitting."""
    if codec is not None and codec.channels != y.shape[-1]:
        raise InputError(
            f"embeddings of {y.shape[-1]} channels, and the codec {options.codec} is for "
            f"{codec.channels}"
        )
    tokens = math.prod(chunks_of(y.shape)[:-1])
    most = (options.max_tokens or MAX_TOKENS) if codec is None else codec.max_tokens
    if tokens > most:
        raise InputError(
            f"chunks of {tokens} tokens, and the codec takes {most}: "
            + ("raise --max-tokens" if codec is None else "fit one with larger --max-tokens")
        )
    if codec is not None:
        warn_of_integers(y.dtype, stacklevel=2)  # `fit` does, otherwise
    if not isinstance(y, np.ndarray) and codec is not None:
        return  # nothing is fitted: `write_array` finds it just as early
    # In parts, such that few chunks are read twice and the rows fit in memory.
    rows = 1 if isinstance(y, np.ndarray) else min(y.chunks[0], TILE)
    size = -(-max(1, _PART // math.prod(y.shape[1:])) // rows) * rows
    for start in range(0, y.shape[0], size):
        checked_part(y, start, start + size, nodata)
