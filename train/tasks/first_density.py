"""Initial gains and densities of a compression run, fitted to the data.

A fresh density is about four bits per element off, which takes thousands of steps to close at the
learning rate of a small batch. A gain of one is the right step for one lambda only.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from coder import QualityLadder
from nec_jax.models import density, nec, transform_bottleneck
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.bottleneck import bottleneck
from nec_jax.models.mae import random_masking
from nec_jax.models.weight_tree import Weights
from train.configs.options import Gain, OptionsError

# Symbols per standard deviation of a channel, from fine to coarse.
GAIN_LADDER = tuple(float(g) for g in 2.0 ** np.arange(5.0, -3.5, -0.5))
FIT_STEPS = 300  # to fit the densities that training starts from
TRY_STEPS = 40  # to fit densities that only compare gains
_SAMPLES = 1024  # tokens, about, to fit densities to: 58 parameters per channel need no more
FIT_LR = 2e-2


def calibrate_bottleneck(
    config: ModelConfig,
    weights: Weights,
    images: np.ndarray,
    key: jax.Array,
    *,
    lam: float,
    mask_ratio: float,
    gain: Gain,
    start: int = 0,
) -> tuple[Weights, dict[str, float]]:
    """Fit the densities to masked training images, and choose the gain for `lam`.

    The gain of channel d is g / std(y_d), with one g for all channels; or 1, as in the paper.

    Args:
      images: [N, H, W, C], some tens of training images; or the result of `nec.prefix` for them.
      gain: a number is this g, the symbols per standard deviation. "calibrated": the g of
        `GAIN_LADDER` with the smallest `lam * mse + bits_per_element` of rounded symbols.
        "identity": all gains are 1. "any" is only for transforms.
      start: number of blocks that the images have passed.

    Returns:
      The weights with a new bottleneck, and facts: the chosen g (0 if none), and the bits per
      element and mse of rounded symbols with it.
    """
    mask_key, noise_key, fresh_key = jax.random.split(key, 3)
    grid = nec.grid_of(config, images, start)
    mask_keys = jax.random.split(mask_key, len(images))
    y, kept, masked = _masked_latents(config, weights, images, mask_keys, mask_ratio, start)
    flat = y.reshape(-1, y.shape[-1])
    deviation = jnp.std(flat, axis=0)
    # A dead channel must not be magnified until its noise costs bits.
    deviation = jnp.maximum(deviation, 1e-3 * jnp.median(deviation) + 1e-6)
    fresh = density.init_density(fresh_key, config.embedding_width)
    goal = _targets(config, weights, images, start)

    def with_gain(log_gain: jax.Array, steps: int) -> Weights:
        z = flat * jnp.exp(log_gain)
        # Uniform noise widens the coded distribution, even of a dead channel.
        spread = jnp.sqrt(jnp.var(z, axis=0) + 1 / 12)
        params = density.match_moments(fresh, jnp.mean(z, 0), spread)
        params = fit_density(params, z[:: max(1, len(z) // _SAMPLES)], noise_key, steps)
        return {**weights, "bottleneck": {"log_gain": log_gain, "density": params}}

    def score(candidate: Weights) -> tuple[float, float]:
        mse, bits = _rounded(config, candidate, grid, y, goal, kept, masked)
        return float(mse), float(bits)

    if gain == "calibrated":
        lowest, gain = np.inf, 0.0
        for g in GAIN_LADDER:
            mse, bits = score(with_gain(jnp.log(g / deviation), TRY_STEPS))
            if lam * mse + bits < lowest:
                lowest, gain = lam * mse + bits, g
        if not np.isfinite(lowest):
            raise OptionsError("the model's loss on the data is not finite: is --init sound?")
    facts = {}
    if isinstance(gain, str):
        log_gain = jnp.zeros(config.embedding_width, jnp.float32)
    else:
        log_gain = jnp.log(gain / deviation)
        facts["gain"] = gain
    chosen = with_gain(log_gain, FIT_STEPS)
    mse, bits = score(chosen)
    return chosen, facts | {"bits_per_element": bits, "mse": mse}


def calibrate_transform(
    config: ModelConfig,
    weights: Weights,
    images: np.ndarray,
    key: jax.Array,
    codec: QualityLadder,
    *,
    lam: float,
    mask_ratio: float,
    gain: Gain,
    start: int = 0,
) -> tuple[Weights, dict[str, float]]:
    """A bottleneck with the transform of `codec`, and its step for `lam`.

    Args:
      images, start: as in `calibrate_bottleneck`.
      gain: a number is 1 / step. "calibrated": the codec's step with the smallest loss. "any": the
        same step for validation, while training draws steps from the codec's whole range.

    Returns:
      As `calibrate_bottleneck`.
    """
    grid = nec.grid_of(config, images, start)
    keys = jax.random.split(key, len(images))
    y, kept, masked = _masked_latents(config, weights, images, keys, 0.0, start)
    if mask_ratio:
        kept, masked = random_masking(keys, grid[0] * grid[1], mask_ratio)
    goal = _targets(config, weights, images, start)
    spread = transform_bottleneck.spread_of(codec.transform, np.asarray(y), grid)
    drawn = (float(codec.steps[-1]), float(codec.steps[0])) if gain == "any" else None

    def measured(step: float) -> tuple[float, Weights, dict[str, float]]:
        held = transform_bottleneck.initial(codec.transform, step, spread, drawn)
        candidate = {**weights, "bottleneck": held}
        mse, bits = map(float, _rounded(config, candidate, grid, y, goal, kept, masked))
        facts = {"gain": 1 / step, "bits_per_element": bits, "mse": mse}
        return lam * mse + bits, candidate, facts

    steps = [1 / gain] if isinstance(gain, float) else [float(step) for step in codec.steps]
    lowest, chosen, facts = min((measured(step) for step in steps), key=lambda found: found[0])
    if not np.isfinite(lowest):
        raise OptionsError("the model's loss on the data is not finite: is --init sound?")
    return chosen, facts


@functools.partial(jax.jit, static_argnames="steps")
def fit_density(params: density.Params, z: jax.Array, key: jax.Array, steps: int) -> density.Params:
    """Fit densities to samples z [N, C] with uniform noise: maximum likelihood, by Adam."""
    tx = optax.adam(optax.cosine_decay_schedule(FIT_LR, steps))

    def loss(params: density.Params, key: jax.Array) -> jax.Array:
        noise = jax.random.uniform(key, z.shape, z.dtype, -0.5, 0.5)
        return jnp.mean(density.bin_bits(params, z + noise)) * z.shape[1]

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key, steps)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
    return params


_masked_latents = jax.jit(nec.masked_latents, static_argnames=("config", "mask_ratio", "start"))
_targets = jax.jit(nec.targets, static_argnames=("config", "start"))


@functools.partial(jax.jit, static_argnames=("config", "grid"))
def _rounded(
    config: ModelConfig,
    weights: Weights,
    grid: tuple[int, int],
    y: jax.Array,
    goal: jax.Array,
    kept: jax.Array | None,
    masked: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    y_hat, bits = bottleneck(weights["bottleneck"], y, "hard", grid=grid)
    if kept is not None and "transform" in weights["bottleneck"]:
        y_hat = nec.visible(y_hat, kept, grid)
    mse = nec.distortion(config, weights, y_hat, goal, grid, kept, masked)
    return mse, jnp.mean(bits)
