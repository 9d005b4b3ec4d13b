"""`nec evaluate`: real bytes against the scores of heads on decoded embeddings.

Every method codes the same images of the same splits. The same heads are trained on the decoded
embeddings of every method: fitted on train, chosen on val (on a fifth of train when val itself is
scored), and scored once on the split of the report.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import nec_jax
from coder import QualityLadder, files
from coder.task_heads.head_settings import LINEAR, Kind
from nec_jax import heads
from nec_jax.api import with_coding
from nec_jax.images.record import IGNORE, DataError
from nec_jax.model_file import NecParams
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.freezing import frozen_blocks, trainable_rule
from nec_jax.sources import at_most, folder_of, open_source, spread
from train.configs.options import OptionsError
from train.configs.study_options import HEADS, Evaluate, refuse_unused_baselines
from train.data import Split, read_all
from train.engine.activation_cache import open_prefix, start_of
from train.engine.inputs import refuse_cache
from train.studies import report
from train.studies.methods import load_compressed, methods
from train.studies.scores import METRICS, Scores
from train.studies.study import Method, Study

log = logging.getLogger(__name__)


def run(options: Evaluate) -> None:
    """Measure everything and write report.json, report.md and rate_distortion.png."""
    if not (options.base or options.model):
        raise OptionsError(
            "no model: pass --model (nec-vit-ti), or --base, the uncompressed model of --models"
        )
    if not options.data:
        raise OptionsError("no data: pass --data, labelled images (--help says of what kinds)")
    refuse_unused_baselines(options)
    images = [folder for folder in [folder_of(options.data)] if folder is not None]
    inputs = [*(name for name in (options.model, options.base, *options.models) if name), *images]
    files.check_outputs(options.out, report.FILES, overwrite=options.overwrite, inputs=inputs)
    if options.cache is not None:
        refuse_cache(options.cache, images)
    base = nec_jax.load(options.model or options.base)
    if options.model and not isinstance(base.codec, QualityLadder):
        raise OptionsError(
            "--model needs a codec of many qualities, as nec-vit-ti and the models of `nec "
            "distil` have: pass this model by --models, and its base model by --base"
        )
    models = {"": base} if options.model else load_compressed(options.models)
    precisions = {model.config.precision for model in models.values()}
    if len(precisions) == 1:  # the baselines' too
        base = with_coding(base, precision=precisions.pop())
    elif options.cache is not None and precisions:
        raise OptionsError(
            f"a cache holds activations of one precision, and the models have "
            f"{', '.join(sorted(precisions))}: evaluate one precision, or leave --cache out"
        )
    for setting, model in models.items():
        for name in ("image_size", "patch", "bands", "dtype"):
            if getattr(model.config, name) != getattr(base.config, name):
                raise OptionsError(
                    f"the model of {setting} has another {name} than {options.base}: give the "
                    "--base that it was made from"
                )
    blocks = shared_blocks([base, *models.values()]) if options.cache is not None else 0
    study = open_study(options, base, blocks)
    result = evaluate(options, study, base, models)
    report.write(result, options.out)
    log.info(f"wrote {options.out}/report.json, report.md, rate_distortion.png")


def evaluate(
    options: Evaluate, study: Study, base: NecParams, models: dict[str, NecParams]
) -> report.Report:
    """Score every method of a study, one after another."""
    metric = report.AXES[report.METRICS[options.task]]
    log.info(f"{options.task} of {len(study.score.images)} {options.split} images, {metric}")
    coded = methods(options, study, base, models)
    points = [point for method in coded for point in measure(options, study, method)]
    return as_report(options, study, options.model or options.base, points)


def as_report(
    options: Evaluate, study: Study, model: str, points: Sequence[report.Point]
) -> report.Report:
    """The report for `report.write`, from points that `measure` returned."""
    return {
        "dataset": study.name,
        "model": model,
        "images": len(study.score.images),
        "split": options.split,
        "roundtrip_exact": True,  # `nec_method` raises otherwise
        "points": list(points),
    }


def measure(options: Evaluate, study: Study, method: Method) -> list[report.Point]:
    """Points of the report, one per head, fitted and scored on what `method` decoded."""
    log.info(f"{method.name} {method.setting}: {method.bytes_per_image:.1f} bytes per image")
    points = []
    for head in head_kinds(options, method.model.config):
        scores = score_head(options, study, method, *head)
        points.append(report.point(method, options.task, *head, scores))
        log.info(f"  {report.head_name(*head):22s} {report.spread(scores.percent())}")
    return points


def shared_blocks(models: Sequence[NecParams]) -> int:
    """The number of first blocks that `compress` left unchanged in all of these models."""
    blocks = []
    for params in models:
        facts = json.loads(params.provenance).get("compress", {})
        rule = trainable_rule(facts.get("trainable", "late"), params.config)
        blocks.append(frozen_blocks(params.config, params.weights, rule))
    return min(blocks)


def open_study(options: Evaluate, base: NecParams, blocks: int = 0) -> Study:
    """Read the splits at `--image-size`, or the model's; with `--cache`, after `blocks` blocks."""
    size = options.image_size or base.config.image_size
    if options.cache is not None and (not blocks or size != base.config.image_size):
        raise OptionsError(
            "--cache holds what frozen blocks make of images of the models' size: the models must "
            "share their first blocks (--trainable late), and --image-size be left out"
        )

    def read(split: str) -> tuple[Split, tuple[str, ...], str]:
        source = open_source(options.data, split, chip=options.chip)
        classes = source.classes if options.task == "classification" else source.mask_classes
        if not classes:
            raise OptionsError(f"{source.name} has no labels for {options.task}")
        images = read_all(source, size, limit=options.limit)
        refuse_unlabelled(options, images, classes, f"split {split!r} of {source.name}")
        if options.cache is not None:
            cache = (options.cache, options.cache_gb, base, blocks)
            chosen = spread(len(source), options.limit)
            prefix = open_prefix(*cache, at_most(source, options.limit))
            then, now = {chosen[place] for place in prefix.readable()}, set(images.places)
            if other := sorted(then ^ now):
                change = "now" if other[0] in now else "then"
                raise DataError(
                    f"{source.name}: other images can be read than when the cache was made (image "
                    f"{other[0]} only {change}): bring the files back, or delete {options.cache}, "
                    "which is then made again"
                )
            images = dataclasses.replace(images, tokens=prefix.whole())
        return images, classes, source.name

    fit, classes, name = read("train")
    refuse_one_class(options, fit, classes, f"split 'train' of {name}")
    score = read(options.split)[0]
    if options.split == "val":
        fifth = np.arange(len(fit.images)) % 5 == 0
        fit, choose = fit.take(~fifth), fit.take(fifth)
    else:
        choose = read("val")[0]
    start = start_of(base, blocks) if options.cache is not None else None
    return Study(fit, choose, score, classes, name, blocks, start)


