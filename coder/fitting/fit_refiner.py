"""`fit_refiner`: train a refiner for a codec on embeddings, in NumPy.

The network of `coder.refiner` is trained by Adam (Kingma 2015, arXiv 1412.6980) on tokens that the
codec coded at random qualities. It predicts what coding lost in each component of the codec, in
units of the root mean square of what the codec loses at that quality, so that all qualities count
alike. How many components to see and to predict, and how much of the prediction to add, is then
measured on embeddings that were not trained on.
"""

import functools
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import check_whole
from coder.codecs import EmbeddingCodec, QualityLadder, TransformCodec
from coder.codecs.coefficients import NOT_CODED
from coder.errors import InputError
from coder.fitting.sample import Sample
from coder.refiner import MOST_UNITS, RADII, Network, Refiner, surroundings
from coder.transform import BANDS, Transform, product

log = logging.getLogger(__name__)

_SURROUNDINGS = 32  # maximum number of components of the surroundings
_LOOKED_AT = 256  # grids, for the order of components that the codec does not have
_ENOUGH = 0.99  # of what seeing, or predicting, all components gains
_LOGGED = 250  # steps between two messages
_BATCH, _RATE = 2048, 1e-3
_DRAWN = 1 << 18  # tokens that are coded at a time ...
_REDRAWN = 1000  # ... and serve for so many steps
LEAST = 8
"""The smallest number of embeddings. One of so many is held out, to measure the gains."""
_MOST = 1 << 19  # tokens that are held in memory
_SAMPLES = 4096
_RUN = 16  # vectors that are coded together
_TIMES = 8  # maximum number of times that a token is drawn before it is coded anew
_BETA, _BETA_SQUARES, _EPSILON = 0.9, 0.999, 1e-8

Embedding = tuple[NDArray[np.float32], tuple[int, int]]
"""An embedding [n, D] and its grid."""
Weights = dict[str, NDArray[np.float32]]
"""token [M, H], context [2 C, H], bias [R, H], out [H, M] and offset [M]."""


class Coded(NamedTuple):
    """Tokens before and after coding, in the M components of a refiner.

    Attributes:
      c: float32 [T, M], decoded.
      around: float32 [T, 2 C], what surrounds each: `coder.refiner.surroundings`.
      lost: float32 [T, M], what coding lost: the tokens less c.
      which: int [T], the index of the quality.
    """

    c: NDArray[np.float32]
    around: NDArray[np.float32]
    lost: NDArray[np.float32]
    which: NDArray[np.intp]

    def only(self, index: NDArray[np.intp]) -> "Coded":
        """These tokens."""
        c, around, lost, which = self
        return Coded(c[index], around[index], lost[index], which[index])


class TrainedNetwork(Protocol):
    """The network in training."""

    @property
    def weights(self) -> Weights:
        """Its weights now."""
        ...

    def step(self, part: Coded, unit: NDArray[np.float32], rate: float) -> None:
        """Take a step of Adam on tokens, to lower the mean squared error in `unit` [R].

        Args:
          part: a batch of tokens.
          unit: the root mean square of what is lost at each quality.
          rate: the learning rate.
        """
        ...


