"""The Zarr v3 codec `nec`: an array of embeddings in any Zarr store, each chunk one blob.

```python
array = zarr.create_array(
    store, shape=(images, 14, 14, 768), dtype="float32", chunks=(1, 14, 14, 768),
    shards=(256, 14, 14, 768), serializer=NecCodec(codec), compressors=None,
)
```

The last dimension is the channels, the one before it the width of a chunk's grid, and all earlier
dimensions together its height. Writing what was read changes nothing. Rows and columns at a chunk's
end that are all fill value are not coded: chunks may reach beyond an array's edge. They read as the
fill value; if that is NaN, what was not written reads as NaN. Tokens that are all NaN may then be
anywhere: a mask before the blob says where. The others are coded as one row of tokens, or the grid
with its gaps filled (docs/format.md, section 9). Writing what was read may then change the others,
by about the error of coding.

zarr converts assigned values to float32 before this codec sees them. So integers are coded without
the warning of `codec.encode`, and a mask is dropped: the values that it hides are coded. Fill
masked values first, or write NaN if that is the fill value.

With a transform, the channels of a token and the tokens of a block are coded together. A block has
at most 16 x 16 tokens of a chunk: a side of 40 has blocks of 14, 13 and 13. Writing a part of a
block, or some of the channels, codes the rest of it again from decoded values, which loses a little
more each time. `LossyWrite` warns of it, in zarr's own pipelines if the array has only this codec,
alone or in shards. Write whole chunks, or parts that begin and end at block borders, with all
channels.

The codec's file is stored in the array's metadata, so that a store can be read by itself: zarr
finds this class by its entry point. Class tokens, if any, are another array (`coder.archive`).
"""

import base64
import itertools
import math
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer, cpu
from zarr.core.common import JSON, parse_named_configuration
from zarr.core.dtype import ZDType

from coder import codecs
from coder.codecs import OneQualityCodec, TransformCodec
from coder.errors import CodecError, CorruptBlob, FileError, InputError, LossyWrite
from coder.refiner import Refiner
from coder.transform import filled, frequencies

_NAME = "nec"
_GAPS = b"\0"  # first byte of a chunk with gaps; a blob begins with its version
_NO_WORSE = 1.02  # squared error of a row, in that of the grid with its gaps filled
LARGEST = 1 << 28
"""Maximum bytes of the file of a codec or refiner in a store: bounds what hostile metadata cost."""


