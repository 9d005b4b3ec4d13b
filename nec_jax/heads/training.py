"""Fitting a head to decoded embeddings with a frozen encoder (arXiv 2403.17886)."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike, NDArray

from coder import InputError
from coder.arrays import as_grid, check_whole, is_number, is_whole, refuse_unordered
from coder.task_heads.head_settings import (
    LINEAR,
    MASKS,
    Kind,
    batch_size,
    check_embeddings,
    check_kind,
    check_tokens,
)
from nec_jax.heads import checks
from nec_jax.heads.head import HeadConfig, HeadParams
from nec_jax.heads.inference import in_batches, refined_all
from nec_jax.heads.network import logits, starting_weights
from nec_jax.heads.refining import refining_codec
from nec_jax.heads.ridge import fit_linear
from nec_jax.jax_defaults import jax_defaults
from nec_jax.model_file import NecParams
from nec_jax.models.refiner_network import arrays_of
from nec_jax.models.weight_tree import Weights, path_name

WEIGHT_DECAY = 0.05  # of matrices only
WARMUP = 0.1  # part of the steps in which the learning rate grows to its peak


class Schedule(NamedTuple):
    """How a head is trained."""

    epochs: int
    batch: int
    lr: float


class Data(NamedTuple):
    """Embeddings float32 [N, n, D] and targets int32 [N] or [N, H, W], -1 = ignored."""

    y_hat: NDArray[np.float32]
    targets: NDArray[np.int32]


@jax_defaults()
def fit(
    params: NecParams,
    y_hat: ArrayLike,
    targets: ArrayLike,
    *,
    kind: Kind,
    classes: Sequence[str],
    with_decoder: bool = False,
    grid: tuple[int, int] | None = None,
    val: tuple[ArrayLike, ArrayLike] | None = None,
    refine: bool | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int = 0,
) -> HeadParams:
    """Train a head on decoded embeddings: AdamW on a cosine, cross-entropy.

    Args:
      params: the model that made the embeddings; `with_decoder` starts from its decoder.
      y_hat: plain decoded embeddings [N, n, D], class token first if the model codes it. All kinds
        except "class-linear" drop the class token.
      targets: class indices: [N], or masks [N, H, W], where 255 is ignored.
      kind: "linear", "class-linear", "attention", "token-linear" or "conv"; see `nec_jax.heads`.
      classes: names of the classes, in the order of their indices.
      with_decoder: pass the embeddings through the model's decoder stem and first block before the
        head, and train these too. Linear heads do not train them.
      grid: height and width of the token grid; None for a square.
      val: embeddings and targets to choose the best epoch on (for linear heads, the strength): by
        accuracy over labels, pixels or tokens, then by cross-entropy. Never pass the split to be
        scored. None: the last epoch.
      refine: refine embeddings before the head reads them, by the refiner of the model's codec. The
        head keeps a copy of the refiner, which does not train, so that it takes plain embeddings.
        Their quality is found by coding them again. None: refine if the model has a refiner
        and its codec decoded the embeddings, all at one quality.
      epochs: passes over the data; None for 40 ("attention"), or 20 ("conv", with decoder).
      batch: embeddings per step; None for 64 ("attention"), 32 (with decoder) or 16 ("conv").
      lr: peak learning rate; None for 2e-3 ("attention") or 1e-3 ("conv").
      seed: seed of initial weights and order; the same seed gives the same head.

    Linear heads are fitted in closed form. They ignore epochs, batch, lr and seed, which are still
    checked.

    Raises:
      InputError: arguments of another shape, type or range, or a training that diverges.
    """
    check_kind(kind)
    model = params.config
    y = check_embeddings(model, y_hat, "y_hat")
    masks = kind in MASKS
    refuse_unordered(classes, "classes")
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise InputError(f"classes are {classes!r}: give the names of two or more, in a list")
    classes = tuple(classes)
    if twice := [name for i, name in enumerate(classes) if name in classes[:i]]:
        raise InputError(
            f"two classes have the name {twice[0]!r}: give each a name of its own, or, if they are "
            "one, the same index to the targets of both"
        )
    data = Data(y, checks.check_targets(classes, targets, len(y), masks, "targets"))
    height, width = checks.square_grid(model, y.shape[1]) if grid is None else as_grid(grid)
    mask_size = (data.targets.shape[1], data.targets.shape[2]) if masks else None
    if with_decoder and model.decoder_target == "none":
        raise InputError("this model has no decoder: fit the head with with_decoder=False")
    config = HeadConfig(kind, classes, (height, width), with_decoder, mask_size, model)
    check_tokens(config, y, "y_hat", "pass the height and width of its grid as grid=")
    if val is not None and (not isinstance(val, (tuple, list)) or len(val) != 2):
        raise InputError("val is no pair: give embeddings and targets, val=(y_hat, targets)")
    held = None if val is None else _check_val(config, data, *val)
    parts = [y] if held is None else [y, held.y_hat]
    codec, refiner = refining_codec(params, refine, parts, config.grid), {}
    if codec is not None and codec.refiner is not None:
        refiner = {"refiner": arrays_of(codec)}
        config = dataclasses.replace(config, refiner=codec.refiner.fingerprint.hex())
    seed = check_whole("seed", seed, 0, 2**32 - 1)
    schedule = _schedule(config, epochs, batch, lr)
    if kind in LINEAR:
        return fit_linear(config, params, refiner, data, held)
    if config.refine:  # once, not in each epoch
        data = _refined(config, refiner, data)
        held = None if held is None else _refined(config, refiner, held)
    plain = dataclasses.replace(config, refiner=None)
    weights = starting_weights(plain, params, data.y_hat, seed)
    return HeadParams(_train(plain, weights, data, held, schedule, seed) | refiner, config)


def _refined(config: HeadConfig, refiner: Weights, data: Data) -> Data:
    return data._replace(y_hat=refined_all(config, refiner["refiner"], data.y_hat))


def _check_val(config: HeadConfig, data: Data, y_hat: ArrayLike, targets: ArrayLike) -> Data:
    y = check_embeddings(config.model, y_hat, "the y_hat of val")
    check_tokens(config, y, "the y_hat of val", "pass embeddings of the size of y_hat")
    masks, name = config.mask_size is not None, "the targets of val"
    t = checks.check_targets(config.classes, targets, len(y), masks, name)
    if t.shape[1:] != data.targets.shape[1:]:
        raise InputError(f"masks are {data.targets.shape[1:]}, those of val {t.shape[1:]}")
    return Data(y, t)


def _schedule(
    config: HeadConfig, epochs: int | None, batch: int | None, lr: float | None
) -> Schedule:
    if config.kind == "conv":
        default = Schedule(20, 16, 1e-3)
    else:
        default = Schedule(20, 32, 2e-3) if config.with_decoder else Schedule(40, 64, 2e-3)
    given = {"epochs": epochs, "batch": batch, "lr": lr}
    schedule = default._replace(**{k: v for k, v in given.items() if v is not None})
    whole = all(is_whole(count) and count >= 1 for count in schedule[:2])
    if not whole or not is_number(schedule.lr) or not 0 < schedule.lr < np.inf:
        raise InputError(f"{schedule}: epochs and batch are whole numbers from 1, lr is above 0")
    return schedule


def _train(
    config: HeadConfig,
    weights: Weights,
    data: Data,
    val: Data | None,
    schedule: Schedule,
    seed: int,
) -> Weights:
    batch = min(schedule.batch, len(data.y_hat))
    steps = len(data.y_hat) // batch
    total = schedule.epochs * steps
    rng = np.random.default_rng(seed)
    frozen = {k: v for k, v in weights.items() if k == "scaling"}
    # Copied: a step donates its state, which begins as the weights of the model.
    trained = {k: jax.tree.map(jnp.array, v) for k, v in weights.items() if k != "scaling"}
    state = (trained, _transform().init(trained))
    arrays = (jnp.asarray(data.y_hat), jnp.asarray(data.targets))
    best: tuple[tuple[float, float], Weights] | None = None
    for epoch in range(schedule.epochs):
        # The rest of an epoch, less than a batch, is used in other epochs.
        order = rng.permutation(len(data.y_hat))[: steps * batch].astype(np.int32)
        loss = jnp.zeros((), jnp.float32)
        for i, chosen in enumerate(order.reshape(steps, batch)):
            rate = np.float32(schedule.lr * _shape((epoch * steps + i + 0.5) / total))
            state, loss = _step(config, state, frozen, arrays, chosen, rate)
        # NaN stays: checking the last step of an epoch is enough.
        if not np.isfinite(loss):
            raise InputError(f"training diverged in epoch {epoch + 1}: lower lr ({schedule.lr:g})")
        if val is not None:
            merit = _merit(config, state[0] | frozen, val)
            if best is None or merit > best[0]:
                best = merit, jax.tree.map(jnp.array, state[0])
    return frozen | (state[0] if best is None else best[1])


def _shape(done: float) -> float:
    """Learning rate over its peak, after a part `done` of the steps, 0 < done < 1."""
    return min(done / WARMUP, 1.0, 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))))


def _transform() -> optax.GradientTransformation:
    """AdamW without its learning rate, which is passed as data so that no value recompiles."""

    def decays(weights: Weights) -> Weights:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path_name(path).endswith("kernel"), weights
        )

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.999),
        optax.add_decayed_weights(WEIGHT_DECAY, mask=decays),
    )


def cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Sum over the targets [...] that are not -1 of -ln softmax(outputs [..., K])[target]."""
    terms = optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.maximum(targets, 0))
    return jnp.sum(jnp.where(targets >= 0, terms, 0.0))


