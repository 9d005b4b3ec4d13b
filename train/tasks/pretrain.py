"""`python -m train.main pretrain`: train a masked autoencoder on images, or a model's decoder."""

import json

import nec_jax
from nec_jax.model_file import NecParams
from train.configs.options import Pretrain
from train.engine import loop, objective, processes, run_record
from train.engine.initial_model import with_teacher, without_teacher
from train.engine.inputs import open_inputs, open_run
from train.engine.pictures import pictures_of
from train.engine.run_record import print_summary


def run(options: Pretrain) -> None:
    """Train and write `model.safetensors` in the work folder."""
    run = open_run(options)
    options, source, base, config = run.options, run.source, run.base, run.base.config
    inputs = open_inputs(run)
    weights = with_teacher(config, base.weights, run.rule)
    with run_record.recorded(options, {"train": source, "val": run.val_source}) as finish_record:
        trained = loop.fit(
            options,
            objective.mae(config, run.mask_ratio),
            lambda: weights,
            weights,
            run.rule,
            inputs.batches,
            inputs.val,
            pictures=pictures_of(config, inputs.val, run.mask_ratio, coded=False),
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
