"""The fully factorised density of Balle et al. 2018 (arXiv 1802.01436, appendix 6.1).

One univariate density per channel, defined by its cumulative distribution

    c(x) = sigmoid(f_K(... f_1(x))),   f_k(h) = g_k(M_k h + b_k),
    g_k(h) = h + tanh(a_k) * tanh(h)   (the last layer has none),

whose matrices M_k pass through a softplus, so that c is monotone. Everything here is element-wise
over channels, written on arrays `[..., C]`; parameters are dictionaries of `[C, rows, columns]`
matrices, `[C, rows]` biases and gates. Medians and tails are found by bisection on the monotone c:
exact at every step, without a second loss, optimiser or state. (The paper trains them by an
auxiliary loss, which lags behind the density and is lost in its checkpoints.)
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

WIDTHS = (3, 3, 3, 3)
INIT_SCALE = 10.0
LIKELIHOOD_FLOOR = 1e-9
_BRACKET = 2.0**24  # quantiles are sought in +-this; float32 has no half-integers beyond

Params = dict[str, Array]


def init_density(key: Key[Array, ""], channels: int, widths: Sequence[int] = WIDTHS) -> Params:
    """Parameters of `channels` densities with a typical width of 10 (`INIT_SCALE`)."""
    sizes = (1, *widths, 1)
    scale = INIT_SCALE ** (1 / (len(sizes) - 1))
    params: Params = {}
    for k, (columns, rows) in enumerate(itertools.pairwise(sizes)):
        start = np.log(np.expm1(1 / scale / rows))
        params[f"matrix_{k}"] = jnp.full((channels, rows, columns), start, jnp.float32)
        key, sub = jax.random.split(key)
        shape = (channels, rows)
        params[f"bias_{k}"] = jax.random.uniform(sub, shape, jnp.float32, -0.5, 0.5)
        if k < len(sizes) - 2:
            params[f"gate_{k}"] = jnp.zeros(shape, jnp.float32)
    return params


def logits_cdf(params: Any, x: Any, xp: Any = jnp) -> Any:
    """log(c(x) / (1 - c(x))) for x [..., C]; increasing in x. `xp` is jax.numpy or numpy."""
    layers = sum(name.startswith("matrix") for name in params)
    hidden = [x]
    for k in range(layers):
        matrix = xp.logaddexp(params[f"matrix_{k}"], 0.0)  # softplus
        bias = params[f"bias_{k}"]
        rows = []
        for i in range(matrix.shape[1]):
            h = bias[:, i]
            for j, value in enumerate(hidden):
                h = h + matrix[:, i, j] * value
            if k < layers - 1:
                h = h + xp.tanh(params[f"gate_{k}"][:, i]) * xp.tanh(h)
            rows.append(h)
        hidden = rows
    return hidden[0]


def bin_prob(params: Params, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Probability of the unit bin around x: c(x + 1/2) - c(x - 1/2)."""
    lower, upper = logits_cdf(params, jnp.stack([x - 0.5, x + 0.5]))
    # On the right tail both sigmoids round to one: subtract their complements there. Not by
    # `-sign(lower + upper)`, whose zero would give the bin around the median probability 0.
    sign = jnp.where(lower + upper > 0, -1.0, 1.0)
    return jnp.abs(jax.nn.sigmoid(sign * upper) - jax.nn.sigmoid(sign * lower))


@jax.custom_vjp
def _floor(prob: jax.Array) -> jax.Array:
    return jnp.maximum(prob, LIKELIHOOD_FLOOR)


def _floor_bwd(inside: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    # Below the floor only a gradient that raises the probability passes.
    return (jnp.where(inside | (grad < 0), grad, 0.0),)


_floor.defvjp(lambda prob: (_floor(prob), prob >= LIKELIHOOD_FLOOR), _floor_bwd)


def bin_bits(params: Params, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Bits to code the unit bin around x: -log2 of its floored probability."""
    return -jnp.log2(_floor(bin_prob(params, x)))


@functools.partial(jax.jit, static_argnames="prob")
def quantile(params: Params, prob: float) -> Float[Array, " d"]:
    """The `prob`-quantile of each channel, by bisection."""
    target = math.log(prob) - math.log1p(-prob)  # in float32, 1 - 1e-9 is 1
    channels = params["bias_0"].shape[0]
    params = jax.lax.stop_gradient(params)

    def halve(_: Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        below = logits_cdf(params, middle) < target
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    edge = jnp.full(channels, _BRACKET, jnp.float32)
    low, high = jax.lax.fori_loop(0, 48, halve, (-edge, edge))
    return 0.5 * (low + high)


def match_moments(params: Params, mean: Float[Array, " d"], std: Float[Array, " d"]) -> Params:
    """Shift and stretch fresh densities (`init_density`) to median `mean` and deviation `std` [C].

    A fresh density is close to a logistic distribution of scale `INIT_SCALE`, whose standard
    deviation is pi / sqrt(3) times its scale.
    """
    scale = std * math.sqrt(3) / math.pi
    centre = quantile(params, 0.5)
    # The first layer should see stretch * (x - mean) + centre: fold that into matrix and bias.
    fresh = jax.nn.softplus(params["matrix_0"])
    matrix = fresh * (INIT_SCALE / scale[:, None, None])
    inverse_softplus = jnp.where(matrix > 20, matrix, jnp.log(jnp.expm1(jnp.minimum(matrix, 20))))
    bias = params["bias_0"] + (fresh * centre[:, None, None] - matrix * mean[:, None, None])[..., 0]
    return {**params, "matrix_0": inverse_softplus, "bias_0": bias}


class FactorisedDensity(nn.Module):
    """Holds the parameters of `channels` densities; the maths is in the functions above."""

    channels: int

    @nn.compact
    def __call__(self) -> Params:
        """The parameters, as the functions of this module take them."""
        # One flax parameter per array, so that masks and counts see each of them.
        fresh = jax.eval_shape(lambda k: init_density(k, self.channels), jax.random.key(0))
        return {
            name: self.param(name, lambda k, n=name: init_density(k, self.channels)[n])
            for name in fresh
        }
