"""RateLadder: one codec for many rates."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import as_array, as_bytes, frozen, immutable, is_number, warn_of_integers
from coder.codecs.base import check_limits, check_rate
from coder.codecs.coefficients import CoefficientCodec, check_layout, open_parts
from coder.codecs.transform_codec import TransformCodec, check_step, cut
from coder.entropy import Tables
from coder.errors import CodecError, InputError, WrongCodec
from coder.format import blob as framing
from coder.transform import Transform

_KEPT = 64  # rates that were cut out
LADDER = "-ladder"
"""What is added to the name of a transform in a file."""


@dataclass(frozen=True, eq=False, repr=False)
class RateLadder(CoefficientCodec):
    """One transform and one set of tables, at many rates: rate 0 is the smallest.

    A blob is that of the codec of its rate, `at(rate)`, which can be cut out and decodes it alone.

    Attributes:
      transform: embeddings to coefficients and back.
      steps: float32 [R], falling: the step of each rate.
      layout: uint8 [R, K, BANDS or BANDS + 1], as a `TransformCodec`'s, of each rate.
      tables: the integer probability tables, at most 255.
      shifts: float32 [T].
      max_tokens: as every codec's.
      rate_index: the rate that `encode` uses unless it is told.

    Raises:
      CodecError: settings that do not fit together.
    """

    transform: Transform
    steps: NDArray[np.float32]
    layout: NDArray[np.uint8]
    tables: Tables
    shifts: NDArray[np.float32]
    max_tokens: int = 1 << 16
    rate_index: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "shifts"):
            object.__setattr__(self, name, immutable(name, getattr(self, name), "<f4"))
        check_layout(self.layout, self.transform, self.tables, self.shifts)
        object.__setattr__(self, "layout", frozen(self.layout))
        if self.layout.shape[:-2] != (self.steps.size,):
            raise CodecError(f"{self.steps.size} steps, a layout of {list(self.layout.shape)}")
        if (np.diff(self.steps) >= 0).any():
            raise CodecError("steps must fall from rate to rate")
        check_limits(self)
        if self.rate_index >= self.rates:
            raise CodecError(f"rate_index is {self.rate_index}, of {self.rates} rates")
        for step in self.steps:
            check_step(float(step))
        object.__setattr__(self, "_at", lru_cache(_KEPT)(self._cut))

    @property
    def rates(self) -> int:
        """R."""
        return self.steps.size

    def __repr__(self) -> str:
        return (
            f"<RateLadder {self.fingerprint[:4].hex()}: {self.channels} channels, "
            f"{self.rates} rates, now {self.rate_index}>"
        )

    def at(self, rate: int | None = None) -> TransformCodec:
        """The codec of one rate: the components and tables that it uses.

        Raises InputError for a rate that there is not.
        """
        rate = self.rate_index if rate is None else check_rate(rate)
        if not 0 <= rate < self.rates:
            raise InputError(f"rate {rate}: this codec has rates 0 to {self.rates - 1}")
        return self._at(rate)  # type: ignore[attr-defined]

    def encode(
        self,
        y: ArrayLike,
        grid: tuple[int, int],
        *,
        rate: int | None = None,
        most_bytes: int | None = None,
        most_mse: float | None = None,
    ) -> bytes:
        """One embedding float [n, D] -> its blob.

        Args:
          rate: at this rate, instead of `rate_index`.
          most_bytes: or at the largest rate whose blob has at most so many bytes.
          most_mse: or at the smallest rate whose mean squared error is at most this.

        Warns as `TransformCodec.encode`.

        Raises:
          InputError: as `EmbeddingCodec.encode`; more than one of the three; a target that no rate
            reaches.
        """
        if sum(target is not None for target in (rate, most_bytes, most_mse)) > 1:
            raise InputError("give one of rate, most_bytes and most_mse")
        for name, target in (("most_bytes", most_bytes), ("most_mse", most_mse)):
            if target is not None and not (is_number(target) and target >= 0):
                raise InputError(f"{name} is {target!r}: give a number that is not negative")
        values = as_array(y)
        warn_of_integers(values.dtype, stacklevel=2)
        if most_bytes is None and most_mse is None:
            codec = self.at(rate)
            blob = codec.encode_quietly(values, grid)
        else:
            codec, blob = self._search(values, grid, most_bytes, most_mse)
        codec.warn_if_unusual(blob, grid, stacklevel=3)
        return blob

    def decode(self, blob: bytes) -> NDArray[np.float32]:
        """A blob of any of the rates -> its embedding float32 [n, D]."""
        return self._of(blob).decode(blob)

    def decode_symbols(self, blob: bytes) -> tuple[NDArray[np.int32], tuple[int, int]]:
        """As the codec of the blob's rate does."""
        return self._of(blob).decode_symbols(blob)

    def grid_of(self, blob: bytes) -> tuple[int, int]:
        """The grid (h, w) of a blob whose frame and header are sound."""
        return self._of(blob).grid_of(blob)

    def to_parts(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Named tensors and JSON content: what a file, or a model's file, stores of a codec."""
        return self._parts({"steps": self.steps}, LADDER)

    @classmethod
    def from_parts(cls, tensors: Mapping[str, NDArray], content: Mapping[str, Any]) -> "RateLadder":
        """The codec that `to_parts` described; FileError or CodecError on anything else."""
        parts = open_parts(tensors, content, "steps")
        return cls(parts[0], tensors["steps"], *parts[1:])

    def _of(self, blob: bytes) -> TransformCodec:
        header, _ = framing.unpack(as_bytes(blob))
        if header.rate_index >= self.rates:
            raise WrongCodec(
                f"the blob has rate {header.rate_index}, this codec has 0 to "
                f"{self.rates - 1}: load the codec it was made with"
            )
        return self.at(header.rate_index)

    def _cut(self, rate: int) -> TransformCodec:
        return cut(
            self.transform,
            float(self.steps[rate]),
            self.layout[rate],
            self.tables,
            self.shifts,
            self.max_tokens,
            rate,
        )

    def _search(
        self, y: NDArray, grid: tuple[int, int], most_bytes: int | None, most_mse: float | None
    ) -> tuple[TransformCodec, bytes]:
        # One by one: for a single embedding neither bytes nor errors need be in order.
        if most_bytes is not None:
            for rate in reversed(range(self.rates)):
                blob = self.at(rate).encode_quietly(y, grid)
                if len(blob) <= most_bytes:
                    return self.at(rate), blob
            raise InputError(f"at no rate does it take {most_bytes} bytes or fewer")
        assert most_mse is not None
        for rate in range(self.rates):
            blob = self.at(rate).encode_quietly(y, grid)
            error = self.at(rate).decode(blob) - y.astype(np.float32)
            if np.mean(np.square(error, dtype=np.float64)) <= most_mse:
                return self.at(rate), blob
        raise InputError(f"at no rate is its mean squared error {most_mse} or less")
