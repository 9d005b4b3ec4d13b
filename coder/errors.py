"""What can go wrong, as types: catch `CodecError` for all of it, a subclass for one cause."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def printable(text: str) -> str:
    """Text that any file and terminal takes: the name of a file need not be UTF-8."""
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half of a pair that stands for no byte
        return text.encode(errors="backslashreplace").decode()


def one_line(what: object) -> str:
    """An error or a text in one line; of an error without a text, its type."""
    text = printable(" ".join(str(what).split()))
    return text or (type(what).__name__ if isinstance(what, BaseException) else "")


class CodecError(ValueError):
    """Base of every error that this package raises on purpose; raised itself for bad settings.

    Attributes:
      path: the file or folder that it is about, if it is about one; its text begins with it.
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
    """A codec, model or head file is damaged, of another kind, or of a newer format."""


class NoPermission(FileError):
    """A file or folder that may not be read; it may be whole."""

    def __init__(self, message: str = "", path: str | os.PathLike[str] | None = None):
        remedy = "see to its permissions, or run this as another user"
        super().__init__(message or f"cannot be read: no permission; {remedy}", path)


class OutputError(CodecError):
    """A file or folder cannot be written where it was asked for; nothing was changed."""


class InputError(CodecError):
    """The embeddings, symbols or grid handed to the encoder cannot be coded."""


class PoolError(CodecError):
    """A pool of processes cannot be used: closed, another process's, or one of its own has died."""


class UnusualEmbedding(UserWarning):
    """A warning: embeddings that may not be what is meant.

    One needs far more bits than those that its codec was fitted on; or they are integers, hold NaN
    that nobody named, or have most of their variance in few tokens.
    """


class LossyWrite(UserWarning):
    """A warning: writing a part of a chunk coded what lies beside it anew, with another error."""


@contextmanager
def about(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of the block that name no file are about this one."""
    try:
        yield
    except CodecError as error:
        if error.path is None:
            error.path = os.fspath(path)
        raise


def named(kind: str, index: int, function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns; its errors say which one of many it was, as `blob 3: ...`."""
    try:
        return function(*arguments)
    except (BlobError, InputError) as error:
        raise type(error)(f"{kind} {index}: {error}") from error
