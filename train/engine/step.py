"""One training step, and its optimiser: pure, jitted, data-parallel over a mesh."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nec_jax.models.weight_tree import Weights, merge, path_name
from train.configs.options import Distil, Training
from train.engine.losses import Batch, Metrics, Objective


def cosine(peak: float, steps: int, warmup: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then a cosine to zero at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup_steps=warmup, decay_steps=max(steps, warmup + 1)
    )


def optimiser(options: Training, density_lr: float = 0.0) -> optax.GradientTransformation:
    """AdamW (betas 0.9, 0.95), or Muon for the model's matrices.

    The density and the gains have Adam with their own learning rate. Only matrices decay. The
    optimiser gets only the trainable part of the weights (`weight_tree.split`), so that frozen
    weights have neither gradients nor optimiser state.
    """

    def by_path(mark: Callable[[str], Any]) -> Callable[[Weights], Weights]:
        return functools.partial(
            jax.tree_util.tree_map_with_path, lambda path, _: mark(path_name(path))
        )

    labels = by_path(lambda path: "density" if path.startswith("bottleneck/") else "model")
    decays = by_path(lambda path: path.endswith("/kernel"))
    lr = cosine(options.lr, options.steps, options.warmup)
    if isinstance(options, Distil) and options.optimiser == "muon":
        # Jordan 2024; scaled so that AdamW's learning rates suit it (Liu 2025, arXiv 2502.16982).
        model = optax.contrib.muon(
            lr, weight_decay=options.weight_decay, consistent_rms=0.2, adam_b2=0.95
        )
    else:
        model = optax.adamw(lr, b1=0.9, b2=0.95, weight_decay=options.weight_decay, mask=decays)
    density = optax.adam(cosine(density_lr, options.steps, options.warmup))
    return optax.partition({"model": model, "density": density}, labels)


class State(NamedTuple):
    """The state of training that changes from step to step."""

    step: jax.Array  # int32 scalar
    trainable: Weights
    opt_state: optax.OptState


def data_mesh(count: int | None = None) -> Mesh:
    """All devices, or the first `count`, on one axis, `data`."""
    devices = jax.devices()[:count]
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def init_state(trainable: Weights, tx: optax.GradientTransformation, mesh: Mesh) -> State:
    """The state before the first step, on every device."""

    def start(trainable: Weights) -> State:
        # Copied, because the step donates its buffers and the caller may keep the weights.
        trainable = jax.tree.map(jnp.copy, trainable)
        return State(jnp.zeros((), jnp.int32), trainable, tx.init(trainable))

    return jax.jit(start, out_shardings=replicated(mesh))(trainable)


def make_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    steps: int,
    mesh: Mesh,
    microbatch: int | None = None,
) -> jax.stages.Wrapped:
    """Compile `(state, frozen, batch, key) -> (state, metrics)`.

    The batch is sharded over the mesh, everything else is replicated. `key` is the root key: the
    step folds in its own number, and gives each image a key by its place in the batch. The gradient
    is taken only for `state.trainable`. With `microbatch`, it is accumulated over that many images
    at a time; the number must divide the batch and be a multiple of the devices.
    """

    def step(state: State, frozen: Weights, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        def loss(trainable: Weights, batch: Batch, keys: jax.Array) -> tuple[jax.Array, Metrics]:
            return objective.loss(
                merge(trainable, frozen), batch, keys, jnp.float32(state.step) / steps
            )

        gradient = functools.partial(jax.grad(loss, has_aux=True), state.trainable)
        count = len(next(iter(batch.values())))
        inputs = batch, jax.random.split(jax.random.fold_in(key, state.step), count)
        if microbatch is None:
            grads, metrics = gradient(*inputs)
        else:
            grads, metrics = _mean(gradient, inputs, count // microbatch)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        return State(state.step + 1, trainable, opt_state), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(replicated(mesh), replicated(mesh), sharded(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )


def _mean(compute: Callable[..., Any], inputs: tuple[Any, ...], parts: int) -> Any:
    """The mean of `compute(*part)` over `parts` equal parts of the inputs, one after another."""

    def cut(x: jax.Array) -> jax.Array:
        # A part is every parts-th image, so that each device already holds an equal share.
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    def add(total: Any, part: tuple[Any, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, compute(*part)), None

    split = jax.tree.map(cut, inputs)
    like = jax.eval_shape(compute, *jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    total, _ = jax.lax.scan(add, zeros, split)
    return jax.tree.map(lambda x: x / parts, total)
