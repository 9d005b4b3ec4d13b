"""Refiner: a small network that brings decoded embeddings closer to those that were encoded.

Most coefficients are rounded to zero, and decoding returns their mean. But tokens of a vision
transformer lie near a curved and clustered set, so what was sent says much about what was not. The
refiner predicts the difference for each token, from the decoded token and its surroundings:

    u = (y_hat - mean) / scale
    c = the means of u @ basis over the 3 x 3 and over the 15 x 15 tokens around the token, as far
        as they are in the grid, one after the other
    h = max(0, u @ token + c @ context + bias[r])         r: the index of the quality
    y = y_hat + gains[r] * scale * (h @ out + offset)

`bias` lets one network serve all qualities. `gains` are measured on embeddings that the network was
not fitted to; a quality at which it does not help has the gain 0. A class token stays as it is.

y is a continuous function of y_hat: no comparison chooses between values that differ. So readers
whose y_hat agree to 1e-5 also agree about y, to a small multiple of that.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder.arrays import frozen, is_whole
from coder.errors import CodecError, FileError, InputError, about
from coder.format import container
from coder.lazy_attribute import lazy_attribute
from coder.transform import product

REFINER = "refiner"
"""The kind of a refiner's file."""
RADII = (1, 7)
"""How far the surroundings of a token reach, in tokens: 3 x 3 and 15 x 15."""
NO_REFINER = "the codec has no refiner: codec.with_refiner(coder.load_refiner(FILE)) adds one"
"""What is wrong with a codec that is asked to refine and has no refiner."""
_HALF = ("token", "basis", "context", "out")  # stored as float16