def fit_refiner(
    codec: EmbeddingCodec,
    embeddings: ArrayLike,
    class_tokens: ArrayLike | None = None,
    *,
    nodata: float | None = None,
    max_samples: int = _SAMPLES,
    hidden: int = 640,
    steps: int = 4000,
    seed: int = 0,
    network: Callable[[Weights], TrainedNetwork] | None = None,
) -> Refiner:
    """Train a refiner for a codec of `coder.fit`. Takes minutes.

    Embeddings with missing tokens are left out. One embedding of eight is not trained on: it serves
    to measure at which qualities the refiner helps, and how much of its prediction to add.

    Args:
      codec: a codec with a transform, of one quality or of many.
      embeddings, class_tokens, nodata, max_samples: as for `coder.fit`; memory holds at most
        524,288 tokens.
      hidden: H, the number of hidden units, at most 4,096. Size and time grow with it.
      steps: the number of training steps, of 2,048 tokens each.
      seed: of the initial weights and of all that is drawn.
      network: (initial weights) -> the network to train, with steps of another implementation; None
        trains it in NumPy.

    Raises:
      InputError: as `coder.fit`; another kind of codec; other channels, or only one of them has a
        grid or a class token; fewer than 8 embeddings without missing tokens.
    """
    if not isinstance(codec, QualityLadder | TransformCodec):
        raise InputError("a refiner needs a codec with a transform, as coder.fit makes one")
    hidden = check_whole("hidden", hidden, highest=MOST_UNITS)
    steps = check_whole("steps", steps)
    sample = Sample(embeddings, class_tokens, nodata, max_samples)
    sample.check_fits(codec.transform, "codec")
    grids = _whole_grids(sample)
    train = [one for i, one in enumerate(grids) if i % LEAST]
    held_out = grids[::LEAST]
    first = 0 if isinstance(codec, QualityLadder) else codec.quality
    numbers = range(first, first + codec.num_qualities)
    qualities = [cast(TransformCodec, codec.at(quality)) for quality in numbers]
    rng, count = np.random.default_rng(seed), len(qualities)
    basis = _components(codec.transform, train)
    around = min(_SURROUNDINGS, basis.shape[1]) if codec.transform.spatial else 0
    trained = (network or NumPyNetwork)(_initial(rng, basis.shape[1], around, hidden, count))
    grids_alone = [one.split()[0] for one in qualities]
    code = functools.partial(_coded, codec.transform, basis.astype(np.float32), around)

    in_turn = _in_turn(count, rng)

    def drawn() -> Coded:
        some = _drawn(train, in_turn, rng)
        return _joined(code(y, grid, grids_alone[i], i) for y, grid, i in some)

    unit = _trained(trained, drawn, count, steps, rng)
    w = trained.weights
    refiner = Refiner(
        _belongs_to(codec, qualities, grids_alone),
        codec.transform.mean,
        codec.transform.scale,
        basis,
        w["token"].astype(np.float16),
        w["context"].reshape(len(RADII), around, hidden).astype(np.float16),
        w["bias"],
        w["out"].astype(np.float16),
        w["offset"],
        np.array([_last_coded(codec, index) for index in range(count)], np.int32),
        np.full(count, basis.shape[1], np.int32),
        unit,  # as gains: of what is in units of its root mean square
    )
    measured = [
        _measured(refiner, index, [code(y, grid, one, index) for y, grid in held_out])
        for index, one in enumerate(grids_alone)
    ]
    inputs, outputs, gains, left = (np.array(values) for values in zip(*measured, strict=True))
    log.info(
        f"of the squared error of {len(held_out)} embeddings that were held out, refining leaves "
        f"at qualities {first} to {first + count - 1}: "
        + ", ".join(f"{100 * part:.0f} %" for part in left)
    )
    return replace(
        refiner,
        inputs=inputs.astype(np.int32),
        outputs=outputs.astype(np.int32),
        gains=gains.astype(np.float32),
    )