@dataclass(frozen=True)
class NecCodec(ArrayBytesCodec):
    """Code chunks of float32 [..., width, D] with a codec of one quality, without class token.

    Arrays are never refined: the refiner of the codec, if any, is dropped.

    Raises:
      CodecError: a codec with a class token, or an array that it cannot code: another dtype than
        float32, other channels, too many tokens per chunk, an infinite fill value.
    """

    codec: OneQualityCodec
    is_fixed_size = False

    def __post_init__(self) -> None:
        if not isinstance(self.codec, OneQualityCodec):
            raise CodecError("an array has one quality: cut it out of the codec, codec.at(quality)")
        if self.codec.class_token:
            raise CodecError(
                "the codec codes a class token, which no grid of a Zarr array has: split it with "
                "codec.split()"
            )
        if not self.codec.is_rewritable():
            raise CodecError(
                "writing what was read would change it: the codec's steps are too small beside its "
                "offsets for float32"
            )
        if self.codec.refiner is not None:
            object.__setattr__(self, "codec", self.codec.with_refiner(None))

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> "NecCodec":
        """The codec of an array's metadata. Raises FileError if it is damaged."""
        try:
            _, configuration = parse_named_configuration(data, _NAME)
        except (TypeError, ValueError) as error:
            raise FileError(f"not the metadata of a nec codec: {error}") from error
        text = configuration.get("codec")
        if set(configuration) != {"codec"} or not isinstance(text, str):
            raise FileError(f"the nec codec's configuration is not {sorted(configuration)}")
        try:
            unfold = zlib.decompressobj()
            file = unfold.decompress(base64.b64decode(text, validate=True), LARGEST)
        except (ValueError, zlib.error) as error:
            raise FileError(f"the codec in the array's metadata is damaged: {error}") from error
        if not unfold.eof or unfold.unused_data:
            raise FileError("the codec in the array's metadata is damaged: it does not end")
        codec = codecs.from_bytes(file)
        if not isinstance(codec, OneQualityCodec):
            raise FileError("the codec in the array's metadata has several qualities")
        return cls(codec)

    def to_dict(self) -> dict[str, JSON]:
        """The codec's file, deflated and in base 64, as JSON."""
        text = base64.b64encode(zlib.compress(self.codec.to_bytes(), 9)).decode()
        return {"name": _NAME, "configuration": {"codec": text}}

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> "NecCodec":
        """This codec, if it can code such an array (zarr gives its shape) or such inner chunks."""
        dtype = array_spec.dtype.to_native_dtype()
        if dtype != np.float32:
            raise CodecError(f"an array of {dtype}: the nec codec stores float32")
        self._grid(array_spec.shape, "an array, or chunks in shards,")
        if np.isinf(np.float32(array_spec.fill_value)):
            raise CodecError(f"fill value {array_spec.fill_value}: use NaN, or a number as 0")
        return self

    def validate(self, *, shape: tuple[int, ...], dtype: ZDType[Any, Any], chunk_grid: Any) -> None:
        """Refuse chunks that cannot be coded.

        zarr 3.1 does not call this for chunks inside shards. Those with too many tokens are refused
        when the first is written, and their sides are not checked.
        """
        # By its attribute: the class of a regular grid has another name in zarr 3.2 and later.
        chunk = getattr(chunk_grid, "chunk_shape", None)
        if chunk is None:
            return
        inner = zip(shape[1:-2], chunk[1:-2], strict=True)
        if self.codec.spatial and chunk[0] > 1 and any(side % part for side, part in inner):
            raise CodecError(
                f"chunks of {tuple(chunk)} have rows that lie beyond the edge of an array of "
                f"{shape}, between rows of the array: choose sides that divide the array's, or 1 "
                "for the first side"
            )
        height, width = self._grid(tuple(chunk))
        if height * width > self.codec.max_tokens:
            raise CodecError(
                f"chunks of {tuple(chunk)}, {height} x {width} tokens: this codec takes "
                f"{self.codec.max_tokens}: make the chunks smaller"
            )

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        y = chunk_data.as_numpy_array().reshape(*self._grid(chunk_spec.shape), self.codec.channels)
        there = _written(y, chunk_spec.fill_value)
        height, width = _coded(there)
        part = y[:height, :width]
        if not there.any() and np.isnan(chunk_spec.fill_value):
            raise InputError(
                "a chunk that is all NaN has no embedding: leave write_empty_chunks off, and it is "
                "not stored"
            )
        gaps = ~there[:height, :width]
        if (wrong := ~np.isfinite(part) & ~gaps[..., None]).any():
            row, column, channel = np.argwhere(wrong)[0]
            what = "NaN" if np.isnan(part[row, column, channel]) else "infinity"
            raise InputError(
                f"{what} in channel {channel} of the token at row {row}, column {column} of a "
                "chunk: give finite embeddings; a token that is missing is NaN in all channels"
            )
        if gaps.any() and np.isnan(chunk_spec.fill_value):
            blob = self._with_gaps(y, there)
        else:
            blob = self.codec.encode(part.reshape(-1, self.codec.channels), (height, width))
        before = getattr(chunk_data, "before", None)
        if before is None and there.any() and gaps.any() and blob[:1] != _GAPS:
            warnings.warn(
                f"{gaps.sum()} tokens of a chunk have its fill value, {chunk_spec.fill_value:g}, "
                "before tokens that have not: they are coded like any embedding, and read as other "
                "numbers. Write whole chunks, or their tokens in order"
                f"{_beyond_an_edge(there, chunk_spec.shape)}",
                LossyWrite,
                stacklevel=2,
            )
        if before is None and isinstance(self.codec, TransformCodec):
            self._warn_of_channels(y, there, blob, chunk_spec.fill_value)
        if before is not None:
            self._warn_if_lossy(y, before.reshape(y.shape), blob, chunk_spec.fill_value)
        return chunk_spec.prototype.buffer.from_bytes(blob)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        y = self.decoded(chunk_data.to_bytes(), chunk_spec.shape, chunk_spec.fill_value)
        kind = chunk_spec.prototype.nd_buffer
        if isinstance(self.codec, TransformCodec) and kind is cpu.NDBuffer:
            kind = _DecodedChunk
        return kind.from_numpy_array(y.reshape(chunk_spec.shape))

    def decoded(self, blob: bytes, shape: tuple[int, ...], fill_value: Any) -> np.ndarray:
        """A chunk of this shape, float32 [h, w, D]. Raises the errors of `codec.decode`."""
        height, width = self._grid(shape)
        if blob[:1] == _GAPS:
            return self._without_gaps(blob, (height, width), fill_value)
        h, w = self.codec.grid_of(blob)
        if h > height or w > width:
            raise CorruptBlob(f"a chunk of {shape} holds a blob of {h} x {w} tokens")
        y = np.full((height, width, self.codec.channels), fill_value, np.float32)
        y[:h, :w] = self.codec.decode(blob).reshape(h, w, -1)
        return y

    def _with_gaps(self, y: np.ndarray, there: np.ndarray) -> bytes:
        """Code a chunk [h, w, D] with gaps: the mask of its tokens [h, w], then a blob.

        The blob has these tokens as a row; or, under a codec of grids, the grid with its gaps
        filled. The grid is taken if the row has a larger error, or takes more bytes.
        """
        tokens = y[there]
        mask = _GAPS + np.packbits(there.ravel(), bitorder="little").tobytes()
        blob = self.codec.encode_quietly(tokens, (1, len(tokens)))
        if isinstance(self.codec, TransformCodec) and self.codec.spatial:
            height, width = _coded(there)
            there = there[:height, :width]
            grid = filled(y[:height, :width], there).reshape(-1, y.shape[-1])
            other = self.codec.encode_quietly(grid, (height, width))
            decoded = self.codec.decode(other)[there.ravel()]
            lost, of_row = (
                float(np.square((one - tokens) / self.codec.transform.scale).sum())
                for one in (decoded, self.codec.decode(blob))
            )
            if of_row > _NO_WORSE * lost or len(other) < len(blob):
                blob = other
        self.codec.warn_if_unusual(blob, self.codec.grid_of(blob), stacklevel=2)
        return mask + zlib.crc32(mask).to_bytes(4, "little") + blob

    def _without_gaps(self, data: bytes, grid: tuple[int, int], fill_value: Any) -> np.ndarray:
        """The inverse, float32 [h, w, D]. Raises CorruptBlob, and the errors of `codec.decode`."""
        size = math.prod(grid)
        end = 1 + -(-size // 8)
        mask, checksum, blob = data[:end], data[end : end + 4], data[end + 4 :]
        if zlib.crc32(mask).to_bytes(4, "little") != checksum:
            raise CorruptBlob("the checksum of a chunk's mask is wrong: the chunk is damaged")
        bits = np.unpackbits(np.frombuffer(mask, np.uint8, offset=1), bitorder="little")
        there = bits[:size].astype(bool).reshape(grid)
        own = self.codec.grid_of(blob)
        is_row = own == (1, there.sum())
        if bits[size:].any() or not (is_row or (self.codec.spatial and own == _coded(there))):
            raise CorruptBlob("a chunk's mask and its blob have other numbers of tokens")
        tokens = self.codec.decode(blob)
        y = np.full((*grid, self.codec.channels), fill_value, np.float32)
        y[there] = tokens if is_row else tokens[there[: own[0], : own[1]].ravel()]
        return y

    def _warn_of_channels(
        self, y: np.ndarray, there: np.ndarray, blob: bytes, fill_value: Any
    ) -> None:
        """Warn if only some channels of a new chunk seem to be written, as the first of many.

        zarr does not say what was written of a new chunk. The sign looked for is that in half of
        the channels, or more, all tokens have the fill value.

        Args:
          y: float32 [h, w, D], the chunk as it is coded.
          there: bool [h, w], which tokens are not all fill value.
          blob: what y was coded to.
          fill_value: the array's.
        """
        if there.sum() < 2 or not np.isfinite(fill_value):
            return
        unwritten = (y[there] == np.float32(fill_value)).all(0)
        if 2 * unwritten.sum() < len(unwritten):
            return
        after = self.decoded(blob, y.shape, fill_value)[there]
        change = np.abs(after - y[there])[:, unwritten].max(initial=0)
        if change > 1e-4 * np.abs(y[there]).max():
            warnings.warn(
                f"{unwritten.sum()} of {len(unwritten)} channels have the fill value, "
                f"{fill_value:g}, in all tokens of a new chunk: were the others written alone? "
                f"They are coded together, and read as other numbers, by up to {change:.3g}. Write "
                "all channels at once",
                LossyWrite,
                stacklevel=3,
            )

    def _warn_if_lossy(
        self, y: np.ndarray, before: np.ndarray, blob: bytes, fill_value: Any
    ) -> None:
        """Warn if a write changes the decoded values of tokens or channels that it did not write.

        Args:
          y: float32 [h, w, D], the chunk to code now.
          before: the chunk as it was decoded before the write.
          blob: the code of y.
          fill_value: the fill value of the array.
        """
        same = y == before
        if same.all():
            return
        # Compare whole tokens, or whole channels: single values may be equal by chance.
        tokens = same.all(-1)
        kept = np.where(tokens[..., None], True, same[~tokens].all(0))
        kept &= _written(before, fill_value)[..., None]
        if not kept.any():
            return
        after = self.decoded(blob, y.shape, fill_value)
        change = np.where(kept, np.abs(after - before), 0)
        # Sums of different grids round differently: docs/format.md, section 11.
        changed = (change > 1e-4 * np.abs(before[kept.any(-1)]).max()).any(-1)
        if changed.any():
            remedy = "whole chunks"
            if blob[:1] != _GAPS:
                h, w = self.codec.grid_of(blob)
                remedy += (
                    f", or of whole blocks: those of {h} x {w} tokens begin at {_borders(h)} of "
                    f"the height and {_borders(w)} of the width"
                )
            warnings.warn(
                f"writing a part of a chunk changed {changed.sum()} tokens beside it or in other "
                f"channels, by up to {change.max():.3g}: they are coded together with what was "
                f"written. Write all channels of {remedy}",
                LossyWrite,
                stacklevel=2,
            )

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """No size is known beforehand."""
        raise NotImplementedError("the nec codec's output has no fixed size")

    def _grid(self, shape: tuple[int, ...], what: str = "chunks") -> tuple[int, int]:
        if len(shape) < 2 or shape[-1] != self.codec.channels:
            raise CodecError(
                f"{what} of shape {tuple(shape)}: give [..., width, {self.codec.channels}], all "
                "channels in one chunk"
            )
        return math.prod(shape[:-2]), shape[-2]


class _DecodedChunk(cpu.NDBuffer):
    """A decoded chunk. zarr writes a part of a chunk to a copy, which remembers the original."""

    before: np.ndarray | None = None

    def copy(self) -> "_DecodedChunk":
        copy = _DecodedChunk(self._data.copy())
        copy.before = self.as_numpy_array()
        return copy


def _borders(side: int) -> str:
    """Where the blocks of a side begin, the first few of them."""
    starts = [0, *itertools.accumulate(frequencies.parts(side))][:-1]
    return ", ".join(map(str, starts[:4])) + ", .." * (len(starts) > 4)


def _written(y: np.ndarray, fill_value: Any) -> Any:
    """Which tokens of [h, w, D] are not all fill value: bool [h, w]."""
    fill = np.float32(fill_value)
    return ~np.isnan(y).all(-1) if np.isnan(fill) else (y != fill).any(-1)


def _coded(there: np.ndarray) -> tuple[int, int]:
    """The grid of a chunk's blob: up to the last row and column with a token, and at least one.

    Args:
      there: bool [h, w], which tokens of the chunk are written.
    """
    height, width = (1 + int(np.flatnonzero(there.any(k)).max(initial=0)) for k in (1, 0))
    return height, width


def _beyond_an_edge(there: np.ndarray, shape: tuple[int, ...]) -> str:
    """The remedy if tokens are missing at the ends of a chunk's sides, as beyond an array's edge.

    Args:
      there: bool [h, w], which tokens of the chunk are written.
      shape: the shape of the chunk.
    """
    grid = there.reshape(shape[:-1])
    part = tuple(slice(0, 1 + int(np.max(places, initial=-1))) for places in np.nonzero(grid))
    if not grid[part].all():
        return ""
    size = " x ".join(str(side.stop) for side in part)
    return (
        f". If the array ends after {size} tokens of the chunk: make it with chunks of other sides "
        f"than {shape}, which divide the array's, or of 1 on the first"
    )


def refined(
    chunk: np.ndarray, codec: OneQualityCodec, refiner: Refiner, fill_value: Any
) -> np.ndarray:
    """A decoded chunk float32 [.., width, D], refined as `codec.decode(refine=True)` does its blob.

    Tokens that were not coded stay as they are: rows and columns at its end that are all fill
    value, and any token of NaN. If such tokens lie before others in a grid, they are filled first,
    so that the others have neighbours.
    """
    y = chunk.reshape(math.prod(chunk.shape[:-2]), *chunk.shape[-2:]).copy()
    there = _written(y, fill_value)
    height, width = _coded(there)
    if there.any() and not codec.spatial:
        y[there] = refiner.refine(y[there], (1, int(there.sum())), codec.fingerprint)
    elif there.any():
        part = y[:height, :width]
        own = there[:height, :width] if np.isnan(fill_value) else np.ones(part.shape[:2], bool)
        flat = filled(part, own).reshape(-1, y.shape[-1])
        flat = refiner.refine(flat, (height, width), codec.fingerprint)
        part[own] = flat.reshape(part.shape)[own]
    return y.reshape(chunk.shape)


def nec_codec(array: Any) -> OneQualityCodec | None:
    """The codec of a Zarr array's chunks; None if they are not coded by `nec`."""
    codecs = list(getattr(array.metadata, "codecs", ()))  # Zarr v2 has none
    while codecs:
        one = codecs.pop()
        if isinstance(one, NecCodec):
            return one.codec
        codecs += getattr(one, "codecs", ())
    return None
