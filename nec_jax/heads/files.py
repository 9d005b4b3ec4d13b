"""The file of a head: weights and config in one safetensors file, with its digest."""

import os
from pathlib import Path

import jax

from coder import FileError, safefile
from nec_jax.heads.network import init_weights
from nec_jax.heads.params import HeadConfig, HeadParams
from nec_jax.params import flatten_weights, unflatten_weights

_KIND = "head"


def save(head: HeadParams, path: str | os.PathLike[str]) -> None:
    """Write a head's file."""
    content = {"config": head.config.to_meta()}
    safefile.write(path, _KIND, flatten_weights(head.weights), content)


def load(path: str | os.PathLike[str]) -> HeadParams:
    """Read a head's file.

    Raises:
      FileError: no such file, a damaged one, or one of another kind.
    """
    if not Path(path).is_file():
        raise FileError(f"no head file {os.fspath(path)!r}: save one with nec_jax.heads.save")
    tensors, content = safefile.read(path, _KIND)
    if content.keys() != {"config"}:
        raise FileError(f"{path}: not the content of a head file: update nec-jax")
    try:
        config = HeadConfig.from_meta(content["config"])
        like = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path}: unusable head configuration: {error}") from error
    return HeadParams(unflatten_weights(tensors, like), config)
