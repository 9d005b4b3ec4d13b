"""timm's vision transformers, and those with its names: MAE encoders, DINO, DINOv2 as released."""

from coder import FileError
from nec_jax.convert import options as opt
from nec_jax.convert.options import Imported, Options
from nec_jax.convert.positions import grid_side
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
from nec_jax.convert.timm_config import TimmConfig, read_config

BLOCK = BlockNames("norm1", ("attn.qkv",), "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
# timm's own small ViTs, beside `opt.HEADS`.
_SMALL = {(192, 12): 3, (384, 12): 6}
_SCALES = ("ls1.gamma", "ls2.gamma")


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether these are names of timm's VisionTransformer, with no decoder."""
    return "patch_embed.proj.weight" in checkpoint.tensors


def convert(checkpoint: Checkpoint, options: Options) -> Imported:
    """An encoder; what the names do not say comes from `config.json` or the user."""
    tensors = Tensors(checkpoint.tensors)
    imported = encoder(tensors, checkpoint, options)
    tensors.leave_out(r"head(_dist)?\..*|mask_token")
    tensors.finish()
    imported.left_out = tensors.left_out
    registers = imported.config["registers"]
    if _is_dinov2(tensors):
        imported.kind = "DINOv2 (as released)"
        imported.normalisation = "imagenet"
        imported.resizing = "antialiased" if registers else "dinov2"
    return imported


def _is_dinov2(tensors: Tensors) -> bool:
    return "mask_token" in tensors and "blocks.0.ls1.gamma" in tensors


def encoder(
    tensors: Tensors, checkpoint: Checkpoint, options: Options, prefixes: tuple[int, ...] = ()
) -> Imported:
    """The encoder half, for MAE's converter as well; the caller finishes the tensors.

    Args:
      tensors, checkpoint, options: what is converted.
      prefixes: how many positions may stand before the grid's; () for what timm does.
    """
    told, is_mae = read_config(checkpoint.config), bool(prefixes)
    kernel, patch, channels = patch_kernel(tensors, "patch_embed.proj.weight")
    width, depth = kernel.shape[1], count_blocks(checkpoint.tensors, "blocks.", told.depth)
    hidden = tensors.shape("blocks.0.mlp.fc1.weight", 2)[0]
    scaled = "blocks.0.ls1.gamma" in tensors
    pre_norm = tensors.any_ends_with(("norm_pre.weight", "norm_pre.bias"))
    weights = {"patch_embed": {"kernel": kernel}, "norm": norm(tensors, "norm", width)}
    # timm's and MAE's patch embeddings have a bias, but for CLIP's.
    patch_bias = not pre_norm
    if patch_bias:
        weights["patch_embed"]["bias"] = tensors.take("patch_embed.proj.bias", width)
    if pre_norm:
        weights["pre_norm"] = norm(tensors, "norm_pre", width)
    names = BLOCK._replace(scales=_SCALES if scaled else None)
    # Some of timm's ViTs have none in any block; all of DINO's and MAE's do.
    biased = told.qkv_bias
    if biased is None:
        biased = is_mae or tensors.any_ends_with(("attn.qkv.bias",))
    for i in range(depth):
        weights[f"block_{i}"] = block(tensors, under(f"blocks.{i}.", names), width, hidden, biased)
    register_name = next((n for n in ("reg_token", "register_tokens") if n in tensors), None)
    registers = tensors.shape(register_name, 3)[1] if register_name else 0
    if told.registers is not None and told.registers != registers:
        raise FileError(f"missing reg_token: {told.architecture} has {told.registers}")
    if register_name:
        weights["registers"] = tensors.take(register_name, 1, registers, width)[0]
    count = tensors.shape("pos_embed", 3)[1]
    has_class = "cls_token" in tensors or is_mae or not _is_square(count)
    positions = tensors.take("pos_embed", 1, count, width)[0]
    # Which of the tokens before the grid have positions differs (timm's no_embed_class).
    extra = next((n for n in prefixes or (0, 1, 1 + registers) if _is_square(count - n)), 1)
    prefix, positions = positions[:extra], positions[extra:]
    side = grid_side(len(positions), "pos_embed")
    if told.image_size not in (None, side * patch):
        raise FileError(
            f"pos_embed is for images of {side * patch} x {side * patch}, or for several frames, "
            f"and config.json says {told.image_size}"
        )
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
        # CLIP's and SigLIP's layers come with several, and only the architecture's name tells.
        "gelu" if not (told.architecture or pre_norm) and has_class else told.activation,
        "quick-gelu for OpenAI's CLIP; SigLIP was trained with gelu-tanh, but timm runs its base "
        "and large models with gelu; else gelu",
    )
    return Imported(
        kind="timm ViT",
        config={
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": opt.heads(
                options, _heads(told, (width, depth), has_class, _is_dinov2(tensors))
            ),
            "mlp_ratio": opt.mlp_ratio(hidden, width, "blocks.0.mlp.fc1"),
            "channels": channels,
            "activation": activation,
            "epsilon": 1e-5 if pre_norm else 1e-6,
            "patch_bias": patch_bias,
            "pre_norm": pre_norm,
            "layer_scale": scaled,
            "class_token": has_class,
            "registers": registers,
        },
        encoder=weights,
        positions=positions,
        resizing="antialiased",
        left_out=[],
        normalisation=told.normalisation,
        bands=told.bands,
    )


def _heads(told: TimmConfig, size: tuple[int, int], has_class: bool, dino: bool) -> int | None:
    """What the checkpoint says, or its size implies: timm's without class token differ."""
    known = opt.HEADS | (_SMALL if told.architecture or dino else {})
    return known.get(size) if told.heads is None and has_class else told.heads


def _is_square(count: int) -> bool:
    return count > 0 and round(count**0.5) ** 2 == count
