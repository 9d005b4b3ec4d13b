"""Embeddings <-> bytes. NumPy and constriction only: a consumer needs no deep-learning framework.

```python
codec = coder.EmbeddingCodec.load("codec.safetensors")
blob = codec.encode(y, grid=(14, 14))  # y: float [n, D]
y_hat = codec.decode(blob)  # float32 [n, D]
```
"""

from coder.codec import EmbeddingCodec
from coder.errors import (
    BlobError,
    CodecError,
    CorruptBlob,
    FileError,
    InputError,
    LossyWrite,
    OutputError,
    PoolError,
    TruncatedBlob,
    UnsupportedVersion,
    UnusualEmbedding,
    WrongCodec,
)
from coder.fitting import fit
from coder.pool import Pool
from coder.rate_ladder import RateLadder
from coder.scalar_codec import ScalarCodec
from coder.tables import Tables
from coder.transform_codec import TransformCodec

__all__ = [
    "BlobError",
    "CodecError",
    "CorruptBlob",
    "EmbeddingCodec",
    "FileError",
    "InputError",
    "LossyWrite",
    "OutputError",
    "Pool",
    "PoolError",
    "RateLadder",
    "ScalarCodec",
    "Tables",
    "TransformCodec",
    "TruncatedBlob",
    "UnsupportedVersion",
    "UnusualEmbedding",
    "WrongCodec",
    "fit",
]
