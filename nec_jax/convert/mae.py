"""Masked autoencoders with the names of Facebook's: its own, RVSA's, SatMAE's, Prithvi's.

The architecture is the plain ViT of MAE with any number of bands. Prithvi's second version puts
`encoder.` and `decoder.` before the names, and convolves over (one) frame of time.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from nec_jax.convert import options as opt
from nec_jax.convert import timm
from nec_jax.convert.options import Imported, Options
from nec_jax.convert.positions import grid_side
from nec_jax.convert.source import Checkpoint
from nec_jax.convert.tensors import Tensors, block, count_blocks, linear, norm, under
from nec_jax.convert.timm_config import read_config


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether there is MAE's decoder."""
    names = _unprefixed(checkpoint).tensors
    return "decoder_embed.weight" in names and "patch_embed.proj.weight" in names


def convert(checkpoint: Checkpoint, options: Options) -> Imported:
    """Encoder and decoder."""
    checkpoint = _unprefixed(checkpoint)
    tensors = Tensors(checkpoint.tensors)
    imported = autoencoder(tensors, checkpoint, options)
    tensors.finish()
    return imported


def autoencoder(tensors: Tensors, checkpoint: Checkpoint, options: Options) -> Imported:
    """All but the bottleneck, for the converter of NEC as well; the caller finishes the tensors."""
    imported = timm.encoder(tensors, checkpoint, options, prefixes=(1,))
    c = imported.config
    imported.kind = "masked autoencoder (Facebook MAE's names)"
    imported.resizing = "bicubic"
    width = tensors.shape("decoder_embed.weight", 2)[0]
    hidden = tensors.shape("decoder_blocks.0.mlp.fc1.weight", 2)[0]
    if opt.mlp_ratio(hidden, width, "decoder_blocks.0.mlp.fc1") != c["mlp_ratio"]:
        raise opt.FileError("encoder and decoder have MLPs of different ratios: not supported")
    told = read_config(checkpoint.config)
    depth = count_blocks(checkpoint.tensors, "decoder_blocks.", told.decoder_depth)
    count = tensors.shape("decoder_pos_embed", 3)[1]
    grid_side(count - 1, "decoder_pos_embed")
    pixels = c["patch"] ** 2 * c["channels"]
    imported.decoder_positions = tensors.take("decoder_pos_embed", 1, count, width)[0]
    imported.decoder = {
        "stem": {
            "embed": linear(tensors, "decoder_embed", c["width"], width),
            "mask_token": tensors.take("mask_token", 1, 1, width)[0, 0],
        },
        "norm": norm(tensors, "decoder_norm", width),
        "pred": linear(tensors, "decoder_pred", width, pixels),
    }
    for i in range(depth):
        names = under(f"decoder_blocks.{i}.", timm.BLOCK)
        imported.decoder[f"block_{i}"] = block(tensors, names, width, hidden)
    normalised = checkpoint.arguments.get("norm_pix_loss", told.norm_pix_loss)
    imported.config |= {
        "decoder_width": width,
        "decoder_depth": depth,
        "decoder_heads": opt.decoder_heads(options, width, told.decoder_heads),
        "decoder_target": opt.pixel_target(options, normalised),
    }
    if imported.normalisation is None and c["channels"] == 3:
        imported.normalisation = _normalisation(checkpoint.arguments)
    return imported


def _normalisation(arguments: Mapping[str, Any]) -> str | None:
    """What the training script of these arguments does; None where there are none to tell."""
    # SatMAE's have a dataset_type; Facebook's and RVSA's scripts have ImageNet's values built in.
    known = {None: "imagenet", "rgb": "fmow"}
    return known.get(arguments.get("dataset_type")) if arguments else None


def _unprefixed(checkpoint: Checkpoint) -> Checkpoint:
    def plain(name: str) -> str:
        for prefix in ("encoder.", "decoder."):
            if name.startswith(prefix) and "encoder.patch_embed.proj.weight" in checkpoint.tensors:
                return name.removeprefix(prefix)
        return name

    tensors: dict[str, NDArray] = {plain(k): v for k, v in checkpoint.tensors.items()}
    return dataclasses.replace(checkpoint, tensors=tensors)
