"""`nec compress`: adapt a model to compression, and give it a frozen codec."""

import dataclasses
import functools
import logging

import jax

from coder import QualityLadder
from coder.transform import Transform
from nec_jax.calibration import calibrate_latents, fit_latents, fit_transform
from nec_jax.model_file import NecParams
from nec_jax.models import transform_bottleneck
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.weight_tree import Weights
from train.configs.options import Compress, OptionsError
from train.engine import loop, losses, run_record
from train.engine.activation_cache import finish
from train.engine.initial_model import with_teacher, without_teacher
from train.engine.inputs import Run, open_run
from train.engine.pictures import evenly_spread, pictures_of
from train.tasks.first_density import calibrate_bottleneck, calibrate_transform

log = logging.getLogger(__name__)

_CALIBRATION_BATCH = 64  # images that the starting gains and densities are fitted on
_CODED = 64  # validation images that are coded at the end, for real sizes


def run(options: Compress) -> None:
    """Train and write `model.safetensors`, with its codec, in the work folder."""
    if not options.init and (options.arch is None or options.trainable != "all"):
        raise OptionsError(
            "no model: pass --init (made by `nec pretrain`, or nec convert); or --arch and "
            "--trainable all, for fresh weights"
        )
    run = open_run(options)
    options, source, base, config = run.options, run.source, run.base, run.base.config
    first = with_teacher(config, trained_weights(options, config, base.weights), run.rule)
    grid = config.grid(config.image_size, config.image_size)

    @functools.cache  # used at the start, and again at the end
    def ladder() -> QualityLadder:
        """The codec whose transform is trained through, fitted to the embeddings of the base."""
        y = finish(base, run.sample(options.calibration_images), run.start)
        return fit_transform(y, grid)

    def start() -> Weights:
        images = run.sample(_CALIBRATION_BATCH)
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
            start=run.start,
        )
        log.info("calibrated: " + loop.describe(facts))
        return weights

    goal = losses.rate_distortion(config, options.lam, options.rounding, run.mask_ratio, run.start)
    coded = options.codec == "per-channel"
    with run_record.recorded(options, {"train": source, "val": run.val_source}) as end:
        weights = loop.fit(
            options,
            goal,
            start,
            first,
            run.rule,
            run.batches,
            run.val,
            density_lr=options.density_lr,
            pictures=pictures_of(config, run.val, run.mask_ratio, coded=coded, start=run.start),
        )
        log.info("making the tables of the codec")
        through = ladder().transform if options.codec == "transform" else None
        params = with_codec(run, without_teacher(weights), through)
        codec = params.codec
        assert codec is not None
        # Validation images were not used to make the codec.
        some = evenly_spread(run.val["tokens" if run.start else "image"], _CODED)
        end(params, lambda: [codec.encode(y, grid) for y in finish(params, some, run.start)])


def trained_weights(options: Compress, config: ModelConfig, weights: Weights) -> Weights:
    """Weights with the shapes to train: with a transform, the bottleneck is another one."""
    if options.codec == "per-channel":
        return weights
    held = transform_bottleneck.blank(config.embedding_width, class_token=config.code_class_token)
    return {**weights, "bottleneck": held}


def with_codec(run: Run[Compress], weights: Weights, through: Transform | None) -> NecParams:
    """The trained model with its codec, fitted to whole training images without random crops.

    `through` is the transform that it was trained through, if any.
    """
    images = run.sample(run.options.calibration_images)
    held = weights["bottleneck"]
    if through is not None:  # replace the bottleneck by a blank one, which nothing reads
        weights = {**weights, "bottleneck": run.base.weights["bottleneck"]}
    params = dataclasses.replace(run.base, weights=weights)
    names = ("codec", "rounding", "trainable", "steps", "batch")
    facts = {name: getattr(run.options, name) for name in names} | {
        "lambda": run.options.lam,
        "proxy": params.config.decoder_target,
        "init": run.options.init or "fresh weights",
        "data": run.source.name,
        "calibration_images": len(images),
    }
    y = finish(params, images, run.start)
    if through is not None:
        step = float(held["transform"]["step"])
        return fit_latents(params, y, step, through, {"compress": facts})
    return calibrate_latents(params, [y], {"compress": facts})
