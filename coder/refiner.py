"""Refiner: a small network that brings decoded embeddings closer to those that were encoded.

Most coefficients are rounded to zero, and decoding returns their mean. But tokens of a vision
transformer lie near a curved and clustered set, so what was sent says much about what was not. The
refiner predicts the difference for each token, from the decoded token and its surroundings, in the
principal components of the codec. At quality r, k = inputs[r] and m = outputs[r]:

    c = ((y_hat - mean) / scale) @ basis[:, :k]
    a = the means of the first components of c over the 3 x 3 and over the 15 x 15 tokens around
        the token, as far as they are in the grid
    h = max(0, c @ token[:k] + a[0] @ context[0] + a[1] @ context[1] + bias[r])
    y = y_hat + gains[r] * scale * ((h @ out[:, :m] + offset[:m]) @ basis[:, :m].T)

A codec codes few of the first components at a low quality. A refiner sees those of them that tell
something, its k, and predicts those that it predicts usefully, its m. So refining takes less time
where decoding takes less.

`bias` lets one network serve all qualities. `gains` are measured on embeddings that the network was
not fitted to; a quality at which it does not help has the gain 0. A class token stays as it is.

y is a continuous function of y_hat: no comparison chooses between values that differ. So readers
whose y_hat agree to 1e-5 also agree about y, to a small multiple of that.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder.arrays import frozen, is_whole, read_only
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
MOST_UNITS = 4096
"""The largest number of hidden units. It bounds the memory that a hostile file takes."""
AIMS, AIM = 3, 0.6
"""How often an encoder aims, and how far of the way it goes (`OneQualityCodec.aim`)."""
_KEPT = 4  # qualities whose networks are kept
_STRIP = 64  # places along a side whose surroundings are computed together
_HALF, _COUNTS = {"basis", "token", "context", "out"}, ("inputs", "outputs")


@dataclass(frozen=True, eq=False, repr=False)
class Refiner:
    """Refine the decoded embeddings of one codec, at each of its R qualities.

    Attributes:
      codecs: the fingerprints, in hexadecimal, of the codecs that it belongs to, and the index of
        the quality of each; -1 for the codec of all qualities.
      mean, scale: float32 [D].
      basis: float16 [D, M], nearly orthonormal columns: the components of the codec.
      token: float16 [M, H].
      context: float16 [2, C, H], for the surroundings in the first C components.
      bias: float32 [R, H].
      out: float16 [H, M].
      offset: float32 [M].
      inputs, outputs: int32 [R], 0 to M: how many components are seen, and predicted.
      gains: float32 [R].

    Raises:
      CodecError: shapes that do not fit together, or numbers that are not finite.
    """

    codecs: Mapping[str, int]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    basis: NDArray[np.float16]
    token: NDArray[np.float16]
    context: NDArray[np.float16]
    bias: NDArray[np.float32]
    out: NDArray[np.float16]
    offset: NDArray[np.float32]
    inputs: NDArray[np.int32]
    outputs: NDArray[np.int32]
    gains: NDArray[np.float32]

    def __post_init__(self) -> None:
        d, r = self.channels, self.gains.size
        h, m = (values.shape[-1] if values.ndim else 0 for values in (self.bias, self.basis))
        c = self.context.shape[1] if self.context.ndim == 3 else 0
        shapes = {"mean": (d,), "scale": (d,), "basis": (d, m), "token": (m, h)}
        shapes |= {"context": (len(RADII), c, h), "bias": (r, h), "out": (h, m), "offset": (m,)}
        shapes |= dict.fromkeys(("inputs", "outputs", "gains"), (r,))
        for name, shape in shapes.items():
            values = getattr(self, name)
            dtype = np.dtype("<f2" if name in _HALF else "<i4" if name in _COUNTS else "<f4")
            empty = not values.size and name != "context"  # C may be 0
            if values.dtype != dtype or values.shape != shape or empty:
                raise CodecError(
                    f"{name} of a refiner is {dtype.name} {list(shape)}, not "
                    f"{values.dtype} {list(values.shape)}"
                )
            if not np.isfinite(values).all():
                raise CodecError(f"{name} of the refiner is not finite")
            object.__setattr__(self, name, frozen(values) if values.size else values.copy())
        if c > m or m > d or h > MOST_UNITS:
            raise CodecError(
                f"a refiner of {d} channels, {m} components ({c} of them around a token) and {h} "
                f"hidden units: give at most {d}, {m} and {MOST_UNITS:,}"
            )
        for name in _COUNTS:
            counts = getattr(self, name)
            if counts.min() < 0 or counts.max() > m:
                raise CodecError(f"{name} of the refiner are not all from 0 to {m}, its components")
        if not (self.scale > 0).all():
            raise CodecError("scales of the refiner must be positive")
        object.__setattr__(self, "codecs", dict(self.codecs))
        indices = list(self.codecs.values())
        if not indices or not all(is_whole(i) and -1 <= i < r for i in indices):
            raise CodecError("the refiner belongs to no codec, or to qualities that it lacks")
        object.__setattr__(self, "_at", lru_cache(_KEPT)(self._cut))

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
        network = self._network(y_hat, fingerprint)
        if network.gain == 0:
            return y_hat
        y, tokens = y_hat.copy(), _tokens_of(grid)
        with np.errstate(over="ignore", invalid="ignore"):
            y[tokens] += network.change(self._units(y_hat[tokens]), grid)[0] * self.scale
        return _finite(y)

    def aim(
        self,
        y: NDArray[np.float32],
        y_hat: NDArray[np.float32],
        grid: tuple[int, int],
        fingerprint: bytes,
    ) -> tuple[NDArray[np.float32], float]:
        """Move y_hat [n, D], the decoded embedding of y, so that refining it comes closer to y.

        Half the squared error of the refined embedding, in units of `scale`, has a gradient with
        respect to y_hat. The result is one step of size 1 against it. Without a refiner, this step
        would lead to y.

        Returns:
          y_hat after the step, with the class token of y; and the squared error before it.

        Raises as `refine`.
        """
        network, tokens = self._network(y_hat, fingerprint), _tokens_of(grid)
        u, aimed = self._units(y_hat[tokens]), y.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            error = u - self._units(y[tokens])
            if network.gain != 0:
                change, seen = network.change(u, grid)
                error += change
                step = self.scale * network.gradient(error, seen, grid)
                aimed[tokens] = y_hat[tokens] - step
        return _finite(aimed), float(np.vdot(error, error))

    def _network(self, y_hat: NDArray[np.float32], fingerprint: bytes) -> "Network":
        self.check_channels(y_hat.shape[-1])
        index = self.codecs.get(fingerprint.hex(), -1)
        if index < 0:
            raise InputError("the refiner belongs to another codec than that of the embedding")
        return self.at(index)

    def _units(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        return (y - self.mean) / self.scale

    def at(self, index: int) -> "Network":
        """The network of the quality that has this index."""
        return self._at(index)  # type: ignore[attr-defined]

    def _cut(self, index: int) -> "Network":
        seen, predicted = int(self.inputs[index]), int(self.outputs[index])
        basis = self.basis.astype(np.float32)
        near = self.context[:, :seen].reshape(-1, self.context.shape[2])
        return Network(
            float(self.gains[index]),
            np.ascontiguousarray(basis[:, :seen]),
            np.concatenate([self.token[:seen], near]).astype(np.float32),
            self.bias[index],
            self.out[:, :predicted].astype(np.float32),
            self.offset[:predicted],
            np.ascontiguousarray(basis[:, :predicted].T),
        )

    def check_channels(self, channels: int) -> None:
        """Raise InputError unless the refiner is for embeddings of so many channels."""
        if channels != self.channels:
            raise InputError(
                f"the refiner is for {self.channels} channels, and the embeddings have {channels}"
            )

    def to_parts(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Named tensors and JSON content: what a file, or a model's file, stores of a refiner."""
        names = [field.name for field in fields(self) if field.name != "codecs"]
        return {name: getattr(self, name) for name in names}, {"codecs": dict(self.codecs)}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, NDArray], content: Mapping[str, Any]) -> "Refiner":
        """The refiner that `to_parts` described. Raises FileError on anything else."""
        names = {field.name for field in fields(cls)} - {"codecs"}
        if set(tensors) != names:
            raise FileError(f"a refiner has tensors {sorted(names)}, not {sorted(tensors)}")
        if set(content) != {"codecs"}:
            raise FileError(f"the content of a refiner is its codecs, not {sorted(content)}")
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


