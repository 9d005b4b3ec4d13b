"""Whether a head refines the embeddings that it reads, and for which quality."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coder import EmbeddingCodec, InputError
from coder.codecs import OneQualityCodec
from nec_jax.model_file import NecParams

_SAMPLE = 4  # embeddings of each part that are coded again
_BATCH = 64
# Parts of the distance from the codec's mean: float32 and float16 round by less.
_EXACT, _CLOSE = 1e-5, 0.005


def refining_codec(
    params: NecParams,
    refine: bool | None,
    parts: Sequence[NDArray[np.float32]],
    grid: tuple[int, int],
) -> OneQualityCodec | None:
    """The codec, of one quality, whose refiner a head applies; None if it applies none.

    Args:
      refine: as for `heads.fit`.
      parts: the embeddings [N, n, D] that the head is fitted to, and those it is chosen on.

    Raises:
      InputError: `refine` is not True, False or None; or it is True, and the model has no refiner,
        or its codec did not decode the embeddings.
    """
    if refine is not None and not isinstance(refine, bool | np.bool_):
        raise InputError(f"refine is {refine!r}: give True, False or None")
    codec = params.codec
    if codec is None or codec.refiner is None or not (refine is None or refine):
        if refine:
            raise InputError(
                "this model has no refiner: train one with `nec refine`, or leave refine=True out"
            )
        return None
    places = [np.linspace(0, len(y) - 1, min(_SAMPLE, len(y))).astype(int) for y in parts]
    some = np.concatenate([y[place] for y, place in zip(parts, places, strict=True)])
    found = decoded_by(codec, some, grid)
    if found is not None and not all(_decoded(found, y, grid) for y in parts):
        found = None
    if found is None and refine:
        raise InputError(
            "refine=True is for plain decoded embeddings of one quality, and the model's codec did "
            "not decode these: pass what `decode` returns, or leave refine=True out"
        )
    return found


def decoded_by(
    codec: EmbeddingCodec, y: NDArray[np.float32], grid: tuple[int, int]
) -> OneQualityCodec | None:
    """The codec of the quality that decoded y [N, n, D] (plain), or None.

    Coding a plain decoded embedding again gives the same embedding at its own quality. Rounded
    embeddings may be near those of two qualities: then the answer is None.
    """
    first = 0 if codec.num_qualities > 1 else codec.quality
    ones = [codec.at(quality) for quality in range(first, first + codec.num_qualities)]
    errors = np.array([_errors(one, y, grid).max() for one in ones])
    best = int(errors.argmin())
    if errors[best] >= _CLOSE:
        return None
    if errors[best] > _EXACT and (np.delete(errors, best) < 2 * errors[best]).any():
        return None
    return ones[best]


def _decoded(codec: OneQualityCodec, y: NDArray[np.float32], grid: tuple[int, int]) -> bool:
    """Whether a codec decoded each of y [N, n, D]."""
    spans = range(0, len(y), _BATCH)
    return all((_errors(codec, y[i : i + _BATCH], grid) < _CLOSE).all() for i in spans)


def _errors(
    codec: OneQualityCodec, y: NDArray[np.float32], grid: tuple[int, int]
) -> NDArray[np.float64]:
    """How far each of y [N, n, D] moves when it is coded.

    The unit is its distance from the codec's mean, and at least the average one.
    """
    try:
        again = codec.dequantise(codec.quantise(y, grid), grid)
    except InputError:  # another grid, or too far from the codec's mean for its symbols
        return np.full(len(y), np.inf)
    mean = codec.dequantise(np.zeros((len(y[0]), codec.symbols_per_token), np.int32), grid)
    moved, distance = (np.linalg.norm(part, axis=(1, 2)) for part in (again - y, y - mean))
    return moved / np.maximum(np.maximum(distance, distance.mean()), 1e-30)
