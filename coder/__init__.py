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
    TruncatedBlob,
    UnsupportedVersion,
    WrongCodec,
)
from coder.pool import Pool
from coder.tables import Tables

__all__ = [
    "BlobError",
    "CodecError",
    "CorruptBlob",
    "EmbeddingCodec",
    "FileError",
    "InputError",
    "Pool",
    "Tables",
    "TruncatedBlob",
    "UnsupportedVersion",
    "WrongCodec",
]
