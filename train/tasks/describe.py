"""`nec describe`: the sizes of a compression run, without data and without running it."""

import json

import jax
import numpy as np

import nec_jax
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.freezing import frozen_blocks, trainable_rule
from nec_jax.models.nec import init_weights, prefix
from nec_jax.models.weight_tree import Weights, merge, split
from train.configs.options import Compress, Describe, OptionsError
from train.engine import losses
from train.engine.initial_model import config_for, fresh_config, mask_ratio, with_teacher
from train.engine.step import data_mesh, init_state, make_step, optimiser
from train.tasks.compress import trained_weights


def run(options: Describe) -> None:
    """Print the sizes as one JSON object."""
    print(json.dumps(sizes(options)))


def sizes(options: Compress) -> dict[str, float | int]:
    """The sizes of a run, without running it: parameters, coded tokens, FLOPs of a step."""
    if not (options.arch or options.init):
        raise OptionsError("nothing to describe: pass --arch or --init")
    given = fresh_config(options) if options.arch else nec_jax.load(options.init).config
    config = config_for(options, given)
    shapes = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
    shapes = trained_weights(options, config, shapes)
    rule = trainable_rule(options.trainable, config)
    trainable, frozen = split(with_teacher(config, shapes, rule), rule)
    start = frozen_blocks(config, shapes, rule) if options.cache else 0
    grid = config.grid(config.image_size, config.image_size)
    return {
        "params": _count(shapes),
        "trainable_params": _count(trainable),
        "tokens": grid[0] * grid[1] + config.code_class_token,
        "flops_per_step": count_flops(options, config, trainable, frozen, start),
    }


def count_flops(
    options: Compress, config: ModelConfig, trainable: Weights, frozen: Weights, start: int = 0
) -> float:
    """The FLOPs that XLA counts for one step of the whole batch; nothing is allocated.

    With `start`, the batch has already passed `start` blocks.
    """
    mesh = data_mesh()
    tx = optimiser(options, options.density_lr)
    hidden = mask_ratio(options, config)
    goal = losses.rate_distortion(config, options.lam, options.rounding, hidden, start)
    side = config.image_size
    images = jax.ShapeDtypeStruct((options.batch, side, side, config.channels), config.dtype)
    batch = {"image": images}
    if start:
        passed = jax.eval_shape(
            lambda weights, x: prefix(config, weights, x, start), merge(trainable, frozen), images
        )
        batch = {"tokens": jax.ShapeDtypeStruct(passed.shape, np.float16)}
    state = jax.eval_shape(lambda weights: init_state(weights, tx, mesh), trainable)
    key = jax.eval_shape(jax.random.key, 0)
    lowered = make_step(goal, tx, options.steps, mesh).lower(state, frozen, batch, key)
    # FLOPs are counted before machine code is generated: that code need not be optimised.
    cost = lowered.compile({"xla_backend_optimization_level": "0"}).cost_analysis()
    if cost is None:
        raise RuntimeError("this backend counts no FLOPs: describe on a CPU")
    return float(cost["flops"]) * mesh.size  # XLA counts one device's part


def _count(tree: Weights) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
