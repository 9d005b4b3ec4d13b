"""Embeddings <-> bytes. Needs NumPy and constriction, and no deep-learning framework.

`load` opens a codec and `fit` makes one; the codecs are in `coder.codecs`. `Pool` codes on all
cores. `coder.archive` keeps embeddings of many images in a Zarr group, and `open` reads them;
`coder.scenes` keeps those of georeferenced scenes, and `open_scene` reads them.
`load_head` applies heads that nec_jax trained. `python -m coder` is the command line.

```python
codec = coder.load("codec.safetensors")
blob = codec.encode(y, grid=(14, 14))  # y: float [n, D]
y_hat = codec.decode(blob)  # float32 [n, D]
embeddings = coder.open("archive.zarr")  # of many images; embeddings[5] is float32 [y, x, channel]
```
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

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
    StoreError,
    TruncatedBlob,
    UnsupportedVersion,
    UnusualEmbedding,
    WrongCodec,
)
from coder.fitting import StatedError, fit, fit_measured, fit_refiner
from coder.pool import Pool
from coder.refiner import Refiner, load_refiner
from coder.task_heads import Head, load_head

if TYPE_CHECKING:
    from coder.archive.embeddings import Embeddings
    from coder.scenes.scene_reader import Scene

__version__ = version("nec-jax")

__all__ = [
    "BlobError",
    "CodecError",
    "CorruptBlob",
    "EmbeddingCodec",
    "FileError",
    "Head",
    "InputError",
    "LossyWrite",
    "OutputError",
    "Pool",
    "PoolError",
    "QualityLadder",
    "Refiner",
    "ScalarCodec",
    "StatedError",
    "StoreError",
    "Tables",
    "TransformCodec",
    "TruncatedBlob",
    "UnsupportedVersion",
    "UnusualEmbedding",
    "WrongCodec",
    "__version__",
    "fit",
    "fit_measured",
    "fit_refiner",
    "from_bytes",
    "load",
    "load_head",
    "load_refiner",
    "open",
    "open_scene",
]


def open(store: Any, *, refine: bool = False, masked: bool = True) -> "Embeddings":
    """Open the embeddings of an archive, to be sliced like an array. See `Embeddings`.

    Args and errors are those of `coder.archive.embeddings.Embeddings`.
    """
    from coder.archive.embeddings import Embeddings  # zarr is slow to import

    return Embeddings(store, refine=refine, masked=masked)


def open_scene(store: Any, *, refine: bool = False) -> "Scene":
    """Open the embeddings of a georeferenced scene, to be read by map coordinates. See `Scene`.

    Args and errors are those of `coder.scenes.scene_reader.Scene`.
    """
    from coder.scenes.scene_reader import Scene  # zarr is slow to import

    return Scene(store, refine=refine)
