"""Apply a head: decoded embeddings -> probabilities or classes."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.task_heads.head_settings import (
    OTHER_SIZE,
    batch_size,
    check_embeddings,
    check_tokens,
)
from nec_jax.heads.head import HeadConfig, HeadParams
from nec_jax.heads.network import logits
from nec_jax.jax_defaults import jax_defaults
from nec_jax.models.refiner_network import refined
from nec_jax.models.weight_tree import Weights

_BATCH = 128


@jax_defaults()
def predict_proba(head: HeadParams, y_hat: ArrayLike) -> NDArray[np.float32]:
    """Probabilities of the classes: float32 [N, K], or [N, H, W, K] for masks.

    Linear heads give the softmax of their regression scores, which ranks the classes but is not
    calibrated. For masks, `predict` needs only 1/K of the memory.

    Args:
      head: a trained head.
      y_hat: plain decoded embeddings [N, n, D], with the grid that the head was trained on. A head
        that was fitted to refined embeddings refines them itself.

    Raises:
      InputError: embeddings of another shape, or with NaN or infinity.
    """
    return _infer(head, y_hat, probabilities=True)


@jax_defaults()
def predict(head: HeadParams, y_hat: ArrayLike) -> NDArray[np.int32]:
    """The most probable class: int32 [N], or [N, H, W] for masks. Raises as `predict_proba`."""
    return _infer(head, y_hat, probabilities=False)


def _infer(head: HeadParams, y_hat: ArrayLike, probabilities: bool) -> NDArray:
    y = check_embeddings(head.config.model, y_hat, "y_hat")
    check_tokens(head.config, y, "y_hat", OTHER_SIZE)
    apply = functools.partial(_apply, head.weights, head.config, probabilities=probabilities)
    return in_batches(apply, batch_size(head.config), y)


def in_batches(function: Callable[..., ArrayLike], size: int, *arrays: NDArray) -> NDArray:
    """Apply a function of arrays [size, ...] to arrays [N, ...], in batches of one size."""
    found = None
    for start in range(0, len(arrays[0]), size):
        batch = [values[start : start + size] for values in arrays]
        count = len(batch[0])
        # One shape: one compilation, and no result depends on how many others there are.
        padded = [np.pad(v, [(0, size - count), *[(0, 0)] * (v.ndim - 1)]) for v in batch]
        part = np.asarray(function(*padded))[:count]
        if found is None:
            found = np.empty((len(arrays[0]), *part.shape[1:]), part.dtype)
        found[start : start + count] = part
    assert found is not None
    return found


def refined_all(
    config: HeadConfig, refiner: Weights, y_hat: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Refine embeddings [N, n, D] by the arrays of a refiner."""
    return in_batches(functools.partial(_refined, refiner, grid=config.grid), _BATCH, y_hat)


_refined = jax.jit(refined, static_argnames="grid")


@functools.partial(jax.jit, static_argnames=("config", "probabilities"))
def _apply(
    weights: Weights, config: HeadConfig, y_hat: jax.Array, probabilities: bool
) -> jax.Array:
    with jax.default_matmul_precision("float32"):
        out = logits(config, weights, y_hat)
    return jax.nn.softmax(out, axis=-1) if probabilities else jnp.argmax(out, -1).astype(np.int32)
