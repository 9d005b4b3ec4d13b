"""An archive of few embeddings, and what is to be read of it."""

import json
from typing import Any

import numpy as np
import zarr
from coder_cases import fitted_codec, laplace_embeddings

from coder import archive

COUNT, GRID, SHARD = 37, (3, 4), 8
BAD = {0, 10, *range(16, 24), 36}  # images without embedding: all those of the third shard
Y = laplace_embeddings(1, COUNT, 13, np.array([0.1, 1, 30]))
CODEC = fitted_codec(Y, class_token=True)
Y_HAT = CODEC.dequantise(CODEC.quantise(Y))
EMBEDDING, CLASS_TOKEN = Y[:, 1:].reshape(COUNT, *GRID, 3), Y[:, 0]
EMBEDDING_HAT, CLASS_TOKEN_HAT = Y_HAT[:, 1:].reshape(COUNT, *GRID, 3), Y_HAT[:, 0]


def opened(store, mode: Any = "r") -> Any:
    # Any: a type checker cannot know which of a group's members are arrays.
    return zarr.open_group(store, mode=mode)


def created(*arguments, **settings) -> Any:
    return archive.create(*arguments, **settings)


def filled(store, shard=SHARD) -> Any:
    """A complete archive, whose arrays are written by assignment."""
    group = created(store, CODEC, COUNT, GRID, shard=shard)
    group["embedding"][:] = EMBEDDING
    group["class_token"][:] = CLASS_TOKEN
    group["id"][:] = np.array([f"image {i}" for i in range(COUNT)])
    group["label"][:] = np.arange(COUNT)
    group["valid"][:] = True
    archive.finish(group)
    return group


def written(store, unreadable=(), *, stop=None, **settings) -> Any:
    """An archive of `archive.Writer`; images of these numbers could not be read.

    With `stop`, the writer is stopped after so many shards.
    """
    with archive.Writer(store, CODEC, COUNT, GRID, shard=SHARD, **settings) as writer:
        for part in writer.missing()[:stop]:
            numbers = range(part.start, part.stop)
            errors = [f"no image: {i}.png" if i in unreadable else None for i in numbers]
            good = [i for i in numbers if i not in unreadable]
            writer.write(part, Y[good], [f"image {i}" for i in numbers], numbers, errors)
        if stop is None:
            writer.finish()
        return writer.group


def contents(path) -> dict:
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def change(path, edit) -> None:
    """Edit a JSON file in place."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
