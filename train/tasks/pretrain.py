"""`nec pretrain`: train a masked autoencoder on images, or a model's decoder."""

import json

from nec_jax.model_file import NecParams
from train.configs.options import Pretrain
from train.engine import loop, losses, run_record
from train.engine.initial_model import with_teacher, without_teacher
from train.engine.inputs import open_run
from train.engine.pictures import pictures_of


def run(options: Pretrain) -> None:
    """Train and write `model.safetensors` in the work folder."""
    run = open_run(options)
    options, source, base, config = run.options, run.source, run.base, run.base.config
    weights = with_teacher(config, base.weights, run.rule)
    with run_record.recorded(options, {"train": source, "val": run.val_source}) as end:
        trained = loop.fit(
            options,
            losses.mae(config, run.mask_ratio),
            lambda: weights,
            weights,
            run.rule,
            run.batches,
            run.val,
            pictures=pictures_of(config, run.val, run.mask_ratio, coded=False),
        )
        facts = json.loads(base.provenance)
        facts["pretrain"] = {"data": source.name, "images": len(source), "steps": options.steps}
        if options.init:
            facts["pretrain"] |= {"init": options.init, "trainable": options.trainable}
        provenance = json.dumps(facts, sort_keys=True)
        end(NecParams(without_teacher(trained), config, None, provenance))
