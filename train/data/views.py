"""Versions of an image: the whole, and random ones that a seed fixes, the same at any size."""

import numpy as np
from numpy.typing import NDArray

from nec_jax.images.record import Source
from nec_jax.images.size_rule import as_dtype, fit_to, random_crop

_SATURATION = (0.0, 1.4)  # factors of a band's difference from the mean of all bands
_BRIGHTNESS = (-0.6, 0.4)  # logarithms of factors of all bands
_TINT = 0.2  # maximum logarithm of a further factor of each band
_ANOTHER = 0.5  # part of the views that another image is mixed into

MIXED = [_SATURATION, _BRIGHTNESS, _TINT, _ANOTHER]
"""The settings of mixed views; a part of the key of their cached activations."""


def view_of(
    source: Source, index: int, size: int, view: int, seed: int, *, mixed: bool = False
) -> NDArray:
    """View number `view` of an image, [size, size, C]: 0 is the whole, others are random crops.

    If `mixed`, the crops have changed colours too, and half of them are mixed with another image of
    the source. This gives more to learn a teacher's function from when images are few (Beyer 2022,
    arXiv 2106.05237). Raises CorruptImageError if one of the images cannot be read.
    """
    if not view:
        return fit_to(source[index]["image"], size)
    rng = np.random.default_rng([seed, view, index])
    crop = random_crop(source[index]["image"], size, rng)
    if not mixed:
        return crop
    out = recoloured(crop, rng)
    if rng.random() < _ANOTHER:
        other = (index + int(rng.integers(1, max(2, len(source))))) % len(source)
        part = rng.random()
        under = recoloured(random_crop(source[other]["image"], size, rng), rng)
        out = part * out + (1 - part) * under
    return as_dtype(out, crop.dtype)


def recoloured(image: NDArray, rng: np.random.Generator) -> NDArray[np.float64]:
    """Change saturation, brightness and tint of [H, W, C], in the same units."""
    grey = image.mean(-1, keepdims=True, dtype=np.float64)
    vivid = grey + rng.uniform(*_SATURATION) * (image - grey)
    logarithm = rng.uniform(*_BRIGHTNESS) + rng.uniform(-_TINT, _TINT, image.shape[-1])
    out = vivid * np.exp(logarithm)
    if not np.issubdtype(image.dtype, np.integer):
        return out
    return np.clip(out, np.iinfo(image.dtype).min, np.iinfo(image.dtype).max)
