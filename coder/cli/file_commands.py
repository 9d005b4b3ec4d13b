"""The commands for one file: what it is, and what is done with a blob or a codec file."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from coder import codecs, files
from coder.cli import codec_names, refiner_facts
from coder.cli.arguments import Decode, Info, Models, Verify
from coder.codecs import EmbeddingCodec
from coder.errors import FileError, InputError, about
from coder.format import blob as framing
from coder.format import container, file_kinds
from coder.format.container import SHIPPED
from coder.refiner import REFINER, Refiner, load_refiner

Result = tuple[int, dict[str, Any]]
"""The status of a command, and what it found, for JSON."""
_KINDS = {
    "archive": "an archive, which holds its own",
    "table": "a table, which holds its own",
    "safetensors": "a codec, model or refiner file",
}


def run(options: Info | Models) -> Result:
    """List the models, or run `info`, `verify` or `decode` on a file of any kind."""
    if isinstance(options, Models):
        return 0, {"models": [_model(path) for path in sorted(SHIPPED.glob("*.safetensors"))]}
    kind = _kind(options.file)
    if isinstance(options, Decode) and options.more:
        for path in (options.file, *options.more):
            if _kind(path) != "blob":
                raise InputError("not a blob, and only blobs are decoded together", path)
    is_named = kind == "blob" or (kind == "archive" and type(options) is Info)
    if kind != "table" and isinstance(options, Decode) and options.id is not None:
        raise InputError("--id is for a table of `nec encode`: leave it out")
    if options.codec is not None and not is_named:
        raise InputError(f"--codec is for a blob, and this is {_KINDS[kind]}: leave it out")
    if kind == "archive":
        # Not needed for blobs, and slow to import.
        from coder.cli import archive_commands

        return archive_commands.run(options)
    if kind == "table":
        from coder.cli import table_commands

        return table_commands.run(options)
    return 0, _blob(options) if kind == "blob" else _safetensors(options)


def _model(path: Path) -> dict[str, Any]:
    """Print what a model's file is, and return it."""
    data = path.read_bytes()
    tensors, content = container.from_bytes(data, codecs.MODEL)
    config = content["config"]
    codec = codecs.of_file(tensors, content)
    facts: dict[str, Any] = {
        "name": path.stem,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "image_size": config["image_size"],
        "bands": config["bands"],
        "dtype": config["dtype"],
        "patch": config["patch"],
        "channels": codec.channels,
        "codec": codec.fingerprint.hex(),
        "qualities": codec.num_qualities,
        "quality": codec.quality,
        "refiner": None if codec.refiner is None else codec.refiner.fingerprint.hex(),
    }
    print(
        f"{path.stem}: images of {facts['image_size']} px ({', '.join(facts['bands'])}; "
        f"{facts['dtype']}), tokens of {facts['patch']} px and {codec.channels} channels"
    )
    print(
        f"  codec {facts['codec'][:8]}, qualities 0 to {codec.num_qualities - 1}, "
        f"{codec.quality} by default; "
        + ("no refiner" if codec.refiner is None else f"refiner {facts['refiner'][:8]}")
    )
    print(f"  {len(data):,} bytes, SHA-256 {facts['sha256']}")
    return facts


def _kind(path: Path | str) -> str:
    if isinstance(path, str) or path.is_dir():  # only archives and arrays have URLs
        return "archive"
    file = container.found(path, "file")
    start = file_kinds.start_of(file)
    if file_kinds.is_safetensors(start):
        return "safetensors"
    if file_kinds.may_be_blob(start):
        return "blob"
    if start.startswith(file_kinds.PARQUET):
        return "table"
    if (found := file_kinds.described(file)) is not None:
        what, remedy = found
        remedy = remedy or "`fit` and `encode` take embeddings"
        raise FileError(f"{what}, not a blob, codec, model, refiner or archive: {remedy}", path)
    raise FileError(
        f"not a blob, codec, model, refiner or archive that this version reads (format "
        f"{framing.VERSION}): is it the right file? If a newer nec-jax wrote it, update",
        path,
    )


def _blob(options: Info) -> dict[str, Any]:
    if isinstance(options, Decode):
        return _decode_blobs(options)
    if isinstance(options, Verify):
        codec = _codec(options)
        _, grid = codec.decode_symbols(files.read_bytes(options.file, "blob"))
        print(f"good: {grid[0]} x {grid[1]} tokens, {codec.channels} channels")
        return {"kind": "blob", "good": True, "grid": grid, "channels": codec.channels}
    data = files.read_bytes(options.file, "blob")
    header, words = framing.unpack(data)
    facts = {
        "kind": "blob",
        "bytes": len(data),
        "fingerprint": header.fingerprint.hex(),
        "quality": header.rate_index,
        "grid": header.grid,
        "class_token": header.class_token,
        "payload_bytes": len(data) - len(framing.pack(header, words[:0])),
    }
    print(f"blob, {len(data):,} bytes, format {framing.VERSION}, checksum right")
    named = codec_names.of_blob(header, options.codec)
    facts["codec"] = named and named.codec.fingerprint.hex()
    unknown = f"quality {header.rate_index} (fingerprint {facts['fingerprint']}) of a codec "
    print(named or unknown + codec_names.UNKNOWN)
    height, width = header.grid
    print(f"{height} x {width} tokens{' and a class token' if header.class_token else ''}")
    print(f"payload {facts['payload_bytes']:,} bytes, {words.size:,} words")
    if options.codec:
        codec = codecs.load(options.codec)
        q, _ = codec.decode_symbols(data)
        facts["bits_per_element"] = 8 * len(data) / (len(q) * codec.channels)
        print(f"{len(q)} x {q.shape[1]} symbols, {facts['bits_per_element']:.4f} bits per element")
    return facts


