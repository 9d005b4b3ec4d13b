"""Codecs: embeddings <-> blobs. Every codec is an `EmbeddingCodec`; `load` opens any of them.

`base` has what all codecs share: files, fingerprints and the frame of a blob. `scalar_codec` codes
each channel by itself, with `scalar_quantiser`. `transform_codec` codes the coefficients of a
transform at one quality, and `quality_ladder` (`QualityLadder`) at many; `coefficients` has what
the two share: the layout of tables and the order of coding. `loading` opens files. The byte layout
of a blob is in `coder.format.blob`, the dead zone in `coder.transform.dead_zone`.
"""

from coder.codecs.base import CODEC, EmbeddingCodec, OneQualityCodec
from coder.codecs.coefficients import NOT_CODED, renumbered
from coder.codecs.loading import MODEL, from_bytes, from_parts, load, of_file, with_refiner_of
from coder.codecs.quality_ladder import QualityLadder
from coder.codecs.scalar_codec import ScalarCodec
from coder.codecs.scalar_quantiser import quantise
from coder.codecs.transform_codec import TransformCodec

__all__ = [
    "CODEC",
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
    "of_file",
    "quantise",
    "renumbered",
    "with_refiner_of",
]
