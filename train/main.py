"""The commands of training and experiments: `nec COMMAND`, or `python -m train.main COMMAND`."""

import importlib
import inspect
import signal
import sys
import traceback
from typing import Annotated, Any

import tyro

from train import configs
from train.configs import options as task_options
from train.configs import study_options

TASKS = ("pretrain", "distil", "compress", "refine", "describe")
STUDIES = ("evaluate", "sweep", "report", "compare")
RESUMED = ("pretrain", "distil", "compress", "sweep")
"""The commands that go on from where they were stopped."""
COMMANDS = TASKS + STUDIES
"""Each command is a module of `train.tasks` or `train.studies` with `run(options)`, and a dataclass
of `train.configs.options` or `train.configs.study_options`."""


def usage() -> str:
    """The text of `--help` without a command."""
    lines = [
        "usage: nec COMMAND [--config NAME] [options]    (or: python -m train.main COMMAND ...)",
        "",
        "commands (each has its own --help):",
        *(f"  {name:10s} {kind(name).__doc__.splitlines()[0]}" for name in COMMANDS),
        "",
        "configs (the options of an experiment; options on the command line override them):",
        *(f"  {name:22s} {configs.headline(name)}" for name in configs.names()),
    ]
    return "\n".join(lines)


def kind(command: str) -> Any:
    """The dataclass of a command's options."""
    return (vars(task_options) | vars(study_options))[command.capitalize()]


def parse(command: str, arguments: list[str]) -> Any:
    """The options of a command: its defaults or those of `--config`, then the command line.

    Raises:
      OptionsError: as `configs.load`.
      SystemExit: an option is wrong; a message is printed.
    """
    default, about = kind(command)(), inspect.getdoc(kind(command)) or ""
    if command not in ("refine", "report", "compare"):
        # Before a line that does not begin with a letter, tyro adds a blank one.
        about += "\n\nWith `--config NAME`, start from an experiment (python -m train.main --help)."
        if command == "sweep" and arguments and not arguments[0].startswith("-"):
            config, arguments = arguments[0], arguments[1:]  # a --config besides is unknown
        else:
            config, arguments = tyro.cli(
                _config, args=arguments, return_unknown_args=True, add_help=False
            )
        if config is not None:
            default = configs.load(config, command)
    return tyro.cli(
        kind(command), args=arguments, default=default, prog=f"nec {command}", description=about
    )


def _config(config: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None) -> str | None:
    """What the options start from."""
    return config


def main(argv: list[str] | None = None) -> None:
    """Run one command. Unknown options and unusable input exit with a message."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    command = argv[0]
    if command not in COMMANDS:
        sys.exit(f"unknown command {command!r}: choose from {', '.join(COMMANDS)}\n\n{usage()}")
    try:
        options = parse(command, argv[1:])
    except task_options.OptionsError as error:
        sys.exit(f"error: {error}")

    # After --help, which must be quick, and works without JAX.
    try:
        import jax
    except ImportError:
        sys.exit("error: training needs more packages: install nec-jax[train]")

    from coder import CodecError
    from nec_jax.images.record import DataError
    from nec_jax.jax_defaults import jax_defaults
    from train.engine.checkpoint import CheckpointError
    from train.engine.log import messages
    from train.engine.loop import NonFiniteLoss
    from train.engine.processes import RESUMABLE, fail, join_processes, raise_stopped

    before = signal.signal(signal.SIGTERM, raise_stopped)
    try:
        with jax_defaults():
            join_processes()
            room = "tasks" if command in TASKS else "studies"
            with messages():
                importlib.import_module(f"train.{room}.{command}").run(options)
    except KeyboardInterrupt as stopped:
        where = f" {stopped}" if str(stopped) else ""
        again = "resumes the run" if command in RESUMED else "starts it again"
        print(f"stopped{where}: the same command {again}", file=sys.stderr)
        sys.exit(RESUMABLE)
    except (
        CheckpointError,
        CodecError,
        DataError,
        NonFiniteLoss,
        task_options.OptionsError,
        OSError,
        ModuleNotFoundError,
    ) as error:
        fail(f"error: {error}")
    except Exception:
        if jax.process_count() == 1:
            raise
        fail(traceback.format_exc())
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
