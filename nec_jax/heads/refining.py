"""Whether a head refines the embeddings that it reads, and for which quality."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coder import EmbeddingCodec, InputError
from coder.codecs import OneQualityCodec
from nec_jax.model_file import NecParams

_SAMPLE = 4  # embeddings of each part that are coded again
_CLOSE = 0.005  # of the distance from the codec's mean; float16 rounds by less


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
    if refine is not None and not isinstance(refine, bool):
        raise InputError(f"refine is {refine!r}: give True, False or None")
    codec = params.codec
    if refine is False or codec is None or codec.refiner is None:
        if refine:
            raise InputError(
                "this model has no refiner: train one with `nec refine`, or leave refine=True out"
            )
        return None
    places = [np.linspace(0, len(y) - 1, min(_SAMPLE, len(y))).astype(int) for y in parts]
    some = np.concatenate([y[place] for y, place in zip(parts, places, strict=True)])
    found = decoded_by(codec, some, grid)
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

    Coding a plain decoded embedding again gives the same embedding, at its own quality alone.
    """
    first = 0 if codec.num_qualities > 1 else codec.quality
    best, found = _CLOSE, None
    for quality in range(first, first + codec.num_qualities):
        one = codec.at(quality)
        try:
            again = one.dequantise(one.quantise(y, grid), grid)
        except InputError:  # too far from the codec's mean for its symbols
            return None
        mean = one.dequantise(np.zeros((len(y[0]), one.symbols_per_token), np.int32), grid)
        distance = float(np.linalg.norm(y - mean))
        error = float(np.linalg.norm(again - y)) / max(distance, 1e-30)
        if error < best:
            best, found = error, one
    return found
