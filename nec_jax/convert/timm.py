"""timm's vision transformers, and those with its names: MAE encoders, DINO, DINOv2 as released.

The config.json of Prithvi is like timm's, and is read here too.
"""

import re
from collections.abc import Mapping
from typing import Any

from coder import FileError
from nec_jax.convert.build import HEADS
from nec_jax.convert.source import Checkpoint, activation
from nec_jax.convert.tensors import BlockNames, Imported, Names, Scale, Tensors, take_encoder

BLOCK = BlockNames("norm1", ("attn.qkv",), "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_NAMES = Names("patch_embed.proj", "cls_token", "pos_embed", "norm", "blocks.", BLOCK)
# timm's own small ViTs, beside `HEADS`.
_SMALL = {(192, 12): 3, (384, 12): 6}
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


def convert(checkpoint: Checkpoint) -> Imported | None:
    """Import an encoder without a decoder; None if these are other names."""
    if "patch_embed.proj.weight" not in checkpoint.tensors:
        return None
    tensors = Tensors(checkpoint.tensors)
    imported = encoder(tensors, read_config(checkpoint.config))
    tensors.leave_out(r"head(_dist)?\..*|mask_token")
    tensors.finish()
    if _is_dinov2(tensors):
        imported.kind = "DINOv2 (as released)"
        imported.normalisation = "imagenet"
        imported.resizing = "antialiased" if imported.config["registers"] else "dinov2"
    return imported


def encoder(tensors: Tensors, told: Mapping[str, Any], *, is_mae: bool = False) -> Imported:
    """Take an encoder, for MAE's importer as well; the caller finishes the tensors.

    Args:
      tensors: those of the checkpoint.
      told: what its config.json says, by `read_config`.
      is_mae: whether it is MAE's: a class token with a position, and biases, are certain.
    """
    architecture = told.get("architecture")
    names = _NAMES
    if "blocks.0.ls1.gamma" in tensors:
        names = names._replace(block=BLOCK._replace(scales=("ls1.gamma", "ls2.gamma")))
    if any(name.endswith(("norm_pre.weight", "norm_pre.bias")) for name in tensors):
        names = names._replace(pre_norm="norm_pre")
    # Some of timm's ViTs have none in any block; all of DINO's and MAE's do.
    biased = told.get("qkv_bias")
    if biased is None:
        biased = is_mae or any(name.endswith("attn.qkv.bias") for name in tensors)
    registers = 0
    if found := next((n for n in ("reg_token", "register_tokens") if n in tensors), None):
        names, registers = names._replace(registers=found), tensors.shape(found, 3)[1]
    if told.get("registers") not in (None, registers):
        raise FileError(f"missing reg_token: {architecture} has {told['registers']}")
    count = tensors.shape("pos_embed", 3)[1]
    has_class = "cls_token" in tensors or is_mae or not _is_square(count)
    # Which of the tokens before the grid have positions differs (timm's no_embed_class).
    placed = (1,) if is_mae else (0, 1, 1 + registers)
    imported = take_encoder(
        tensors,
        "",
        names,
        depth=told.get("depth"),
        biased=biased,
        class_token=has_class,
        registers=registers,
        placed=next((n for n in placed if _is_square(count - n)), 1),
    )
    c = imported.config
    side = round(len(imported.positions) ** 0.5) * c["patch"]
    if told.get("image_size") not in (None, side):
        raise FileError(
            f"pos_embed is for images of {side} x {side}, or for several frames, and config.json "
            f"says {told['image_size']}"
        )
    imported.kind = "timm ViT"
    imported.resizing = "antialiased"
    imported.epsilon = 1e-5 if names.pre_norm else 1e-6
    imported.heads = told.get("num_heads")
    if imported.heads is None and has_class:  # those without a class token differ
        known = HEADS | (_SMALL if architecture or _is_dinov2(tensors) else {})
        imported.heads = known.get((c["width"], c["depth"]))
    # CLIP's and SigLIP's layers come with several activations: only the architecture says which.
    plain = not (architecture or names.pre_norm) and has_class
    imported.activation = "gelu" if plain else told.get("activation")
    imported.normalisation = told.get("normalisation")
    imported.bands = tuple(told.get("bands") or ())
    return imported


def _is_dinov2(tensors: Tensors) -> bool:
    return "mask_token" in tensors and "blocks.0.ls1.gamma" in tensors


def _is_square(count: int) -> bool:
    return count > 0 and round(count**0.5) ** 2 == count


def read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read a config.json of timm or Prithvi, or {}.

    Returns:
      The arguments of the model and of its pretrained_cfg, and if they are known: architecture
      (timm's name of it), activation (in this project's words), registers (their number),
      normalisation, image_size (side of the images whose positions the file holds).

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
                f"config.json: model_args has {argument}, so that it may be no plain ViT: refused"
            )
    if facts.get("num_frames", 1) != 1:
        raise FileError(f"num_frames is {facts['num_frames']}: only single images are supported")
    size = facts.get("img_size")
    registers = re.search(r"_reg(\d+)", name or "")
    return {
        **facts,
        **arguments,
        "architecture": name,
        "activation": _activation(name, arguments),
        "registers": int(registers[1]) if registers else None,
        "normalisation": _normalisation(facts),
        "image_size": size if isinstance(size, int) else None,
    }


def _activation(name: str | None, arguments: Mapping[str, Any]) -> str | None:
    if told := activation(arguments, "act_layer"):
        return told
    # timm runs some SigLIP models with another activation than they were trained with: no guess.
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
