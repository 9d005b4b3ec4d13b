"""The whole head as functions of its weights: decoded embeddings -> logits; initial weights."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from numpy.typing import NDArray

from nec_jax.heads.head import HeadConfig
from nec_jax.model_file import NecParams
from nec_jax.models.dense_layer import FLOAT32
from nec_jax.models.mae import DecoderStem
from nec_jax.models.refiner_network import refined
from nec_jax.models.vit import Block, layer_norm
from nec_jax.models.weight_tree import Weights

_SAMPLE = 256  # embeddings that the statistics after the decoder block are computed from


def decoder_features(
    config: HeadConfig, weights: Weights, y_hat: Float[Array, "b n d"]
) -> Float[Array, "b t e"]:
    """Grid tokens of `decoder_width` after the decoder's stem, first block and norm.

    As in the decoder itself, the class token takes part and y_hat is not standardised. Computed in
    float32 at any precision of the model, as all of a head is.
    """
    model = dataclasses.replace(config.model, precision=FLOAT32)
    x = DecoderStem(model).apply({"params": weights["stem"]}, y_hat, config.grid)
    block = Block(model.decoder_heads, model.mlp_ratio, epsilon=model.epsilon)
    x = block.apply({"params": weights["block_0"]}, x)
    x = layer_norm("norm", model.epsilon).apply({"params": weights["norm"]}, x)
    return jnp.asarray(x)[:, config.class_tokens :]


def features(
    config: HeadConfig, weights: Weights, y_hat: Float[Array, "b n d"]
) -> Float[Array, "b t e"]:
    """Decoded embeddings, refined if the head refines -> `decoder_features` or `own_tokens`."""
    if config.refine:
        y_hat = refined(weights["refiner"], y_hat, config.grid)
    if config.with_decoder:
        return decoder_features(config, weights, y_hat)
    return own_tokens(config, y_hat, jnp)


def logits(
    config: HeadConfig, weights: Weights, y_hat: Float[Array, "b n d"]
) -> Float[Array, " b *place k"]:
    """Decoded embeddings -> logits, of images or of places."""
    tokens = features(config, weights, y_hat)
    if not config.with_decoder:
        tokens = (tokens - weights["scaling"]["mean"]) / weights["scaling"]["std"]
    out = jnp.asarray(config.head().apply({"params": weights["head"]}, tokens))
    if config.mask_size is None:
        return out
    shape = (out.shape[0], *config.mask_size, out.shape[-1])
    return jax.image.resize(out, shape, "bilinear")


def own_tokens(config: HeadConfig, y_hat: Any, xp: Any = np) -> Any:
    """The tokens that a head without decoder reads of embeddings [B, n, D], not standardised.

    They are the tokens of the grid; for "class-linear" a single token [B, 1, 2 D], the class token
    and the mean token together.
    """
    grid = y_hat[:, config.class_tokens :]
    if config.kind != "class-linear":
        return grid
    return xp.concatenate([y_hat[:, :1], grid.mean(1, keepdims=True)], axis=-1)


# Jitted as one program: eagerly, Flax would compile and run the head operation by operation.
@functools.partial(jax.jit, static_argnames="config")
def init_weights(config: HeadConfig, key: Key[Array, ""]) -> Weights:
    """Random weights of a head and of the layers before it; `fit` keeps only the head's.

    A refiner is not among them.
    """
    model = config.model
    width = model.decoder_width if config.with_decoder else model.embedding_width
    width *= 2 if config.kind == "class-linear" else 1
    tokens = jnp.zeros((1, config.grid[0] * config.grid[1], width), jnp.float32)
    weights = {"head": config.head().init(key, tokens)["params"]}
    if not config.with_decoder:
        scaling = {"mean": jnp.zeros(width, jnp.float32), "std": jnp.ones(width, jnp.float32)}
        return weights | {"scaling": scaling}
    y = jnp.zeros((1, config.tokens, model.embedding_width), jnp.float32)
    x = jnp.zeros((1, config.tokens, width), jnp.float32)
    return weights | {
        "stem": DecoderStem(model).init(key, y, config.grid)["params"],
        "block_0": Block(model.decoder_heads, model.mlp_ratio).init(key, x)["params"],
        "norm": layer_norm("norm").init(key, x)["params"],
    }


def standardisation(features: NDArray[np.floating]) -> dict[str, Float[Array, " d"]]:
    """Mean and std [D] of features [..., D], float32.

    At low qualities most channels are nearly constant. A std is at least a tenth of the median of
    the positive ones, so that the rounding noise of such a channel is not magnified without bound.
    """
    axes = tuple(range(features.ndim - 1))
    mean = features.mean(axes, dtype=np.float64)
    std = features.std(axes, dtype=np.float64)
    alive = std[std > 1e-6 * (np.abs(mean) + 1e-6)]
    floor = 0.1 * np.median(alive) if alive.size else 1.0
    std = np.maximum(std, floor)
    return {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}


def starting_weights(
    config: HeadConfig, params: NecParams, y: NDArray[np.float32], seed: int
) -> Weights:
    """Weights before the first step: random ones, the model's, and statistics of embeddings y."""
    weights = {"head": init_weights(config, jax.random.key(seed))["head"]}
    if not config.with_decoder:
        return weights | {"scaling": standardisation(own_tokens(config, y))}
    weights = with_decoder(config, params, weights)
    # The norm starts as the standardisation of its own outputs, as without decoder: what all tokens
    # share is removed from the first step on.
    some = y[:: max(1, len(y) // _SAMPLE)][:_SAMPLE]
    scaling = standardisation(np.asarray(jitted_features(config, weights, some)))
    return weights | {"norm": as_norm(scaling)}


def with_decoder(config: HeadConfig, params: NecParams, weights: Weights) -> Weights:
    """Take stem and first block from the model; the norm after them only normalises."""
    decoder, width = params.weights["decoder"], config.model.decoder_width
    plain = {"scale": jnp.ones(width, jnp.float32), "bias": jnp.zeros(width, jnp.float32)}
    return weights | {"stem": decoder["stem"], "block_0": decoder["block_0"], "norm": plain}


def as_norm(scaling: dict[str, Float[Array, " d"]]) -> dict[str, Float[Array, " d"]]:
    """A standardisation as the scale and bias of a LayerNorm."""
    return {"scale": 1 / scaling["std"], "bias": -scaling["mean"] / scaling["std"]}


@functools.partial(jax.jit, static_argnames="config")
def jitted_features(
    config: HeadConfig, weights: Weights, y_hat: Float[Array, "b n d"]
) -> Float[Array, "b t e"]:
    """`features`, compiled, at the precision of products of `heads.predict_proba`."""
    with jax.default_matmul_precision("float32"):
        return features(config, weights, y_hat)
