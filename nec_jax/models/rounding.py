"""Rounding, and its replacements in training."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Rounding = Literal["noise", "straight-through", "soft", "hard"]


def soft_round(
    x: Float[Array, " *shape"], alpha: Float[Array, ""] | float
) -> Float[Array, " *shape"]:
    """A smooth approximation of rounding; exact for alpha -> infinity, identity for alpha -> 0.

    Agustsson and Theis 2020 (arXiv 2006.09952), equation 14.
    """
    alpha = jnp.maximum(alpha, 1e-2)
    middle = jnp.floor(x) + 0.5
    return middle + jnp.tanh(alpha * (x - middle)) / (2 * jnp.tanh(alpha / 2))
