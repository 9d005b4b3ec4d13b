"""Codecs: embeddings <-> blobs.

`ScalarCodec` codes channels as they are, `TransformCodec` coefficients, `RateLadder` coefficients
at many rates. All are an `EmbeddingCodec`; `load` opens any of them.
"""

from coder.codecs.base import EmbeddingCodec, OneRateCodec
from coder.codecs.coefficients import NOT_CODED, renumbered
from coder.codecs.ladder import RateLadder
from coder.codecs.loading import MODEL, from_bytes, from_parts, load
from coder.codecs.quantiser import quantise
from coder.codecs.scalar_codec import ScalarCodec
from coder.codecs.transform_codec import TransformCodec

__all__ = [
    "MODEL",
    "NOT_CODED",
    "EmbeddingCodec",
    "OneRateCodec",
    "RateLadder",
    "ScalarCodec",
    "TransformCodec",
    "from_bytes",
    "from_parts",
    "load",
    "quantise",
    "renumbered",
]