@dataclass(frozen=True, eq=False, repr=False)
class Refiner:
    """Refine the decoded embeddings of one codec, at each of its R qualities.

    Attributes:
      codecs: the fingerprints, in hexadecimal, of the codecs that it belongs to, and the index of
        the quality of each; -1 for the codec of all qualities.
      mean, scale: float32 [D].
      token: float16 [D, H].
      basis: float16 [D, C].
      context: float16 [2 C, H].
      bias: float32 [R, H].
      out: float16 [H, D].
      offset: float32 [D].
      gains: float32 [R].

    Raises:
      CodecError: shapes that do not fit together, or numbers that are not finite.
    """

    codecs: Mapping[str, int]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    token: NDArray[np.float16]
    basis: NDArray[np.float16]
    context: NDArray[np.float16]
    bias: NDArray[np.float32]
    out: NDArray[np.float16]
    offset: NDArray[np.float32]
    gains: NDArray[np.float32]

    def __post_init__(self) -> None:
        d, r = self.channels, self.gains.size
        h, c = (values.shape[-1] if values.ndim else 0 for values in (self.bias, self.basis))
        shapes = {"mean": (d,), "scale": (d,), "token": (d, h), "basis": (d, c)}
        shapes |= {"context": (len(RADII) * c, h), "bias": (r, h), "out": (h, d)}
        shapes |= {"offset": (d,), "gains": (r,)}
        for name, shape in shapes.items():
            values = getattr(self, name)
            dtype = np.dtype("<f2" if name in _HALF else "<f4")
            empty = not values.size and name not in ("basis", "context")  # C may be 0
            if values.dtype != dtype or values.shape != shape or empty:
                raise CodecError(
                    f"{name} of a refiner is {dtype.name} {list(shape)}, not "
                    f"{values.dtype} {list(values.shape)}"
                )
            if not np.isfinite(values).all():
                raise CodecError(f"{name} of the refiner is not finite")
            object.__setattr__(self, name, frozen(values) if values.size else values.copy())
        if not (self.scale > 0).all():
            raise CodecError("scales of the refiner must be positive")
        indices = list(self.codecs.values())
        if not indices or not all(is_whole(i) and -1 <= i < r for i in indices):
            raise CodecError("the refiner belongs to no codec, or to qualities that it lacks")

    @property
    def channels(self) -> int:
        """D, the number of channels."""
        return self.mean.size

    @lazy_attribute
    def fingerprint(self) -> bytes:
        """SHA-256 (32 bytes) of everything in the refiner."""
        tensors, content = self.to_parts()
        return container.digest(tensors, container.canonical_json(content))

    def __repr__(self) -> str:
        return (
            f"<Refiner {self.fingerprint[:4].hex()}: {self.channels} channels, "
            f"{self.bias.shape[1]} hidden units, {self.gains.size} qualities>"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refiner) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self):
        return Refiner.from_bytes, (self.to_bytes(),)

    def refine(
        self, y_hat: NDArray[np.float32], grid: tuple[int, int], fingerprint: bytes
    ) -> NDArray[np.float32]:
        """Refine an embedding float32 [n, D] that the codec of this fingerprint decoded.

        Raises:
          InputError: the refiner is not one of this codec.
          FileError: the refiner gives infinite numbers.
        """
        self.check_channels(y_hat.shape[-1])
        index = self.codecs.get(fingerprint.hex(), -1)
        if index < 0:
            raise InputError("the refiner belongs to another codec than that of the embedding")
        gain = self.gains[index]
        if gain == 0:
            return y_hat
        token, basis, context, out = self._weights
        first = len(y_hat) - grid[0] * grid[1]
        u = (y_hat[first:] - self.mean) / self.scale
        h = product(u, token)
        if basis.size:
            h += product(surroundings(product(u, basis), grid), context)
        h += self.bias[index]
        np.maximum(h, 0, out=h)
        change = product(h, out)
        change += self.offset
        change *= gain * self.scale
        y = y_hat.copy()
        y[first:] += change
        if not np.isfinite(y).all():
            raise FileError("the refiner gives infinite numbers: it was made wrongly")
        return y

    def check_channels(self, channels: int) -> None:
        """Raise InputError unless the refiner is for embeddings of so many channels."""
        if channels != self.channels:
            raise InputError(
                f"the refiner is for {self.channels} channels, and the embeddings have {channels}"
            )

    @lazy_attribute
    def _weights(self) -> tuple[NDArray[np.float32], ...]:
        return tuple(getattr(self, name).astype(np.float32) for name in _HALF)

    def to_parts(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Named tensors and JSON content: what a file, or a model's file, stores of a refiner."""
        names = [field.name for field in fields(self) if field.name != "codecs"]
        return {name: getattr(self, name) for name in names}, {"codecs": dict(self.codecs)}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, NDArray], content: Mapping[str, Any]) -> "Refiner":
        """The refiner that `to_parts` described. Raises FileError on anything else."""
        names = {field.name for field in fields(cls)} - {"codecs"}
        if set(tensors) != names or set(content) != {"codecs"}:
            raise FileError(f"a refiner has tensors {sorted(names)}, not {sorted(tensors)}")
        if not isinstance(content["codecs"], dict):
            raise FileError("the codecs of a refiner are not an object")
        try:
            return cls(content["codecs"], **tensors)
        except CodecError as error:
            raise FileError(f"not a usable refiner: {error}") from error

    def to_bytes(self) -> bytes:
        """The refiner's file in memory; equal refiners have equal bytes."""
        return container.to_bytes(REFINER, *self.to_parts())

    @classmethod
    def from_bytes(cls, data: bytes) -> "Refiner":
        """The refiner whose file is `data`. Raises FileError."""
        return cls.from_parts(*container.from_bytes(data, REFINER))

    @property
    def refiner_bytes(self) -> int:
        """Size of the refiner's file in bytes. Count it once when reporting sizes."""
        return len(self.to_bytes())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the refiner's file. An existing file is replaced, as by `numpy.save`.

        Raises OutputError if the path is a folder, pipe or device, or cannot be written.
        """
        container.write(path, REFINER, *self.to_parts())


def load_refiner(path: str | os.PathLike[str]) -> Refiner:
    """Read a refiner from its file or a model file, or that of a shipped model by its name.

    Raises FileError: no such file, a damaged one, one of another kind, or a model without refiner.
    """
    tensors, content = container.read(container.found(path, "refiner"), REFINER, "model")
    with about(path):
        if "config" not in content:
            return Refiner.from_parts(tensors, content)
        refiner = refiner_of_model(tensors, content)
        if refiner is None:
            raise FileError("a model without a refiner")
        return refiner


def refiner_of_model(tensors: Mapping[str, NDArray], content: Mapping[str, Any]) -> Refiner | None:
    """The refiner that a model's file holds, or None. Raises FileError if it is damaged."""
    own = container.under("refiner/", tensors)
    if "refiner" not in content and not own:
        return None
    if not isinstance(content.get("refiner"), dict):
        raise FileError("the refiner of the model is not an object: make the model again")
    return Refiner.from_parts(own, content["refiner"])


def check_refiner(refiner: object) -> None:
    """Raise InputError unless this is a refiner."""
    if not isinstance(refiner, Refiner):
        raise InputError(f"a {type(refiner).__name__} is no refiner: give coder.load_refiner(FILE)")


def surroundings(values: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    """The means of values [h w, C] over the places around each place, by `RADII`: [h w, 2 C]."""
    placed = values.reshape(*grid, -1)
    means = [_mean_around(_mean_around(placed, 0, radius), 1, radius) for radius in RADII]
    return np.concatenate(means, axis=2).reshape(len(values), -1)


def _mean_around(values: NDArray[np.float32], axis: int, radius: int) -> NDArray[np.float32]:
    """The mean over the places at most `radius` away along an axis, as far as they are there."""
    side = values.shape[axis]
    # In float64, whose sums over any grid are more precise than float32.
    sums = np.insert(np.cumsum(values, axis, np.float64), 0, 0.0, axis)
    first = np.maximum(np.arange(side) - radius, 0)
    end = np.minimum(np.arange(side) + radius + 1, side)
    counts = np.expand_dims(end - first, 1 - axis)[..., None]
    return ((sums.take(end, axis) - sums.take(first, axis)) / counts).astype(np.float32)
