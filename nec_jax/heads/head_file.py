"""The file of a head: weights and config in one safetensors file, with its digest."""

import os

import jax

from coder import FileError
from coder.errors import about
from coder.format import container
from coder.task_heads.task_head import KIND, REFINER, read_parts
from nec_jax.heads.head import HeadConfig, HeadParams
from nec_jax.heads.network import init_weights
from nec_jax.jax_defaults import jax_defaults
from nec_jax.model_file import as_stored, check_float32
from nec_jax.models.refiner_network import shapes
from nec_jax.models.weight_tree import flatten_weights, unflatten_weights


@jax_defaults()
def save(head: HeadParams, path: str | os.PathLike[str]) -> None:
    """Write a head's file. Raises InputError for weights that are not float32."""
    weights = flatten_weights(head.weights)
    check_float32(weights)
    # Those of a refiner are large, and float16 holds them. All others have always been float32.
    stored = {k: as_stored(v) if k.startswith(REFINER) else v for k, v in weights.items()}
    container.write(path, KIND, stored, {"config": head.config.to_meta()})


@jax_defaults()
def load(path: str | os.PathLike[str]) -> HeadParams:
    """Read a head's file.

    Raises:
      FileError: no such file, a damaged one, or one of another kind.
    """
    tensors, meta = read_parts(path)
    try:
        config = HeadConfig.from_meta(meta)
        like = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
        if config.refine:
            width = config.model.embedding_width
            like |= {"refiner": shapes(width, container.under(REFINER, tensors))}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"unusable head configuration: {error}", path) from error
    with about(path):
        return HeadParams(unflatten_weights(tensors, like), config)
