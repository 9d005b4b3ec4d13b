"""Experiments: one TOML file each. Its first lines give the command and the expected result.

A table holds the options of a command: [pretrain], [distil], [compress], [evaluate]. Their names
are those of `options` (training runs) and `study_options` (evaluate, sweep, report and compare),
except for `lambda`, the field `Compress.lam`. [axes] and [[points]] make a study: docs/studies.md.
"""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from train.configs.options import Compress, Describe, Distil, OptionsError, Pretrain
from train.configs.study_options import Evaluate, Sweep

_FOLDER = Path(__file__).parent
_KINDS = {"pretrain": Pretrain, "distil": Distil, "compress": Compress, "evaluate": Evaluate}
_STUDY = ("axes", "points")
_TABLES = (*_KINDS, *_STUDY)
Options = TypeVar("Options")


def names() -> list[str]:
    """The experiments that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def headline(name: str) -> str:
    """A description of an experiment in one line: the first of its file."""
    with (_FOLDER / f"{name}.toml").open() as file:
        return file.readline().strip("# \n")


def load(name: str, command: str) -> Any:
    """The options of `command` in an experiment, given by name or by the path of a TOML file.

    Raises:
      OptionsError: no such experiment, not TOML, or no options for this command.
      SystemExit: unknown options, or values that they do not take; a message is printed.
    """
    path = _FOLDER / f"{name}.toml" if name in names() else Path(name)
    if path.suffix != ".toml":
        raise OptionsError(
            f"unknown config {name!r}: choose from {', '.join(names())}, or give a .toml file"
        )
    if not path.is_file():
        raise OptionsError(f"no file {name}: the package has the configs {', '.join(names())}")
    try:
        tables = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionsError(f"{path} is not TOML: {error}") from error
    if unknown := [table for table in tables if table not in _TABLES]:
        raise OptionsError(f"{path} has a table [{unknown[0]}]: it takes {', '.join(_TABLES)}")
    if command == "sweep":
        if not any(table in tables for table in _STUDY):
            own = next((table for table in _KINDS if table in tables), "compress")
            raise OptionsError(
                f"{name} is not a study: it has neither [axes] nor [[points]]. Run {own} --config "
                f"{name}, or write a study (docs/studies.md)"
            )
        return Sweep(
            workdir=Path("runs") / path.stem,
            compress=parse(Compress(), tables.get("compress", {}), f"{path} [compress]"),
            evaluate=parse(Evaluate(), tables.get("evaluate", {}), f"{path} [evaluate]"),
            axes=tables.get("axes", {}),
            points=tables.get("points", []),
        )
    kind = Describe if command == "describe" else _KINDS[command]
    command = "compress" if command == "describe" else command
    if command not in tables:
        what = ", ".join(name for name in _KINDS if name in tables) or "nothing"
        raise OptionsError(f"config {name} is for {what}, not {command}")
    return parse(kind(), tables[command], f"{path} [{command}]")


def parse(default: Options, table: dict[str, Any], where: str) -> Options:
    """`default` with the options of a TOML table, under all the checks of the command line.

    Raises:
      SystemExit: an option is wrong; the error is printed, with `where`.
    """
    import tyro

    words = []
    for key, value in table.items():
        words.append(f"--{key}")
        words += [str(part) for part in (value if isinstance(value, list) else [value])]
    return tyro.cli(
        type(default),
        args=words,
        default=default,
        prog=where,
        config=(tyro.conf.FlagConversionOff,),  # booleans have values in TOML
    )
