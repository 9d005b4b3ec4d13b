"""The command line: the script `nec`, which is also `python -m coder`.

`arguments` has the options of this package's commands. `file_commands` handles single files,
`archive_commands` reads archives and Zarr arrays, `copy_commands` makes archives of others and adds
to them, `scene_export` exports scenes, `table_commands` reads Parquet tables of coded vectors,
`fit_commands` has `fit` and `encode`. The commands of nec_jax and train are found by entry points,
so that `nec --help` works without JAX.
"""

import contextlib
import importlib
import io
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import tyro

from coder.cli.arguments import (
    AddRefiner,
    Append,
    Copy,
    Decode,
    Encode,
    Export,
    Fit,
    Info,
    Models,
    Verify,
)
from coder.errors import CodecError, about, one_line
from coder.files import without_query

_OWN = {"info": Info, "verify": Verify, "decode": Decode, "fit": Fit, "encode": Encode}
_OWN |= {"export": Export, "add-refiner": AddRefiner, "append": Append, "copy": Copy}
_OWN |= {"models": Models}
_MODULES = {"fit": "fit_commands", "encode": "fit_commands"}
_MODULES |= dict.fromkeys(("export", "add-refiner", "append", "copy"), "copy_commands")
OTHERS = {
    "convert": "Import a pre-trained vision transformer, exactly or not at all.",
    "pretrain": "Pre-train a masked autoencoder (He 2022), or the decoder of a model (--init).",
    "distil": "Train an encoder to predict a larger model's tokens of the same images.",
    "compress": "Adapt a pre-trained model to compression: `lambda * mse + bits_per_element`.",
    "refine": "Train a refiner: it brings a model's decoded embeddings closer to the encoded ones.",
    "describe": "Print the parameters, tokens and FLOPs of a compression as JSON, without a run.",
    "evaluate": "Measure bytes per image against the scores of heads on decoded embeddings.",
    "sweep": "Compress and evaluate all points of a study: `sweep NAME` or `sweep FILE.toml`.",
    "report": "Make the tables and plots of a sweep: `report RESULTS.csv`.",
    "compare": "Compare bytes at equal score: Bjontegaard deltas with bootstrap intervals.",
}
"""Commands of the other packages. Each has an entry point in the group `nec.commands`: a function
that takes the command line, from the command's name on."""
_INSTALL = "install nec-jax[train]"


def main(arguments: list[str] | None = None, *, prog: str = "nec") -> int:
    """Run one command. Returns 1 if its input has a fault, 2 if the command line has."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    # Only the message of a warning, without its line of code.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        with _terminable():
            try:
                return _command(sys.argv[1:] if arguments is None else arguments, prog)
            finally:  # the end of a help text too
                print(end="", flush=True)  # where there is no standard output, nothing happens
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130  # as in shells
    except BrokenPipeError:  # such as `| head`
        _drop_output()
    except OSError as error:
        where = error.filename
        if where is None and not _takes_output():
            _drop_output()
            where = "standard output cannot be written"
        print(f"{where or prog}: {error.strerror or error}", file=sys.stderr)
    except (ImportError, CodecError) as error:
        print(one_line(error), file=sys.stderr)
    return 1


def _command(arguments: list[str], prog: str) -> int:
    name, *rest = arguments or ["--help"]
    if name in _OWN:
        options = tyro.cli(_OWN[name], args=rest, prog=f"{prog} {name}")
        if isinstance(options, Append | Copy | Encode | Export | Fit):
            options.check()
        hidden = contextlib.redirect_stdout(io.StringIO()) if options.json else None
        with _named(options.file), hidden or contextlib.nullcontext():
            # Imported here: what archives and fitting need is slow to import.
            if isinstance(options, Encode) and options.images.model is not None:
                run = _load("encode")
            else:
                module = _MODULES.get(name, "file_commands")
                run = importlib.import_module(f"coder.cli.{module}").run
            status, facts = run(options)
        if options.json:
            print(json.dumps(facts))
        return status
    if name in OTHERS:
        return _load(name)([name, *rest]) or 0
    listed = {name: options.__doc__.split("\n")[0] for name, options in _OWN.items()}
    missing = "" if find_spec("jax") else f" Not installed: {_INSTALL}"
    listed |= {name: text + missing for name, text in OTHERS.items()}
    # Prints the help, or what is wrong with the command line, and exits.
    tyro.extras.subcommand_cli_from_dict(
        {name: _described(text) for name, text in listed.items()},
        prog=prog,
        description="Neural embedding compression. Each command has its own --help.",
        args=[name],
        sort_subcommands=False,
    )
    return 2


@contextmanager
def _named(path: Path | str) -> Iterator[None]:
    """Errors in the block name the file, if they name none."""
    path = without_query(path) if isinstance(path, str) else path
    try:
        with about(path):
            yield
    except ModuleNotFoundError as error:
        raise ImportError(f"{path}: {error}") from error
    except OSError as error:
        if error.filename is None and _takes_output():
            error.filename = path
        raise


def _load(name: str) -> Callable[..., Any]:
    """The function of a command of another package. Raises ImportError that says what to do."""
    found = list(entry_points(group="nec.commands", name=name))
    if not found:
        raise ImportError(f"{name}: nec-jax was installed incompletely: install it again")
    try:
        return found[0].load()
    except ImportError as error:
        raise ImportError(f"{name}: {error}") from error


def _described(text: str) -> Callable[[], None]:
    def command() -> None: ...

    command.__doc__ = text
    return command


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
    """Whether standard output can be written; what could not be written stays in its buffer."""
    try:
        print(end="", flush=True)
    except OSError:
        return False
    return True


def _drop_output() -> None:
    """Discard what is left in the buffer, which would be an error when the program ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
