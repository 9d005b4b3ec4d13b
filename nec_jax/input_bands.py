"""Adapt a model to other input bands, such as RGB to the bands of Sentinel-2, or back."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from coder import InputError
from coder.arrays import refuse_unordered
from nec_jax.jax_defaults import jax_defaults
from nec_jax.model_file import NecParams


@jax_defaults()
def with_bands(
    params: NecParams,
    bands: Sequence[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: str,
    value_range: tuple[float, float],
) -> NecParams:
    """The model for images of other bands.

    Each new band takes the weights of the patch embedding (and of a decoder of pixels) from the
    band it is mapped to. A band that is mapped to none takes the mean of those that are used. All
    other weights stay, so train the model further before using it.

    Args:
      params: any model; its codec is dropped, because it fits other embeddings.
      bands: one word per band of the new images, in their order: `NAME=BAND` maps it to a band of
        the model; `NAME` alone, to the model's band of that name, if there is one. For example
        `("B04=red", "B03=green", "B02=blue", "B08")`.
      mean, std: normalisation of each new band, in units of the new images.
      dtype, value_range: dtype and range of values of the new images.

    Raises:
      InputError: a band that the model does not have, a name given twice, or no band mapped at all.
    """
    names, origins = _parse(params.config.bands, bands)
    config = dataclasses.replace(
        params.config,
        bands=names,
        mean=tuple(mean),
        std=tuple(std),
        dtype=dtype,
        value_range=value_range,
    )
    old, area = params.config.channels, config.patch**2
    used = sorted({origin for origin in origins if origin is not None})

    def moved(values: jax.Array, axis: int) -> jax.Array:
        """Rearrange an axis of patch values (pixels, then bands)."""
        split = np.moveaxis(np.asarray(values), axis, 0).reshape(area, old, -1)
        average = split[:, used].mean(axis=1)
        parts = [average if origin is None else split[:, origin] for origin in origins]
        whole = np.stack(parts, axis=1).reshape(area * len(parts), *np.delete(values.shape, axis))
        return jnp.asarray(np.moveaxis(whole, 0, axis))

    encoder = params.weights["encoder"]
    embed = encoder["patch_embed"] | {"kernel": moved(encoder["patch_embed"]["kernel"], 0)}
    weights = params.weights | {"encoder": encoder | {"patch_embed": embed}}
    if config.decoder_target in ("pixels", "normalised-pixels"):
        pred = weights["decoder"]["pred"]
        pred = {"kernel": moved(pred["kernel"], 1), "bias": moved(pred["bias"], 0)}
        weights["decoder"] = weights["decoder"] | {"pred": pred}
    return dataclasses.replace(params, weights=weights, config=config, codec=None)


def _parse(
    known: tuple[str, ...], bands: Sequence[str]
) -> tuple[tuple[str, ...], list[int | None]]:
    refuse_unordered(bands, "bands")
    names, origins = [], []
    for word in bands:
        name, equals, origin = word.partition("=")
        if equals and origin not in known:
            raise InputError(
                f"--bands {word}: the model has no band {origin!r}; it has {', '.join(known)}"
            )
        origin = origin if equals else name
        names.append(name)
        origins.append(known.index(origin) if origin in known else None)
    if len(set(names)) < len(names) or not all(names):
        raise InputError(f"--bands {' '.join(bands)}: every band needs a name of its own")
    if all(origin is None for origin in origins):
        raise InputError(
            f"--bands {' '.join(bands)}: none is a band of the model ({', '.join(known)}): map at "
            f"least one, as in {bands[0]}={known[0]}"
        )
    return tuple(names), origins
