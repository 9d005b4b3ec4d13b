"""The command lines: the script `nec`, and `python -m coder`.

`file_commands` parses `python -m coder` and handles blobs and codec files; `archive_commands`
handles archives and Zarr arrays, `fit_commands` has `fit` and `encode`. The script `nec` is here:
commands that need JAX belong to nec_jax, which names them by an entry point, so that `nec --help`
works without JAX and an error says what to install.
"""

import sys
from importlib.metadata import entry_points

_USAGE = """usage: nec COMMAND [options]

commands (each has its own --help):
  convert    import a pre-trained vision transformer from another project's checkpoint
             (needs the models: pip install 'nec-jax[train]')

Training and studies: python -m train.main. Blobs, codecs and archives: python -m coder."""


def main(argv: list[str] | None = None) -> None:
    """Run one command; input that cannot be used ends with a message and a status that is not 0."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return
    found = [e for e in entry_points(group="nec.commands") if e.name == argv[0]]
    if not found:
        sys.exit(f"unknown command {argv[0]!r}\n\n{_USAGE}")
    try:
        command = found[0].load()
    except ImportError as error:
        sys.exit(f"error: nec {argv[0]}: {error}")
    command(argv[1:])


if __name__ == "__main__":
    main()
