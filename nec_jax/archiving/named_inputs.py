"""A model and images by their names, which other processes can open."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from nec_jax.images.record import Source
from nec_jax.model_file import NecParams, load
from nec_jax.sources import absolute, open_inputs


@dataclass(frozen=True)
class NamedInputs:
    """A model and images by their names.

    Attributes:
        model: the model file.
        images: what `nec_jax.sources.open_inputs` takes.
        split, chip: as for `open_inputs`.
        refiner: whether to keep the model's refiner.
    """

    model: Path
    images: tuple[str, ...]
    split: str = "all"
    chip: int | None = None
    refiner: bool = True

    @cached_property
    def opened(self) -> tuple[NecParams, Source]:
        """The model, and the list of images. Raises what `load` and `open_inputs` raise."""
        params = load(self.model)
        if not self.refiner and params.codec is not None:
            params = replace(params, codec=params.codec.with_refiner(None))
        return params, open_inputs(self.images, self.split, chip=self.chip)

    def absolute(self) -> "NamedInputs":
        """The same by names that mean the same in other folders; not opened."""
        images = tuple(absolute(name) for name in self.images)
        return replace(self, model=self.model.absolute(), images=images)
