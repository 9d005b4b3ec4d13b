"""The losses that training minimises, and the metrics of validation. `--lambda` acts here."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Num

from nec_jax.models.architecture import ModelConfig
from nec_jax.models.nec import forward
from nec_jax.models.rounding import Rounding
from nec_jax.models.weight_tree import Weights

Metrics = dict[str, Float[Array, ""]]
Batch = dict[str, Num[Array, " b *image"]]
Keys = Key[Array, " b"]
SOFT_ALPHA = (1.0, 16.0)  # sharpness of soft rounding, from the first step to the last


class Objective(NamedTuple):
    """What training minimises, and what validation measures.

    Attributes:
      loss: (weights, batch, keys, progress in [0, 1]) -> loss, metrics.
      validate: (weights, batch, keys) -> metrics, each a mean over the images; one is `loss`.

    A batch is {"image": [B, H, W, C]}; or, after some blocks, {"tokens": [B, n, width]}. There is
    one key per image, [B].
    """

    loss: Callable[[Weights, Batch, Array, Array], tuple[Array, Metrics]]
    validate: Callable[[Weights, Batch, Array], Metrics]


def measured_alike(measure: Callable[[Weights, Batch, Array], Metrics]) -> Objective:
    """An objective that validates with the measure that it minimises."""

    def loss(
        weights: Weights, batch: Batch, keys: Keys, progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        metrics = measure(weights, batch, keys)
        return metrics["loss"], metrics

    return Objective(loss, measure)


def mae(config: ModelConfig, mask_ratio: float) -> Objective:
    """The loss of a masked autoencoder: mse of the hidden patches."""
    run = functools.partial(forward, config, mask_ratio=mask_ratio, rounding=None)

    def measure(weights: Weights, batch: Batch, keys: Keys) -> Metrics:
        mse = run(weights, batch["image"], keys).mse
        return {"loss": mse, "mse": mse}

    return measured_alike(measure)


def rate_distortion(
    config: ModelConfig, lam: float, rounding: Rounding, mask_ratio: float, start: int = 0
) -> Objective:
    """`lam * mse + bits_per_element`: the paper's loss, made independent of the batch size.

    In training, the rate is that of the noisy latent (with a transform, see
    `nec_jax.models.transform_bottleneck`), and the distortion follows `rounding`. In validation,
    both are those of rounded symbols. With `start`, batches hold the tokens after `start` blocks.
    """
    elements = config.grid(config.image_size, config.image_size)
    elements = (elements[0] * elements[1] + config.code_class_token) * config.embedding_width
    run = functools.partial(forward, config, mask_ratio=mask_ratio, start=start)

    def measure(weights: Weights, batch: Batch, keys: Keys, **how: Any) -> Metrics:
        losses = run(weights, batch["tokens" if start else "image"], keys, **how)
        bits = losses.bits_per_element
        return {
            "loss": lam * losses.mse + bits,
            "mse": losses.mse,
            "bits_per_element": bits,
            "bits_per_image": bits * elements,  # at the bits per element of masked inputs
        }

    def loss(
        weights: Weights, batch: Batch, keys: Keys, progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        low, high = SOFT_ALPHA
        alpha = low * (high / low) ** progress
        metrics = measure(weights, batch, keys, rounding=rounding, alpha=alpha)
        return metrics["loss"], metrics

    return Objective(loss, functools.partial(measure, rounding="hard"))


def mean_metrics(batches: Sequence[Mapping[str, ArrayLike]], sizes: list[int]) -> dict[str, float]:
    """The mean of metrics over batches, weighted by the images in each."""
    total = sum(sizes)
    return {
        name: float(sum(jnp.asarray(b[name]) * n for b, n in zip(batches, sizes, strict=True)))
        / total
        for name in batches[0]
    }
