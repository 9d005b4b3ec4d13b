"""EmbeddingCodec: float embeddings <-> bytes, with everything a decoder needs and nothing else.

Here is what holds for every codec: files and fingerprints. Frames are `coder.one_rate`'s.
`coder.scalar_codec` codes channels as they are, `coder.transform_codec` coefficients.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder import safefile
from coder.checks import is_whole
from coder.errors import CodecError, FileError, InputError, about
from coder.tables import Tables

if TYPE_CHECKING:
    from coder.one_rate import OneRateCodec

_KIND = "codec"
MODEL = "model"
"""The kind of a model's file, which holds its codec."""
_INT32 = np.iinfo(np.int32)


class EmbeddingCodec(ABC):
    """Codes embeddings of n tokens in D channels; two codecs are equal if their fingerprints are.

    A token is one row: the class token first, if it is coded, then a grid of h x w, row by row.

    Attributes:
      max_tokens: the largest h * w that is coded, and the bound on a hostile blob's memory.
      rate_index: which rate of its model this is; every blob carries it.
      tables: the integer probability tables.
    """

    tables: Tables
    max_tokens: int
    rate_index: int

    @property
    @abstractmethod
    def channels(self) -> int:
        """D."""

    @property
    @abstractmethod
    def class_token(self) -> bool:
        """Whether a class token is coded before the grid."""

    @property
    def rates(self) -> int:
        """How many rates it has."""
        return 1

    @abstractmethod
    def to_parts(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Named tensors and JSON content: what a file, or a model's file, stores of a codec."""

    @abstractmethod
    def at(self, rate: int | None = None) -> "OneRateCodec":
        """The codec of one rate; None for the one that `encode` uses unless it is told."""

    @abstractmethod
    def encode(self, y: ArrayLike, grid: tuple[int, int]) -> bytes:
        """One embedding float [n, D] -> its blob; n = h * w + 1 with a class token, else h * w.

        Raises:
          InputError: another number of channels or tokens, no floats, NaN, infinity, or values
            beyond int32.
        """

    @abstractmethod
    def decode(self, blob: bytes) -> NDArray[np.float32]:
        """A blob -> its embedding float32 [n, D], in bounded time and memory.

        Raises:
          BlobError: TruncatedBlob, CorruptBlob, UnsupportedVersion, or WrongCodec when the blob
            was written with another codec.
        """

    @abstractmethod
    def decode_symbols(self, blob: bytes) -> tuple[NDArray[np.int32], tuple[int, int]]:
        """A blob -> symbols int32 [n, K] and the grid (h, w); K is that of the blob's rate.

        Raises as `decode`.
        """

    @abstractmethod
    def grid_of(self, blob: bytes) -> tuple[int, int]:
        """The grid (h, w) of a blob whose frame and header are sound; its payload is not read.

        Raises BlobError as `decode`.
        """

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 (32 bytes) over everything that `decode` reads, and nothing else."""
        tensors, content = self.to_parts()
        return safefile.digest(tensors, safefile.canonical_json(content))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EmbeddingCodec):
            return NotImplemented
        return self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self):
        # The entropy coder's models cannot be pickled; the file's bytes are all there is anyway.
        return EmbeddingCodec.from_bytes, (self.to_bytes(),)

    @classmethod
    def from_parts(
        cls, tensors: Mapping[str, NDArray], content: Mapping[str, Any]
    ) -> "EmbeddingCodec":
        """The codec that `to_parts` described. Raises FileError on anything else."""
        # They are subclasses of this.
        from coder.layout import TRANSFORMS
        from coder.rate_ladder import LADDER, RateLadder
        from coder.scalar_codec import ScalarCodec
        from coder.transform_codec import TransformCodec

        kinds: dict[str, Any] = {"identity": ScalarCodec}
        for name in TRANSFORMS:
            kinds |= {name: TransformCodec, name + LADDER: RateLadder}
        name = content.get("transform")
        kind = kinds.get(name) if isinstance(name, str) else None
        if kind is None:
            raise FileError(f"unknown transform {content.get('transform')!r}: update nec-jax")
        if set(content) != {"max_tokens", "rate_index", "transform"}:
            raise FileError(f"a codec's content is not {sorted(content)}: update nec-jax")
        try:
            return kind.from_parts(tensors, content)
        except CodecError as error:
            raise FileError(f"not a usable codec: {error}") from error

    def _content(self, transform: str) -> dict[str, Any]:
        """The JSON content of `to_parts`."""
        limits = {"max_tokens": self.max_tokens, "rate_index": self.rate_index}
        return limits | {"transform": transform}

    def to_bytes(self) -> bytes:
        """The codec's file in memory; equal codecs have equal bytes."""
        return safefile.to_bytes(_KIND, *self.to_parts())

    @classmethod
    def from_bytes(cls, data: bytes) -> "EmbeddingCodec":
        """The codec whose file is `data`. Raises FileError, as `load`."""
        return cls._of_this_kind(*safefile.from_bytes(data, _KIND))

    @property
    def codec_bytes(self) -> int:
        """Size of the codec's file, which a report has to count."""
        return len(self.to_bytes())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the codec's file; one that is there is replaced, as `numpy.save` does.

        Raises OutputError: a folder, pipe or device is there, or it cannot be written.
        """
        safefile.write(path, _KIND, *self.to_parts())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EmbeddingCodec":
        """Reads the codec of a codec's file, of a model's, or of a model that ships, by its name.

        Raises FileError: no such file, a damaged one, or one of another kind: `RateLadder.load`
        takes no codec of one rate.
        """
        tensors, content = safefile.read(safefile.found(path, "codec"), _KIND, MODEL)
        with about(path):
            if "config" in content:  # a model's
                if not isinstance(content := content.get("codec"), dict):
                    raise FileError("a model without a codec")
                tensors = safefile.under("codec/", tensors)
            return cls._of_this_kind(tensors, content)

    @classmethod
    def _of_this_kind(
        cls, tensors: Mapping[str, NDArray], content: Mapping[str, Any]
    ) -> "EmbeddingCodec":
        """`EmbeddingCodec.from_parts`; raises FileError where that is none of this class."""
        codec = EmbeddingCodec.from_parts(tensors, content)
        if not isinstance(codec, cls):
            rates = "one rate" if codec.rates == 1 else f"{codec.rates} rates"
            raise FileError(
                f"a {type(codec).__name__}, a codec of {rates}, and no {cls.__name__}: load it "
                "with coder.EmbeddingCodec.load"
            )
        return codec


def check_rate(rate: Any) -> int:
    """A rate that somebody asks for. Raises InputError unless it is a whole number."""
    if not is_whole(rate):
        raise InputError(f"rate {rate!r}: give a whole number, or None")
    return int(rate)


def check_limits(codec: Any) -> None:
    """Makes `max_tokens` and `rate_index` of a codec integers; CodecError if they are none."""
    for name, lowest in (("max_tokens", 1), ("rate_index", 0)):
        value = getattr(codec, name)
        if not is_whole(value):
            raise CodecError(f"{name} must be an integer, not {value!r}")
        if not lowest <= value <= _INT32.max:
            raise CodecError(f"{name} is {value}: give {lowest} to {_INT32.max}")
        object.__setattr__(codec, name, int(value))
