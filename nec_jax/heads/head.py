"""HeadParams: a trained head as a JAX pytree."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax

from coder.task_heads.head_settings import HeadSettings, with_tuples
from nec_jax.heads.layers import Head
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.weight_tree import Weights


@dataclass(frozen=True)
class HeadConfig(HeadSettings):
    """The static half of a head; travels in its file. `model` is the model's configuration."""

    model: ModelConfig

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
