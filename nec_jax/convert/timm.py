"""timm's vision transformers, and those with its names: MAE encoders, DINO, DINOv2 as released."""

import re

from coder import FileError
from nec_jax.convert import options as opt
from nec_jax.convert.options import Imported, Options
from nec_jax.convert.positions import Resizing, grid_side
from nec_jax.convert.source import Checkpoint
from nec_jax.convert.tensors import (
    BlockNames,
    Tensors,
    block,
    count_blocks,
    norm,
    patch_kernel,
    under,
)

BLOCK = BlockNames("norm1", ("attn.qkv",), "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_SCALES = ("ls1.gamma", "ls2.gamma")


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether these are names of timm's VisionTransformer, with no decoder."""
    return "patch_embed.proj.weight" in checkpoint.tensors


def convert(checkpoint: Checkpoint, options: Options) -> Imported:
    """An encoder; what the names do not say comes from `config.json` or the user."""
    tensors = Tensors(checkpoint.tensors)
    imported = encoder(tensors, checkpoint, options)
    dino = "mask_token" in tensors and "blocks.0.ls1.gamma" in tensors
    tensors.leave_out(r"head(_dist)?\..*|mask_token")
    tensors.finish()
    imported.left_out = tensors.left_out
    registers = imported.config["registers"]
    if dino:
        imported.kind = "DINOv2 (as released)"
        imported.normalisation = "imagenet"
        imported.resizing = "antialiased" if registers else "dinov2"
    return imported


def encoder(
    tensors: Tensors, checkpoint: Checkpoint, options: Options, prefixes: tuple[int, ...] = ()
) -> Imported:
    """The encoder half, for MAE's converter as well; the caller finishes the tensors.

    Args:
      tensors, checkpoint, options: what is converted.
      prefixes: how many positions may stand before the grid's; () for what timm does.
    """
    facts = checkpoint.config.get("pretrained_cfg") or {}
    kernel, patch, channels = patch_kernel(tensors, "patch_embed.proj.weight")
    width, depth = kernel.shape[1], count_blocks(checkpoint.tensors, "blocks.")
    hidden = tensors.shape("blocks.0.mlp.fc1.weight", 2)[0]
    scaled = "blocks.0.ls1.gamma" in tensors
    pre_norm = tensors.any_ends_with(("norm_pre.weight", "norm_pre.bias"))
    weights = {"patch_embed": {"kernel": kernel}, "norm": norm(tensors, "norm", width)}
    # timm's and MAE's patch embeddings have a bias, but for CLIP's.
    biased = not pre_norm
    if biased:
        weights["patch_embed"]["bias"] = tensors.take("patch_embed.proj.bias", width)
    if pre_norm:
        weights["pre_norm"] = norm(tensors, "norm_pre", width)
    names = BLOCK._replace(scales=_SCALES if scaled else None)
    for i in range(depth):
        weights[f"block_{i}"] = block(tensors, under(f"blocks.{i}.", names), width, hidden)
    register_name = next((n for n in ("reg_token", "register_tokens") if n in tensors), None)
    registers = tensors.shape(register_name, 3)[1] if register_name else 0
    told = re.search(r"_reg(\d+)", str(checkpoint.config.get("architecture", "")))
    if told and int(told[1]) != registers:
        raise FileError(f"missing reg_token: {told[0][1:]} is in the architecture's name")
    if register_name:
        weights["registers"] = tensors.take(register_name, 1, registers, width)[0]
    count = tensors.shape("pos_embed", 3)[1]
    has_class = "cls_token" in tensors or bool(prefixes) or not _is_square(count)
    positions = tensors.take("pos_embed", 1, count, width)[0]
    # Which of the tokens before the grid have positions differs (timm's no_embed_class).
    extra = next((n for n in prefixes or (0, 1, 1 + registers) if _is_square(count - n)), 1)
    prefix, positions = positions[:extra], positions[extra:]
    grid_side(len(positions), "pos_embed")
    if has_class:
        weights["class_token"] = tensors.take("cls_token", 1, 1, width)[0, 0]
        if extra:
            weights["class_token"] = weights["class_token"] + prefix[0]
    if extra > 1:
        weights["registers"] = weights["registers"] + prefix[1:]
    activation = opt.choose(
        "activation",
        "--activation",
        options.activation,
        _activation(checkpoint, pre_norm, has_class),
        "quick-gelu for OpenAI's CLIP, gelu-tanh for SigLIP, else gelu",
    )
    resizing: Resizing = "antialiased"
    return Imported(
        kind="timm ViT",
        config={
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": opt.heads(options, width, facts.get("num_heads")),
            "mlp_ratio": opt.mlp_ratio(hidden, width, "blocks.0.mlp.fc1"),
            "channels": channels,
            "activation": activation,
            "epsilon": 1e-5 if pre_norm else 1e-6,
            "patch_bias": biased,
            "pre_norm": pre_norm,
            "layer_scale": scaled,
            "class_token": has_class,
            "registers": registers,
        },
        encoder=weights,
        positions=positions,
        resizing=resizing,
        left_out=[],
        normalisation=_normalisation(facts),
    )


def _activation(checkpoint: Checkpoint, pre_norm: bool, has_class: bool) -> str | None:
    # CLIP's and SigLIP's layers come with several activations: only the architecture's name tells.
    name = checkpoint.config.get("architecture")
    if name is None:
        return None if pre_norm or not has_class else "gelu"
    if "siglip" in name:
        return "gelu-tanh"
    return "quick-gelu" if "quickgelu" in name else "gelu"


def _is_square(count: int) -> bool:
    return count > 0 and round(count**0.5) ** 2 == count


def _normalisation(facts: dict) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if "mean" not in facts or "std" not in facts:
        return None
    # Multi-band models (Prithvi) give them in units of the data, timm for pixels from 0 to 1.
    factor = 1.0 if "bands" in facts else 255.0
    mean, std = (tuple(float(v) * factor for v in facts[k]) for k in ("mean", "std"))
    return mean, std
