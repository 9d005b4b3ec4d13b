"""The images of a study, and the result of a method for them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec_jax.model_file import NecParams
from train.configs.options import OptionsError
from train.data import Split
from train.engine.activation_cache import finish, start_of


@dataclass(frozen=True)
class Study:
    """The images that every method codes, to fit heads, to choose their settings and to score them.

    With `blocks`, the splits hold activations after that many blocks. They are only for models
    whose first blocks are as `start` says (`activation_cache.start_of`).
    """

    fit: Split
    choose: Split
    score: Split
    classes: tuple[str, ...]
    name: str
    blocks: int = 0
    start: dict[str, Any] | None = None
    _known: dict[int, tuple[NecParams, list[NDArray[np.float32]]]] = field(
        default_factory=dict, repr=False
    )

    def grid(self, params: NecParams) -> tuple[int, int]:
        """The token grid of these images in a model."""
        return params.config.grid(*self.score.images.shape[1:3])

    def splits(self) -> tuple[Split, Split, Split]:
        """The three splits, in that order."""
        return self.fit, self.choose, self.score

    def embedded(self, base: NecParams) -> list[NDArray[np.float32]]:
        """The embeddings of all splits by an uncompressed model; the last model's are kept."""
        if id(base) not in self._known:
            self._known.clear()
            # Kept with the model, so that no other model can get its address.
            self._known[id(base)] = base, [self.latents(base, split) for split in self.splits()]
        return self._known[id(base)][1]

    def latents(self, params: NecParams, split: Split) -> NDArray[np.float32]:
        """The embeddings of a split's images."""
        if split.tokens is not None and start_of(params, self.blocks) != self.start:
            raise OptionsError(
                "a model has other first blocks, normalisation or precision than the one that the "
                "cache was made with: give the --base that it was made from, or leave --cache out"
            )
        inputs = split.images if split.tokens is None else split.tokens
        return finish(params, inputs, self.blocks)


@dataclass(frozen=True)
class Method:
    """One way of coding, at one setting, applied to the three splits of a study.

    Attributes:
      name, setting: as in the report.
      model: the model from whose decoder a head with decoder starts.
      values: decoded embeddings of the three splits, float32 [N, n, D] each.
      sizes: int64 [N], real bytes of each image of the scored split.
      errors: float64 [N], squared error of each image, mean over all channels of its tokens, in
        units of the variances of the uncompressed embedding; None if there is none. For a model
        with a decoder of features, the error of its prediction.
      codec_bytes: bytes that a decoder needs once.
      facts: further columns of the report.
    """

    name: str
    setting: str
    model: NecParams
    values: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    sizes: NDArray[np.int64]
    errors: NDArray[np.float64] | None = None
    codec_bytes: int = 0
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def bytes_per_image(self) -> float:
        """Mean real size over the scored split."""
        return float(np.mean(self.sizes))
