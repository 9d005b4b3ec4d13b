"""Inspect, check, make and decode blobs, codec files and archives, without JAX.

    python -m coder info FILE
    python -m coder verify FILE
    python -m coder decode FILE --out OUT
    python -m coder fit EMBEDDINGS --out CODEC
    python -m coder encode EMBEDDINGS --out ARRAY [--codec CODEC] [--quality N]

Existing output is replaced only with --overwrite; an input, a pipe or a device never is.

FILE is a blob, a codec or model file, the name of a shipped model, or an archive (a Zarr store). To
verify or decode a blob, give `--codec CODEC`; an archive holds its codec. EMBEDDINGS is a .npy
file, a Zarr array or a column of (Geo)Parquet, with grids [N, H, W, D], a raster [H, W, D] or
vectors [N, D]. ARRAY is the Zarr array to write.
"""

import argparse
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np

from coder import codecs, files
from coder.codecs import EmbeddingCodec
from coder.errors import CodecError, FileError, InputError, about, one_line
from coder.format import blob as framing
from coder.format import container, file_kinds


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 1 if FILE has a fault, 2 if the command line has."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    # Only the message of a warning, without its line of code.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        with _terminable(), about(options.file):
            status = _run(options)
        print(end="", flush=True)  # where there is no standard output, nothing happens
        return status
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130  # as shells have it
    except BrokenPipeError:  # as of `| head`
        _drop_output()
        return 1
    except OSError as error:
        if error.filename is None and not _takes_output():
            _drop_output()
            print(f"standard output cannot be written: {error.strerror or error}", file=sys.stderr)
            return 1
        print(f"{error.filename or options.file}: {error.strerror or error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"{options.file}: {error}", file=sys.stderr)
    except CodecError as error:
        print(one_line(error), file=sys.stderr)
    return 1


class _Terminated(KeyboardInterrupt):
    """SIGTERM."""


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM stops the block as Ctrl-C does, so that it leaves nothing half written."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _takes_output() -> bool:
    """Whether standard output can be written: what could not be is in its buffer still."""
    try:
        print(end="", flush=True)
    except OSError:
        return False
    return True


def _drop_output() -> None:
    """What is left in the buffer goes nowhere, rather than to an error at the program's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(options: argparse.Namespace) -> int:
    if options.command in ("fit", "encode"):
        from coder.cli import fit_commands

        return fit_commands.run(options)
    kind = _kind(options.file)
    if options.codec is not None and kind != "blob":
        raise InputError(f"--codec is for a blob, and this is {_KINDS[kind]}: leave it out")
    if kind == "archive":
        # Not needed for blobs, and slow to import.
        from coder.cli import archive_commands

        return archive_commands.run(options)
    return _COMMANDS[options.command, kind](options)


_KINDS = {"archive": "an archive, which holds its own", "codec": "a codec or model file"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m coder",
        description=(__doc__ or "").split("\n\n")[0],
        epilog=(__doc__ or "").split("\n\n")[2],
    )
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "info": "print the content of FILE",
        "verify": "decode everything in FILE without writing; exit with status 1 on damage",
        "decode": "write embeddings as .npy: OUT for a blob, OUT/NAME.npy for each array",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "file",
            type=_path,
            metavar="FILE",
            help="blob, codec or model file, name of a shipped model, or archive (Zarr store)",
        )
        command.add_argument("--codec", type=_path, help="codec file that the blob was made with")
        if name == "decode":
            command.add_argument(
                "--out",
                type=_path,
                required=True,
                help="file for a blob, or folder for arrays, to write",
            )
            _add_overwrite(command)
    texts = {
        "fit": "fit a codec of many qualities to EMBEDDINGS and write its file",
        "encode": "encode EMBEDDINGS to a Zarr array, with --codec or a codec fitted to them",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "file",
            type=_path,
            metavar="EMBEDDINGS",
            help=".npy file, Zarr array or Parquet file: grids [N, H, W, D], a raster [H, W, D], "
            "or vectors [N, D]",
        )
        command.add_argument(
            "--out",
            type=_path,
            required=True,
            help="codec file (fit) or Zarr array (encode) to write",
        )
        _add_overwrite(command)
        command.add_argument("--column", help="column of a Parquet file to read")
        command.add_argument(
            "--nodata",
            type=float,
            help="value that marks missing data, such as -9999 (or --nodata=-3.4e38)",
        )
        command.add_argument(
            "--max-tokens",
            type=int,
            help="maximum number of tokens in a grid or chunk of the fitted codec (default: 65536)",
        )
        if name == "encode":
            command.add_argument("--codec", type=_path, help="codec file that fit wrote")
            command.add_argument(
                "--quality",
                type=int,
                help="quality to code at: 0 is the lowest, a higher one costs more bytes",
            )
    return parser


def _path(text: str) -> Path:
    """A path from the command line. An empty one, as of an unset variable, is refused."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path: is a variable not set?")
    return Path(text)


