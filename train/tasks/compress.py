"""`python -m train.main compress`: adapt a model to compression, and give it a frozen codec."""

import dataclasses
import functools
import logging

import jax

import nec_jax
from coder import QualityLadder
from coder.transform import Transform
from nec_jax.calibration import calibrate_latents, fit_latents, fit_transform
from nec_jax.model_file import NecParams
from nec_jax.models import transform_bottleneck
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.weight_tree import Weights
from train.configs.options import Compress, OptionsError
from train.engine import loop, objective, processes, run_record
from train.engine.activation_cache import finish
from train.engine.initial_model import with_teacher, without_teacher
from train.engine.inputs import Inputs, open_inputs, open_run
from train.engine.pictures import evenly_spread, pictures_of
from train.engine.run_record import print_summary
from train.tasks.first_density import calibrate_bottleneck, calibrate_transform

log = logging.getLogger(__name__)

_CALIBRATION_BATCH = 64  # images that the starting gains and densities are fitted on
_CODED = 64  # validation images that are coded at the end, for real sizes


def run(options: Compress) -> None:
    """Train and write `model.safetensors`, with its codec, in the work folder."""
    if not options.init and (options.arch is None or options.trainable != "all"):
        raise OptionsError(
            "no model: pass --init (made by `train.main pretrain`, or nec convert); or --arch and "
            "--trainable all, for fresh weights"
        )
    run = open_run(options)
    options, source, base, config = run.options, run.source, run.base, run.base.config
    inputs = open_inputs(run)
    first = with_teacher(config, trained_weights(options, config, base.weights), run.rule)

    # Used at the start, and again at the end.
    ladder = functools.cache(functools.partial(fit_ladder, base, options, inputs))

    def start() -> Weights:
        images = inputs.sample(_CALIBRATION_BATCH)
        log.info(f"calibrating on {len(images)} images")
        calibrated = calibrate_bottleneck
        if options.codec == "transform":
            calibrated = functools.partial(calibrate_transform, codec=ladder())
        weights, facts = calibrated(
            config,
            first,
            images,
            jax.random.key(options.seed),
            lam=options.lam,
            mask_ratio=run.mask_ratio,
            gain=options.gain,
            start=inputs.start,
        )
        log.info("calibrated: " + loop.describe(facts))
        return weights

    with run_record.recorded(options, {"train": source, "val": run.val_source}) as finish_record:
        weights = loop.fit(
            options,
            objective.rate_distortion(
                config, options.lam, options.rounding, run.mask_ratio, inputs.start
            ),
            start,
            first,
            run.rule,
            inputs.batches,
            inputs.val,
            density_lr=options.density_lr,
            pictures=pictures_of(
                config,
                inputs.val,
                run.mask_ratio,
                coded=options.codec == "per-channel",
                start=inputs.start,
            ),
        )
        log.info("making the tables of the codec")
        through = ladder().transform if options.codec == "transform" else None
        params = with_codec(base, without_teacher(weights), options, source.name, inputs, through)
        path = options.workdir / "model.safetensors"
        if processes.is_main_process():
            nec_jax.save(params, path)
            blobs = code_some(params, inputs)
            print_summary(finish_record(), path, source, params, blobs)


def code_some(params: NecParams, inputs: Inputs) -> list[bytes]:
    """Blobs of some validation images, which were not used to make the codec."""
    some = evenly_spread(inputs.val["tokens" if inputs.start else "image"], _CODED)
    assert params.codec is not None
    grid = params.config.grid(params.config.image_size, params.config.image_size)
    return [params.codec.encode(y, grid) for y in finish(params, some, inputs.start)]


def trained_weights(options: Compress, config: ModelConfig, weights: Weights) -> Weights:
    """Weights with the shapes to train: with a transform, the bottleneck is another one."""
    if options.codec == "per-channel":
        return weights
    held = transform_bottleneck.blank(config.embedding_width, class_token=config.code_class_token)
    return {**weights, "bottleneck": held}


def with_codec(
    base: NecParams,
    weights: Weights,
    options: Compress,
    data: str,
    inputs: Inputs,
    through: Transform | None,
) -> NecParams:
    """The trained model with its codec, fitted to whole training images without random crops.

    `through` is the transform that it was trained through, if any.
    """
    images = inputs.sample(options.calibration_images)
    held = weights["bottleneck"]
    if through is not None:  # replace the bottleneck by a blank one, which nothing reads
        weights = {**weights, "bottleneck": base.weights["bottleneck"]}
    params = dataclasses.replace(base, weights=weights)
    facts = {
        "lambda": options.lam,
        "codec": options.codec,
        "rounding": options.rounding,
        "trainable": options.trainable,
        "proxy": params.config.decoder_target,
        "init": options.init or "fresh weights",
        "steps": options.steps,
        "batch": options.batch,
        "data": data,
        "calibration_images": len(images),
    }
    y = finish(params, images, inputs.start)
    if through is not None:
        step = float(held["transform"]["step"])
        return fit_latents(params, y, step, through, {"compress": facts})
    return calibrate_latents(params, [y], {"compress": facts})


def fit_ladder(base: NecParams, options: Compress, inputs: Inputs) -> QualityLadder:
    """The codec whose transform is trained through, fitted to the embeddings of the base."""
    y = finish(base, inputs.sample(options.calibration_images), inputs.start)
    side = base.config.image_size
    return fit_transform(y, base.config.grid(side, side))
