"""The lock of an archive: one process at a time makes, writes or repairs it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from coder import files
from coder.errors import OutputError

_LONGEST = 255  # bytes of a file's name


@dataclass
class Lock:
    """A lock that is held.

    Attributes:
      is_real: false if the file system has no locks: other processes may be writing.
      keep: whether to keep the lock file at the end, as while an archive is not complete.
    """

    is_real: bool
    keep: bool = False


@contextmanager
def locked(path: Path | None) -> Iterator[Lock]:
    """Hold the lock of a folder, which need not exist, for a block. For None there is no lock.

    Raises OutputError if another process, or another writer in this one, holds it.
    """
    if path is None:
        yield Lock(is_real=True)
        return
    path = files.real_path(path)
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent}: make it first")
    # Beside the archive: readers list what is in it.
    name = path.with_name(f".{path.name}.lock")
    if len(os.fsencode(name.name)) > _LONGEST:
        name = path.with_name(f".{files.mark(path)}.lock")
    lock = FileLock(name)
    held = Lock(is_real=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError("another process is writing this archive: wait until it ends") from None
    except NotImplementedError:
        held.is_real = False
    except OSError as error:
        raise OutputError(f"cannot be written: {name}: {error.strerror}") from error
    try:
        if held.is_real:
            # Parts of an archive whose process was killed while it made them.
            files.remove_parts(path)
        yield held
    finally:
        # Removed while it is held: a process that has already opened it finds no work.
        if held.is_real and not held.keep:
            name.unlink(missing_ok=True)
        lock.release()
