"""`nec refine`: train a refiner for a model's codec, on the embeddings of images.

The model computes the embeddings once. The rest is `coder.fit_refiner`: it codes them at random
qualities in NumPy, trains the network on the result, and measures the gains on one image of eight,
which the network does not see. Only the steps of training are not in NumPy but in JAX, which uses
an accelerator if there is one. On two CPU cores these steps took about half as long as those in
NumPy, for 192 and for 768 channels. Coding took an eighth of the time, so it stays where it is.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

import nec_jax
from coder import EmbeddingCodec, InputError, QualityLadder, Refiner, TransformCodec, files
from coder.fitting import LEAST, Coded, fit_refiner
from coder.format.container import canonical_json
from coder.refiner import MOST_UNITS
from nec_jax.images.record import Source
from nec_jax.model_file import NecParams, model_path
from nec_jax.sources import at_most, folder_of
from train.configs.options import OptionsError, Refine
from train.data import read_all
from train.engine.inputs import held_to
from train.engine.processes import log_devices
from train.tasks.teacher import open_one

log = logging.getLogger(__name__)

MAX_TOKENS = 1 << 19
"""Maximum number of tokens of the grid that a refiner is trained on."""
_BATCH = 256  # images whose embeddings are computed between two lines of the log
_LOGGED = 250  # steps between two lines of the log
_ADAM = optax.scale_by_adam()


def run(options: Refine) -> None:
    """Train a refiner, and write the model with it, the refiner alone, or both."""
    refuse_incomplete(options)
    images = [folder for name in options.data if (folder := folder_of(name)) is not None]
    for path in (options.out, options.refiner):
        if path is not None:
            inputs = [model_path(options.model), *images]
            files.check_output(path, overwrite=options.overwrite, inputs=inputs)
    params = nec_jax.load(options.model)
    if not isinstance(params.codec, QualityLadder | TransformCodec):
        raise OptionsError(
            f"{options.model} has no codec with a transform, and only these have refiners: make it "
            "with `nec compress --codec transform` or `nec distil`"
        )
    log_devices()
    size = options.image_size or params.config.image_size
    grid = params.config.grid(size, size)
    sources = opened(options, MAX_TOKENS // (grid[0] * grid[1]))
    if (count := sum(map(len, sources))) < LEAST:
        raise OptionsError(f"{count} images: a refiner needs at least {LEAST}")
    y = np.concatenate([embedded(params, source, size) for source in sources])
    refiner = fitted(
        params.codec, y, grid, hidden=options.hidden, steps=options.steps, seed=options.seed
    )
    if options.refiner is not None:
        refiner.save(options.refiner)
        log.info(f"wrote {options.refiner}: {refiner.refiner_bytes:,} bytes")
    if options.out is not None:
        nec_jax.save(with_refiner(params, refiner, options, sources, len(y)), options.out)
        log.info(f"wrote {options.out}")


def refuse_incomplete(options: Refine) -> None:
    """Raise OptionsError if there is no model, no data or no output, or many processes."""
    if not options.model:
        raise OptionsError("no model: give its file, nec refine MODEL, or the name nec-vit-ti")
    if not options.data:
        raise OptionsError("no data: pass --data (folders, tfds:NAME, or blue-marble)")
    if options.hidden > MOST_UNITS:
        raise OptionsError(f"--hidden {options.hidden}: a refiner has at most {MOST_UNITS}")
    if options.out is None and options.refiner is None:
        raise OptionsError(
            "no output: pass --out (the model with its refiner), --refiner (the refiner alone), or "
            "both"
        )
    places = [files.real_path(path) for path in (options.out, options.refiner) if path is not None]
    if len(places) > len(set(places)):
        raise OptionsError("--out and --refiner are one file: name two")
    if jax.process_count() > 1:
        raise OptionsError("a refiner is trained in one process: start only one")


def opened(options: Refine, limit: int) -> list[Source]:
    """The data sets, with at most `limit` images in all, shared as evenly as their sizes allow."""
    alone = len(options.data) == 1
    found = [open_one(name, options.split, options.chip, alone=alone) for name in options.data]
    found = [at_most(source, options.limit) for source in found]
    shares = dict.fromkeys(range(len(found)), 0)
    for done, i in enumerate(sorted(shares, key=lambda i: len(found[i]))):
        shares[i] = min(len(found[i]), (limit - sum(shares.values())) // (len(found) - done))
    return [at_most(source, shares[i]) for i, source in enumerate(found)]


def embedded(params: NecParams, source: Source, size: int) -> NDArray[np.float16]:
    """The embeddings [N, (1 +) T, D] of the images of a source that can be read.

    Raises:
      DataError: no image can be read, or the model does not take one.
      InputError: an embedding exceeds float16.
    """
    images = read_all(source, size, check=functools.partial(held_to, params.config)).images
    parts = []
    for first in range(0, len(images), _BATCH):
        y = nec_jax.latents(params, images[first : first + _BATCH])
        if not np.abs(y).max() <= np.finfo(np.float16).max:
            raise InputError(
                "embeddings exceed the largest float16, in which they are held: train the refiner "
                "with coder.fit_refiner, on embeddings in float32"
            )
        parts.append(y.astype(np.float16))
        done = min(first + _BATCH, len(images))
        log.info(f"{source.name}: embeddings of {done} of {len(images)} images")
    return np.concatenate(parts)


def fitted(
    codec: EmbeddingCodec,
    y: NDArray[np.floating],
    grid: tuple[int, int],
    *,
    hidden: int = 640,
    steps: int = 4000,
    seed: int = 0,
) -> Refiner:
    """A refiner for a codec, trained on embeddings [N, (1 +) T, D] of a grid.

    Raises:
      InputError: as `coder.fit_refiner`.
    """
    first = y.shape[1] - grid[0] * grid[1]
    log.info(f"training a refiner on {len(y)} embeddings of {grid[0]} x {grid[1]} tokens")
    refiner = fit_refiner(
        codec,
        y[:, first:].reshape(len(y), *grid, -1),
        y[:, 0] if first else None,
        max_samples=len(y),
        hidden=hidden,
        steps=steps,
        seed=seed,
        network=functools.partial(Network, steps=steps),
    )
    helps = np.count_nonzero(refiner.gains)
    log.info(f"the refiner helps at {helps} of {refiner.gains.size} qualities")
    return refiner


def with_refiner(
    params: NecParams, refiner: Refiner, options: Refine, sources: Sequence[Source], images: int
) -> NecParams:
    """The model with the refiner, and with how it was trained in its provenance."""
    assert params.codec is not None
    facts = {name: getattr(options, name) for name in ("split", "hidden", "steps", "seed")}
    facts |= {"data": [source.name for source in sources], "images": images}
    provenance = canonical_json(json.loads(params.provenance) | {"refine": facts})
    codec = params.codec.with_refiner(refiner)
    return dataclasses.replace(params, codec=codec, provenance=provenance)


class Network:
    """The network of a refiner in training, with the steps of `coder` in JAX."""

    def __init__(self, weights: dict[str, NDArray[np.float32]], steps: int):
        self._weights = {name: jnp.asarray(value) for name, value in weights.items()}
        self._memory = _ADAM.init(self._weights)
        self._losses: list[jax.Array] = []
        self._count, self._steps = 0, steps

    @property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The weights now, on the host."""
        return {name: np.asarray(value) for name, value in self._weights.items()}

    def step(self, part: Coded, unit: NDArray[np.float32], rate: float) -> None:
        """Take a step of Adam on tokens, to lower the mean squared error in `unit`."""
        state = self._weights, self._memory
        (self._weights, self._memory), loss = _step(state, part, unit, np.float32(rate))
        self._losses.append(loss)
        self._count += 1
        if self._count % _LOGGED == 0 or self._count == self._steps:
            left = float(np.mean(jax.device_get(self._losses)))
            done = f"step {self._count:6d} of {self._steps}"
            log.info(f"{done}  squared error left {100 * left:.1f} %")
            self._losses = []


State = tuple[dict[str, jax.Array], optax.OptState]


@functools.partial(jax.jit, donate_argnames="state")
def _step(state: State, part: Coded, unit: jax.Array, rate: jax.Array) -> tuple[State, jax.Array]:
    weights, memory = state
    loss, gradients = jax.value_and_grad(mean_square)(weights, part, unit)
    updates, memory = _ADAM.update(gradients, memory)
    return (jax.tree.map(lambda w, u: w - rate * u, weights, updates), memory), loss


def mean_square(weights: dict[str, jax.Array], part: Coded, unit: jax.Array) -> jax.Array:
    """The mean square of what coding lost and the network does not predict, in `unit`."""
    # A product, not an index: accelerators add up the gradient of an index in any order.
    which = jax.nn.one_hot(part.which, len(unit))
    h = part.c @ weights["token"] + part.around @ weights["context"] + which @ weights["bias"]
    predicted = jax.nn.relu(h) @ weights["out"] + weights["offset"]
    return jnp.mean(jnp.square(predicted - part.lost / (which @ unit)[:, None]))
