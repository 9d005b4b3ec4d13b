"""`python -m train.main evaluate`: real bytes against the scores of heads on what was decoded.

Every method codes the same images of the same splits, and every method's decoded embeddings get
the same heads: fitted on train, chosen on val (a fifth of train when val itself is scored),
scored once on the split that is reported.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

import nec_jax
from nec_jax import heads
from nec_jax.config import ModelConfig
from nec_jax.heads.params import Kind
from nec_jax.params import NecParams
from train import baselines, report
from train.config import Evaluate, OptionsError
from train.data import IGNORE, Split, open_source, read_all


class RoundTripError(RuntimeError):
    """Decoded bytes are not the embedding that was encoded: a bug, never bad luck."""


@dataclass(frozen=True)
class Study:
    """The images that every method codes: fit heads, choose their settings, score them."""

    fit: Split
    choose: Split
    score: Split
    classes: tuple[str, ...]
    name: str

    def splits(self) -> tuple[Split, Split, Split]:
        """The three, in that order."""
        return self.fit, self.choose, self.score


@dataclass(frozen=True)
class Method:
    """One way of coding, at one setting, applied to the three splits of a study.

    Attributes:
      name, setting: as in the report.
      model: whose decoder a head with decoder starts from.
      values: decoded embeddings of the three splits, float32 [N, n, D] each.
      bytes_per_image: mean real size over the scored split.
      codec_bytes: what a decoder needs once.
      facts: further columns of the report.
    """

    name: str
    setting: str
    model: NecParams
    values: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    bytes_per_image: float
    codec_bytes: int
    facts: dict[str, float] = dataclasses.field(default_factory=dict)


def run(options: Evaluate) -> None:
    """Measure everything and write report.json, report.md and rate_distortion.png."""
    if not options.models or not options.base or not options.data:
        raise OptionsError("evaluate needs --models (compressed), --base (uncompressed) and --data")
    base = nec_jax.load(options.base)
    models = [nec_jax.load(path) for path in options.models]
    different = [m for m in models if m.config.image_size != base.config.image_size]
    if different:
        raise OptionsError("the models and the base see images of different sizes")
    study = open_study(options, base.config)
    result = evaluate(options, study, base, models)
    report.write(result, options.out)
    print(f"wrote {options.out}/report.json, report.md, rate_distortion.png", file=sys.stderr)


def evaluate(
    options: Evaluate, study: Study, base: NecParams, models: list[NecParams]
) -> report.Report:
    """Score every method of a study, one after another."""
    console = Console(stderr=True, emoji=False, markup=False, soft_wrap=True)
    points = []
    for method in methods(options, study, base, models):
        label = f"{method.name} {method.setting}"
        console.print(f"{label}: {method.bytes_per_image:.1f} bytes an image")
        for head in head_kinds(options.task):
            scores = score_head(options, study, method, *head)
            points.append(report.point(method, options.task, *head, scores))
            console.print(f"  {report.head_name(*head):22s} {report.spread(scores)}")
    return {
        "dataset": study.name,
        "model": options.base,
        "images": len(study.score.images),
        "split": options.split,
        "roundtrip_exact": True,  # `nec_method` raises otherwise
        "points": points,
    }


def open_study(options: Evaluate, config: ModelConfig) -> Study:
    """Read the splits at the model's image size."""

    def read(split: str) -> tuple[Split, tuple[str, ...], str]:
        source = open_source(options.data, split, chip=options.chip)
        classes = source.classes if options.task == "classification" else source.mask_classes
        if not classes:
            raise OptionsError(f"{source.name} has no labels for {options.task}")
        return read_all(source, config.image_size, limit=options.limit), classes, source.name

    fit, classes, name = read("train")
    score = read(options.split)[0]
    if options.split == "val":
        fifth = np.arange(len(fit.images)) % 5 == 0
        fit, choose = fit.take(~fifth), fit.take(fifth)
    else:
        choose = read("val")[0]
    return Study(fit, choose, score, classes, name)


