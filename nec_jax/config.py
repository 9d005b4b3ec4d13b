"""What a model is, apart from its weights: architecture and input contract, as plain data."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from coder import InputError

SIZE_RULE = "resize the shorter side to image_size (bicubic, antialiased), crop the centre square"


_SIZES = (
    "image_size",
    "patch",
    "width",
    "depth",
    "heads",
    "decoder_width",
    "decoder_depth",
    "decoder_heads",
    "mlp_ratio",
    "coding_batch",
)
_DEEPEST = 256
_DTYPES = ("uint8", "uint16", "int16", "float32")
_PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


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
# (MAE), appendix A.1; those of Ti and S are narrowed in proportion, for it names none.
VARIANTS = {
    "vit-ti": Variant(16, 192, 12, 3, 128, 4, 4),
    "vit-s": Variant(16, 384, 12, 6, 256, 4, 8),
    "vit-b": Variant(16, 768, 12, 12, 512, 8, 16),
    "vit-l": Variant(16, 1024, 24, 16, 512, 8, 16),
    "vit-h": Variant(14, 1280, 32, 16, 512, 8, 16),
}


@dataclass(frozen=True)
class ModelConfig:
    """The static half of a model; travels in the model file.

    Attributes:
      arch: name of the architecture the sizes came from.
      image_size: side of the training images, pixels; other sides that `patch` divides also work.
      mlp_ratio: hidden width of an MLP over the width of its block.
      code_class_token: whether the class token passes the bottleneck (and is paid for).
      bands: names of the input channels, in order.
      dtype: the dtype that `encode` accepts.
      value_range: lowest and highest legal input value.
      mean, std: normalisation of each band, in input units: `(x - mean) / std`.
      size_rule: how data loaders bring an image to `image_size`.
      coding_batch: images are encoded in batches padded to exactly this many, so that an
        image's bytes do not depend on its neighbours.
      precision: matrix product precision when coding (a `jax.default_matmul_precision`).
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
        for name in _SIZES:
            value, least = getattr(self, name), 0 if name == "depth" else 1
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not least <= value <= 1 << 16:
                raise InputError(f"{name} is {value!r}: give a whole number from {least} to 65536")
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
        if self.dtype not in _DTYPES:
            raise InputError(f"dtype is {self.dtype!r}: choose from {', '.join(_DTYPES)}")
        if not self.value_range[0] < self.value_range[1]:
            raise InputError(f"value_range {self.value_range} is empty")
        if self.precision not in _PRECISIONS:
            raise InputError(
                f"precision is {self.precision!r}: choose from {', '.join(_PRECISIONS)}"
            )
        if self.width % self.heads or self.decoder_width % self.decoder_heads:
            raise InputError("heads must divide the width, in the encoder and in the decoder")
        if self.width % 4 or self.decoder_width % 4:
            raise InputError("2-d sin-cos positions need widths that are multiples of 4")
        self.grid(self.image_size, self.image_size)

    @property
    def channels(self) -> int:
        """Number of input bands."""
        return len(self.bands)

    @property
    def patch_dim(self) -> int:
        """Number of values in one patch."""
        return self.patch * self.patch * self.channels

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The token grid of an image of `height` x `width` pixels."""
        for side in (height, width):
            if side < self.patch or side % self.patch:
                raise InputError(
                    f"image side {side} is not a multiple of the patch {self.patch}: pad or crop"
                )
        return height // self.patch, width // self.patch

    def to_meta(self) -> dict[str, Any]:
        """As a JSON-ready dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_meta`; unknown keys raise."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in meta.items()
        }
        return cls(**fields)


def model_config(arch: str, **overrides: Any) -> ModelConfig:
    """The configuration of a named architecture (`vit-ti`, `-s`, `-b`, `-l`, `-h`).

    Overrides replace any field of `ModelConfig`; `image_size` defaults to 224, as in the paper.
    """
    if arch not in VARIANTS:
        raise InputError(f"unknown architecture {arch!r}: choose from {', '.join(VARIANTS)}")
    fields = {**VARIANTS[arch]._asdict(), **overrides}
    fields.setdefault("image_size", 224)
    return ModelConfig(arch=arch, **fields)
