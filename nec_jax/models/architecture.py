"""A model's architecture and input contract as plain data: all of it but the weights."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, get_origin

import numpy as np

from coder import InputError
from coder.arrays import is_whole
from coder.task_heads.head_settings import with_tuples

SIZE_RULE = "resize the shorter side to image_size (bicubic, antialiased), crop the centre square"

_MAY_BE_ZERO = ("depth", "registers")
_DEEPEST = 256
DTYPES = ("uint8", "uint16", "int16", "float32")
_PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
_CHOICES = {
    "dtype": DTYPES,
    "precision": _PRECISIONS,
    "activation": ("gelu", "gelu-tanh", "quick-gelu"),
    "positions": ("sincos", "learned"),
    "decoder_positions": ("sincos", "learned"),
    "decoder_target": ("none", "pixels", "normalised-pixels", "features"),
}


class Variant(NamedTuple):
    """Sizes of one architecture: a ViT encoder and its MAE decoder."""

    patch: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int


# Encoders: Dosovitskiy 2021 (B, L, H) and Touvron 2021 (Ti, S). Decoders of B, L, H: He 2022
# (MAE), appendix A.1, which names none for Ti and S: theirs are narrower in proportion.
VARIANTS = {
    "vit-ti": Variant(16, 192, 12, 3, 128, 4, 4),
    "vit-s": Variant(16, 384, 12, 6, 256, 4, 8),
    "vit-b": Variant(16, 768, 12, 12, 512, 8, 16),
    "vit-l": Variant(16, 1024, 24, 16, 512, 8, 16),
    "vit-h": Variant(14, 1280, 32, 16, 512, 8, 16),
}


@dataclass(frozen=True)
class ModelConfig:
    """The static half of a model, stored in its file.

    Attributes:
      arch: name of the architecture that the sizes are from.
      image_size: side of the training images, pixels; other multiples of `patch` also work.
      mlp_ratio: hidden width of an MLP over the width of its block.
      activation: in the encoder's MLPs: "gelu" (exact), "gelu-tanh" (its approximation), or
        "quick-gelu", x sigmoid(1.702 x) (CLIP).
      epsilon: epsilon of every LayerNorm.
      positions: "sincos" (2-d, computed for any grid) or "learned" (only for the grid of
        `image_size`).
      patch_bias: whether the patch embedding has a bias (CLIP's has none).
      pre_norm: whether a LayerNorm follows the positions, before the first block (CLIP).
      layer_scale: whether attention and MLP have a learned factor per output channel (DINOv2).
      class_token: whether the encoder has a class token.
      registers: number of further learned tokens, which are dropped at the end (DINOv2).
      embedding_blocks: the blocks, counted from 1, after which the embedding is taken. The final
        norm is applied after each, and their channels are concatenated. Empty for the last block.
      decoder_target: what the decoder predicts: "pixels" (normalised by `mean` and `std`),
        "normalised-pixels" (each patch to mean 0, variance 1 as well: MAE's norm_pix_loss),
        "features" (the embedding of the model that training started from), or "none": no decoder.
      decoder_positions: as `positions`.
      code_class_token: whether the class token is coded, and its bytes counted.
      bands: names of the input channels, in order.
      dtype: the dtype that `encode` accepts.
      value_range: lowest and highest legal input value.
      mean, std: normalisation of each band, in input units: `(x - mean) / std`.
      size_rule: how data loaders bring an image to `image_size`.
      coding_batch: number of images that every batch is padded to, so that the bytes of an image
        do not depend on its neighbours.
      precision: precision of encoder and decoder, in training and in coding: of matrix products
        ("float32", "tensorfloat32"), or also of their operands and results ("bfloat16").
        Parameters, norms, softmax, residual sums and the density are always float32.
    """

    arch: str
    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    mlp_ratio: int = 4
    activation: str = "gelu"
    epsilon: float = 1e-6
    positions: str = "sincos"
    patch_bias: bool = True
    pre_norm: bool = False
    layer_scale: bool = False
    class_token: bool = True
    registers: int = 0
    embedding_blocks: tuple[int, ...] = ()
    decoder_target: str = "pixels"
    decoder_positions: str = "sincos"
    code_class_token: bool = True
    bands: tuple[str, ...] = ("red", "green", "blue")
    dtype: str = "uint8"
    value_range: tuple[float, float] = (0.0, 255.0)
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # ImageNet's, as in the paper
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    size_rule: str = SIZE_RULE
    coding_batch: int = 8
    precision: str = "float32"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check_field(field.name, field.type)
        if max(self.depth, self.decoder_depth) > _DEEPEST:
            raise InputError(f"more than {_DEEPEST} blocks: is the configuration damaged?")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise InputError(
                f"{self.channels} bands need as many means and stds, got "
                f"{len(self.mean)} and {len(self.std)}"
            )
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            raise InputError(
                "every std must be positive, and means and stds finite: is a band constant, or "
                "are there NaN pixels?"
            )
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"{name} is {value!r}: choose from {', '.join(choices)}")
        if not self.value_range[0] < self.value_range[1]:
            raise InputError(f"value_range {self.value_range} is empty")
        if self.width % self.heads or self.decoder_width % self.decoder_heads:
            raise InputError("heads must divide the width, in the encoder and in the decoder")
        sincos = [self.width] * (self.positions == "sincos")
        sincos += [self.decoder_width] * (self.decoder_positions == "sincos")
        if any(width % 4 for width in sincos):
            raise InputError("2-d sin-cos positions need widths that are multiples of 4")
        if not (isinstance(self.epsilon, float) and 0 < self.epsilon < 1):
            raise InputError(f"epsilon is {self.epsilon!r}: give a number between 0 and 1")
        if self.code_class_token and not self.class_token:
            raise InputError("the encoder has no class token: set code_class_token to false")
        self._check_embedding_blocks()
        self.grid(self.image_size, self.image_size)

    def _check_field(self, name: str, kind: Any) -> None:
        """Check whole numbers and flags, and convert all values to plain Python.

        A configuration is hashed, and is JSON.
        """
        value: Any = getattr(self, name)
        if kind is int:
            least = 0 if name in _MAY_BE_ZERO else 1
            if not is_whole(value) or not least <= value <= 1 << 16:
                raise InputError(f"{name} is {value!r}: give a whole number from {least} to 65536")
            object.__setattr__(self, name, int(value))
        elif kind is bool:
            if not isinstance(value, bool):
                raise InputError(f"{name} is {value!r}: give True or False")
        elif get_origin(kind) is tuple:
            values = (v.item() if isinstance(v, np.generic) else v for v in value)
            object.__setattr__(self, name, tuple(values))

    def _check_embedding_blocks(self) -> None:
        blocks = self.embedding_blocks
        ordered = all(map(is_whole, blocks)) and list(blocks) == sorted(set(blocks))
        if blocks and not (ordered and blocks[0] >= 1 and blocks[-1] == self.depth):
            raise InputError(
                f"embedding_blocks are {list(blocks)}: give rising numbers from 1, the last of "
                f"them the encoder's last block, {self.depth}"
            )

    @property
    def channels(self) -> int:
        """Number of input bands."""
        return len(self.bands)

    @property
    def embedding_width(self) -> int:
        """Number of channels of an embedding."""
        return self.width * max(1, len(self.embedding_blocks))

    @property
    def patch_dim(self) -> int:
        """Number of values in one patch."""
        return self.patch * self.patch * self.channels

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The token grid of an image of `height` x `width` pixels."""
        learned = "learned" in (self.positions, self.decoder_positions)
        for side in (height, width):
            if not learned and (side < self.patch or side % self.patch):
                raise InputError(
                    f"image side {side} is not a multiple of the patch {self.patch}: pad or crop"
                )
        if learned and (height, width) != (self.image_size, self.image_size):
            raise InputError(
                f"images are {height} x {width}, the model has learned positions for "
                f"{self.image_size} x {self.image_size}: resize the images, or import the model "
                "for their size (nec convert --image-size N --resize-positions)"
            )
        return height // self.patch, width // self.patch

    def to_meta(self) -> dict[str, Any]:
        """The configuration as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_meta`; unknown keys raise."""
        return cls(**with_tuples(meta))


def model_config(arch: str, **overrides: Any) -> ModelConfig:
    """The configuration of a named architecture (`vit-ti`, `-s`, `-b`, `-l`, `-h`).

    Overrides replace any field of `ModelConfig`; `image_size` defaults to 224, as in the paper.
    """
    if arch not in VARIANTS:
        raise InputError(f"unknown architecture {arch!r}: choose from {', '.join(VARIANTS)}")
    fields = {**VARIANTS[arch]._asdict(), **overrides}
    fields.setdefault("image_size", 224)
    return ModelConfig(arch=arch, **fields)
