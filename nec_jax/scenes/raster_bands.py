"""The model's contract: which bands of a scene's rasters it takes, and how their values map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec_jax.images.record import DataError
from nec_jax.images.size_rule import as_dtype
from nec_jax.models.architecture import ModelConfig

# Descriptions of bands, as products have them, by the name of a model's band.
_NAMES = {
    "red": ("red", "r", "b4", "b04"),
    "green": ("green", "g", "b3", "b03"),
    "blue": ("blue", "b", "b2", "b02"),
}


@dataclass(frozen=True)
class Band:
    """A band of a raster.

    Attributes:
        number: from 1, as GDAL counts.
        description: as the file has it; empty if it has none.
        colour: its mark, such as "red" or "gray"; as rasterio names it.
        dtype: of the stored values.
        scale, offset: value = scale * stored + offset.
        nodata: the stored value that marks missing data; None if there is none.
    """

    number: int
    description: str
    colour: str
    dtype: str
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None

    def __str__(self) -> str:
        return f"{self.number} ({self.description})" if self.description else str(self.number)


def chosen(
    path: str, there: Sequence[Band], wanted: Sequence[str], config: ModelConfig
) -> list[Band]:
    """The bands of a raster for those of a model, in the model's order.

    Args:
        path: the raster, in errors.
        there: its bands, without alpha.
        wanted: one word per band of the model: a number or a description. Empty: all bands of the
            raster in their order, if these are as many as the model's and not marked otherwise.
        config: the model's configuration.

    Raises DataError: no such bands; says which option mends it.
    """
    model = f"the model takes {len(config.bands)}: {', '.join(config.bands)}"
    if wanted:
        if len(wanted) != len(config.bands):
            raise DataError(
                f"--bands {' '.join(wanted)}: {len(wanted)} bands, and {model}: give one for each"
            )
        return [_named(path, there, word) for word in wanted]
    found = _guessed(there, config)
    if len(there) != len(config.bands):
        listed = ", ".join(map(str, there))
        hint = "for example " if found is None else ""
        example = found or [there[min(i, len(there) - 1)] for i in range(len(config.bands))]
        raise DataError(
            f"{path} has {len(there)} bands ({listed}), and {model}: name one of the file for each "
            f"of these, {hint}--bands {_numbers(example)}"
        )
    if found is not None and found != list(there):
        marked = ", ".join(band.description or band.colour for band in there)
        raise DataError(
            f"{path} has the bands {marked}, and {model}: give their order, --bands "
            f"{_numbers(found)}; or --bands {_numbers(there)}, if the marks are wrong"
        )
    return list(there)


def refuse_values(path: str, bands: Sequence[Band], config: ModelConfig, sample: NDArray) -> None:
    """Raise DataError unless stored values are of the dtype that the model takes.

    Args:
        path: the raster, in errors.
        bands: those that are read.
        config: the model's configuration.
        sample: some valid values, in units of the scaled bands.
    """
    kinds = {band.dtype for band in bands}
    scaled = any((band.scale, band.offset) != (1, 0) for band in bands)
    if kinds == {config.dtype} and not scaled:
        return
    low, high = config.value_range
    what = f"{', '.join(sorted(kinds))}" + (" with a scale" if scaled else "")
    text = (
        f"{path} has pixels of {what}, and the model takes {config.dtype} from {low:g} to "
        f"{high:g}: say which values become {low:g} and {high:g}, --value-range LOW HIGH"
    )
    if sample.size:
        first, last = np.percentile(sample, (1, 99))
        if not first < last:
            first, last = float(sample.min()), float(sample.max())
        if first < last:
            text += (
                f"; 98 % of the pixels lie in --value-range {_rounded(first, last, math.floor)} "
                f"{_rounded(last, first, math.ceil)}"
            )
    raise DataError(text)


def mapped(
    values: NDArray, config: ModelConfig, value_range: tuple[float, float] | None
) -> NDArray:
    """Values as the model takes them: linear from the range to the model's, and clipped."""
    if value_range is None:
        return values.astype(config.dtype, copy=False)
    (low, high), (first, last) = value_range, config.value_range
    scaled = (values.astype(np.float64) - low) * ((last - first) / (high - low)) + first
    return as_dtype(np.clip(scaled, first, last), np.dtype(config.dtype))


def described(bands: Sequence[Band]) -> list[dict[str, Any]]:
    """The bands as JSON, for a scene's attributes."""
    return [
        {"number": band.number, "description": band.description, "dtype": band.dtype}
        | {"scale": band.scale, "offset": band.offset}
        for band in bands
    ]


def _named(path: str, there: Sequence[Band], word: str) -> Band:
    found = [band for band in there if band.description == word]
    if not found and word.isdecimal():
        found = [band for band in there if band.number == int(word)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(map(str, there))
    why = "several bands of this description" if found else "no such band"
    raise DataError(f"--bands {word}: {path} has {why}; it has {listed}")


def _guessed(there: Sequence[Band], config: ModelConfig) -> list[Band] | None:
    """The bands that descriptions, or else marks, say are the model's; None if they do not say."""
    for attribute in ("description", "colour"):
        found = []
        for name in config.bands:
            names = _NAMES.get(name.lower(), (name.lower(),))
            own = [band for band in there if getattr(band, attribute).lower().strip() in names]
            found += own if len(own) == 1 else []
        if len(found) == len(config.bands):
            return found
    return None


def _numbers(bands: Sequence[Band]) -> str:
    return " ".join(str(band.number) for band in bands)


def _rounded(value: float, other: float, towards: Any) -> str:
    """A value with the digits that its distance from another deserves, as text."""
    step = 10.0 ** (math.floor(math.log10(abs(value - other))) - 2)
    rounded = towards(value / step) * step
    return f"{rounded:.10g}"
