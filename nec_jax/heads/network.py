"""The whole head as functions of its weights: decoded embeddings -> logits, and its start."""

import jax
import jax.numpy as jnp

from nec_jax.heads.params import HeadConfig
from nec_jax.mae import DecoderStem
from nec_jax.nec import Weights
from nec_jax.vit import Block, layer_norm


def decoder_features(config: HeadConfig, weights: Weights, y_hat: jax.Array) -> jax.Array:
    """[B, n, D] -> grid tokens [B, T, decoder_width] after decoder stem, first block and norm.

    As in the decoder itself: the class token takes part, y_hat comes as it is.
    """
    model = config.model
    x = DecoderStem(model).apply({"params": weights["stem"]}, y_hat, config.grid)
    block = Block(model.decoder_heads, model.mlp_ratio, epsilon=model.epsilon)
    x = block.apply({"params": weights["block_0"]}, x)
    x = layer_norm("norm", model.epsilon).apply({"params": weights["norm"]}, x)
    return jnp.asarray(x)[:, config.class_tokens :]


def logits(config: HeadConfig, weights: Weights, y_hat: jax.Array) -> jax.Array:
    """Decoded embeddings float32 [B, n, D] -> logits [B, K], or [B, H, W, K] for "conv"."""
    if config.with_decoder:
        tokens = decoder_features(config, weights, y_hat)
    else:
        scaling = weights["scaling"]
        tokens = (y_hat[:, config.class_tokens :] - scaling["mean"]) / scaling["std"]
    out = jnp.asarray(config.head().apply({"params": weights["head"]}, tokens))
    if config.mask_size is None:
        return out
    shape = (out.shape[0], *config.mask_size, out.shape[-1])
    return jax.image.resize(out, shape, "bilinear")


def init_weights(config: HeadConfig, key: jax.Array) -> Weights:
    """Random weights of a head; those of a decoder part are replaced by the model's in `fit`."""
    model = config.model
    width = model.decoder_width if config.with_decoder else model.embedding_width
    tokens = jnp.zeros((1, config.grid[0] * config.grid[1], width))
    weights = {"head": config.head().init(key, tokens)["params"]}
    if not config.with_decoder:
        scaling = {"mean": jnp.zeros(model.embedding_width), "std": jnp.ones(model.embedding_width)}
        return weights | {"scaling": scaling}
    y = jnp.zeros((1, config.tokens, model.embedding_width))
    x = jnp.zeros((1, config.tokens, width))
    return weights | {
        "stem": DecoderStem(model).init(key, y, config.grid)["params"],
        "block_0": Block(model.decoder_heads, model.mlp_ratio).init(key, x)["params"],
        "norm": layer_norm("norm").init(key, x)["params"],
    }
