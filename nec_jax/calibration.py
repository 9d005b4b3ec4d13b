"""Give a trained model its codec: tables fitted on whole images, then frozen."""

import dataclasses
import json
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from coder import EmbeddingCodec, InputError, QualityLadder, ScalarCodec, Tables
from coder.codecs import quantise
from coder.entropy import pmf_from_counts
from coder.fitting import fit_for_model
from coder.format.container import canonical_json
from coder.transform import Transform
from nec_jax.api import latents
from nec_jax.jax_defaults import jax_defaults
from nec_jax.model_file import NecParams
from nec_jax.models import density
from nec_jax.models.weight_tree import Weights

# The density's pmf weighs as much as this many symbols: almost nothing beside the counts of the
# grid's tables (images x tokens), but a sensible prior for those of the class token (images).
PRIOR_STRENGTH = 32.0
TAIL_MASS = 1e-6
_WIDEST = 4096  # symbols on each side of the median that the density's own pmf covers


@jax_defaults()
def bottleneck_scales(weights: Weights) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Offsets and steps [D] of the codec: y_hat = q * step + offset; step = 1 / gain."""
    steps = np.exp(-np.asarray(weights["bottleneck"]["log_gain"], np.float32))
    medians = np.asarray(density.quantile(weights["bottleneck"]["density"], 0.5))
    return medians * steps, steps


@jax_defaults()
def density_pmfs(params: density.Params) -> list[tuple[int, NDArray[np.float64]]]:
    """The learned pmf of each channel's symbols: [(smallest symbol, probabilities)] * D.

    Symbol k is the unit bin around median + k (the paper's p_e). Covers all but `TAIL_MASS`.
    """
    median = density.quantile(params, 0.5)
    low = np.asarray(jnp.floor(density.quantile(params, TAIL_MASS / 2) - median + 0.5))
    high = np.asarray(jnp.ceil(density.quantile(params, 1 - TAIL_MASS / 2) - median - 0.5))
    low = np.clip(low, -_WIDEST, 0).astype(int)
    high = np.clip(high, 0, _WIDEST).astype(int)
    symbols = np.arange(low.min(), high.max() + 1)
    # NumPy in float64, not XLA: on two cores, XLA's program for this density gave either of two
    # results for the same input, one unit in the last place apart.
    arrays = {name: np.asarray(value, np.float64) for name, value in params.items()}
    ends = np.arange(low.min(), high.max() + 2)[:, None] - 0.5 + np.asarray(median, np.float64)
    logits = np.asarray(density.logits_cdf(arrays, ends, np))
    sign = np.where(logits[1:] + logits[:-1] > 0, -1.0, 1.0)
    prob = np.abs(_sigmoid(sign * logits[1:]) - _sigmoid(sign * logits[:-1]))
    pmfs = []
    for d, (first, last) in enumerate(zip(low, high, strict=True)):
        pmf = prob[first - symbols[0] : last - symbols[0] + 1, d]
        pmfs.append((int(first), pmf / max(1.0, pmf.sum())))
    return pmfs


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0.0, -x))


def calibrate(
    params: NecParams, images: NDArray | Iterable[NDArray], provenance: dict | None = None
) -> NecParams:
    """Give a model its codec: tables counted on whole images, smoothed by the learned density.

    The density was trained on masked inputs (a quarter of the tokens). Whole inputs have other
    statistics, so the tables are counted on those; arXiv 2403.17886 uses the densities as trained.
    Each channel has one table for all tokens of the grid, and one for the class token.

    Args:
      params: a trained model; its codec, if any, is replaced.
      images: [N, H, W, C], or an iterable of such batches; some hundreds of training images.
      provenance: facts that JSON can hold, to merge into the model's provenance.

    Returns:
      The same model with a codec.
    """
    batches = [images] if isinstance(images, (np.ndarray, jax.Array)) else images
    return calibrate_latents(params, (latents(params, x) for x in batches), provenance)


def calibrate_latents(
    params: NecParams, batches: Iterable[NDArray], provenance: dict | None = None
) -> NecParams:
    """Calibrate a model on the embeddings [N, (1 +) T, D] of whole images, batch by batch."""
    offsets, steps = bottleneck_scales(params.weights)
    parts = [quantise(y, offsets, steps) for y in batches]
    if not parts:
        raise InputError("no images to calibrate on: pass some hundreds of training images")
    symbols = np.concatenate(parts)
    start = int(params.config.code_class_token)
    priors = density_pmfs(params.weights["bottleneck"]["density"])
    rows = [
        pmf_from_counts(symbols[:, part, d], priors[d][0], priors[d][1], PRIOR_STRENGTH, TAIL_MASS)
        for part in ([slice(start, None), 0] if start else [slice(None)])
        for d in range(params.config.embedding_width)
    ]
    channels = np.arange(params.config.embedding_width, dtype=np.int32)
    codec: EmbeddingCodec = ScalarCodec(
        offsets=offsets,
        steps=steps,
        tables=Tables.from_pmfs(rows),
        grid_layout=channels,
        class_layout=channels + params.config.embedding_width if start else None,
    )
    return _with_codec(params, codec, provenance)


def fit_latents(
    params: NecParams,
    y: NDArray[np.float32],
    step: float,
    transform: Transform | None = None,
    provenance: dict | None = None,
) -> NecParams:
    """Give a model a codec of many qualities, fitted to its embeddings.

    Args:
      params: a trained model; its codec, if any, is replaced.
      y: [N, (1 +) T, D], embeddings of whole images of the model's size.
      step: the default quality becomes the one whose step is nearest to this, in standard
        deviations of a channel.
      transform: the transform of the codec that it was trained with; fitted to y if None.
      provenance: as in `calibrate`.
    """
    side = params.config.image_size
    ladder = fit_transform(y, params.config.grid(side, side), transform)
    nearest = int(np.abs(np.log(ladder.steps / step)).argmin())
    return _with_codec(params, dataclasses.replace(ladder, quality=nearest), provenance)


def fit_transform(
    y: NDArray[np.float32],
    grid: tuple[int, int],
    transform: Transform | None = None,
    class_weight: float = 1.0,
) -> QualityLadder:
    """`fit_for_model` on embeddings [N, (1 +) T, D] of a grid, class token (if any) first."""
    first = y.shape[1] - grid[0] * grid[1]
    tokens = y[:, first:].reshape(len(y), *grid, -1)
    class_tokens = y[:, 0] if first else None
    return fit_for_model(
        tokens, class_tokens, class_weight=class_weight if first else 1.0, transform=transform
    )


def _with_codec(params: NecParams, codec: EmbeddingCodec, provenance: dict | None) -> NecParams:
    facts = json.loads(params.provenance) | (provenance or {})
    return dataclasses.replace(params, codec=codec, provenance=canonical_json(facts))
