"""What every codec has: files, fingerprints, and blobs in a frame that names the codec and grid.

`EmbeddingCodec` is any codec. `OneQualityCodec` has a single quality and also exposes its symbols.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import (
    as_array,
    as_bytes,
    as_floats,
    as_grid,
    as_symbols,
    check_whole,
    is_whole,
    warn_of_integers,
)
from coder.entropy import Tables
from coder.errors import CorruptBlob, InputError, WrongCodec
from coder.format import blob as framing
from coder.format import container
from coder.lazy_attribute import lazy_attribute
from coder.refiner import AIM, AIMS, NO_REFINER, Refiner, check_refiner

CODEC = "codec"
"""The kind of a codec's file."""


class EmbeddingCodec(ABC):
    """Code embeddings of n tokens in D channels.

    Two codecs are equal if their fingerprints are equal and they have equal refiners, or none. To
    ask only whether one decodes the blobs of the other, compare the fingerprints.

    A token is one row: the class token first, if it is coded, then a grid of h x w, row by row.

    Attributes:
      max_tokens: the largest h * w that the codec takes; it bounds the memory of a hostile blob.
      quality: the index of the quality that `encode` uses by default. Quality 0 is the lowest; a
        higher quality costs more bytes and loses less. Every blob carries its quality. Files call
        it `rate_index`.
      tables: the integer probability tables.
      refiner: what `decode(refine=True)` uses, or None. It is no part of the codec's file.
    """

    tables: Tables
    max_tokens: int
    quality: int
    refiner: Refiner | None = None

    @property
    @abstractmethod
    def channels(self) -> int:
        """D."""

    @property
    @abstractmethod
    def class_token(self) -> bool:
        """Whether a class token is coded before the grid."""

    @property
    def num_qualities(self) -> int:
        """The number of qualities of the codec."""
        return 1

    @abstractmethod
    def to_parts(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Named tensors and JSON content: what a file, or a model's file, stores of a codec."""

    @abstractmethod
    def at(self, quality: int | None = None) -> "OneQualityCodec":
        """The codec of one quality; None selects the default, `self.quality`."""

    def quality_of(self, parts: "Sequence[OneQualityCodec]") -> int | None:
        """The quality of an archive, if this codec made it; else None.

        Args:
          parts: the codecs of the archive's embeddings and, if they are coded, class tokens; or
            that of embeddings alone, as scenes have.
        """
        try:
            own = self.at(parts[0].quality).with_refiner(None).split()
        except InputError:  # no such quality
            return None
        is_own = list(parts) in ([part for part in own if part is not None], [own[0]])
        return parts[0].quality if is_own else None

    @abstractmethod
    def encode(self, y: ArrayLike, grid: tuple[int, int], *, for_refiner: bool = False) -> bytes:
        """One embedding float [n, D] -> its blob; n = h * w + 1 with a class token, else h * w.

        Args:
          y: the embedding.
          grid: h and w.
          for_refiner: choose the symbols that are best for readers that refine. Others can read
            the blob too, and their error is a little larger.

        Raises:
          InputError: another number of channels or tokens, no floats, NaN, infinity, or values
            beyond int32; for_refiner, and the codec has no refiner.
        """

    @abstractmethod
    def decode(self, blob: bytes, *, refine: bool = False) -> NDArray[np.float32]:
        """A blob -> its embedding float32 [n, D], in bounded time and memory.

        Args:
          refine: bring the decoded embedding closer to the one that was encoded, by the refiner of
            the codec (`coder.Refiner`). Do not encode refined embeddings again.

        Raises:
          BlobError: TruncatedBlob, CorruptBlob or UnsupportedVersion; or WrongCodec if the blob was
            written with another codec.
          InputError: refine, and the codec has no refiner.
        """

    @abstractmethod
    def decode_symbols(self, blob: bytes) -> tuple[NDArray[np.int32], tuple[int, int]]:
        """A blob -> symbols int32 [n, K] and the grid (h, w); K depends on the blob's quality.

        Raises as `decode`.
        """

    @abstractmethod
    def grid_of(self, blob: bytes) -> tuple[int, int]:
        """The grid (h, w) of a blob whose frame and header are sound; its payload is not read.

        Raises BlobError as `decode`.
        """

    @lazy_attribute
    def fingerprint(self) -> bytes:
        """SHA-256 (32 bytes) over everything in the codec that `decode` uses, and nothing else."""
        tensors, content = self.to_parts()
        return container.digest(tensors, container.canonical_json(content))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EmbeddingCodec):
            return NotImplemented
        return (self.fingerprint, self.refiner) == (other.fingerprint, other.refiner)

    def __hash__(self) -> int:
        return hash((self.fingerprint, self.refiner))

    def __reduce__(self):
        # The entropy coder's models cannot be pickled; the files hold everything.
        return _unpickled, (type(self), self.to_bytes(), self.refiner)

    @classmethod
    @abstractmethod
    def from_parts(cls, tensors: Mapping[str, NDArray], content: Mapping[str, Any]) -> Self:
        """The codec that `to_parts` described. Raises FileError or CodecError on anything else."""

    def with_refiner(self, refiner: Refiner | None) -> Self:
        """This codec with a refiner, or with none. Raises InputError for that of another codec."""
        if refiner is not None:
            check_refiner(refiner)
            raise InputError("only codecs with a transform, as coder.fit makes them, have refiners")
        return self

    def is_served_by(self, refiner: Refiner) -> bool:
        """Whether a refiner refines what this codec decodes."""
        return False

    def _content(self, transform: str) -> dict[str, Any]:
        """The JSON content of `to_parts`."""
        limits = {"max_tokens": self.max_tokens, "rate_index": self.quality}
        return limits | {"transform": transform}

    def to_bytes(self) -> bytes:
        """The codec's file in memory, without a refiner; equal codecs have equal bytes."""
        return container.to_bytes(CODEC, *self.to_parts())

    @classmethod
    def _from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes` of this class; `coder.from_bytes` takes any codec's file."""
        return cls.from_parts(*container.from_bytes(data, CODEC))

    @property
    def codec_bytes(self) -> int:
        """Size of the codec's file in bytes. Count it once when reporting sizes."""
        return len(self.to_bytes())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the codec's file. An existing file is replaced, as by `numpy.save`.

        Raises OutputError if the path is a folder, pipe or device, or cannot be written.
        """
        container.write(path, CODEC, *self.to_parts())


class OneQualityCodec(EmbeddingCodec):
    """A codec of one quality, which also exposes its symbols."""

    @property
    @abstractmethod
    def symbols_per_token(self) -> int:
        """K, the number of symbols per token."""

    @abstractmethod
    def quantise(self, y: ArrayLike, grid: tuple[int, int]) -> NDArray[np.int32]:
        """Embeddings float [..., n, D] -> symbols int32 [..., n, K], computed in float32.

        Raises:
          InputError: another number of channels, no floats, masked, NaN, infinity, or beyond int32.
        """

    @abstractmethod
    def dequantise(self, q: NDArray[np.int32], grid: tuple[int, int]) -> NDArray[np.float32]:
        """Symbols int32 [..., n, K] -> embeddings float32 [..., n, D].

        Raises InputError: no integers, masked, or beyond int32.
        """

    @abstractmethod
    def _encode_words(self, q: NDArray[np.int32], grid: tuple[int, int]) -> NDArray[np.uint32]:
        """Symbols int32 [n, K] -> the payload of a blob, words uint32."""

    @abstractmethod
    def _decode_words(self, words: NDArray[np.uint32], grid: tuple[int, int]) -> NDArray[np.int32]:
        """The inverse. Raises CorruptBlob."""

    @abstractmethod
    def estimate_bits(self, q: NDArray[np.int32], grid: tuple[int, int]) -> float:
        """Ideal code length in bits of symbols int32 [n, K] under the tables, without framing."""

    @abstractmethod
    def split(self) -> tuple["OneQualityCodec", "OneQualityCodec | None"]:
        """Two codecs: one for grids without class token, one for class tokens alone.

        The second codes any number of class tokens as one grid, and is None if this codec codes no
        class token. Each keeps only the tables that it needs.
        """

    @property
    def spatial(self) -> bool:
        """Whether the decoded value of a token depends on its neighbours in the grid."""
        return False

    @abstractmethod
    def is_rewritable(self) -> bool:
        """Whether coding a decoded embedding again always gives the same symbols.

        A Zarr array needs this, since writing a part of a chunk codes the rest again.
        """

    def at(self, quality: int | None = None) -> "OneQualityCodec":
        """This codec. Raises InputError for another quality."""
        if quality is not None and not (is_whole(quality) and quality == self.quality):
            raise InputError(f"quality {quality!r}: this codec has quality {self.quality} alone")
        return self

    def aim(self, y: ArrayLike, grid: tuple[int, int]) -> NDArray[np.float32]:
        """Move embeddings float [..., n, D] so that encoding them is best for readers that refine.

        The blob of the result decodes and refines to an embedding near y. `encode` does this with
        `for_refiner=True`. For a Zarr array or an archive, do it before you write.

        Analysis by synthesis: code, decode, and move the embedding against the gradient of the
        error that is left after refining; `AIMS` times. Of these and of the embedding as it is,
        the one is taken that leaves the smallest error after refining. The class token, which is
        not refined, stays as it is.

        Raises:
          InputError: as `quantise`; or the codec has no refiner.
        """
        if self.refiner is None:
            raise InputError(NO_REFINER)
        target, grid = as_floats(as_array(y)), as_grid(grid)
        y_hat = self.dequantise(self.quantise(target, grid), grid)
        many = target.reshape(-1, *target.shape[-2:])
        aimed = np.empty_like(many)
        for i, pair in enumerate(zip(many, y_hat.reshape(many.shape), strict=True)):
            aimed[i] = self._aim(self.refiner, *pair, grid)
        return aimed.reshape(target.shape)

    def _aim(
        self,
        refiner: Refiner,
        y: NDArray[np.float32],
        y_hat: NDArray[np.float32],
        grid: tuple[int, int],
    ) -> NDArray[np.float32]:
        """`aim` for one embedding, and what is decoded of it as it is."""
        best = y
        moved, least = refiner.aim(y, y_hat, grid, self.fingerprint)
        for _ in range(AIMS):
            aimed = np.asarray(y + np.float32(AIM) * (moved - y), np.float32)
            y_hat = self.dequantise(self.quantise(aimed, grid), grid)
            moved, error = refiner.aim(y, y_hat, grid, self.fingerprint)
            if error < least:
                best, least = aimed, error
        return best

    def encode(self, y: ArrayLike, grid: tuple[int, int], *, for_refiner: bool = False) -> bytes:
        """One embedding float [n, D] -> its blob; n = h * w + 1 with a class token, else h * w.

        `for_refiner`: as `EmbeddingCodec.encode`.

        Warns (`UnusualEmbedding`) of integers, which may have lost a scale. A codec with a
        transform also warns of an embedding that needs far more bits than its tables are made for.

        Raises:
          InputError: as `quantise` and `encode_symbols`; for_refiner, and there is no refiner.
        """
        values = as_array(y)
        warn_of_integers(values.dtype, stacklevel=2)
        blob = self.encode_quietly(self.aim(values, grid) if for_refiner else values, grid)
        self.warn_if_unusual(blob, grid, stacklevel=3)
        return blob

    def encode_quietly(self, y: NDArray, grid: tuple[int, int]) -> bytes:
        """`encode` without its warnings; `y` must be an array."""
        grid = self._check_grid(y.shape, grid, self.channels)
        return self.encode_symbols(self.quantise(y, grid), grid)

    def warn_if_unusual(self, blob: bytes, grid: tuple[int, int], *, stacklevel: int) -> None:
        """Issue the warning of `encode` for a blob of this grid. This codec has none."""

    def encode_symbols(self, q: NDArray[np.int32], grid: tuple[int, int]) -> bytes:
        """Symbols int32 [n, K] -> a blob. Raises InputError if they and the grid do not fit."""
        symbols = as_symbols(q)
        grid = self._check_grid(symbols.shape, grid, self.symbols_per_token)
        header = framing.Header(self.fingerprint[:4], self.quality, grid, self.class_token)
        return framing.pack(header, self._encode_words(symbols, grid))

    def decode(self, blob: bytes, *, refine: bool = False) -> NDArray[np.float32]:
        """A blob -> its embedding float32 [n, D]. Raises as `EmbeddingCodec.decode`."""
        if not refine:
            return self.dequantise(*self.decode_symbols(blob))
        if self.refiner is None:
            raise InputError(NO_REFINER)
        q, grid = self.decode_symbols(blob)
        return self.refiner.refine(self.dequantise(q, grid), grid, self.fingerprint)

    def decode_symbols(self, blob: bytes) -> tuple[NDArray[np.int32], tuple[int, int]]:
        """A blob -> symbols int32 [n, K] and the grid (h, w), in bounded time and memory.

        Raises:
          BlobError: TruncatedBlob, CorruptBlob, UnsupportedVersion, or WrongCodec when the blob
            was written with another codec.
        """
        header, words = self._open(blob)
        return self._decode_words(words, header.grid), header.grid

    def grid_of(self, blob: bytes) -> tuple[int, int]:
        """The grid (h, w) of a blob whose frame and header are sound; its payload is not read.

        Raises BlobError as `decode_symbols`.
        """
        return self._open(blob)[0].grid

    def _open(self, blob: bytes) -> tuple[framing.Header, NDArray[np.uint32]]:
        header, words = framing.unpack(as_bytes(blob))
        if header.fingerprint != self.fingerprint[:4]:
            raise WrongCodec(
                f"the blob was written with codec {header.fingerprint.hex()}, this is "
                f"{self.fingerprint[:4].hex()}: load the model or codec it was made with"
            )
        if header.rate_index != self.quality:
            raise WrongCodec(
                f"the blob has quality {header.rate_index}, this codec has {self.quality}: "
                "load the codec of that quality"
            )
        if header.class_token != self.class_token:
            raise CorruptBlob("the blob and its codec disagree about the class token")
        height, width = header.grid
        # Before anything is allocated: symbols may cost no bits, so the payload bounds nothing.
        if min(height, width) < 1 or height * width > self.max_tokens:
            raise CorruptBlob(
                f"the blob claims {height} x {width} tokens, its codec allows 1 to "
                f"{self.max_tokens}"
            )
        return header, words

    def _check_grid(
        self, shape: tuple[int, ...], grid: tuple[int, int], width: int
    ) -> tuple[int, int]:
        height, columns = as_grid(grid)
        if height * columns > self.max_tokens:
            raise InputError(
                f"a grid of {height} x {columns} tokens: this codec takes 1 to {self.max_tokens}"
            )
        expected = (height * columns + self.class_token, width)
        if shape != expected:
            extra = " and the class token" if self.class_token else ""
            raise InputError(
                f"embedding of shape {shape}: a grid of {height} x {columns}{extra} needs "
                f"{expected}"
            )
        return height, columns


def check_limits(codec: EmbeddingCodec) -> None:
    """Convert a codec's `max_tokens` and `quality` to integers. Raises InputError if it cannot."""
    for name, lowest in (("max_tokens", 1), ("quality", 0)):
        object.__setattr__(codec, name, check_whole(name, getattr(codec, name), lowest))


def _unpickled(kind: type[EmbeddingCodec], data: bytes, refiner: Refiner | None) -> EmbeddingCodec:
    return kind._from_bytes(data).with_refiner(refiner)
