"""transformers' folders of plain ViTs: ViTMAE (with or without decoder), ViT, DINOv2.

Their files keep the names of transformers' first releases, whatever the modules are called today. A
config.json may omit what equals the class's default: those defaults are repeated here.
"""

import re
from collections.abc import Mapping
from typing import Any

from coder import FileError
from nec_jax.convert import options as opt
from nec_jax.convert.options import Imported, Options, Scale
from nec_jax.convert.positions import grid_side
from nec_jax.convert.source import Checkpoint
from nec_jax.convert.tensors import (
    BlockNames,
    Tensors,
    block,
    count_blocks,
    linear,
    norm,
    patch_kernel,
    under,
)
from nec_jax.models.weight_tree import Weights

_QKV = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
_PROJ = "attention.output.dense"
_VIT = BlockNames(
    "layernorm_before", _QKV, _PROJ, "layernorm_after", "intermediate.dense", "output.dense"
)
_DINO_SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")
_DINO = BlockNames("norm1", _QKV, _PROJ, "norm2", "mlp.fc1", "mlp.fc2", _DINO_SCALES)
_KINDS = {
    "vit_mae": "ViTMAE (transformers)",
    "vit": "ViT (transformers)",
    "dinov2": "DINOv2 (transformers)",
    "dinov2_with_registers": "DINOv2 with registers (transformers)",
}
_DEFAULTS = {
    "hidden_act": "gelu",
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "qkv_bias": True,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "norm_pix_loss": False,
}
_EPSILON = {"vit_mae": 1e-12, "vit": 1e-12, "dinov2": 1e-6, "dinov2_with_registers": 1e-6}
ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick-gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
}
# As the releases before the fifth write them, and as the fifth does.
_DECODER_LAYERS = ("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")
_PATCHES = "embeddings.patch_embeddings.projection"


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether these are names of transformers' ViTs."""
    return any(name.endswith(f"{_PATCHES}.weight") for name in checkpoint.tensors)


def convert(checkpoint: Checkpoint, options: Options) -> Imported:
    """Encoder, and decoder if there is one; `config.json` has to be in the folder."""
    facts = {**_DEFAULTS, **checkpoint.config}
    model_type = facts.get("model_type")
    if model_type not in _KINDS:
        raise FileError(
            f"model type {model_type!r} in config.json: known are {', '.join(_KINDS)}, clip. Give "
            "the folder with config.json, not the weights alone"
        )
    prefix = next(
        (m[1] for n in checkpoint.tensors if (m := re.fullmatch(rf"(.*){_PATCHES}\.weight", n))), ""
    )
    tensors = Tensors(checkpoint.tensors)
    kernel, patch, channels = patch_kernel(tensors, f"{prefix}{_PATCHES}.weight")
    width = kernel.shape[1]
    names = _DINO if model_type.startswith("dinov2") else _VIT
    first = under(f"{prefix}encoder.layer.0.", names)
    hidden = tensors.shape(f"{first.fc1}.weight", 2)[0]
    registers = int(facts.get("num_register_tokens", 4)) if "registers" in model_type else 0
    count = tensors.shape(f"{prefix}embeddings.position_embeddings", 3)[1]
    positions = tensors.take(f"{prefix}embeddings.position_embeddings", 1, count, width)[0]
    grid_side(count - 1, f"{prefix}embeddings.position_embeddings")
    class_token = tensors.take(f"{prefix}embeddings.cls_token", 1, 1, width)[0, 0]
    encoder: Weights = {
        "patch_embed": {
            "kernel": kernel,
            "bias": tensors.take(f"{prefix}{_PATCHES}.bias", width),
        },
        "class_token": class_token + positions[0],
        "norm": norm(tensors, f"{prefix}layernorm", width),
    }
    if registers:
        name = f"{prefix}embeddings.register_tokens"
        encoder["registers"] = tensors.take(name, 1, registers, width)[0]
    layers = f"{prefix}encoder.layer."
    depth = count_blocks(checkpoint.tensors, layers, facts["num_hidden_layers"])
    for i in range(depth):
        where = under(f"{layers}{i}.", names)
        encoder[f"block_{i}"] = block(tensors, where, width, hidden, facts["qkv_bias"])
    imported = Imported(
        kind=_KINDS[model_type],
        config={
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": opt.heads(options, facts["num_attention_heads"]),
            "mlp_ratio": opt.mlp_ratio(hidden, width, first.fc1),
            "channels": channels,
            "activation": activation(options, facts),
            "epsilon": float(facts.get("layer_norm_eps", _EPSILON[model_type])),
            "layer_scale": names.scales is not None,
            "registers": registers,
        },
        encoder=encoder,
        positions=positions[1:],
        resizing="antialiased" if registers else "bicubic",
        decoder_resizing="sequence",
        left_out=[],
        normalisation=normalisation(checkpoint),
    )
    has_decoder = "ViTMAEForPreTraining" in (facts.get("architectures") or ())
    if has_decoder or "decoder.decoder_embed.weight" in tensors:
        _add_decoder(imported, tensors, checkpoint, facts, options)
    tensors.leave_out(r".*embeddings\.mask_token|.*pooler\..*|classifier\..*")
    tensors.finish()
    imported.left_out = tensors.left_out
    return imported