def _trained(
    network: TrainedNetwork,
    drawn: Callable[[], Coded],
    count: int,
    steps: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Train a network for R qualities, and return the units [R] of what it predicts.

    A unit is the root mean square of what a quality loses; 0 for one that was never drawn.
    """
    coded, unit = None, np.zeros(count, np.float32)
    for step in range(steps):
        if step % _REDRAWN == 0:
            coded = drawn()
            there = np.unique(coded.which)
            unit[there] = _rms(coded, count)[there]
        assert coded is not None
        part = coded.only(rng.integers(0, len(coded.c), _BATCH))
        network.step(part, unit, _RATE * 0.5 * (1 + np.cos(np.pi * step / steps)))
        if isinstance(network, NumPyNetwork) and (step + 1) % _LOGGED in (0, steps % _LOGGED):
            log.info(f"step {step + 1:,} of {steps:,}")
    return unit


def refuse_too_few(embeddings: ArrayLike, *, nodata: float | None = None) -> None:
    """Read embeddings once, and raise InputError if they are too few for `fit_refiner`."""
    _whole_grids(Sample(embeddings, None, nodata, _SAMPLES))


def _initial(rng: np.random.Generator, m: int, c: int, h: int, r: int) -> Weights:
    def normal(inputs: int, outputs: int) -> NDArray[np.float32]:
        return rng.standard_normal((inputs, outputs), np.float32) / np.float32(np.sqrt(m + c))

    zeros = functools.partial(np.zeros, dtype=np.float32)
    weights = {"token": normal(m, h), "context": normal(len(RADII) * c, h)}
    weights["bias"] = zeros((r, h))
    return weights | {"out": zeros((h, m)), "offset": zeros(m)}


class NumPyNetwork:
    """A `TrainedNetwork` in NumPy."""

    def __init__(self, weights: Weights):
        self.weights = weights
        self._means = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self._squares = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self._count = 0

    def step(self, part: Coded, unit: NDArray[np.float32], rate: float) -> None:
        """Take one step on these tokens, as `TrainedNetwork.step`."""
        w = self.weights
        h = part.c @ w["token"]
        h += part.around @ w["context"]
        h += w["bias"][part.which]
        on = h > 0
        h *= on
        error = h @ w["out"]
        error += w["offset"]
        error -= part.lost / unit[part.which, None]
        error *= np.float32(2 / error.size)
        of_h = error @ w["out"].T
        of_h *= on
        of_bias = np.zeros_like(w["bias"])
        np.add.at(of_bias, part.which, of_h)
        self._count += 1
        self._adam("token", part.c.T @ of_h, rate)
        self._adam("context", part.around.T @ of_h, rate)
        self._adam("bias", of_bias, rate)
        self._adam("out", h.T @ error, rate)
        self._adam("offset", error.sum(0), rate)

    def _adam(self, name: str, gradient: NDArray, rate: float) -> None:
        mean, square = self._means[name], self._squares[name]
        mean += np.float32(1 - _BETA) * (gradient - mean)
        square += np.float32(1 - _BETA_SQUARES) * (np.square(gradient) - square)
        fair = np.sqrt(1 - _BETA_SQUARES**self._count) / (1 - _BETA**self._count)
        size = np.sqrt(square) + np.float32(_EPSILON)
        self.weights[name] -= np.float32(rate * fair) * mean / size


def _whole_grids(sample: Sample) -> list[Embedding]:
    """Embeddings without missing tokens, evenly spread, as many as memory may hold.

    Their class tokens are left out, which a refiner keeps.
    """
    found = [
        (y[int(sample.class_tokens) :].astype(np.float32), batch.grid)
        for batch in sample.batches()
        for y, there in zip(batch.y, batch.there, strict=True)
        if there.all()
    ]
    if not sample.spatial:  # long runs of vectors
        runs = [part for y, _ in found for part in np.array_split(y, -(-len(y) // _RUN))]
        found = [(part, (len(part), 1)) for part in runs]
    if len(found) < LEAST:
        raise InputError(
            f"{len(found)} embeddings without missing tokens (a raster has one per tile, vectors "
            f"have one per {_RUN}): a refiner needs at least {LEAST}"
        )
    every = -(-sum(len(y) for y, _ in found) // _MOST)
    return found[:: max(every, 1)]


def _components(transform: Transform, grids: Sequence[Embedding]) -> NDArray[np.float16]:
    """[D, D]: orthonormal columns, of which the first k span what the first k components decode to.

    So the components that a codec does not code are zero for a refiner too. Those that the codec
    does not have at all, as one of a single quality, are ordered by their variance in the grids.
    """
    rows = transform.basis * transform.norms[:, None].astype(np.float64)
    basis = np.linalg.qr(rows.T, mode="complete")[0]
    rest = basis[:, len(rows) :]
    if rest.size:
        u = np.concatenate([y for y, _ in grids[:: max(len(grids) // _LOOKED_AT, 1)]])
        x = ((u - transform.mean) / transform.scale) @ rest
        basis[:, len(rows) :] = rest @ np.linalg.eigh(x.T @ x)[1][:, ::-1]
    return basis.astype(np.float16)


def _last_coded(codec: QualityLadder | TransformCodec, index: int) -> int:
    """How many of the first components a codec codes in a grid at a quality, at most."""
    layout = codec.layout[index] if isinstance(codec, QualityLadder) else codec.layout
    coded = (layout[:, :BANDS] != NOT_CODED).any(1)
    return 1 + int(np.flatnonzero(coded).max(initial=-1))


def _in_turn(count: int, rng: np.random.Generator) -> Iterator[int]:
    """The indices of qualities in random order, each equally often."""
    while True:
        yield from rng.permutation(count).tolist()


def _drawn(
    grids: Sequence[Embedding], in_turn: Iterator[int], rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.float32], tuple[int, int], int]]:
    """Some of the grids, each with the index of a quality."""
    tokens, wanted = 0, min(_DRAWN, _TIMES * sum(len(y) for y, _ in grids))
    while tokens < wanted:
        y, grid = grids[int(rng.integers(len(grids)))]
        yield y, grid, next(in_turn)
        tokens += len(y)


def _coded(
    transform: Transform,
    basis: NDArray[np.float32],
    around: int,
    y: NDArray[np.float32],
    grid: tuple[int, int],
    codec: TransformCodec,
    index: int,
) -> Coded:
    """An embedding [n, D] coded at a quality; `around` is the number of components around."""
    y_hat = codec.dequantise(codec.quantise(y, grid), grid)
    c = product((y_hat - transform.mean) / transform.scale, basis)
    lost = product((y - y_hat) / transform.scale, basis)
    return Coded(c, surroundings(c[:, :around], grid), lost, np.full(len(c), index))


def _joined(parts: Iterable[Coded]) -> Coded:
    c, around, lost, which = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Coded(c, around, lost, which)


def _rms(coded: Coded, count: int) -> NDArray[np.float32]:
    """The root mean square [count] of what is lost at each quality."""
    tokens = np.bincount(coded.which, minlength=count)
    squares = np.bincount(coded.which, np.square(coded.lost).mean(1), count)
    return np.sqrt(np.maximum(squares / np.maximum(tokens, 1), 1e-30)).astype(np.float32)


def _measured(
    refiner: Refiner, index: int, parts: Sequence[Coded]
) -> tuple[int, int, float, float]:
    """How many components to see and to predict, the gain, and the part of the error that is left.

    All for embeddings not trained on. Few are seen and predicted, as long as that saves nearly as
    much of the squared error as seeing and predicting all of them.
    """
    coded = int(refiner.inputs[index])

    @functools.cache
    def saved(eighth: int) -> _Saved:
        seen = -(-coded * eighth // 8)
        return _saved(replace(refiner, inputs=np.full_like(refiner.inputs, seen)).at(index), parts)

    if saved(8).best <= 0:
        return 0, 0, 0.0, 1.0
    enough = _ENOUGH * saved(8).best
    few = saved(1 + bisect_left(range(1, 8), enough, key=lambda eighth: saved(eighth).best))
    lost = sum(float(np.square(part.lost, dtype=np.float64).sum()) for part in parts)
    return few.seen, few.predicted, few.gain, 1 - few.saved / lost


class _Saved(NamedTuple):
    """What a network saves that predicts all of its components, or only the useful first ones.

    Attributes:
      best: the squared error that predicting all components saves, with the best gain.
      seen: how many components it sees.
      predicted: how many first components save `_ENOUGH` of this.
      gain: what is best for these.
      saved: the squared error that they save.
    """

    best: float
    seen: int
    predicted: int
    gain: float
    saved: float


def _saved(network: Network, parts: Sequence[Coded]) -> _Saved:
    both = square = np.zeros(len(network.offset))
    seen = network.seen.shape[1]
    for part in parts:
        around = part.around.reshape(len(part.c), len(RADII), -1)[..., : network.around]
        h = network.hidden(part.c[:, :seen], around.reshape(len(part.c), -1))
        predicted = network.prediction(h)
        both = both + np.einsum("tm,tm->m", predicted, part.lost, dtype=np.float64)
        square = square + np.einsum("tm,tm->m", predicted, predicted, dtype=np.float64)

    def best(count: int) -> float:
        total = square[:count].sum()
        return float(np.clip(both[:count].sum() / total, 0, 1)) if total > 0 else 0.0

    def saved(gain: float) -> NDArray[np.float64]:
        """The squared error that the first components save, by their number less 1."""
        return np.cumsum(2 * gain * both - gain**2 * square)

    whole = saved(best(len(both)))
    if whole[-1] <= 0:
        return _Saved(float(whole[-1]), seen, 0, 0.0, 0.0)
    count = 1 + int(np.argmax(whole >= _ENOUGH * whole[-1]))
    gain = best(count)
    part = float(saved(gain)[count - 1])
    return _Saved(float(whole[-1]), seen, count, network.gain * gain, part)


def _belongs_to(
    codec: QualityLadder | TransformCodec,
    qualities: Sequence[TransformCodec],
    grids_alone: Sequence[TransformCodec],
) -> dict[str, int]:
    """The fingerprints of the codec, of each quality, and of each for grids alone."""
    found = {}
    for ones in (qualities, grids_alone):
        found |= {one.fingerprint.hex(): index for index, one in enumerate(ones)}
    if isinstance(codec, QualityLadder):
        found[codec.fingerprint.hex()] = -1
    return found
