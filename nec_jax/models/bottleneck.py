"""The bottleneck in training: the values that the decoder sees, and the bits that they cost."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from coder import InputError
from nec_jax.models import density, transform_bottleneck
from nec_jax.models.rounding import Rounding, soft_round
from nec_jax.models.weight_tree import Weights


def bottleneck(
    weights: Weights,
    y: Float[Array, "b n d"],
    rounding: Rounding,
    keys: Key[Array, " b"] | None = None,
    alpha: Float[Array, ""] | float = 1.0,
    grid: tuple[int, int] | None = None,
) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
    """Quantise y, or imitate that in training, and measure its rate in bits.

    Args:
      weights: the sub-tree `bottleneck` of a model's weights; for training through a transform, the
        tree that `nec_jax.models.transform_bottleneck.initial` makes.
      y: float32 [B, n, D].
      rounding: what the decoder sees. `noise`: y plus uniform noise, as in the paper;
        `straight-through`: the rounded y with the gradient of y (Minnen and Singh 2020);
        `soft`: `soft_round` with sharpness `alpha`. All three measure the rate of the noisy y.
        `hard`, for validation: the rounded y, with the rate of the rounded symbols. A transform
        measures some rates otherwise, see `transform_bottleneck.bottleneck`.
      keys: random keys of the noise [B], one per image; not needed by `hard`.
      alpha: sharpness of `soft`.
      grid: token grid (height, width); needed with a transform.

    Returns:
      y_hat [B, n, D], and the bits of each channel or component of each token, [B, n, D].
    """
    if "transform" in weights:
        assert grid is not None
        return transform_bottleneck.bottleneck(weights, y, grid, rounding, keys, alpha)
    gain = jnp.exp(weights["log_gain"])
    params = weights["density"]
    z = y * gain
    median = density.quantile(params, 0.5)
    rounded = jnp.round(z - median) + median
    if rounding == "hard":
        return rounded / gain, density.bin_bits(params, rounded)
    if keys is None:
        raise InputError(f"rounding {rounding!r} draws noise: pass keys")
    noisy = z + jax.vmap(lambda key: jax.random.uniform(key, z.shape[1:], z.dtype, -0.5, 0.5))(keys)
    seen = {
        "noise": lambda: noisy,
        "straight-through": lambda: z + jax.lax.stop_gradient(rounded - z),
        "soft": lambda: soft_round(z - median, alpha) + median,
    }[rounding]()
    return seen / gain, density.bin_bits(params, noisy)


class Bottleneck(nn.Module):
    """Holds the density and the logarithm of the gains."""

    channels: int

    @nn.compact
    def __call__(self) -> Weights:  # noqa: D102
        shape = (self.channels,)
        gain = self.param("log_gain", nn.initializers.zeros, shape, jnp.float32)
        return {"log_gain": gain, "density": density.FactorisedDensity(*shape, name="density")()}
