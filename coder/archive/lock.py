"""Locks of an archive: one process makes, writes or repairs it; or several write its shards.

`.NAME.lock` beside the archive is held by a process that works alone on it: for as long as it
works (`locked`), or, if several processes write shards (`joined`), while one opens or finishes the
archive. Each of these holds a file of its own in the folder `.NAME.writers`, and one for each shard
that it claims. The system releases the locks of a process that dies.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from coder import files
from coder.errors import OutputError

_LONGEST = 255  # bytes of a file's name
_PATIENCE = 10.0  # seconds to wait for a process that opens or finishes the archive
_LAST = 2.0  # seconds that who leaves last waits for the lock, to remove what is left
_MEMBER = "writer-"
_OTHER = "another process is writing it: wait until it ends"


@dataclass
class Lock:
    """A lock that is held.

    Attributes:
      is_real: false if the file system has no locks: other processes may be writing.
      keep: whether to keep the lock file at the end, as while an archive is not complete.
      others: () -> whether other processes write shards; ask in an `alone` block.
      alone: () -> a block in which nobody else opens, finishes or repairs the archive.
      claims: the shards that this process has claimed.
      own: the file that this process holds as one of those that write shards, if it is real.
    """

    is_real: bool
    keep: bool = False
    others: Callable[[], bool] = lambda: False
    alone: Callable[[], AbstractContextManager[object]] = nullcontext
    claims: "_Claims | None" = None
    own: Path | None = None

    def claim(self, number: int) -> bool:
        """Claim a shard, unless another process has claimed it."""
        return self.claims is None or self.claims.take(number)

    def release(self, number: int, *, written: bool) -> None:
        """Give a claimed shard back; `written` if there is nothing more to do on it."""
        if self.claims is not None:
            self.claims.give_back(number, written=written)


@contextmanager
def locked(path: Path | None) -> Iterator[Lock]:
    """Hold the lock of a folder, which need not exist, for a block. For None there is no lock.

    Raises OutputError if another process, or another writer in this one, holds it or writes shards.
    """
    if path is None:
        yield Lock(is_real=True)
        return
    path = _checked(path)
    lock, held = FileLock(_beside(path, ".lock")), Lock(is_real=True)
    held.is_real = _acquired(lock, 0)
    try:
        if held.is_real:
            _refuse_members(path)
            # Parts of an archive whose process was killed while it made them.
            files.remove_parts(path)
        yield held
    finally:
        # Removed while it is held: a process that has already opened it finds no work.
        if held.is_real and not held.keep:
            _unlinked(Path(lock.lock_file))
        lock.release()


@contextmanager
def joined(path: Path | None) -> Iterator[Lock]:
    """Be one of the processes that write shards of an archive. For None there is no lock.

    Raises OutputError if another process works on the archive alone.
    """
    if path is None:
        yield Lock(is_real=True)
        return
    path = _checked(path)
    name, folder = _beside(path, ".lock"), _beside(path, ".writers")

    @contextmanager
    def alone(timeout: float = -1) -> Iterator[None]:
        lock = FileLock(name)
        _acquired(lock, timeout)
        try:
            yield
        finally:
            lock.release()

    # Of no thread: one may open the archive, and another close it.
    member = FileLock(folder / f"{_MEMBER}{uuid.uuid4().hex}.lock", thread_local=False)
    while True:
        try:
            with alone(_PATIENCE):
                if not _members(path):
                    files.remove_parts(path)
                _made(folder)
                is_real = _acquired(member, 0)
            break
        except OutputError:
            if not _are_alive(folder):  # it works alone; otherwise it only opens or finishes
                raise
    own = Path(member.lock_file)
    claims = _Claims(folder) if is_real else None
    others = partial(_are_alive, folder, own)
    held = Lock(is_real, alone=alone, claims=claims, others=others, own=own if is_real else None)
    try:
        yield held
    finally:
        if claims is not None:
            claims.close()
        _unlinked(own)
        member.release()
        if is_real and not held.keep:
            _remove(path, name, folder)


def _remove(path: Path, name: Path, folder: Path) -> None:
    """Remove the files of the locks of an archive that is complete, if nobody holds one."""
    lock = FileLock(name)
    try:
        lock.acquire(timeout=_LAST)
    except (Timeout, OSError):
        return  # somebody else works on it, and removes them in the end
    if not _members(path):
        with suppress(OSError):
            folder.rmdir()
        _unlinked(name)
    lock.release()


def _made(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} is needed for locks ({error.strerror}): remove it") from error


def _unlinked(path: Path) -> None:
    """Remove a file; some systems refuse it while it is open."""
    with suppress(OSError):
        path.unlink()


@dataclass
class _Claims:
    """The shards that a process has claimed, and their locks."""

    folder: Path
    held: dict[int, BaseFileLock] = field(default_factory=dict)

    def take(self, number: int) -> bool:
        if number in self.held:
            return True
        # Of no thread: one may claim a shard, and another write it.
        lock = FileLock(self.folder / f"shard-{number}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            text = f"cannot be locked: {lock.lock_file}: {error.strerror}: remove it"
            raise OutputError(text) from error
        self.held[number] = lock
        return True

    def give_back(self, number: int, *, written: bool) -> None:
        if (lock := self.held.pop(number, None)) is not None:
            if written:  # who has opened it already finds the shard written
                _unlinked(Path(lock.lock_file))
            lock.release()

    def close(self) -> None:
        for number in list(self.held):
            self.give_back(number, written=False)


def _checked(path: Path) -> Path:
    path = files.real_path(path)
    if not path.name:
        raise OutputError(f"{path} is no place for an archive: give a folder in it")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent}: make it first")
    return path


def _beside(path: Path, ending: str) -> Path:
    """A hidden file beside the archive: readers list what is in it."""
    name = path.with_name(f".{path.name}{ending}")
    if len(os.fsencode(name.name)) > _LONGEST:
        name = path.with_name(f".{files.mark(path)}{ending}")
    return name


def _acquired(lock: BaseFileLock, timeout: float) -> bool:
    """Acquire a lock. False if the file system has none. Raises OutputError."""
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise OutputError(_OTHER) from None
    except NotImplementedError:
        return False
    except OSError as error:
        raise OutputError(f"cannot be written: {lock.lock_file}: {error.strerror}") from error
    return True


def _are_alive(folder: Path, but: Path | None = None) -> bool:
    """Whether a process writes shards, but for the one with this file."""
    return any(file != but and is_held(file) for file in folder.glob(f"{_MEMBER}*.lock"))


def is_held(file: Path) -> bool:
    """Whether another process holds the lock of a file, as far as its file system says."""
    if not file.exists():  # it would be made
        return False
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return False
    lock.release()
    return False


def _members(path: Path) -> bool:
    """Whether a process writes shards. If not, what dead ones left is removed.

    Call it under the archive's lock, so that no process joins meanwhile.
    """
    folder = _beside(path, ".writers")
    if _are_alive(folder):
        return True
    for file in folder.glob("*.lock"):
        _unlinked(file)
    return False


def _refuse_members(path: Path) -> None:
    if _members(path):
        raise OutputError(_OTHER)
    with suppress(OSError):
        _beside(path, ".writers").rmdir()
