"""`python -m train.main compress`: adapt a model for rate and distortion, and freeze its codec."""

import dataclasses
import json
import sys

import jax
import numpy as np

import nec_jax
from nec_jax.api import check_images
from nec_jax.config import ModelConfig
from nec_jax.nec import Weights, init_weights
from nec_jax.params import NecParams
from nec_jax.trainable import split, trainable_rule
from train import loop, objective, processes
from train.calibrate import calibrate_bottleneck
from train.config import Compress, OptionsError
from train.data import read_all
from train.initial import (
    config_for,
    fresh_config,
    mask_ratio,
    starting_model,
    with_teacher,
    without_teacher,
)
from train.optim import optimiser
from train.pretrain import open_training_source, read_validation, train_batches
from train.step import data_mesh, init_state, make_step

_CALIBRATION_BATCH = 64  # images that the starting gains and densities are fitted on


def run(options: Compress) -> None:
    """Train and write `model.safetensors`, with its codec, in the work folder."""
    if options.describe:
        print(json.dumps(describe(options)))
        return
    if not (options.init or options.arch):
        raise OptionsError("no model: pass --init (made by `train.main pretrain`, or nec convert)")
    processes.print_devices()
    source = open_training_source(options)
    base = starting_model(options, source)
    config = base.config
    hidden = mask_ratio(options, config)
    rule = trainable_rule(options.trainable, config)
    val_images = read_validation(options, config)
    check_images(config, val_images)  # before hours of training: bands, dtype, range

    first = with_teacher(config, base.weights, rule)

    def start() -> Weights:
        images = read_all(source, config.image_size, limit=_CALIBRATION_BATCH).images
        print(f"calibrating on {len(images)} images", file=sys.stderr)
        weights, facts = calibrate_bottleneck(
            config,
            first,
            images,
            jax.random.key(options.seed),
            lam=options.lam,
            mask_ratio=hidden,
            choose_gain=options.gain == "calibrated",
        )
        print("calibrated: " + loop.describe(facts), file=sys.stderr)
        return weights

    weights = loop.fit(
        options,
        objective.rate_distortion(config, options.lam, options.rounding, hidden),
        start,
        first,
        rule,
        train_batches(options, source, config),
        {"image": val_images},
        density_lr=options.density_lr,
    )
    print("making the tables of the codec", file=sys.stderr)
    trained = dataclasses.replace(base, weights=without_teacher(weights))
    params = with_codec(trained, options)
    path = options.workdir / "model.safetensors"
    if processes.is_main_process():
        nec_jax.save(params, path)
        print(f"wrote {path}", file=sys.stderr)


def with_codec(params: NecParams, options: Compress) -> NecParams:
    """Calibrate the tables on whole training images (fitted to size, not cropped at random)."""
    source = open_training_source(options)
    images = read_all(source, params.config.image_size, limit=options.calibration_images).images
    facts = {
        "lambda": options.lam,
        "rounding": options.rounding,
        "trainable": options.trainable,
        "proxy": params.config.decoder_target,
        "init": options.init or "fresh weights",
        "steps": options.steps,
        "batch": options.batch,
        "data": source.name,
        "calibration_images": len(images),
    }
    return nec_jax.calibrate(params, images, {"compress": facts})


def describe(options: Compress) -> dict[str, float | int]:
    """Sizes of a run without running it: parameters, coded tokens, FLOPs of a compiled step."""
    config = _described_config(options)
    shapes = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
    rule = trainable_rule(options.trainable, config)
    trainable, frozen = split(with_teacher(config, shapes, rule), rule)
    grid = config.grid(config.image_size, config.image_size)
    return {
        "params": _count(shapes),
        "trainable_params": _count(trainable),
        "tokens": grid[0] * grid[1] + config.code_class_token,
        "flops_per_step": count_flops(options, config, trainable, frozen),
    }


def count_flops(
    options: Compress, config: ModelConfig, trainable: Weights, frozen: Weights
) -> float:
    """What XLA counts for one compiled step of the whole batch; nothing is allocated."""
    mesh = data_mesh()
    tx = optimiser(options, options.density_lr)
    hidden = mask_ratio(options, config)
    goal = objective.rate_distortion(config, options.lam, options.rounding, hidden)
    side = config.image_size
    images = jax.ShapeDtypeStruct((options.batch, side, side, config.channels), config.dtype)
    state = jax.eval_shape(lambda weights: init_state(weights, tx, mesh), trainable)
    key = jax.eval_shape(jax.random.key, 0)
    lowered = make_step(goal, tx, options.steps, mesh).lower(state, frozen, {"image": images}, key)
    cost = lowered.compile().cost_analysis()
    if cost is None:
        raise RuntimeError("this backend counts no FLOPs: describe on a CPU")
    return float(cost["flops"]) * mesh.size  # XLA counts one device's part


def _described_config(options: Compress) -> ModelConfig:
    if options.init:
        return config_for(options, nec_jax.load(options.init).config)
    if options.arch:
        return fresh_config(options)
    raise OptionsError("nothing to describe: pass --arch or --init")


def _count(tree: Weights) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
