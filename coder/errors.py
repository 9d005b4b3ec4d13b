"""What can go wrong, as types: catch `CodecError` for all of it, a subclass for one cause."""


class CodecError(ValueError):
    """Base of every error that this package raises on purpose; raised itself for bad settings."""


class BlobError(CodecError):
    """A compressed embedding cannot be decoded."""


class TruncatedBlob(BlobError):
    """The bytes end before the shortest possible blob does."""


class CorruptBlob(BlobError):
    """The bytes are damaged, cut short, padded, or were never a blob."""


class WrongCodec(BlobError):
    """The blob was written with another codec (another model, or another rate of it)."""


class UnsupportedVersion(BlobError):
    """The blob uses a format version or a coding mode that this package does not know."""


class FileError(CodecError):
    """A codec, model or head file is damaged, of another kind, or of a newer format."""


class InputError(CodecError):
    """The embeddings, symbols or grid handed to the encoder cannot be coded."""


class PoolError(CodecError):
    """A pool of processes cannot be used: closed, another process's, or one of its own has died."""


class UnusualEmbedding(UserWarning):
    """A warning: an embedding needs far more bits than those that its codec was fitted on."""
