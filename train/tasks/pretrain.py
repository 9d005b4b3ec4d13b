"""`python -m train.main pretrain`: train a masked autoencoder on images, or a model's decoder."""

import json

import nec_jax
from nec_jax.api import check_images
from nec_jax.model_file import NecParams
from nec_jax.models.freezing import trainable_rule
from train.configs.options import Pretrain
from train.engine import loop, objective, processes, run_record
from train.engine.initial import (
    given_model,
    mask_ratio,
    starting_model,
    with_teacher,
    without_teacher,
)
from train.engine.inputs import (
    in_steps,
    open_training_source,
    open_val_source,
    read_validation,
    refuse_folders,
    train_batches,
)
from train.engine.pictures import pictures_of
from train.engine.summary import print_summary


def run(options: Pretrain) -> None:
    """Train and write `model.safetensors` in the work folder."""
    processes.log_devices()
    refuse_folders(options)
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
    with run_record.recorded(options, {"train": source, "val": val_source}) as finish_record:
        trained = loop.fit(
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
        facts["pretrain"] = {"data": source.name, "images": len(source), "steps": options.steps}
        if options.init:
            facts["pretrain"] |= {"init": options.init, "trainable": options.trainable}
        provenance = json.dumps(facts, sort_keys=True)
        params = NecParams(without_teacher(trained), config, None, provenance)
        path = options.workdir / "model.safetensors"
        if processes.is_main_process():
            nec_jax.save(params, path)
            print_summary(finish_record(), path, source, params)
