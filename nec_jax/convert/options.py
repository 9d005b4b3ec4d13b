"""The user's options for a checkpoint, and the result of a converter."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder import FileError, InputError
from nec_jax.convert.positions import Resizing
from nec_jax.models.weight_tree import Weights

# Mean and deviation of the bands, for pixels from 0 to 1.
NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "fmow": (
        (0.4182007312774658, 0.4214799106121063, 0.3991275727748871),
        (0.28774282336235046, 0.27541765570640564, 0.2764017581939697),
    ),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
# Heads of the published ViTs by (width, depth). Not of smaller ones: a ViT-S has 6 (timm, DINO) or
# 12 (MoCo v3).
HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16}
_DECODER_HEADS = {512: 16}


@dataclass(frozen=True)
class Options:
    """The arguments of `nec_jax.convert_checkpoint`."""

    image_size: int | None = None
    resize_positions: bool = False
    patch: int | None = None
    heads: int | None = None
    decoder_heads: int | None = None
    activation: str | None = None
    normalisation: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    bands: tuple[str, ...] = ()
    dtype: str = "uint8"
    pixels: str | None = None
    blocks: tuple[int, ...] = ()
    class_token: bool = True


class Scale(NamedTuple):
    """Normalisation of the bands: mean and deviation, in units of images of `dtype`.

    A dtype of None means that they are in the units of the data, whatever its dtype.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str | None


@dataclass
class Imported:
    """A checkpoint in this project's names and shapes.

    Attributes:
      kind: the kind of checkpoint, for people.
      config: the fields of `ModelConfig` that the checkpoint decides.
      encoder, decoder: weights; without "positions" and, in the decoder, None if there is none.
      positions: float32 [T, D] of the encoder's grid.
      decoder_positions: float32 [1 + T, D] (or [T, D] without class token).
      resizing, decoder_resizing: how its project resizes positions.
      normalisation: name in `NORMALISATIONS`, or the values; None if unknown.
      bands: names of the input bands; () if unknown.
      left_out: tensors of the checkpoint that the model does not need.
      bottleneck: the density of a NEC model.
      tables: a NEC model's own tables: (offsets, [(smallest symbol, probabilities, escape's)]).
    """

    kind: str
    config: dict[str, Any]
    encoder: Weights
    positions: NDArray[np.float32]
    resizing: Resizing
    left_out: list[str]
    normalisation: str | Scale | None = None
    bands: tuple[str, ...] = ()
    decoder_resizing: Resizing = "bicubic"
    decoder: Weights | None = None
    decoder_positions: NDArray[np.float32] | None = None
    bottleneck: Weights | None = None
    tables: tuple[NDArray[np.float32], list[tuple[int, NDArray[np.float64], float]]] | None = field(
        default=None
    )


def choose(name: str, flag: str, given: Any, found: Any, remedy: str) -> Any:
    """A setting from the checkpoint or from the user, who may not contradict it.

    Raises:
      InputError: they differ.
      FileError: neither gives it.
    """
    if given is not None and found is not None and given != found:
        raise InputError(f"{flag} says {given}, the checkpoint's {name} is {found}: leave it out")
    value = found if given is None else given
    if value is None:
        raise FileError(f"the checkpoint does not say its {name}: pass {flag} ({remedy})")
    return value


def heads(options: Options, found: int | None) -> int:
    """Number of attention heads of the encoder, from the checkpoint, its kind or the user."""
    return choose("number of heads", "--heads", options.heads, found, "see its model card")


def decoder_heads(options: Options, width: int, found: int | None) -> int:
    """Number of attention heads of the decoder, likewise."""
    known = _DECODER_HEADS.get(width) if options.decoder_heads is None else None
    found = known if found is None else found
    return choose(
        "number of decoder heads", "--decoder-heads", options.decoder_heads, found, "MAE's: 16"
    )


def pixel_target(options: Options, normalised: bool | None) -> str:
    """The `decoder_target` of a decoder of pixels; `normalised` is what the checkpoint says."""
    if normalised is not None and not isinstance(normalised, bool):
        raise FileError(f"norm_pix_loss is {normalised!r}, neither true nor false")
    found = None if normalised is None else "normalised" if normalised else "plain"
    value = choose(
        "kind of pixels (norm_pix_loss)",
        "--pixels",
        options.pixels,
        found,
        "plain, or normalised if it was trained with norm_pix_loss: the decoder is wrong otherwise",
    )
    if value not in ("plain", "normalised"):
        raise InputError(f"--pixels {value}: choose plain or normalised")
    return "pixels" if value == "plain" else "normalised-pixels"


def mlp_ratio(hidden: int, width: int, name: str) -> int:
    """Hidden width over width, which must be a whole number."""
    if hidden % width:
        raise FileError(f"{name} is {hidden} wide, no multiple of {width}: not supported")
    return hidden // width
