"""One training step: pure, jitted, donating its state, data-parallel over a mesh."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nec_jax.nec import Weights
from nec_jax.trainable import merge
from train.objective import Batch, Metrics, Objective


class State(NamedTuple):
    """What changes from step to step."""

    step: jax.Array  # int32 scalar
    trainable: Weights
    opt_state: optax.OptState


def data_mesh(count: int | None = None) -> Mesh:
    """All devices, or the first `count`, on one axis, `data`."""
    devices = jax.devices()[:count]
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The first axis split over devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def init_state(trainable: Weights, tx: optax.GradientTransformation, mesh: Mesh) -> State:
    """The state before the first step, on every device."""
    # Copied, because the step donates its buffers and the caller may keep the weights.
    trainable = jax.tree.map(jnp.copy, trainable)
    return jax.device_put(
        State(jnp.zeros((), jnp.int32), trainable, tx.init(trainable)), replicated(mesh)
    )


def make_step(
    objective: Objective, tx: optax.GradientTransformation, steps: int, mesh: Mesh
) -> jax.stages.Wrapped:
    """Compile `(state, frozen, batch, key) -> (state, metrics)`.

    The batch is sharded over the mesh, everything else is replicated. `key` is the root key: the
    step folds its own number in. The gradient is taken for `state.trainable` alone.
    """

    def step(state: State, frozen: Weights, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        def loss(trainable: Weights) -> tuple[jax.Array, Metrics]:
            return objective.loss(
                merge(trainable, frozen),
                batch,
                jax.random.fold_in(key, state.step),
                state.step / steps,
            )

        grads, metrics = jax.grad(loss, has_aux=True)(state.trainable)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        return State(state.step + 1, trainable, opt_state), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(replicated(mesh), replicated(mesh), sharded(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )
