"""ScalarCodec: codes each channel of each token by itself, with the channel's own table."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import as_array, as_symbols, immutable
from coder.codecs.base import OneQualityCodec, check_limits
from coder.codecs.scalar_quantiser import dequantise, quantise
from coder.entropy import RowCoder, Tables
from coder.errors import CodecError, FileError, InputError

_CODERS = 2  # coders that are kept, one for each number of tokens
IDENTITY = "identity"
"""The name of its transform in a file."""


@dataclass(frozen=True, eq=False, repr=False)
class ScalarCodec(OneQualityCodec):
    """Code channel d as `rint((y - offsets[d]) / steps[d])`, as arXiv 2403.17886 does.

    Attributes:
      offsets: float32 [D], the value of symbol 0.
      steps: float32 [D], > 0, the distance between neighbouring symbols.
      tables: the integer probability tables.
      grid_layout: int32 [D], the table of each channel, for all tokens of the grid.
      class_layout: int32 [D], the table of each channel for the class token; None if it is not
        coded.
      max_tokens, quality: as every codec's.

    Raises:
      CodecError: settings that do not fit together.
    """

    offsets: NDArray[np.float32]
    steps: NDArray[np.float32]
    tables: Tables
    grid_layout: NDArray[np.int32]
    class_layout: NDArray[np.int32] | None = None
    max_tokens: int = 1 << 16
    quality: int = 0

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
        check_limits(self)
        object.__setattr__(self, "_coders", lru_cache(_CODERS)(self._make_coder))

    @property
    def channels(self) -> int:
        """D."""
        return self.offsets.size

    @property
    def class_token(self) -> bool:
        """Whether a class token is coded before the grid."""
        return self.class_layout is not None

    @property
    def symbols_per_token(self) -> int:
        """D, one per channel."""
        return self.channels

    def __repr__(self) -> str:
        return (
            f"<ScalarCodec {self.fingerprint[:4].hex()}: {self.channels} channels, "
            f"{len(self.tables)} tables, quality {self.quality}>"
        )

    def quantise(self, y: ArrayLike, grid: tuple[int, int] | None = None) -> NDArray[np.int32]:
        """Embeddings float [..., D] -> symbols int32 [..., D]; the grid does not matter here."""
        values = as_array(y)
        if values.ndim < 1 or values.shape[-1] != self.channels:
            raise InputError(f"shape {values.shape}: this codec has {self.channels} channels, last")
        return quantise(values, self.offsets, self.steps)

    def dequantise(
        self, q: NDArray[np.int32], grid: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """Symbols int32 [..., D] -> embeddings float32 [..., D]; the grid does not matter here.

        Raises InputError: no integers, masked, or beyond int32.
        """
        return dequantise(as_symbols(q), self.offsets, self.steps)

    def estimate_bits(self, q: NDArray[np.int32], grid: tuple[int, int] | None = None) -> float:
        """Ideal code length in bits of symbols int32 [n, D]; the grid does not matter here."""
        symbols = as_symbols(q)
        if symbols.ndim != 2 or symbols.shape[1] != self.channels:
            raise InputError(
                f"symbols of shape {symbols.shape}: give those of one embedding, [n, "
                f"{self.channels}]"
            )
        return self._coder(len(symbols)).ideal_bits(self._rows(symbols))

    def is_rewritable(self) -> bool:
        """Whether float32 keeps the smallest and largest symbols of the tables apart."""
        low = self.tables.minimum[self.grid_layout]
        q = np.stack([low, low + self.tables.sizes[self.grid_layout] - 2])
        return bool((self.quantise(self.dequantise(q)) == q).all())

    def split(self) -> tuple["ScalarCodec", "ScalarCodec | None"]:
        """As every codec's."""
        if self.class_layout is None:
            return self, None
        return self._only(self.grid_layout), self._only(self.class_layout)

    def _only(self, layout: NDArray[np.int32]) -> "ScalarCodec":
        used, inverse = np.unique(layout, return_inverse=True)
        tables, layout = self.tables.only(used), inverse.astype(np.int32)
        return replace(self, tables=tables, grid_layout=layout, class_layout=None)

    def to_parts(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Named tensors and JSON content: what a file, or a model's file, stores of a codec."""
        tensors = {"offsets": self.offsets, "steps": self.steps} | self.tables.to_tensors()
        tensors["grid_layout"] = self.grid_layout
        if self.class_layout is not None:
            tensors["class_layout"] = self.class_layout
        return tensors, self._content(IDENTITY)

    @classmethod
    def from_parts(
        cls, tensors: Mapping[str, NDArray], content: Mapping[str, Any]
    ) -> "ScalarCodec":
        """The codec that `to_parts` described; FileError or CodecError on anything else."""
        needed = {"offsets", "steps", "grid_layout", *Tables.TENSORS}
        if set(tensors) - {"class_layout"} != needed:
            raise FileError(f"a codec has tensors {sorted(needed)}, not {sorted(tensors)}")
        return cls(
            tables=Tables(*(tensors[name] for name in Tables.TENSORS)),
            max_tokens=content["max_tokens"],
            quality=content["rate_index"],
            **{name: tensors[name] for name in tensors.keys() - {*Tables.TENSORS}},
        )

    def _coder(self, tokens: int) -> RowCoder:
        return self._coders(tokens)  # type: ignore[attr-defined]

    def _make_coder(self, tokens: int) -> RowCoder:
        """The coder of embeddings of n tokens. A row is a channel of the grid, after those of the
        class token, which are a block of their own."""
        layouts, lengths = [self.grid_layout], [tokens]
        if self.class_layout is not None:
            first = min(tokens, 1)
            layouts, lengths = [self.class_layout, self.grid_layout], [first, tokens - first]
        blocks = [self.channels] * len(layouts)
        return RowCoder(self.tables, np.concatenate(layouts), np.repeat(lengths, blocks), blocks)

    def _rows(self, q: NDArray[np.int32]) -> NDArray[np.int32]:
        """Symbols [n, D] -> [n * D], row by row."""
        first = int(self.class_token)
        return np.concatenate([q[:first].ravel(), transposed(q[first:]).ravel()])

    def _encode_words(self, q: NDArray[np.int32], grid: tuple[int, int]) -> NDArray[np.uint32]:
        return self._coder(len(q)).encode(self._rows(q))

    def _decode_words(self, words: NDArray[np.uint32], grid: tuple[int, int]) -> NDArray[np.int32]:
        tokens = grid[0] * grid[1]
        symbols = self._coder(tokens + self.class_token).decode(words)
        q = transposed(symbols[-tokens * self.channels :].reshape(self.channels, tokens))
        return np.concatenate([symbols[None, : self.channels], q]) if self.class_token else q


def transposed(matrix: NDArray[np.int32]) -> NDArray[np.int32]:
    """A C-ordered copy of the transpose, in strips: twice as fast as NumPy's own."""
    result = np.empty(matrix.shape[::-1], np.int32)
    for start in range(0, len(matrix), 32):
        result[:, start : start + 32] = matrix[start : start + 32].T
    return result
