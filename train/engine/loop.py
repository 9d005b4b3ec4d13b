"""The training loop: data in, weights out; logs, validates, checkpoints and resumes."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import make_array_from_process_local_data as from_local
from jax.experimental import multihost_utils
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nec_jax.models.weight_tree import Weights, merge, split
from train.configs.options import OptionsError, Training, flag
from train.engine.checkpoint import CheckpointError, Checkpoints
from train.engine.log import CONSOLE, MetricsLog
from train.engine.losses import Objective, mean_metrics
from train.engine.pictures import Pictures
from train.engine.processes import Stopped, StopSignals, is_main_process, wait_for_others
from train.engine.step import data_mesh, init_state, make_step, optimiser, replicated, sharded

log = logging.getLogger(__name__)

_VAL_BATCH = 64


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the newest checkpoint is from before that."""


def fit(
    options: Training,
    objective: Objective,
    weights: Callable[[], Weights],
    shapes: Weights,
    trainable: Callable[[str], bool],
    batches: Iterator[dict[str, np.ndarray]],
    val_batch: dict[str, np.ndarray],
    *,
    density_lr: float = 0.0,
    pictures: Pictures | None = None,
) -> Weights:
    """Train and return the final weights, on the host.

    Args:
      options: steps, batch, learning rates, folders.
      objective: the loss to minimise, and the metrics of validation.
      weights: a function that makes the initial weights; not called if there is a checkpoint.
      shapes: a tree with their shapes and dtypes.
      trainable: says which paths train; all other leaves stay bit-identical.
      batches: a resumable iterator (`get_state`, `set_state`) over batches for the objective, host
        arrays [batch, ...].
      val_batch: all validation data, [N, ...].
      density_lr: peak learning rate of the bottleneck.
      pictures: draws pictures for TensorBoard at every validation.

    Raises:
      NonFiniteLoss: the loss or a weight is not finite; no checkpoint holds such values.
      OptionsError: the batch cannot be divided among the devices.
      CheckpointError: a checkpoint cannot be written, or all existing ones are damaged.
      FileError: `metrics.jsonl` lacks lines of steps before the newest checkpoint.
      Stopped: a signal asked the run to stop; a checkpoint was written.
    """
    mesh = data_mesh()
    at_once = options.microbatch or options.batch
    if at_once % mesh.size:
        name = "microbatch" if options.microbatch else "batch"
        raise OptionsError(f"{flag(name)} {at_once} is not a multiple of the {mesh.size} devices")
    checkpoints = Checkpoints(options.workdir / "checkpoints")
    tx = optimiser(options, density_lr)
    start, pending, lines = 0, [], None
    resumed = bool(checkpoints.steps)
    if not resumed:
        # Those of process 0: calibration may give other floats in other processes.
        first = weights()
        wait_for_others("calibrated")
        first = multihost_utils.broadcast_one_to_all(first)
        train_part, frozen = split(first, trainable)
        state = init_state(train_part, tx, mesh)
        frozen = jax.tree.map(partial(from_local, replicated(mesh)), frozen)
    else:
        train_part, frozen = split(shapes, trainable)
        like = jax.eval_shape(lambda part: init_state(part, tx, mesh), train_part), frozen
        start, (state, frozen), position = checkpoints.restore(like, replicated(mesh))
        batches.set_state(position["data"])  # type: ignore[attr-defined]
        pending = [{k: np.float32(v) for k, v in m.items()} for m in position["pending"]]
        lines = position.get("lines")
        log.info(f"resuming at step {start} of {options.steps}")
    root = jax.jit(jax.random.key, out_shardings=replicated(mesh))(options.seed)
    step_fn: Any = make_step(objective, tx, options.steps, mesh, options.microbatch)
    curves = MetricsLog(options.workdir, start, lines)
    validate = jax.jit(objective.validate)

    def check(step: int, loss: float) -> None:
        if not (math.isfinite(loss) and all_finite(state.trainable)):
            raise NonFiniteLoss(
                f"the loss or a weight is no longer finite at step {step}: lower --lr (now "
                f"{options.lr:g}) or look at the data; the newest checkpoint in "
                f"{options.workdir} is from before that"
            )

    def val(step: int) -> None:
        now = merge(state.trainable, frozen)
        total = len(next(iter(val_batch.values())))
        parts = np.array_split(np.arange(total), math.ceil(total / _VAL_BATCH))
        keys = jax.random.split(jax.random.key(0), total)  # the same masks every time
        metrics = [
            validate(now, {k: v[part] for k, v in val_batch.items()}, keys[part]) for part in parts
        ]
        values = mean_metrics(jax.device_get(metrics), [len(part) for part in parts])
        check(step, values["loss"])
        curves.write(step, "val", values)
        if pictures and is_main_process():
            # On one device of this process: other processes take no part.
            curves.show(step, pictures(jax.tree.map(lambda leaf: leaf.addressable_data(0), now)))
        log.info(f"step {step:6d}  val    " + describe(values))

    def save(step: int) -> None:
        check(step, float(metrics["loss"]))
        # Metrics since the last line belong to the next line, which a resumed run writes.
        held = [{k: float(v) for k, v in m.items()} for m in jax.device_get(pending)]
        curves.sync()
        where = batches.get_state()  # type: ignore[attr-defined]
        position = {"data": where, "pending": held, "lines": curves.lines}
        checkpoints.save(step, (state, frozen), position)

    if not resumed:
        val(0)
    clock, seen = time.perf_counter(), 0
    with closing(checkpoints), closing(curves), StopSignals() as signals, _progress() as bar:
        task = bar.add_task("train", total=options.steps, completed=start, note="")
        for step in range(start + 1, options.steps + 1):
            batch = jax.tree.map(partial(from_local, sharded(mesh)), next(batches))
            if step == start + 1:
                step_fn = step_fn.lower(state, frozen, batch, root).compile()
                wait_for_others("compiled")
            state, metrics = step_fn(state, frozen, batch, root)
            pending.append(metrics)
            seen += options.batch
            if step % options.log_every == 0 or step == options.steps:
                values = mean_metrics(jax.device_get(pending), [1] * len(pending))
                check(step, values["loss"])
                rate = seen / (time.perf_counter() - clock)
                curves.write(step, "train", values)
                curves.draw(step, "train", {"images_per_s": rate})
                note = f"{rate:.0f} images/s  " + describe(values)
                bar.update(task, completed=step, note=note)
                if not CONSOLE.is_terminal and step % (5 * options.log_every) == 0:
                    log.info(f"step {step:6d}  train  {note}")
                pending, clock, seen = [], time.perf_counter(), 0
            if step % options.val_every == 0 or step == options.steps:
                val(step)
                clock, seen = time.perf_counter(), 0
            stop = signals.asked(step)
            if stop or step % options.checkpoint_every == 0 or step == options.steps:
                try:
                    save(step)
                except CheckpointError as error:
                    if not stop:
                        raise
                    log.error(error)  # and stop all the same
            if stop:
                raise Stopped(f"after step {step} of {options.steps}")
    return jax.tree.map(np.asarray, merge(state.trainable, frozen))


@jax.jit
def all_finite(tree: Weights) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def describe(values: dict[str, float]) -> str:
    """Metrics as one line, in their order."""
    names = {"bits_per_image": "bits/image", "bits_per_element": "bits/element"}
    return "  ".join(f"{names.get(k, k)} {v:.4g}" for k, v in values.items())


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=CONSOLE,
        disable=not (CONSOLE.is_terminal and is_main_process()),
    )