# A step is a call and not a turn of `lax.scan`: inside of a loop, XLA on a CPU ran convolutions at
# least eight times slower (jax 0.10.2), and a call costs next to nothing beside the rest.
@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _step(
    config: HeadConfig,
    state: tuple[Weights, Any],
    frozen: Weights,
    data: tuple[jax.Array, jax.Array],
    chosen: jax.Array,
    rate: jax.Array,
) -> tuple[tuple[Weights, Any], jax.Array]:
    """A step of (weights, optimiser state) on the samples `chosen`, int32 [B]; also its loss."""
    weights, memory = state
    y_hat, targets = (values[chosen] for values in data)

    def mean_entropy(weights: Weights) -> jax.Array:
        total = cross_entropy(logits(config, weights | frozen, y_hat), targets)
        return total / jnp.maximum(jnp.sum(targets >= 0), 1)

    loss, gradients = jax.value_and_grad(mean_entropy)(weights)
    updates, memory = _transform().update(gradients, memory, weights)
    weights = jax.tree.map(lambda w, u: w - rate * u, weights, updates)
    return (weights, memory), loss


def _merit(config: HeadConfig, weights: Weights, val: Data) -> tuple[float, float]:
    """The score on validation data: (correct predictions, minus the sum of cross-entropies)."""
    scores = in_batches(functools.partial(_scores, config, weights), batch_size(config), *val)
    hits, entropy = scores.sum(0, dtype=np.float64)
    return hits, -entropy


@functools.partial(jax.jit, static_argnames="config")
def _scores(
    config: HeadConfig, weights: Weights, y_hat: jax.Array, targets: jax.Array
) -> jax.Array:
    """For each image the number of correct predictions and the sum of cross-entropies, [B, 2]."""
    out = logits(config, weights, y_hat)
    hits = (jnp.argmax(out, -1) == targets).reshape(len(out), -1).sum(1)
    return jnp.stack([hits, jax.vmap(cross_entropy)(out, targets)], axis=-1)
