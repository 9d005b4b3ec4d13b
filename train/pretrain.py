"""`python -m train.main pretrain`: a masked autoencoder from images, or a model's decoder."""

import json
import sys

import jax
import numpy as np

import nec_jax
from nec_jax.api import check_images
from nec_jax.config import ModelConfig
from nec_jax.params import NecParams
from nec_jax.trainable import trainable_rule
from train import loop, objective, processes
from train.config import OptionsError, Pretrain, Training
from train.data import open_source, read_all, train_iterator
from train.data.record import Source
from train.initial import mask_ratio, starting_model, with_teacher, without_teacher


def run(options: Pretrain) -> None:
    """Train and write `model.safetensors` in the work folder."""
    processes.print_devices()
    source = open_training_source(options)
    base = starting_model(options, source)
    config, rule = base.config, trainable_rule(options.trainable, base.config)
    val_images = read_validation(options, config)
    check_images(config, val_images)
    weights = with_teacher(config, base.weights, rule)
    weights = loop.fit(
        options,
        objective.mae(config, mask_ratio(options, config)),
        lambda: weights,
        weights,
        rule,
        train_batches(options, source, config),
        {"image": val_images},
    )
    facts = json.loads(base.provenance)
    run_facts = {"data": source.name, "images": len(source), "steps": options.steps}
    if options.init:
        run_facts |= {"init": options.init, "trainable": options.trainable}
    facts["pretrain"] = run_facts
    params = NecParams(without_teacher(weights), config, None, json.dumps(facts, sort_keys=True))
    path = options.workdir / "model.safetensors"
    if processes.is_main_process():
        nec_jax.save(params, path)
        print(f"wrote {path}", file=sys.stderr)


def open_training_source(options: Training) -> Source:
    """The images to train on."""
    if not options.data:
        raise OptionsError("no data: pass --data (a folder, tfds:NAME, or blue-marble)")
    return open_source(options.data, options.split, chip=options.chip)


def train_batches(options: Training, source: Source, config: ModelConfig):
    """The endless, shuffled, augmented batches."""
    count = jax.process_count()
    if options.batch % count:
        raise OptionsError(f"--batch {options.batch} is not a multiple of {count} processes")
    return train_iterator(
        source,
        batch=options.batch // count,
        size=config.image_size,
        seed=options.seed,
        process_index=jax.process_index(),
        process_count=count,
    )


def read_validation(options: Training, config: ModelConfig) -> np.ndarray:
    """The validation images [N, S, S, C]."""
    source = open_source(options.data, options.val_split, chip=options.chip)
    return read_all(source, config.image_size, limit=options.val_images).images
