"""The training loop: data in, weights out; logs, validates, checkpoints and resumes."""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from nec_jax.nec import Weights
from nec_jax.trainable import merge, split
from train.checkpoint import Checkpoints
from train.config import OptionsError, Training, flag
from train.objective import Objective, mean_metrics
from train.optim import optimiser
from train.pictures import Pictures
from train.step import data_mesh, init_state, make_step, replicated, sharded

_VAL_BATCH = 64


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the newest checkpoint is from before."""


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
      options: steps, batch, rates, folders.
      objective: what is minimised.
      weights: makes the weights to start from; not called when a checkpoint is there.
      shapes: a tree with their shapes and dtypes.
      trainable: which paths train; all other leaves stay bit-identical.
      batches: a resumable iterator (`get_state`, `set_state`) over batches of
        the objective, host arrays [batch, ...].
      val_batch: all that is validated on, [N, ...].
      density_lr: peak learning rate of the bottleneck.
      pictures: drawn for TensorBoard at every validation.

    Raises:
      NonFiniteLoss: with the step and what to try; no checkpoint holds what is not finite.
      OptionsError: a batch that the devices cannot share, or a folder of another run.
    """
    console = Console(stderr=True, emoji=False, markup=False, soft_wrap=True)
    if jax.process_count() > 1:
        raise OptionsError("training runs in one process (over all its devices): start only one")
    mesh = data_mesh()
    if options.batch % mesh.size:
        raise OptionsError(f"batch {options.batch} is not a multiple of the {mesh.size} devices")
    refuse_changed_config(options)
    checkpoints = Checkpoints(options.workdir / "checkpoints")
    start = checkpoints.latest
    tx = optimiser(options, density_lr)
    if start is None:
        train_part, frozen = split(weights(), trainable)
        state = init_state(train_part, tx, mesh)
        frozen = jax.device_put(frozen, replicated(mesh))
    else:
        train_part, frozen = split(shapes, trainable)
        like = jax.eval_shape(lambda part: init_state(part, tx, mesh), train_part), frozen
        (state, frozen), position = checkpoints.restore(like, replicated(mesh))
        batches.set_state(position)  # type: ignore[attr-defined]
        console.print(f"resuming at step {start} of {options.steps}")
    root = jax.device_put(jax.random.key(options.seed), replicated(mesh))
    step_fn = make_step(objective, tx, options.steps, mesh)
    log = MetricsLog(options.workdir, start or 0)
    validate = jax.jit(objective.validate)

    def check(step: int, loss: float) -> None:
        if not (math.isfinite(loss) and all_finite(state.trainable)):
            raise NonFiniteLoss(
                f"the loss or a weight is no longer finite at step {step}: lower --lr (now "
                f"{options.lr:g}) or look at the data; the newest checkpoint in "
                f"{options.workdir} is from before"
            )

    def val(step: int) -> None:
        now = merge(state.trainable, frozen)
        total = len(next(iter(val_batch.values())))
        parts = np.array_split(np.arange(total), math.ceil(total / _VAL_BATCH))
        key = jax.random.key(0)  # the same masks every time
        metrics = [
            validate(now, {k: v[part] for k, v in val_batch.items()}, jax.random.fold_in(key, i))
            for i, part in enumerate(parts)
        ]
        values = mean_metrics(metrics, [len(part) for part in parts])
        check(step, values["loss"])
        log.write(step, "val", values)
        if pictures and jax.process_index() == 0:
            # On one device of this process: the others do not take part.
            log.show(step, pictures(jax.tree.map(lambda leaf: leaf.addressable_data(0), now)))
        console.print(f"step {step:6d}  val    " + describe(values))

    if start is None:
        val(0)
    pending = []
    clock, seen = time.perf_counter(), 0
    with closing(checkpoints), closing(log), _progress(console) as progress:
        task = progress.add_task("train", total=options.steps, completed=start or 0, note="")
        for step in range((start or 0) + 1, options.steps + 1):
            batch = {
                name: jax.make_array_from_process_local_data(sharded(mesh), local)
                for name, local in next(batches).items()
            }
            state, metrics = step_fn(state, frozen, batch, root)
            pending.append(metrics)
            seen += options.batch
            if step % options.log_every == 0 or step == options.steps:
                values = mean_metrics(pending, [1] * len(pending))
                check(step, values["loss"])
                rate = seen / (time.perf_counter() - clock)
                log.write(step, "train", values | {"images_per_s": rate})
                note = f"{rate:.0f} images/s  " + describe(values)
                progress.update(task, completed=step, note=note)
                if not console.is_terminal and step % (5 * options.log_every) == 0:
                    console.print(f"step {step:6d}  train  {note}")
                pending, clock, seen = [], time.perf_counter(), 0
            if step % options.val_every == 0 or step == options.steps:
                val(step)
                clock, seen = time.perf_counter(), 0
            if step % options.checkpoint_every == 0 or step == options.steps:
                check(step, float(metrics["loss"]))
                position = batches.get_state()  # type: ignore[attr-defined]
                checkpoints.save(step, (state, frozen), position)
    return jax.tree.map(np.asarray, merge(state.trainable, frozen))


@jax.jit
def all_finite(tree: Weights) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def describe(values: dict[str, float]) -> str:
    """Metrics in a line, in their order."""
    names = {"bits_per_image": "bits/image", "bits_per_element": "bits/element"}
    return "  ".join(f"{names.get(k, k)} {v:.4g}" for k, v in values.items())


def print_devices() -> None:
    """Say first where this run computes."""
    devices = jax.devices()
    kinds = ", ".join(sorted({d.device_kind for d in devices}))
    several = f", process {jax.process_index()} of {jax.process_count()}"
    Console(stderr=True).print(
        f"on {len(devices)} {kinds}" + (several if jax.process_count() > 1 else "")
    )


def refuse_changed_config(options: Training) -> None:
    """A work folder belongs to one configuration: going on with another mixes two runs."""
    options.workdir.mkdir(parents=True, exist_ok=True)
    path = options.workdir / "config.json"
    now: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(options), default=str))
    if path.exists():
        before = json.loads(path.read_text())
        changed = [k for k in now if before.get(k) != now[k]] + [k for k in before if k not in now]
        if changed:
            raise OptionsError(
                f"{options.workdir} was made with other settings ("
                + ", ".join(f"{flag(k)}: {before.get(k)!r} -> {now.get(k)!r}" for k in changed)
                + "): choose another --workdir, or delete it to start again"
            )
    else:
        whole = path.with_suffix(".tmp")
        whole.write_text(json.dumps(now, indent=1) + "\n")
        whole.replace(path)


class MetricsLog:
    """`metrics.jsonl` and TensorBoard events; lines beyond the resumed step are cut off."""

    def __init__(self, workdir: Path, start: int):
        self._path = workdir / "metrics.jsonl"
        # A crash may have torn the last line: it lacks its end.
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= start] if start else []
        self._path.write_text("".join(kept))
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, split_name: str, values: dict[str, float]) -> None:
        """One line, and one point a curve."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "split": split_name, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{split_name}/{name}", value, step)

    def show(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """TensorBoard images, uint8 [H, W, 3]."""
        for name, picture in pictures.items():
            self._board.add_image(f"pictures/{name}", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush the events."""
        self._board.close()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not sys.stderr.isatty(),
    )