def methods(
    options: Evaluate, study: Study, base: NecParams, models: list[NecParams]
) -> Iterator[Method]:
    """NEC at every model's lambda, then the baselines, each coded for real."""
    for model in sorted(models, key=_lambda):
        yield nec_method(study, model)
    if not options.baselines:
        return
    y = [nec_jax.latents(base, split.images) for split in study.splits()]

    def of_latents(
        name: str, setting: str, code: Callable[[NDArray[np.float32]], baselines.Coded]
    ) -> Method:
        coded = [code(part) for part in y]
        return _baseline(name, setting, base, [c.values for c in coded], coded[-1])

    for bits in options.uqe_bits:
        yield of_latents("uqe", f"{bits} bit", lambda v, b=bits: baselines.uqe(v, b))
    for bits in options.uqe_bits:
        yield of_latents(
            "uqe-channel", f"{bits} bit", lambda v, b=bits: baselines.uqe_channel(v, b, y[0])
        )
    yield of_latents("float16", "float16", baselines.float16)
    for ratio in options.jpeg2000:
        coded = [baselines.jpeg2000(split.images, ratio) for split in study.splits()]
        values = [nec_jax.latents(base, c.values) for c in coded]
        yield _baseline("jpeg2000", f"1:{ratio:g}", base, values, coded[-1])
    yield _baseline("raw-zstd", "8 bit", base, y, baselines.raw_zstd(study.score.images))


def nec_method(study: Study, model: NecParams) -> Method:
    """Encode, decode and compare every image of every split.

    Raises:
      RoundTripError: any image whose decoded bytes differ from its embedding.
    """
    codec = model.codec
    if codec is None:
        raise OptionsError("a model without codec cannot be evaluated: run `train.main compress`")
    values, blobs = [], []
    for split in study.splits():
        blobs = nec_jax.encode(model, split.images)
        decoded = nec_jax.decode(model, blobs)
        embedded = nec_jax.embed(model, split.images)
        if decoded.tobytes() != embedded.tobytes():
            wrong = [
                i for i, d, e in zip(split.ids, decoded, embedded, strict=True) if (d != e).any()
            ]
            raise RoundTripError(f"decoding is not exact for {', '.join(wrong[:5])}")
        values.append(decoded)
    symbols = codec.quantise(values[-1])
    estimates = [codec.estimate_bits(q) / 8 for q in symbols]
    return Method(
        "nec",
        f"lambda {_lambda(model):g}",
        model,
        (values[0], values[1], values[2]),
        float(np.mean([len(blob) for blob in blobs])),
        codec.codec_bytes,
        {"lambda": _lambda(model), "estimated_bytes_per_image": float(np.mean(estimates))},
    )


def head_kinds(task: str) -> tuple[tuple[Kind, bool], ...]:
    """(kind, with decoder) of the heads of a task."""
    if task == "classification":
        return ("linear", False), ("attention", False), ("attention", True)
    return ("conv", False), ("conv", True)


def score_head(
    options: Evaluate, study: Study, method: Method, kind: Kind, with_decoder: bool
) -> list[float]:
    """Scores in percent, one a seed (a linear probe is exact: one)."""
    fit, choose, score = (_targets(options, split) for split in study.splits())
    scores = []
    for seed in range(1 if kind == "linear" else options.seeds):
        head = heads.fit(
            method.model,
            method.values[0],
            fit,
            kind=kind,
            classes=study.classes,
            with_decoder=with_decoder,
            val=(method.values[1], choose),
            epochs=options.epochs,
            seed=seed,
        )
        predicted = heads.classify(head, method.values[2])
        metric = top1 if options.task == "classification" else mean_iou
        scores.append(100 * metric(predicted, score, len(study.classes)))
    return scores


def top1(predicted: NDArray, target: NDArray, classes: int) -> float:
    """Part of the images whose class is right."""
    del classes
    return float(np.mean(predicted == target))


def mean_iou(predicted: NDArray, target: NDArray, classes: int) -> float:
    """Intersection over union, mean over the classes that occur; ignored pixels left out."""
    valid = target != IGNORE
    pairs = classes * target[valid].astype(np.int64) + predicted[valid]
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return float(np.mean(hits[union > 0] / union[union > 0]))


def _targets(options: Evaluate, split: Split) -> NDArray:
    targets = split.labels if options.task == "classification" else split.masks
    if targets is None:
        raise OptionsError(f"the data have no {options.task} targets")
    return targets


def _baseline(
    name: str,
    setting: str,
    base: NecParams,
    values: list[NDArray[np.float32]],
    scored: baselines.Coded,
) -> Method:
    return Method(
        name,
        setting,
        base,
        (values[0], values[1], values[2]),
        float(np.mean(scored.bytes_per_image)),
        scored.codec_bytes,
    )


def _lambda(model: NecParams) -> float:
    return float(json.loads(model.provenance).get("compress", {}).get("lambda", "nan"))
