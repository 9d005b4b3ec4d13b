"""EmbeddingCodec: float embeddings <-> bytes, with everything a decoder needs and nothing else."""

import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder import blob as framing
from coder import safefile
from coder.ans import SymbolCoder
from coder.arrays import immutable
from coder.errors import CodecError, CorruptBlob, FileError, InputError, WrongCodec
from coder.quantise import as_symbols, dequantise, quantise
from coder.tables import Tables

_KIND = "codec"
_TRANSFORM = "identity"
_TENSORS = {"offsets", "steps", "minimum", "sizes", "weights", "grid_layout"}
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingCodec:
    """Codes embeddings of n tokens in D channels; two codecs are equal if their fingerprints are.

    A token is one row: the class token first, if it is coded, then a grid of h x w, row by row.
    Channel d is coded as `rint((y - offsets[d]) / steps[d])`.

    Attributes:
      offsets: float32 [D], the value of symbol 0.
      steps: float32 [D], the distance of two symbols, > 0.
      tables: the integer probability tables.
      grid_layout: int32 [D], the table of each channel, for every token of the grid.
      class_layout: int32 [D], the tables of the class token; None when it is not coded.
      max_tokens: the largest h * w that is coded, and the bound on a hostile blob's memory.
      rate_index: which rate of its model this is; every blob carries it.

    Raises:
      CodecError: settings that do not fit together.
    """

    offsets: NDArray[np.float32]
    steps: NDArray[np.float32]
    tables: Tables
    grid_layout: NDArray[np.int32]
    class_layout: NDArray[np.int32] | None = None
    max_tokens: int = 1 << 16
    rate_index: int = 0

    def __post_init__(self) -> None:
        dtypes = {"offsets": "<f4", "steps": "<f4", "grid_layout": "<i4", "class_layout": "<i4"}
        for name, dtype in dtypes.items():
            value: Any = getattr(self, name)
            if name == "class_layout" and self.class_layout is None:
                continue
            value = immutable(name, value, dtype)
            if value.size != np.size(self.offsets):
                raise CodecError(f"{name}: {value.size} channels, offsets: {np.size(self.offsets)}")
            if name.endswith("layout") and not 0 <= value.min() <= value.max() < len(self.tables):
                raise CodecError(f"{name} names a table outside 0 .. {len(self.tables) - 1}")
            object.__setattr__(self, name, value)
        if self.steps.min() < np.finfo(np.float32).tiny:
            raise CodecError("every step must be a positive, normal float32")
        with np.errstate(over="ignore"):
            ends = np.float32(2**31) * self.steps + np.abs(self.offsets)
        if not np.isfinite(ends).all():
            raise CodecError("steps or offsets are so large that an int32 symbol is infinite")
        for name, lowest in (("max_tokens", 1), ("rate_index", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise CodecError(f"{name} must be an integer, not {value!r}")
            if not lowest <= value <= _INT32.max:
                raise CodecError(f"{name} is {value}: give {lowest} to {_INT32.max}")
            object.__setattr__(self, name, int(value))

    @property
    def channels(self) -> int:
        """D."""
        return self.offsets.size

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

    def __repr__(self) -> str:
        return (
            f"<EmbeddingCodec {self.fingerprint[:4].hex()}: {self.channels} channels, "
            f"{len(self.tables)} tables, rate {self.rate_index}>"
        )

    def __reduce__(self):
        # The entropy coder's models cannot be pickled; the file's bytes are all there is anyway.
        return EmbeddingCodec.from_bytes, (self.to_bytes(),)

    def quantise(self, y: ArrayLike) -> NDArray[np.int32]:
        """Embeddings float [..., D] -> symbols int32 [..., D], computed in float32.

        Raises:
          InputError: another number of channels, no floats, NaN, infinity, or beyond int32.
        """
        values = np.asarray(y)
        self._check_channels(values)
        return quantise(values, self.offsets, self.steps)

    def dequantise(self, q: NDArray[np.int32]) -> NDArray[np.float32]:
        """Symbols int32 [..., D] -> embeddings float32 [..., D]."""
        return dequantise(np.asarray(q), self.offsets, self.steps)

    def encode(self, y: ArrayLike, grid: tuple[int, int]) -> bytes:
        """One embedding float [n, D] -> its blob; n = h * w + 1 with a class token, else h * w.

        Raises:
          InputError: as `quantise` and `encode_symbols`.
        """
        return self.encode_symbols(self.quantise(y), grid)

    def encode_symbols(self, q: NDArray[np.int32], grid: tuple[int, int]) -> bytes:
        """Symbols int32 [n, D] -> a blob. Raises InputError if they and the grid do not fit."""
        symbols = as_symbols(q)
        self._check_channels(symbols)
        height, width = (operator.index(side) for side in grid)
        expected = height * width + (self.class_layout is not None)
        if min(height, width) < 1 or height * width > self.max_tokens:
            raise InputError(
                f"a grid of {height} x {width} tokens: this codec takes 1 to {self.max_tokens}"
            )
        if symbols.ndim != 2 or len(symbols) != expected:
            extra = "" if self.class_layout is None else " and the class token"
            raise InputError(
                f"embedding of shape {symbols.shape}: a grid of {height} x {width}{extra} needs "
                f"({expected}, {self.channels})"
            )
        header = framing.Header(
            self.fingerprint[:4], self.rate_index, (height, width), self.class_layout is not None
        )
        return framing.pack(header, self._coder.encode(self._blocks(symbols)))

    def decode(self, blob: bytes) -> NDArray[np.float32]:
        """A blob -> its embedding float32 [n, D]. Raises as `decode_symbols`."""
        return self.dequantise(self.decode_symbols(blob)[0])

    def decode_symbols(self, blob: bytes) -> tuple[NDArray[np.int32], tuple[int, int]]:
        """A blob -> symbols int32 [n, D] and the grid (h, w), in bounded time and memory.

        Raises:
          BlobError: TruncatedBlob, CorruptBlob, UnsupportedVersion, or WrongCodec when the blob
            was written with another codec.
        """
        header, words = self._open(blob)
        height, width = header.grid
        tokens = [height * width]
        if self.class_layout is not None:
            tokens.insert(0, 1)
        blocks = self._coder.decode(words, tokens)
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks), header.grid

    def grid_of(self, blob: bytes) -> tuple[int, int]:
        """The grid (h, w) of a blob whose frame and header are sound; its payload is not read.

        Raises BlobError as `decode_symbols`.
        """
        return self._open(blob)[0].grid

    def estimate_bits(self, q: NDArray[np.int32]) -> float:
        """Ideal code length in bits of symbols int32 [n, D] under the tables, without framing."""
        symbols = as_symbols(q)
        self._check_channels(symbols)
        if symbols.ndim != 2:
            raise InputError(
                f"symbols of shape {symbols.shape}: give those of one embedding, [n, D]"
            )
        return self._coder.ideal_bits(self._blocks(symbols))

    def to_parts(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Named tensors and JSON content: what a file, or a model's file, stores of a codec."""
        tensors = {
            "offsets": self.offsets,
            "steps": self.steps,
            "minimum": self.tables.minimum,
            "sizes": self.tables.sizes,
            "weights": self.tables.weights,
            "grid_layout": self.grid_layout,
        }
        if self.class_layout is not None:
            tensors["class_layout"] = self.class_layout
        content = {
            "max_tokens": self.max_tokens,
            "rate_index": self.rate_index,
            "transform": _TRANSFORM,
        }
        return tensors, content

    @classmethod
    def from_parts(
        cls, tensors: Mapping[str, NDArray], content: Mapping[str, Any]
    ) -> "EmbeddingCodec":
        """The codec that `to_parts` described. Raises FileError on anything else."""
        if set(tensors) - {"class_layout"} != _TENSORS:
            raise FileError(f"a codec has tensors {sorted(_TENSORS)}, not {sorted(tensors)}")
        if set(content) != {"max_tokens", "rate_index", "transform"}:
            raise FileError(f"a codec's content is not {sorted(content)}: update nec-jax")
        if content["transform"] != _TRANSFORM:
            raise FileError(f"unknown transform {content['transform']!r}: update nec-jax")
        try:
            return cls(
                tensors["offsets"],
                tensors["steps"],
                Tables(tensors["minimum"], tensors["sizes"], tensors["weights"]),
                tensors["grid_layout"],
                tensors.get("class_layout"),
                content["max_tokens"],
                content["rate_index"],
            )
        except CodecError as error:
            raise FileError(f"not a usable codec: {error}") from error

    def to_bytes(self) -> bytes:
        """The codec's file in memory; equal codecs have equal bytes."""
        return safefile.to_bytes(_KIND, *self.to_parts())

    @classmethod
    def from_bytes(cls, data: bytes) -> "EmbeddingCodec":
        """The codec whose file is `data`. Raises FileError."""
        return cls.from_parts(*safefile.from_bytes(data, _KIND))

    @property
    def codec_bytes(self) -> int:
        """Size of the codec's file, which a report has to count."""
        return len(self.to_bytes())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the codec's file."""
        safefile.write(path, _KIND, *self.to_parts())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EmbeddingCodec":
        """Reads a codec's file. Raises FileError, or OSError as `open` does."""
        tensors, content = safefile.read(path, _KIND)
        try:
            return cls.from_parts(tensors, content)
        except FileError as error:
            raise FileError(f"{os.fspath(path)}: {error}") from error

    @cached_property
    def _coder(self) -> SymbolCoder:
        layouts = [self.grid_layout]
        if self.class_layout is not None:
            layouts.insert(0, self.class_layout)
        return SymbolCoder(self.tables, layouts)

    def _blocks(self, q: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        return [q] if self.class_layout is None else [q[:1], q[1:]]

    def _open(self, blob: bytes) -> tuple[framing.Header, NDArray[np.uint32]]:
        header, words = framing.unpack(memoryview(blob).tobytes())
        if header.fingerprint != self.fingerprint[:4]:
            raise WrongCodec(
                f"the blob was written with codec {header.fingerprint.hex()}, this is "
                f"{self.fingerprint[:4].hex()}: load the model or codec it was made with"
            )
        if header.rate_index != self.rate_index:
            raise WrongCodec(
                f"the blob has rate {header.rate_index}, this codec is for {self.rate_index}: "
                "load the codec of that rate"
            )
        if header.class_token != (self.class_layout is not None):
            raise CorruptBlob("the blob and its codec disagree about the class token")
        height, width = header.grid
        # Before anything is allocated: symbols may cost no bits, so the payload bounds nothing.
        if min(height, width) < 1 or height * width > self.max_tokens:
            raise CorruptBlob(
                f"the blob claims {height} x {width} tokens, its codec allows 1 to "
                f"{self.max_tokens}"
            )
        return header, words

    def _check_channels(self, values: NDArray) -> None:
        if values.ndim < 1 or values.shape[-1] != self.channels:
            raise InputError(f"shape {values.shape}: this codec has {self.channels} channels, last")
