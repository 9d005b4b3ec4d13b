"""What a run says: `logging`, on standard error, with rich on a terminal. Results go to stdout."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler

from train.engine.processes import is_main_process

CONSOLE = Console(stderr=True, emoji=False, markup=False, soft_wrap=True)
"""The terminal, which messages and the progress bar share."""
_LOGGERS = ("train", "nec_jax")


@contextmanager
def messages() -> Iterator[None]:
    """Show the messages of these packages in the block; of other processes only warnings."""
    handler: logging.Handler = logging.StreamHandler()
    if CONSOLE.is_terminal:
        handler = RichHandler(console=CONSOLE, show_time=False, show_level=False, show_path=False)
    before = {}
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        before[name] = logger.level
        logger.setLevel(logging.INFO if is_main_process() else logging.WARNING)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).setLevel(level)
