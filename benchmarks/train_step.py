"""Images per second of one NEC training step against the same step in PyTorch.

    make bench
    python -m benchmarks.train_step --peer PYTHON [--json]

PYTHON is an interpreter that has torch, transformers and compressai (`make bench` makes one): its
ViTMAE with an EntropyBottleneck between encoder and decoder, the same sizes, the same parameters
trained (the paper's set), all cores, images of 224 pixels. The sides take turns, and the best step
of each counts.
"""

import json
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.peer import ROUNDS, best_seconds, parse, run_peer
from coder.pool import available_cores
from nec_jax.models.architecture import ModelConfig, model_config
from nec_jax.models.freezing import trainable_rule
from nec_jax.models.nec import init_weights
from nec_jax.models.weight_tree import split
from train.configs.options import Compress
from train.engine import losses
from train.engine.step import data_mesh, init_state, make_step, optimiser

CASES = (("vit-ti", 8), ("vit-ti", 64), ("vit-b", 8), ("vit-b", 64))
SECONDS = 8.0  # seconds of steps per case, side and round; at least two steps
MASK_RATIO = 0.75


def compiled_step(config: ModelConfig, batch: int, steps: int = 1) -> Callable[[], None]:
    """A compiled function that takes `steps` steps, one after another."""
    options = Compress(trainable="paper", lr=1e-4)
    weights = init_weights(config, jax.random.key(0))
    trainable, frozen = split(weights, trainable_rule(options.trainable, config))
    tx, mesh = optimiser(options, options.density_lr), data_mesh(1)
    state = init_state(trainable, tx, mesh)
    goal = losses.rate_distortion(config, options.lam, options.rounding, MASK_RATIO)
    step = make_step(goal, tx, options.steps, mesh)
    shape = (batch, config.image_size, config.image_size, config.channels)
    images = jax.device_put(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    key = jax.random.key(1)

    def take() -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, frozen, {"image": images}, key)
        jax.block_until_ready(state)

    take()  # compiles
    return take


def peer_seconds(python: str, config: ModelConfig, batch: int) -> float:
    """The peer's fastest step, from its own interpreter."""
    names = ("width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads")
    case = {name: getattr(config, name) for name in (*names, "image_size", "patch")}
    case |= {"batch": batch, "seconds": SECONDS, "threads": available_cores()}
    return run_peer(python, "peer_train_step.py", json.dumps(case))["seconds"]


def main() -> None:
    """Print the table."""
    arguments = parse(__doc__)
    rows = []
    for arch, batch in CASES:
        config = model_config(arch, image_size=224, patch=16)
        step, ours, theirs = compiled_step(config, batch), [], []
        for _ in range(ROUNDS):
            ours.append(best_seconds(step, SECONDS))
            if arguments.peer:
                theirs.append(peer_seconds(arguments.peer, config, batch))
        row: dict[str, float | str | int] = {"arch": arch, "batch": batch}
        row["images_per_s"] = batch / min(ours)
        if theirs:
            row["peer_images_per_s"] = batch / min(theirs)
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"images/s of a training step, the paper's trainable set, {available_cores()} cores")
    print(f"{'model':8s} {'batch':>5s} {'nec-jax':>9s} {'PyTorch':>9s} {'ratio':>6s}")
    for row in rows:
        ours, peer = row["images_per_s"], row.get("peer_images_per_s", float("nan"))
        ratio = float(ours) / float(peer)
        print(f"{row['arch']:8s} {row['batch']:5d} {ours:9.2f} {peer:9.2f} {ratio:6.2f}")


if __name__ == "__main__":
    main()
