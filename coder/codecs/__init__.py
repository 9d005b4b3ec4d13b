"""Codecs: embeddings <-> blobs.

`ScalarCodec` codes channels as they are, `TransformCodec` coefficients, `QualityLadder`
coefficients at many qualities. All are an `EmbeddingCodec`; `load` opens any of them.
"""

from coder.codecs.base import EmbeddingCodec, OneQualityCodec
from coder.codecs.coefficients import NOT_CODED, renumbered
from coder.codecs.ladder import QualityLadder
from coder.codecs.loading import MODEL, from_bytes, from_parts, load
from coder.codecs.quantiser import quantise
from coder.codecs.scalar_codec import ScalarCodec
from coder.codecs.transform_codec import TransformCodec

__all__ = [
    "MODEL",
    "NOT_CODED",
    "EmbeddingCodec",
    "OneQualityCodec",
    "QualityLadder",
    "ScalarCodec",
    "TransformCodec",
    "from_bytes",
    "from_parts",
    "load",
    "quantise",
    "renumbered",
]
