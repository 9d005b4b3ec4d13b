"""The Zarr v3 codec `nec`: an array of embeddings in any Zarr store, each chunk one blob.

```python
array = zarr.create_array(
    store, shape=(images, 14, 14, 768), dtype="float32", chunks=(1, 14, 14, 768),
    shards=(256, 14, 14, 768), serializer=NecCodec(codec), compressors=None,
)
```

The last dimension is the channels, the one before it the width of a chunk's grid, and all before
that its height. Floats are coded as the codec codes them; writing what was read changes nothing.
Rows and columns at a chunk's end that are all fill value (there are chunks beyond an array's edge)
are not coded and read as the fill value.

The codec's file travels in the array's metadata, so that a store is readable by itself: zarr finds
this class by its entry point. Class tokens, if any, are an array of their own (`coder.archive`).
"""

import base64
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration
from zarr.core.dtype import ZDType

from coder.codec import EmbeddingCodec
from coder.errors import CodecError, CorruptBlob, FileError
from coder.one_rate import OneRateCodec

_NAME = "nec"
_LARGEST = 1 << 28  # bytes of a codec's file; bounds what hostile metadata may unfold to


@dataclass(frozen=True)
class NecCodec(ArrayBytesCodec):
    """Codes chunks of float32 [..., width, D] with an `EmbeddingCodec` without class token.

    Raises:
      CodecError: a codec with a class token, or an array that it cannot code: another dtype than
        float32, other channels, too many tokens a chunk, a fill value that is not finite.
    """

    codec: OneRateCodec
    is_fixed_size = False

    def __post_init__(self) -> None:
        if not isinstance(self.codec, OneRateCodec):
            raise CodecError("an array has one rate: cut it out of the codec, codec.at(rate)")
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
            file = unfold.decompress(base64.b64decode(text, validate=True), _LARGEST)
        except (ValueError, zlib.error) as error:
            raise FileError(f"the codec in the array's metadata is damaged: {error}") from error
        if not unfold.eof or unfold.unused_data:
            raise FileError("the codec in the array's metadata is damaged: it does not end")
        codec = EmbeddingCodec.from_bytes(file)
        if not isinstance(codec, OneRateCodec):
            raise FileError("the codec in the array's metadata has several rates")
        return cls(codec)

    def to_dict(self) -> dict[str, JSON]:
        """The codec's file, deflated and in base 64, as JSON."""
        text = base64.b64encode(zlib.compress(self.codec.to_bytes(), 9)).decode()
        return {"name": _NAME, "configuration": {"codec": text}}

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> "NecCodec":
        """Itself, if it can code such an array (zarr gives its shape) or such inner chunks."""
        dtype = array_spec.dtype.to_native_dtype()
        if dtype != np.float32:
            raise CodecError(f"an array of {dtype}: the nec codec stores float32")
        self._grid(array_spec.shape)
        if not np.isfinite(np.float32(array_spec.fill_value)):
            raise CodecError(
                f"fill value {array_spec.fill_value}: where a chunk is filled in parts it is coded "
                "as any value, so it must be finite: use 0"
            )
        return self

    def validate(self, *, shape: tuple[int, ...], dtype: ZDType[Any, Any], chunk_grid: Any) -> None:
        """Refuses chunks that cannot be coded.

        zarr 3.1 does not ask this of chunks inside shards: too many tokens in those are refused
        when the first is written, and their sides are not looked at.
        """
        # By its attribute: the class of a regular grid has another name in zarr 3.2 and later.
        chunk = getattr(chunk_grid, "chunk_shape", None)
        if chunk is None:
            return
        inner = zip(shape[1:-2], chunk[1:-2], strict=True)
        if self.codec.spatial and chunk[0] > 1 and any(side % part for side, part in inner):
            raise CodecError(
                f"chunks of {tuple(chunk)} end beyond an array of {shape} between others: what is "
                "there would spoil its neighbours; take parts of the sides, or the first side 1"
            )
        height, width = self._grid(tuple(chunk))
        if height * width > self.codec.max_tokens:
            raise CodecError(
                f"chunks of {height} x {width} tokens: this codec takes {self.codec.max_tokens}"
            )

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        y = chunk_data.as_numpy_array().reshape(*self._grid(chunk_spec.shape), self.codec.channels)
        there = (y != np.float32(chunk_spec.fill_value)).any(-1)
        # To the last row and column with a token that is there; one token of a chunk without any.
        height, width = (1 + int(np.flatnonzero(there.any(k)).max(initial=0)) for k in (1, 0))
        part = y[:height, :width].reshape(-1, self.codec.channels)
        blob = self.codec.encode(part, (height, width))
        return chunk_spec.prototype.buffer.from_bytes(blob)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        blob = chunk_data.to_bytes()
        height, width = self._grid(chunk_spec.shape)
        h, w = self.codec.grid_of(blob)
        if h > height or w > width:
            raise CorruptBlob(f"a chunk of {chunk_spec.shape} holds a blob of {h} x {w} tokens")
        y = np.full((height, width, self.codec.channels), chunk_spec.fill_value, np.float32)
        y[:h, :w] = self.codec.decode(blob).reshape(h, w, -1)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(y.reshape(chunk_spec.shape))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """No size is known beforehand."""
        raise NotImplementedError("the nec codec's output has no fixed size")

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        if len(shape) < 2 or shape[-1] != self.codec.channels:
            raise CodecError(
                f"chunks of shape {shape}: give [..., width, {self.codec.channels}], all channels "
                "in one chunk"
            )
        return math.prod(shape[:-2]), shape[-2]


def nec_codec(array: Any) -> OneRateCodec | None:
    """The codec that a Zarr array's chunks are coded with, or None if that is not `nec`."""
    codecs = list(array.metadata.codecs)
    while codecs:
        one = codecs.pop()
        if isinstance(one, NecCodec):
            return one.codec
        codecs += getattr(one, "codecs", ())
    return None
