"""Read config.json files of timm, and of Prithvi, which are alike."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coder import FileError
from nec_jax.convert.options import Scale

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu-tanh", "quick_gelu": "quick-gelu"}
# Arguments of timm's VisionTransformer that are read here, follow from the tensors, or do not
# change the tokens.
_ARGUMENTS = frozenset({
    "num_heads", "act_layer", "depth", "qkv_bias",
    "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "mlp_ratio", "init_values",
    "class_token", "no_embed_class", "reg_tokens", "pre_norm", "global_pool",
    "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "drop_rate", "pos_drop_rate",
    "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init",
    "fix_init",
})  # fmt: skip
# Families with names of ViT's layers whose rotary positions are in no tensor.
_ROTARY = r"(^|_)(rope|pe|dinov3|eva|eva02|naflexvit|lingbot|sapiens2)(_|$)"


@dataclass(frozen=True)
class TimmConfig:
    """The facts of a config.json; None, or empty, where it says nothing.

    Attributes:
      architecture: timm's name of it.
      heads, depth, decoder_heads, decoder_depth: of the encoder and of MAE's decoder.
      qkv_bias: whether queries, keys and values have a bias.
      activation: in this project's words.
      registers: number of register tokens.
      normalisation: of the images.
      bands: names of the input bands.
      image_size: side of the images whose positions the file holds.
      norm_pix_loss: whether MAE's decoder predicts normalised pixels.
    """

    architecture: str | None = None
    heads: int | None = None
    depth: int | None = None
    decoder_heads: int | None = None
    decoder_depth: int | None = None
    qkv_bias: bool | None = None
    activation: str | None = None
    registers: int | None = None
    normalisation: Scale | None = None
    bands: tuple[str, ...] = ()
    image_size: int | None = None
    norm_pix_loss: bool | None = None


def read_config(config: Mapping[str, Any]) -> TimmConfig:
    """The content of a config.json (or {}) -> its facts.

    Raises:
      FileError: it names an architecture or an argument that is no plain ViT's.
    """
    facts = config.get("pretrained_cfg") or {}
    arguments = config.get("model_args") or {}
    name = config.get("architecture")
    if name is not None and (rotary := re.search(_ROTARY, name)):
        raise FileError(f"{name}: {rotary[2]} has rotary positions, which is not a plain ViT's")
    for argument in arguments:
        if argument not in _ARGUMENTS:
            raise FileError(
                f"config.json: model_args has {argument}, which is not known not to change a "
                "plain ViT: refused"
            )
    if facts.get("num_frames", 1) != 1:
        raise FileError(
            f"config.json: num_frames is {facts['num_frames']}: only single images are supported"
        )
    told = {**facts, **arguments}
    size = facts.get("img_size")
    registers = re.search(r"_reg(\d+)", name or "")
    return TimmConfig(
        architecture=name,
        heads=told.get("num_heads"),
        depth=told.get("depth"),
        decoder_heads=facts.get("decoder_num_heads"),
        decoder_depth=facts.get("decoder_depth"),
        qkv_bias=told.get("qkv_bias"),
        activation=_activation(name, arguments),
        registers=int(registers[1]) if registers else None,
        normalisation=_normalisation(facts),
        bands=tuple(facts.get("bands") or ()),
        image_size=size if isinstance(size, int) else None,
        norm_pix_loss=facts.get("norm_pix_loss"),
    )


def _activation(name: str | None, arguments: Mapping[str, Any]) -> str | None:
    layer = arguments.get("act_layer")
    if layer is not None:
        if layer not in _ACTIVATIONS:
            raise FileError(f"act_layer is {layer!r}: known are {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[layer]
    # SigLIP was trained with another one than timm runs some of its models with: not guessed.
    if name is None or "siglip" in name:
        return None
    return "quick-gelu" if "quickgelu" in name else "gelu"


def _normalisation(facts: Mapping[str, Any]) -> Scale | None:
    if "mean" not in facts or "std" not in facts:
        return None
    # Multi-band models (Prithvi) give them in units of the data, timm for pixels from 0 to 1.
    dtype, factor = (None, 1.0) if "bands" in facts else ("uint8", 255.0)
    mean, std = (tuple(float(v) * factor for v in facts[k]) for k in ("mean", "std"))
    return Scale(mean, std, dtype)
