"""The command line of training and experiments: `python -m train.main COMMAND ...`."""

import importlib
import importlib.util
import signal
import sys
import traceback

TASKS = ("pretrain", "distil", "compress")
STUDIES = ("evaluate", "sweep", "report", "compare")
COMMANDS = TASKS + STUDIES
"""Each command is a module of `train.tasks` or `train.studies` with `run(options)`, and a dataclass
of `train.configs.options` or `train.configs.study_options`."""


def usage() -> str:
    """The text of `--help` without a command."""
    from train import configs

    lines = [
        "usage: python -m train.main COMMAND [--config NAME] [options]    (or: nec-train ...)",
        "",
        "commands (each has its own --help):",
        "  pretrain   train a masked autoencoder on images",
        "  distil     train an encoder to predict a larger model's tokens",
        "  compress   adapt a model to a rate-distortion loss, and give it a codec",
        "  evaluate   measure bytes per image against the scores of task heads, with baselines",
        "  sweep      compress and evaluate all points of a study: sweep NAME or sweep FILE.toml",
        "  report     make tables and plots of a sweep: report RESULTS.csv",
        "  compare    compare bytes at equal score, with intervals: compare FOLDER ...",
        "",
        "configs (the options of an experiment; options on the command line override them):",
        *(f"  {name:22s} {configs.headline(name)}" for name in configs.names()),
    ]
    return "\n".join(lines)


def _split_config(word: str) -> list[str]:
    return ["--config", word.removeprefix("--config=")] if word.startswith("--config=") else [word]


def main(argv: list[str] | None = None) -> None:
    """Run one command. Unknown options and unusable input exit with a message."""
    argv = sys.argv[1:] if argv is None else argv
    if importlib.util.find_spec("tyro") is None:
        sys.exit("error: training needs more packages: pip install 'nec-jax[train]'")
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    command, arguments = argv[0], argv[1:]
    if command not in COMMANDS:
        sys.exit(f"unknown command {command!r}: choose from {', '.join(COMMANDS)}\n\n{usage()}")

    import jax
    import tyro  # after --help without a command, which must be quick

    from coder import CodecError
    from nec_jax.jax_defaults import jax_defaults
    from train import configs
    from train.configs import options as task_options
    from train.configs import study_options
    from train.data import DataError
    from train.engine.checkpoint import CheckpointError
    from train.engine.loop import NonFiniteLoss
    from train.engine.processes import fail, join_processes
    from train.engine.stop import RESUMABLE, raise_stopped

    kind = (vars(task_options) | vars(study_options))[command.capitalize()]
    default = kind()
    arguments = [part for word in arguments for part in _split_config(word)]
    if command == "sweep" and arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    if "--config" in arguments:
        at = arguments.index("--config")
        try:
            default = configs.load(" ".join(arguments[at + 1 : at + 2]), command)
        except task_options.OptionsError as error:
            sys.exit(f"error: {error}")
        del arguments[at : at + 2]
    about = kind.__doc__ or ""
    if command not in ("report", "compare"):
        about += " `--config NAME` starts from an experiment (train.main --help)."
    options = tyro.cli(
        kind, args=arguments, default=default, prog=f"train.main {command}", description=about
    )
    before = signal.signal(signal.SIGTERM, raise_stopped)
    try:
        with jax_defaults():
            join_processes()
            room = "tasks" if command in TASKS else "studies"
            importlib.import_module(f"train.{room}.{command}").run(options)
    except KeyboardInterrupt as stopped:
        where = f" {stopped}" if str(stopped) else ""
        print(f"stopped{where}: the same command goes on with it", file=sys.stderr)
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