def activation(options: Options, facts: Mapping[str, Any]) -> str:
    """`hidden_act` of a config.json in this project's words."""
    name = facts.get("hidden_act")
    if name is not None and name not in ACTIVATIONS:
        raise FileError(f"hidden_act is {name!r}: known are {', '.join(ACTIVATIONS)}")
    found = None if name is None else ACTIVATIONS[name]
    remedy = "quick-gelu for OpenAI's CLIP, else gelu"
    return opt.choose("activation", "--activation", options.activation, found, remedy)


def normalisation(checkpoint: Checkpoint) -> Scale | None:
    """Mean and deviation of a preprocessor_config.json, for uint8 pixels."""
    facts = checkpoint.preprocessor
    if "image_mean" not in facts or "image_std" not in facts:
        return None
    factor = 1 / facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1.0
    whole = facts.get("do_normalize", True)
    mean = tuple(float(v) * factor if whole else 0.0 for v in facts["image_mean"])
    std = tuple((float(v) if whole else 1.0) * factor for v in facts["image_std"])
    return Scale(mean, std, "uint8")


def _add_decoder(
    imported: Imported,
    tensors: Tensors,
    checkpoint: Checkpoint,
    facts: Mapping[str, Any],
    options: Options,
) -> None:
    c = imported.config
    width = tensors.shape("decoder.decoder_embed.weight", 2)[0]
    old, new = _DECODER_LAYERS
    layers = new if count_blocks(checkpoint.tensors, new) else old
    hidden = tensors.shape(f"{layers}0.intermediate.dense.weight", 2)[0]
    if opt.mlp_ratio(hidden, width, f"{layers}0.intermediate.dense") != c["mlp_ratio"]:
        raise FileError("encoder and decoder have MLPs of different ratios: not supported")
    if c["activation"] != "gelu":
        raise FileError(f"a decoder with {c['activation']}: only exact GELU is supported")
    count = tensors.shape("decoder.decoder_pos_embed", 3)[1]
    depth = count_blocks(checkpoint.tensors, layers, facts["decoder_num_hidden_layers"])
    imported.decoder_positions = tensors.take("decoder.decoder_pos_embed", 1, count, width)[0]
    pixels = c["patch"] ** 2 * c["channels"]
    imported.decoder = {
        "stem": {
            "embed": linear(tensors, "decoder.decoder_embed", c["width"], width),
            "mask_token": tensors.take("decoder.mask_token", 1, 1, width)[0, 0],
        },
        "norm": norm(tensors, "decoder.decoder_norm", width),
        "pred": linear(tensors, "decoder.decoder_pred", width, pixels),
    }
    for i in range(depth):
        names = under(f"{layers}{i}.", _VIT)
        imported.decoder[f"block_{i}"] = block(tensors, names, width, hidden)
    imported.config |= {
        "decoder_width": width,
        "decoder_depth": depth,
        "decoder_heads": opt.decoder_heads(options, width, facts["decoder_num_attention_heads"]),
        "decoder_target": opt.pixel_target(options, facts["norm_pix_loss"]),
    }
