"""Embeddings <-> bytes. Needs NumPy and constriction, and no deep-learning framework.

`load` opens a codec and `fit` makes one; the codecs are in `coder.codecs`. `Pool` codes on all
cores. `coder.archive` keeps embeddings of many images in a Zarr group; `python -m coder` is the
command line.

```python
codec = coder.load("codec.safetensors")
blob = codec.encode(y, grid=(14, 14))  # y: float [n, D]
y_hat = codec.decode(blob)  # float32 [n, D]
```
"""

from importlib.metadata import version

from coder.codecs import (
    EmbeddingCodec,
    QualityLadder,
    ScalarCodec,
    TransformCodec,
    from_bytes,
    load,
)
from coder.entropy import Tables
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

__version__ = version("nec-jax")

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
    "QualityLadder",
    "ScalarCodec",
    "Tables",
    "TransformCodec",
    "TruncatedBlob",
    "UnsupportedVersion",
    "UnusualEmbedding",
    "WrongCodec",
    "__version__",
    "fit",
    "from_bytes",
    "load",
]
