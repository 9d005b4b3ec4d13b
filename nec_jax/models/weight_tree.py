"""Weight trees: nested dictionaries of arrays, and their leaves by path as in files."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from coder.format import container

Weights = Any
"""{"encoder": ..., "bottleneck": ..., "decoder": ...}. There is no decoder if `decoder_target` is
"none". Training on features adds "teacher": the initial values of those encoder weights that train.
`merge` with the encoder completes it."""


def path_name(path: Iterable[Any]) -> str:
    """A key path of a weight tree as text: `encoder/block_0/mlp/fc1/kernel`."""
    return "/".join(str(getattr(k, "key", k)) for k in path)


def split(weights: Weights, train: Callable[[str], bool]) -> tuple[Weights, Weights]:
    """Split a weight tree into two of the same structure; each has None for the other's leaves."""

    def pick(want: bool) -> Weights:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if train(path_name(path)) is want else None, weights
        )

    return pick(True), pick(False)


def merge(one: Weights, other: Weights) -> Weights:
    """The inverse of `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, one, other, is_leaf=lambda x: x is None)


def flatten_weights(weights: Weights) -> dict[str, np.ndarray]:
    """A weight tree as {path: array}, as files name them: `encoder/block_0/mlp/fc1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(weights)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def unflatten_weights(tensors: dict[str, np.ndarray], like: Weights) -> Weights:
    """The inverse of `flatten_weights`, for a tree with the shapes of `like`.

    Raises:
      FileError: a missing or unexpected tensor, or one of another shape or dtype, by name.
    """
    expected = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    container.check_weights(tensors, {name: leaf.shape for name, leaf in expected.items()})
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.numpy.asarray(tensors[path_name(path)], leaf.dtype), like
    )