class Network(NamedTuple):
    """A refiner at one quality, with k components seen and m predicted; arrays are float32.

    Attributes:
      gain: how much of the prediction is added.
      seen: [D, k].
      into: [k + 2 min(k, C), H], `token` and `context` one after the other.
      bias: [H].
      out: [H, m].
      offset: [m].
      predicted: [m, D].
    """

    gain: float
    seen: NDArray[np.float32]
    into: NDArray[np.float32]
    bias: NDArray[np.float32]
    out: NDArray[np.float32]
    offset: NDArray[np.float32]
    predicted: NDArray[np.float32]

    def change(
        self, u: NDArray[np.float32], grid: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What to add to the tokens of a grid, [h w, D] in units of `scale`; the hidden units."""
        c = product(u, self.seen)
        h = self.hidden(c, surroundings(c[:, : self.around], grid))
        return product(self.prediction(h), self.predicted), h

    @property
    def around(self) -> int:
        """How many components of the surroundings are seen."""
        return (len(self.into) - self.seen.shape[1]) // len(RADII)

    def hidden(self, c: NDArray[np.float32], around: NDArray[np.float32]) -> NDArray[np.float32]:
        """The hidden units [T, H] for tokens [T, k] and what surrounds them [T, 2 min(k, C)]."""
        h = product(np.concatenate([c, around], 1), self.into)
        h += self.bias
        return np.maximum(h, 0, out=h)

    def prediction(self, h: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is added to the components [T, m] for hidden units [T, H]."""
        p = product(h, self.out)
        p += self.offset
        p *= np.float32(self.gain)
        return p

    def gradient(
        self, error: NDArray[np.float32], h: NDArray[np.float32], grid: tuple[int, int]
    ) -> NDArray[np.float32]:
        """The gradient of half the squared error [h w, D] with respect to u, for these units h."""
        of_p = product(error, self.predicted.T)
        of_h = product(of_p, self.out.T)
        of_h *= np.float32(self.gain)
        of_h *= h > 0
        of_c, of_around = np.split(product(of_h, self.into.T), [self.seen.shape[1]], axis=1)
        of_c[:, : self.around] += surroundings_gradient(of_around, grid)
        return error + product(of_c, self.seen.T)


def network_shapes(channels: int, held: Mapping[str, NDArray]) -> dict[str, tuple[int, ...]]:
    """The shapes of a `Network`, of `mean` and of `scale`, as the file of a head holds them.

    Args:
      channels: D.
      held: `seen`, `into` and `out`, of any shape, which say how many units and components there
        are.
    """
    (_, k), (inputs, h), (_, m) = (_matrix(held, name) for name in ("seen", "into", "out"))
    near = min(k, max(inputs - k, 0) // len(RADII))
    found = {"mean": (channels,), "scale": (channels,), "seen": (channels, k)}
    found |= {"into": (k + len(RADII) * near, h), "bias": (h,), "out": (h, m), "offset": (m,)}
    return found | {"predicted": (m, channels), "gain": ()}


def _matrix(held: Mapping[str, NDArray], name: str) -> tuple[int, int]:
    shape = held[name].shape if name in held else ()
    return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)


def _finite(y: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(y).all():
        raise FileError("the refiner gives infinite numbers: it was made wrongly")
    return y


def _tokens_of(grid: tuple[int, int]) -> slice:
    """The tokens of the grid, which are the last of an embedding."""
    return slice(-grid[0] * grid[1], None)


def surroundings(values: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    """The means of values [h w, C] over the places around each place, by `RADII`: [h w, 2 C]."""
    height, width = grid
    means = []
    for radius in RADII:
        rows = _means(values.reshape(height, -1), radius).reshape(height, width, -1)
        means.append(_means(rows, radius))
    return np.concatenate(means, axis=2).reshape(len(values), -1)


def surroundings_gradient(
    of_means: NDArray[np.float32], grid: tuple[int, int]
) -> NDArray[np.float32]:
    """The gradient of `surroundings` with respect to its values [h w, C], given that of means."""
    height, width = grid
    total = np.zeros((len(of_means), of_means.shape[1] // len(RADII)), np.float32)
    for radius, part in zip(RADII, np.split(of_means, len(RADII), axis=1), strict=True):
        rows = _means(part.reshape(height, width, -1), radius, transposed=True)
        total += _means(rows.reshape(height, -1), radius, transposed=True).reshape(total.shape)
    return total


def _means(
    values: NDArray[np.float32], radius: int, *, transposed: bool = False
) -> NDArray[np.float32]:
    """Means of values [.., side, n] over the places at most `radius` away along the side.

    They are a product with a band matrix, strip by strip; `transposed` is that with its transpose.
    """
    side = values.shape[-2]
    result = np.zeros_like(values)
    for start in range(0, side, _STRIP):
        end = min(start + _STRIP, side)
        low, high = max(start - radius, 0), min(end + radius, side)
        band = _band(end - start, start - low, high - low, radius)
        if transposed:
            result[..., low:high, :] += product(band.T, values[..., start:end, :])
        else:
            result[..., start:end, :] = product(band, values[..., low:high, :])
    return result


@lru_cache(64)
def _band(count: int, first: int, width: int, radius: int) -> NDArray[np.float32]:
    """[count, width]: the weights of the means at the places from `first` on, of `width` places."""
    near = np.abs(np.arange(first, first + count)[:, None] - np.arange(width)) <= radius
    return read_only((near / near.sum(1, keepdims=True)).astype(np.float32))
