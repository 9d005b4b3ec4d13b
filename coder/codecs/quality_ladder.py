"""QualityLadder: one codec for many qualities."""

import functools
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import as_array, as_bytes, is_number, is_whole, warn_of_integers
from coder.codecs.coefficients import CoefficientCodec
from coder.codecs.transform_codec import TransformCodec
from coder.entropy import Tables
from coder.errors import CodecError, InputError, WrongCodec
from coder.format import blob as framing
from coder.refiner import Refiner
from coder.transform import Transform

_KEPT = 64  # codecs of one quality that are kept for reuse


@dataclass(frozen=True, eq=False, repr=False)
class QualityLadder(CoefficientCodec):
    """One transform and one set of tables at many qualities.

    Quality 0 is the lowest; a higher quality costs more bytes and loses less. `at(quality)` cuts
    out the codec of one quality: it writes the same blobs and decodes them by itself.

    Attributes:
      transform: embeddings to coefficients and back.
      steps: float32 [R], falling: the step of each quality.
      layout: uint8 [R, K, BANDS or BANDS + 1], the layout of a `TransformCodec` for each quality.
      tables: the integer probability tables, at most 255.
      shifts: float32 [T].
      max_tokens: as every codec's.
      quality: the default of `encode`.

    Raises:
      CodecError: settings that do not fit together.
    """

    transform: Transform
    steps: NDArray[np.float32]
    layout: NDArray[np.uint8]
    tables: Tables
    shifts: NDArray[np.float32]
    max_tokens: int = 1 << 16
    quality: int = 0
    refiner: Refiner | None = None
    STEPS = "steps"
    SUFFIX = "-ladder"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", self._settle())
        if (np.diff(self.steps) >= 0).any():
            raise CodecError("steps must fall from quality to quality")
        if self.quality >= self.num_qualities:
            raise CodecError(f"quality is {self.quality}, of {self.num_qualities} qualities")
        object.__setattr__(self, "_at", lru_cache(_KEPT)(self._cut))

    @property
    def num_qualities(self) -> int:
        """R, the number of qualities."""
        return self.steps.size

    def __repr__(self) -> str:
        return (
            f"<QualityLadder {self.fingerprint[:4].hex()}: {self.channels} channels, "
            f"{self.num_qualities} qualities, default {self.quality}>"
        )

    def at(self, quality: int | None = None) -> TransformCodec:
        """The codec of one quality, with only the components and tables that it uses.

        Raises InputError if the codec does not have this quality.
        """
        quality = self.quality if quality is None else quality
        if not is_whole(quality) or not 0 <= quality < self.num_qualities:
            raise InputError(
                f"quality {quality!r}: this codec has qualities 0 to {self.num_qualities - 1}"
            )
        return self._at(int(quality))  # type: ignore[attr-defined]

    def encode(
        self,
        y: ArrayLike,
        grid: tuple[int, int],
        *,
        quality: int | None = None,
        max_bytes: int | None = None,
        max_mse: float | None = None,
        for_refiner: bool = False,
    ) -> bytes:
        """One embedding float [n, D] -> its blob.

        Give at most one of `quality`, `max_bytes` and `max_mse`; with none, the default quality
        is used.

        Args:
          quality: code at this quality.
          max_bytes: code at the highest quality whose blob has at most this many bytes.
          max_mse: code at the lowest quality whose mean squared error is at most this; with
            for_refiner, that of the refined embedding.
          for_refiner: as `EmbeddingCodec.encode`.

        Warns as `TransformCodec.encode`.

        Raises:
          InputError: as `EmbeddingCodec.encode`; more than one of the three; or a target that no
            quality reaches; for_refiner, and the codec has no refiner.
        """
        if sum(target is not None for target in (quality, max_bytes, max_mse)) > 1:
            raise InputError("give one of quality, max_bytes and max_mse")
        _check_targets(max_bytes, max_mse)
        values = as_array(y)
        warn_of_integers(values.dtype, stacklevel=2)
        if max_bytes is None and max_mse is None:
            codec = self.at(quality)
            blob = codec.encode_quietly(codec.aim(values, grid) if for_refiner else values, grid)
        else:
            codec, blob = self._search(values, grid, max_bytes, max_mse, for_refiner)
        codec.warn_if_unusual(blob, grid, stacklevel=3)
        return blob

    def quality_for(
        self,
        y: ArrayLike,
        grid: tuple[int, int],
        *,
        max_bytes: float | None = None,
        max_mse: float | None = None,
        for_refiner: bool = False,
        of_grids: bool = False,
    ) -> int:
        """The quality that fits all embeddings float [B, n, D] of a sample on average.

        Bytes and errors of many embeddings are taken to be monotone in the quality.

        Args:
          y, grid: embeddings of one grid.
          max_bytes: look for the highest quality whose blobs have at most so many bytes, on
            average.
          max_mse: look for the lowest quality whose mean squared error is at most this; with
            for_refiner, that of the refined embeddings.
          for_refiner: as `encode`.
          of_grids: code grids alone, without class token, as arrays do (`split`).

        Raises:
          InputError: as `encode`; not one of the two targets, or a target that no quality reaches.
        """
        values = as_array(y)
        if (max_bytes is None) == (max_mse is None):
            raise InputError("give one of max_bytes and max_mse")
        _check_targets(max_bytes, max_mse)

        @functools.cache
        def reached(quality: int) -> tuple[float, float]:
            whole, sizes, errors = self.at(quality), [], []
            codec = whole.split()[0] if of_grids else whole
            for one in values:
                blob = codec.encode_quietly(codec.aim(one, grid) if for_refiner else one, grid)
                error = codec.decode(blob, refine=for_refiner) - one.astype(np.float32)
                sizes.append(len(blob))
                errors.append(np.mean(np.square(error, dtype=np.float64)))
            return float(np.mean(sizes)), float(np.mean(errors))

        qualities = range(self.num_qualities)
        if max_bytes is not None:
            above = bisect_right(qualities, max_bytes, key=lambda quality: reached(quality)[0])
            if above == 0:
                raise InputError(
                    f"{reached(0)[0]:.0f} bytes per embedding at quality 0, the lowest, and "
                    f"{max_bytes:g} are allowed: raise max_bytes"
                )
            return above - 1
        assert max_mse is not None
        enough = bisect_left(qualities, -max_mse, key=lambda quality: -reached(quality)[1])
        if enough == len(qualities):
            raise InputError(
                f"the mean squared error is {reached(enough - 1)[1]:.3g} at quality {enough - 1}, "
                f"the highest, and {max_mse:g} is allowed: raise max_mse"
            )
        return enough

    def decode(self, blob: bytes, *, refine: bool = False) -> NDArray[np.float32]:
        """A blob of any of the qualities -> its embedding float32 [n, D]."""
        return self._of(blob).decode(blob, refine=refine)

    def decode_symbols(self, blob: bytes) -> tuple[NDArray[np.int32], tuple[int, int]]:
        """A blob of any quality -> symbols int32 [n, K] and grid, as `at(quality)` gives them."""
        return self._of(blob).decode_symbols(blob)

    def grid_of(self, blob: bytes) -> tuple[int, int]:
        """The grid (h, w) of a blob whose frame and header are sound."""
        return self._of(blob).grid_of(blob)

    def _of(self, blob: bytes) -> TransformCodec:
        header, _ = framing.unpack(as_bytes(blob))
        if header.rate_index >= self.num_qualities:
            raise WrongCodec(
                f"the blob has quality {header.rate_index}, this codec has 0 to "
                f"{self.num_qualities - 1}: load the codec it was made with"
            )
        return self.at(header.rate_index)

    def _cut(self, quality: int) -> TransformCodec:
        step, layout = self.steps.item(quality), self.layout[quality]
        rest = self.tables, self.shifts, self.max_tokens, quality
        codec = TransformCodec(self.transform, step, layout, *rest).trimmed()
        return replace(codec, refiner=self.refiner)

    def _search(
        self,
        y: NDArray,
        grid: tuple[int, int],
        max_bytes: int | None,
        max_mse: float | None,
        for_refiner: bool,
    ) -> tuple[TransformCodec, bytes]:
        # One by one: for a single embedding, bytes and errors need not be monotone in quality.
        for quality in range(self.num_qualities)[:: 1 if max_bytes is None else -1]:
            codec = self.at(quality)
            blob = codec.encode_quietly(codec.aim(y, grid) if for_refiner else y, grid)
            if max_bytes is not None and len(blob) <= max_bytes:
                return codec, blob
            if max_mse is not None:
                error = codec.decode(blob, refine=for_refiner) - y.astype(np.float32)
                if np.mean(np.square(error, dtype=np.float64)) <= max_mse:
                    return codec, blob
        if max_mse is not None:
            raise InputError(
                f"the mean squared error is above {max_mse} at every quality: raise max_mse"
            )
        raise InputError(
            f"the embedding needs more than {max_bytes} bytes at every quality: raise max_bytes"
        )


def _check_targets(max_bytes: float | None, max_mse: float | None) -> None:
    for name, target in (("max_bytes", max_bytes), ("max_mse", max_mse)):
        if target is not None and not (is_number(target) and target >= 0):
            raise InputError(f"{name} is {target!r}: give a number that is not negative")
