"""The one name by which the commands call a codec: its fingerprint, whatever they show.

A blob, and an array of an archive, belong to a codec of one quality, which has a fingerprint of its
own. The codec that it was cut from says which of them are its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from coder import codecs
from coder.codecs import EmbeddingCodec, OneQualityCodec
from coder.errors import InputError
from coder.format import blob as framing
from coder.format.container import SHIPPED


class Named(NamedTuple):
    """A codec, the name of its model or file, and a quality of it."""

    codec: EmbeddingCodec
    file: str
    quality: int

    def __str__(self) -> str:
        return f"codec {self.codec.fingerprint[:4].hex()} of {self.file}, quality {self.quality}"


UNKNOWN = "of no model that ships (--codec names its codec or model, if you have it)"


def of_blob(header: framing.Header, given: Path | None) -> Named | None:
    """The codec of a blob, if it is the given one or, without one, that of a shipped model."""
    for file, codec in _known(given):
        with suppress(InputError):  # no such quality
            one = codec.at(header.rate_index)
            if one.fingerprint[:4] == header.fingerprint[:4]:
                return Named(codec, file, header.rate_index)
    return None


def of_arrays(parts: Sequence[OneQualityCodec], given: Path | None) -> Named | None:
    """The codec of an archive, as `of_blob`; `parts` as for `EmbeddingCodec.quality_of`."""
    for file, codec in _known(given):
        if (quality := codec.quality_of(parts)) is not None:
            return Named(codec, file, quality)
    return None


def _known(given: Path | None) -> Iterator[tuple[str, EmbeddingCodec]]:
    if given is not None:
        yield given.stem, codecs.load(given)
        return
    for path in sorted(SHIPPED.glob("*.safetensors")):
        yield path.stem, codecs.load(path)
