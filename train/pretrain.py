"""`python -m train.main pretrain`: a masked autoencoder from images, or a model's decoder."""

import dataclasses
import json
from typing import TypeVar

import numpy as np

import nec_jax
from nec_jax.api import check_images
from nec_jax.config import ModelConfig
from nec_jax.params import NecParams
from nec_jax.trainable import trainable_rule
from train import loop, objective, processes, run_record
from train.config import OptionsError, Pretrain, Training
from train.data import Subset, open_source, read_all, train_iterator
from train.data.record import Source
from train.initial import given_model, mask_ratio, starting_model, with_teacher, without_teacher
from train.pictures import pictures_of
from train.summary import print_summary

AnyTraining = TypeVar("AnyTraining", bound=Training)


def run(options: Pretrain) -> None:
    """Train and write `model.safetensors` in the work folder."""
    processes.print_devices()
    given = given_model(options)
    source = open_training_source(options)
    options = in_steps(options, source)
    val_source = open_val_source(options)
    run_record.refuse_changed_config(options)
    base = starting_model(options, given, source)
    config, rule = base.config, trainable_rule(options.trainable, base.config)
    val_images = read_validation(options, config, val_source)
    check_images(config, val_images)
    hidden = mask_ratio(options, config)
    weights = with_teacher(config, base.weights, rule)
    if processes.is_main_process():
        run_record.begin(options, {"train": source, "val": val_source})
    weights = loop.fit(
        options,
        objective.mae(config, hidden),
        lambda: weights,
        weights,
        rule,
        train_batches(options, source, config),
        {"image": val_images},
        pictures=pictures_of(config, {"image": val_images}, hidden, coded=False),
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
        print_summary(run_record.finish(options.workdir), path, source, params)


def open_training_source(options: Training) -> Source:
    """The images to train on."""
    if not options.data:
        raise OptionsError("no data: pass --data (a folder, tfds:NAME, or blue-marble)")
    source = open_source(options.data, options.split, chip=options.chip)
    return source if options.images is None else Subset(source, options.images)


def in_steps(options: AnyTraining, source: Source) -> AnyTraining:
    """The same options, with `epochs` said in steps, rounded up."""
    if options.epochs is None:
        return options
    return dataclasses.replace(options, steps=-(-options.epochs * len(source) // options.batch))


def train_batches(options: Training, source: Source, config: ModelConfig):
    """The endless, shuffled, augmented batches."""
    own, index, count = processes.own_share(options.batch)
    return train_iterator(
        source,
        batch=own,
        size=config.image_size,
        seed=options.seed,
        process_index=index,
        process_count=count,
    )


def open_val_source(options: Training) -> Source:
    """The images to validate on."""
    return open_source(options.data, options.val_split, chip=options.chip)


def read_validation(options: Training, config: ModelConfig, source: Source) -> np.ndarray:
    """The validation images [N, S, S, C] that are taken from their source."""
    return read_all(source, config.image_size, limit=options.val_images).images