def head_kinds(options: Evaluate, model: ModelConfig) -> list[tuple[Kind, bool]]:
    """(kind, with decoder) of the heads of a model's embeddings.

    The last kind that is not class-linear is also trained after the decoder's first block.
    """
    wanted = options.heads or HEADS[options.task]
    kinds: list[Kind] = [kind for kind in HEADS[options.task] if kind in wanted]
    if not (model.code_class_token or "class-linear" in options.heads):
        kinds = [kind for kind in kinds if kind != "class-linear"]
    plain: list[tuple[Kind, bool]] = [(kind, False) for kind in kinds]
    if not options.decoder_heads or model.decoder_target == "none":
        return plain
    others = [head for head in plain if head[0] != "class-linear"]
    return plain + [(kind, True) for kind, _ in others[-1:]]


def score_head(
    options: Evaluate, study: Study, method: Method, kind: Kind, with_decoder: bool
) -> Scores:
    """The scores of a head, trained once per seed (linear heads once: they are exact)."""
    fit, choose, score = (_targets(options, split) for split in study.splits())
    counts = []
    for seed in range(1 if kind in LINEAR else options.seeds):
        head = heads.fit(
            method.model,
            method.values[0],
            fit,
            kind=kind,
            classes=study.classes,
            with_decoder=with_decoder,
            val=(method.values[1], choose),
            refine=False,  # the values are refined already, or are to stay plain
            epochs=options.epochs,
            seed=seed,
        )
        predicted = heads.predict(head, method.values[2])
        counts.append(METRICS[options.task](predicted, score, len(study.classes)))
    hits, totals = map(np.stack, zip(*counts, strict=True))
    return Scores(hits, totals)


def refuse_unlabelled(
    options: Evaluate, images: Split, classes: tuple[str, ...], name: str
) -> None:
    """Refuse images whose targets cannot be scored.

    Raises:
      DataError: an image without label or mask, a mask value that is no class, or masks that
        ignore every pixel.
    """
    without = images.unlabelled if options.task == "classification" else images.unmasked
    if without:
        what = "label" if options.task == "classification" else "mask"
        raise DataError(
            f"{name} cannot be used for {options.task}: {without} has no {what}; choose a --split "
            f"in which every image has one"
        )
    if options.task == "classification" or images.masks is None:
        return
    if (images.masks == IGNORE).all():
        raise DataError(f"{name} cannot be used for {options.task}: its masks ignore every pixel")
    wrong = (images.masks != IGNORE) & (images.masks >= len(classes))
    if wrong.any():
        first = int(np.argmax(wrong.any((1, 2))))
        value = images.masks[first][wrong[first]][0]
        raise DataError(
            f"the mask of {images.ids[first]} has the value {value}, but {name} has the "
            f"{len(classes)} classes {', '.join(classes)}: name all classes, or correct the mask"
        )


def refuse_one_class(options: Evaluate, images: Split, classes: tuple[str, ...], name: str) -> None:
    """Raise DataError if all targets that heads are fitted on are of one class."""
    targets = _targets(options, images)
    found = np.unique(targets[targets != IGNORE] if options.task == "segmentation" else targets)
    if len(found) == 1:
        raise DataError(
            f"{name} cannot be used for {options.task}: of the classes {', '.join(classes)} it "
            f"has {classes[found[0]]} alone (in masks, {IGNORE} is no class): check the labels, "
            "or raise --limit"
        )


def _targets(options: Evaluate, split: Split) -> NDArray:
    targets = split.labels if options.task == "classification" else split.masks
    assert targets is not None  # by `refuse_unlabelled`
    return targets