def _safetensors(options: Info) -> dict[str, Any]:
    path = container.found(options.file, "file")
    tensors, content = container.read(path, codecs.CODEC, codecs.MODEL, REFINER)
    is_refiner = set(content) == {"codecs"}
    if isinstance(options, Decode):
        what = "a refiner" if is_refiner else "a codec"
        raise InputError(f"{what}, which holds no embeddings: give a blob or an archive")
    if is_refiner:
        return _refiner_file(options, Refiner.from_parts(tensors, content))
    codec = codecs.of_file(tensors, content)
    model = {"model": _model(path)} if "config" in content and type(options) is Info else {}
    return _codec_file(options, codec) | model


def _refiner_file(options: Info, refiner: Refiner) -> dict[str, Any]:
    facts = {"kind": "refiner", "channels": refiner.channels} | refiner_facts.facts(refiner)
    if isinstance(options, Verify):
        print(f"good: {refiner_facts.line(refiner)}")
        return facts | {"good": True}
    print(f"{refiner_facts.line(refiner)}, checksum right")
    print(f"fingerprint {facts['fingerprint']}")
    print(f"{refiner.channels} channels")
    count = refiner.gains.size
    print(f"belongs to a codec of {count} {'quality' if count == 1 else 'qualities'}")
    return facts | {"codecs": dict(refiner.codecs)}


def _codec_file(options: Info, codec: EmbeddingCodec) -> dict[str, Any]:
    fingerprint = codec.fingerprint.hex()
    names = ("codec_bytes", "channels", "max_tokens", "num_qualities", "quality", "class_token")
    facts: dict[str, Any] = {"kind": "codec", "fingerprint": fingerprint, "codec": fingerprint}
    facts["tables"] = len(codec.tables)
    facts |= {name: getattr(codec, name) for name in names}
    if codec.refiner is not None:
        facts["refiner"] = refiner_facts.facts(codec.refiner)
    if isinstance(options, Verify):
        print(f"good: codec {fingerprint[:8]}, {codec.channels} channels")
        if codec.refiner is not None:
            print(f"good: {refiner_facts.line(codec.refiner)}")
        return facts | {"good": True}
    print(f"codec {fingerprint[:8]}, {codec.codec_bytes:,} bytes, checksum right")
    of = f", of all {codec.num_qualities} qualities" if codec.num_qualities > 1 else ""
    print(f"fingerprint {fingerprint}{of}")
    print(f"{codec.channels} channels, at most {codec.max_tokens:,} tokens")
    if codec.num_qualities > 1:
        print(
            f"qualities 0 to {codec.num_qualities - 1}; quality {codec.quality} is used unless "
            "another is given"
        )
    else:
        print(f"quality {codec.quality}")
    print(f"class token {'not ' * (not codec.class_token)}coded")
    sizes = codec.tables.sizes
    print(f"{len(sizes)} tables of {sizes.min()} to {sizes.max()} entries")
    if codec.refiner is not None:
        print(refiner_facts.line(codec.refiner))
    return facts


def _decode_blobs(options: Decode) -> dict[str, Any]:
    """Decode one blob to OUT, or several to OUT/NAME.npy: all or none."""
    outputs = _outputs(options)
    inputs = [path for path in (*outputs, options.codec, options.refiner) if path]
    if options.more:
        names = [path.name for path in outputs.values()]
        files.check_outputs(options.out, names, overwrite=options.overwrite, inputs=inputs)
    else:
        files.check_output(options.out, overwrite=options.overwrite, inputs=inputs)
    codec = _codec(options)
    if options.refiner is not None:
        with about(options.refiner):
            codec = codec.with_refiner(load_refiner(options.refiner))
    refine = options.refine or options.refiner is not None
    if refine and codec.refiner is None:
        raise InputError("holds no refiner: give one with --refiner", options.codec)
    facts: dict[str, Any] = {"dtype": "float32"}
    note, written = "", {}
    if refine and codec.refiner is not None:
        facts["refiner"] = codec.refiner.fingerprint.hex()
        note = f", refined by {facts['refiner'][:8]}"
    if options.more:
        files.make_folder(options.out)
    with files.writing_all(overwrite=options.overwrite, inputs=inputs) as writing:
        for path, out in outputs.items():
            with about(path):
                y_hat = codec.decode(files.read_bytes(path, "blob"), refine=refine)
            with writing(out) as file:
                np.save(file, y_hat)
            written[str(out)] = facts | {"shape": y_hat.shape}
    for out, found in written.items():
        print(f"{out}: float32 {list(found['shape'])}{note}")
    return {"files": written}


def _outputs(options: Decode) -> dict[Path, Path]:
    """The file to write for each blob. Raises InputError if several have one."""
    blobs = [Path(options.file), *options.more]
    if not options.more:
        return {blobs[0]: options.out}
    paths: dict[str, Path] = {}
    for path in blobs:
        name = path.stem.casefold()  # there are file systems that do not tell case
        if name in paths:
            text = f"{path.stem}.npy would be that of {paths[name]} too: decode them apart"
            raise InputError(text, path)
        paths[name] = path
    return {path: options.out / f"{path.stem}.npy" for path in paths.values()}


def _codec(options: Info) -> EmbeddingCodec:
    if options.codec is None:
        raise InputError("a blob: add --codec with the codec file that it was made with")
    return codecs.load(options.codec)
