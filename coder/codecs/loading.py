"""Open a codec of any class, from its file or its parts."""

import os
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from coder.codecs.base import CODEC, EmbeddingCodec
from coder.codecs.coefficients import TRANSFORMS
from coder.codecs.quality_ladder import QualityLadder
from coder.codecs.scalar_codec import IDENTITY, ScalarCodec
from coder.codecs.transform_codec import TransformCodec
from coder.errors import CodecError, FileError, InputError, about
from coder.format import container
from coder.refiner import refiner_of_model

MODEL = "model"
"""The kind of a model's file, which holds its codec."""

_CLASSES: dict[str, type[EmbeddingCodec]] = {
    name + kind.SUFFIX: kind for kind in (TransformCodec, QualityLadder) for name in TRANSFORMS
}
_CLASSES[IDENTITY] = ScalarCodec


def load(path: str | os.PathLike[str]) -> EmbeddingCodec:
    """Read a codec from a codec file or a model file, or that of a shipped model by its name.

    The codec of a model file has the refiner of the file, if there is one.

    Raises FileError: no such file, a damaged one, or one of another kind.
    """
    tensors, content = container.read(container.found(path, "codec"), CODEC, MODEL)
    with about(path):
        return of_file(tensors, content)


def of_file(tensors: Mapping[str, NDArray], content: Mapping[str, Any]) -> EmbeddingCodec:
    """The codec that the file of a codec or a model holds. Raises FileError."""
    if "config" not in content:
        return from_parts(tensors, content)
    if not isinstance(content.get("codec"), dict):
        raise FileError("a model without a codec")
    codec = from_parts(container.under("codec/", tensors), content["codec"])
    return with_refiner_of(codec, tensors, content)


def with_refiner_of(
    codec: EmbeddingCodec, tensors: Mapping[str, NDArray], content: Mapping[str, Any]
) -> EmbeddingCodec:
    """The codec of a model's file with the refiner of the file; `codec` if the file has none.

    Args:
      codec: the codec that the file holds.
      tensors, content: those of the whole file.

    Raises FileError: a damaged refiner, or one of another codec.
    """
    refiner = refiner_of_model(tensors, content)
    try:
        return codec if refiner is None else codec.with_refiner(refiner)
    except InputError as error:
        raise FileError(f"not the refiner of the model's codec: {error}") from error


def from_bytes(data: bytes) -> EmbeddingCodec:
    """The codec whose file is `data`. Raises FileError."""
    return from_parts(*container.from_bytes(data, CODEC))


def from_parts(tensors: Mapping[str, NDArray], content: Mapping[str, Any]) -> EmbeddingCodec:
    """The codec that `EmbeddingCodec.to_parts` described. Raises FileError on anything else."""
    name = content.get("transform")
    kind = _CLASSES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise FileError(f"unknown transform {name!r}: update nec-jax")
    if set(content) != {"max_tokens", "rate_index", "transform"}:
        raise FileError(f"a codec's content is not {sorted(content)}: update nec-jax")
    try:
        return kind.from_parts(tensors, content)
    except CodecError as error:
        raise FileError(f"not a usable codec: {error}") from error
