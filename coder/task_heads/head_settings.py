"""The settings of a head, and the checks of the embeddings that it takes."""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import as_array, as_floats, check_finite, is_whole
from coder.errors import InputError

Kind = Literal["linear", "class-linear", "attention", "token-linear", "conv"]
LINEAR = ("linear", "class-linear", "token-linear")
"""The kinds of heads that are fitted in closed form."""
MASKS = ("token-linear", "conv")
"""The kinds of heads that predict masks."""
IGNORE = 255  # the value of mask pixels that are neither trained on nor scored
OTHER_SIZE = "pass embeddings of images of the size that it was fitted on, or fit another head"
"""What to do about embeddings with another number of tokens than a head takes."""


def check_kind(kind: str) -> None:
    """Raise InputError if there is no such kind of head."""
    if kind not in get_args(Kind):
        raise InputError(f"unknown head {kind!r}: choose {', '.join(get_args(Kind))}")


@dataclass(frozen=True)
class HeadSettings:
    """The static half of a head; travels in its file.

    Attributes:
      kind: "linear", "class-linear", "attention" (classification), "token-linear" or "conv"
        (segmentation).
      classes: names of the classes, in the order of their indices.
      grid: height and width of the token grid.
      with_decoder: whether the model's decoder stem and first block come before the head.
      mask_size: height and width of predicted masks, pixels; None for classification.
      model: the model whose embeddings it takes: `ModelFacts`, or its whole configuration.
      refiner: the fingerprint, in hexadecimal, of the refiner that the head applies to embeddings
        before anything else; None for a head that reads them as they are.

    Raises:
      InputError: settings that do not fit together.
    """

    kind: Kind
    classes: tuple[str, ...]
    grid: tuple[int, int]
    with_decoder: bool
    mask_size: tuple[int, int] | None
    model: Any
    refiner: str | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind)
        if not isinstance(self.with_decoder, bool):
            raise InputError(f"with_decoder is {self.with_decoder!r}: give True or False")
        if self.kind == "class-linear" and not self.class_tokens:
            raise InputError("class-linear reads the class token: this model codes none")
        if self.kind == "class-linear" and self.with_decoder:
            raise InputError("class-linear reads tokens as they are: leave with_decoder out")
        if self.refiner is not None and not re.fullmatch("[0-9a-f]{64}", self.refiner):
            raise InputError(f"refiner is {self.refiner!r}: give a fingerprint, 64 hex digits")
        names = self.classes if isinstance(self.classes, tuple) else ()
        if len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise InputError(f"classes are {self.classes!r}: give the names of two or more")
        if self.mask_size is not None and len(self.classes) > IGNORE:
            raise InputError(f"{len(self.classes)} classes: masks hold {IGNORE} at most")
        if (self.mask_size is not None) != (self.kind in MASKS):
            raise InputError("mask_size goes with heads that predict masks, and only with them")
        for size in (self.grid, self.mask_size or (1, 1)):
            whole = [isinstance(n, int) and n > 0 for n in size]
            if len(whole) != 2 or not all(whole):
                raise InputError(f"{size!r} is not a height and a width: give two whole numbers")

    @property
    def class_tokens(self) -> int:
        """Number of class tokens before the grid's: 0 or 1."""
        return int(self.model.code_class_token)

    @property
    def refine(self) -> bool:
        """Whether the head refines embeddings."""
        return self.refiner is not None

    @property
    def tokens(self) -> int:
        """Number of tokens of an embedding, class token included."""
        return self.class_tokens + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class ModelFacts:
    """The settings of a model that its heads depend on, as in `nec_jax.models.ModelConfig`.

    Raises:
      InputError: settings that do not fit together.
    """

    width: int
    heads: int
    decoder_width: int
    decoder_heads: int
    mlp_ratio: int = 4
    epsilon: float = 1e-6
    embedding_blocks: tuple[int, ...] = ()
    decoder_positions: str = "sincos"
    code_class_token: bool = True

    def __post_init__(self) -> None:
        sizes = self.width, self.heads, self.decoder_width, self.decoder_heads, self.mlp_ratio
        if not all(is_whole(size) and 0 < size <= 1 << 16 for size in sizes):
            raise InputError(f"sizes of the model are {sizes}: whole numbers from 1 to 65536")
        if self.width % self.heads or self.decoder_width % self.decoder_heads:
            raise InputError("heads must divide the width, in the encoder and in the decoder")
        if self.decoder_positions not in ("sincos", "learned"):
            raise InputError(f"decoder_positions are {self.decoder_positions!r}: update nec-jax")
        if not (isinstance(self.epsilon, float) and 0 < self.epsilon < 1):
            raise InputError(f"epsilon is {self.epsilon!r}: give a number between 0 and 1")
        if not isinstance(self.code_class_token, bool):
            raise InputError(f"code_class_token is {self.code_class_token!r}: give True or False")

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "ModelFacts":
        """The facts in a model's configuration. Raises InputError for settings of newer models."""
        own = cls.__dataclass_fields__.keys()
        if unknown := sorted(meta.keys() - own - NO_MATTER):
            raise InputError(f"unknown settings of the model, {', '.join(unknown)}: update nec-jax")
        return cls(**with_tuples({k: v for k, v in meta.items() if k in own}))

    @property
    def embedding_width(self) -> int:
        """Number of channels of an embedding."""
        return self.width * max(1, len(self.embedding_blocks))


NO_MATTER = {
    *("arch", "image_size", "patch", "depth", "activation", "positions", "patch_bias", "pre_norm"),
    *("layer_scale", "class_token", "registers", "bands", "dtype", "value_range", "mean", "std"),
    *("size_rule", "coding_batch", "precision", "decoder_depth", "decoder_target"),
}
"""Settings of a model that change nothing about its heads. One that is unknown might."""


def with_tuples(meta: dict[str, Any]) -> dict[str, Any]:
    """A configuration from JSON, with tuples in place of lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in meta.items()}


def check_embeddings(model: Any, y_hat: ArrayLike, name: str) -> NDArray[np.float32]:
    """Decoded embeddings as float32 [N, n, D].

    Raises:
      InputError: not floats, another shape or width, empty, masked, NaN or infinity.
    """
    given = as_array(y_hat, name)
    y = as_floats(given, name)
    if y.ndim != 3 or y.shape[2] != model.embedding_width:
        raise InputError(
            f"{name} has shape {y.shape}: pass [N, tokens, {model.embedding_width}] of this model"
        )
    if y.size == 0 or y.shape[1] <= int(model.code_class_token):
        raise InputError(f"{name} has shape {y.shape}: it holds no embedding")
    check_finite(y, given, name)
    return y


def check_tokens(settings: HeadSettings, y: NDArray[np.float32], name: str, remedy: str) -> None:
    """Raise InputError if `y` [N, n, D] does not have the head's number of tokens."""
    if y.shape[1] != settings.tokens:
        h, w = settings.grid
        token = " and a class token" if settings.class_tokens else ""
        raise InputError(
            f"{name} has {y.shape[1]} tokens, the head takes {settings.tokens} "
            f"(a grid of {h} x {w}{token}): {remedy}"
        )


def batch_size(settings: HeadSettings) -> int:
    """The number of embeddings per batch: logits of masks are large, those of labels small."""
    return 16 if settings.mask_size is not None else 128
