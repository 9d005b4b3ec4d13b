"""Digests of files, and folders that are locked for one run."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from coder import files
from train.configs.options import OptionsError


def sha256(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder, and lock it for this run by the operating system's lock of its `.lock`.

    The lock ends with the process, however that ends.

    Raises:
      OptionsError: another run holds the lock.
      OutputError: the folder cannot be made.
    """
    files.make_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OptionsError(
            f"another run is at work in {folder}: wait for its end, or choose another --workdir"
        ) from None
    try:
        yield
    finally:
        lock.release()