def _add_overwrite(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing output; an input, a pipe or a device is never replaced",
    )


def _kind(path: Path) -> str:
    if path.is_dir():
        return "archive"
    file = container.found(path, "file")
    start = file_kinds.start_of(file)
    if file_kinds.is_safetensors(start):
        return "codec"
    if file_kinds.may_be_blob(start):
        return "blob"
    if (found := file_kinds.described(file)) is not None:
        what, remedy = found
        remedy = remedy or "`fit` and `encode` take embeddings"
        raise FileError(f"{what}, not a blob, codec, model or archive: {remedy}", path)
    raise FileError(
        f"not a blob, codec, model or archive that this version reads (format "
        f"{framing.VERSION}): is it the right file? If a newer nec-jax wrote it, update",
        path,
    )


def _info_blob(options: argparse.Namespace) -> int:
    data = files.read_bytes(options.file, "blob")
    header, words = framing.unpack(data)
    height, width = header.grid
    payload = len(data) - framing.framing_bytes(header)
    print(f"blob, {len(data)} bytes, format {framing.VERSION}, checksum right")
    print(f"codec {header.fingerprint.hex()} (of quality {header.rate_index} alone)")
    print(f"{height} x {width} tokens{' and a class token' if header.class_token else ''}")
    print(f"payload {payload} bytes, {words.size} words")
    if options.codec:
        codec = codecs.load(options.codec)
        q, _ = codec.decode_symbols(data)
        print(f"{q.shape[0]} x {q.shape[1]} symbols, ", end="")
        print(f"{8 * len(data) / (len(q) * codec.channels):.4f} bits per element")
    return 0


def _info_codec(options: argparse.Namespace) -> int:
    codec = codecs.load(options.file)
    print(f"codec {codec.fingerprint[:4].hex()}, {codec.codec_bytes} bytes, checksum right")
    of = f", of all {codec.num_qualities} qualities" if codec.num_qualities > 1 else ""
    print(f"fingerprint {codec.fingerprint.hex()}{of}")
    print(f"{codec.channels} channels, at most {codec.max_tokens} tokens")
    if codec.num_qualities > 1:
        print(
            f"qualities 0 to {codec.num_qualities - 1}; quality {codec.quality} is used unless "
            "another is given"
        )
        own = codec.at().fingerprint[:4].hex()
        print(
            f"blobs carry the fingerprint of their one quality: {own} for quality {codec.quality}"
        )
    else:
        print(f"quality {codec.quality}")
    print(f"class token {'not ' * (not codec.class_token)}coded")
    tables = codec.tables
    print(f"{len(tables)} tables of {tables.sizes.min()} to {tables.sizes.max()} entries")
    return 0


def _verify_blob(options: argparse.Namespace) -> int:
    codec = _codec(options)
    _, grid = codec.decode_symbols(files.read_bytes(options.file, "blob"))
    print(f"good: {grid[0]} x {grid[1]} tokens, {codec.channels} channels")
    return 0


def _verify_codec(options: argparse.Namespace) -> int:
    codec = codecs.load(options.file)
    print(f"good: codec {codec.fingerprint[:4].hex()}, {codec.channels} channels")
    return 0


def _decode_blob(options: argparse.Namespace) -> int:
    inputs = [options.file, *([options.codec] if options.codec else [])]
    files.check_output(options.out, overwrite=options.overwrite, inputs=inputs)
    y_hat = _codec(options).decode(files.read_bytes(options.file, "blob"))
    with files.writing(options.out, overwrite=options.overwrite, inputs=inputs) as file:
        np.save(file, y_hat)
    print(f"{options.out}: float32 {list(y_hat.shape)}")
    return 0


def _decode_codec(options: argparse.Namespace) -> int:
    raise InputError("a codec, which holds no embeddings: give a blob or an archive")


def _codec(options: argparse.Namespace) -> EmbeddingCodec:
    if options.codec is None:
        raise InputError("a blob: add --codec with the codec file that it was made with")
    return codecs.load(options.codec)


_COMMANDS = {
    ("info", "blob"): _info_blob,
    ("info", "codec"): _info_codec,
    ("verify", "blob"): _verify_blob,
    ("verify", "codec"): _verify_codec,
    ("decode", "blob"): _decode_blob,
    ("decode", "codec"): _decode_codec,
}
