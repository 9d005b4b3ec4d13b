"""Exceptions and warnings: catch `CodecError` for any error, or a subclass for one cause."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def printable(text: str) -> str:
    """Text that any file and terminal can take; file names need not be UTF-8."""
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return text.encode(errors="backslashreplace").decode()


def one_line(what: object) -> str:
    """An error or a text as one line; the type of an error that has no text."""
    text = printable(" ".join(str(what).split()))
    return text or (type(what).__name__ if isinstance(what, BaseException) else "")


class CodecError(ValueError):
    """Base of every error that this package raises on purpose; raised itself for bad settings.

    Attributes:
      path: the file or folder that the error is about, or None; the text begins with it.
    """

    def __init__(self, message: str = "", path: str | os.PathLike[str] | None = None):
        super().__init__(message)
        self.path = None if path is None else os.fspath(path)

    def __str__(self) -> str:
        message = super().__str__()
        return printable(message if self.path is None else f"{self.path}: {message}")


class BlobError(CodecError):
    """A compressed embedding cannot be decoded."""


class TruncatedBlob(BlobError):
    """The bytes end before the shortest possible blob does."""


class CorruptBlob(BlobError):
    """The bytes are damaged, cut short, padded, or were never a blob."""


class WrongCodec(BlobError):
    """The blob was written with another codec (another model, or another quality of it)."""


class UnsupportedVersion(BlobError):
    """The blob uses a format version or a coding mode that this package does not know."""


class FileError(CodecError):
    """A file, Zarr array or archive is damaged, of another kind, or of a newer format."""


class NoPermission(FileError):
    """A file or folder that may not be read; it may be whole."""

    def __init__(self, message: str = "", path: str | os.PathLike[str] | None = None):
        remedy = "change its permissions, or run this as another user"
        super().__init__(message or f"cannot be read: no permission; {remedy}", path)


class StoreError(OSError):
    """A store of objects, or the network to it, failed: what it holds may be whole.

    `filename` is the address of the object, `strerror` says what failed and how often it was tried.
    """


class OutputError(CodecError):
    """A file or folder cannot be written where it was asked for; nothing was changed."""


class InputError(CodecError):
    """Arrays or settings that a caller passed cannot be used."""


class PoolError(CodecError):
    """A pool of processes cannot be used: it is closed or of another process, or a worker died."""


class UnusualEmbedding(UserWarning):
    """A warning: the embeddings may not be what the caller means.

    An embedding needs far more bits than those that its codec was fitted on; or the embeddings are
    integers, hold NaN that was not named as missing, or have most of their variance in few tokens.
    """


class LossyWrite(UserWarning):
    """A warning: writing a part of a chunk coded its neighbours again and changed their values."""


@contextmanager
def about(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add this path to errors of the block that name no file."""
    try:
        yield
    except CodecError as error:
        if error.path is None:
            error.path = os.fspath(path)
        raise


def named(kind: str, index: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function; prefix its errors with which of many it was, as in `blob 3: ...`."""
    try:
        return function(*arguments)
    except (BlobError, InputError) as error:
        raise type(error)(f"{kind} {index}: {error}") from error
