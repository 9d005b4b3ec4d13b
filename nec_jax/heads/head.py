"""HeadParams: a trained head as a JAX pytree."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax

from coder import InputError
from nec_jax.heads.layers import Head
from nec_jax.models.architecture import ModelConfig, with_tuples
from nec_jax.models.weight_tree import Weights

Kind = Literal["linear", "class-linear", "attention", "token-linear", "conv"]
LINEAR = ("linear", "class-linear", "token-linear")
"""The kinds of heads that are fitted in closed form."""
MASKS = ("token-linear", "conv")
"""The kinds of heads that predict masks."""
IGNORE = 255  # the value of mask pixels that are neither trained on nor scored


def check_kind(kind: str) -> None:
    """Raise InputError if there is no such kind of head."""
    if kind not in get_args(Kind):
        raise InputError(f"unknown head {kind!r}: choose {', '.join(get_args(Kind))}")


@dataclass(frozen=True)
class HeadConfig:
    """The static half of a head; travels in its file.

    Attributes:
      kind: "linear", "class-linear", "attention" (classification), "token-linear" or "conv"
        (segmentation).
      classes: names of the classes, in the order of their indices.
      grid: height and width of the token grid.
      with_decoder: whether the model's decoder stem and first block come before the head.
      mask_size: height and width of predicted masks, pixels; None for classification.
      model: configuration of the model whose embeddings it takes.
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
    model: ModelConfig
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

    def head(self) -> Head:
        """The layers after standardisation, or after the decoder block."""
        c = self.model
        heads = c.decoder_heads if self.with_decoder else c.heads
        return Head(self.kind, len(self.classes), self.grid, heads, c.mlp_ratio)

    def to_meta(self) -> dict[str, Any]:
        """As a JSON-ready dictionary, without `refiner` if there is none."""
        meta = dataclasses.asdict(self)
        if self.refiner is None:
            del meta["refiner"]
        return meta

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "HeadConfig":
        """The inverse of `to_meta`; unknown keys raise."""
        return cls(**with_tuples({**meta, "model": ModelConfig.from_meta(meta["model"])}))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadParams:
    """Weights (leaves) with their static config.

    Attributes:
      weights: {"head": ...} and what comes before it: {"stem": ..., "block_0": ..., "norm": ...}
        with decoder, else {"scaling": {"mean": [D], "std": [D]}} of the training embeddings;
        before both {"refiner": `nec_jax.models.refiner_network.arrays`} if the head refines;
        float32.
      config: see `HeadConfig`.
    """

    weights: Weights
    config: HeadConfig = field(metadata={"static": True})
