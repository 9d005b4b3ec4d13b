"""The methods of a study, NEC and its baselines: each codes the same images to real bytes."""

import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from numpy.typing import NDArray

import nec_jax
from coder import EmbeddingCodec, QualityLadder, TransformCodec
from coder.codecs import OneQualityCodec
from nec_jax.calibration import fit_transform
from nec_jax.model_file import NecParams
from nec_jax.models import nec
from train.configs.options import OptionsError
from train.configs.study_options import Evaluate
from train.studies import baselines, common_baselines
from train.studies.results import REFINED
from train.studies.study import Method, Study
from train.tasks import refine

log = logging.getLogger(__name__)

_QUALITIES = 8  # qualities to measure of a model with more, besides its default one


class RoundTripError(RuntimeError):
    """Decoded bytes are not the embedding that was encoded: a bug in the codec."""


def load_compressed(paths: Sequence[str]) -> dict[str, NecParams]:
    """Load compressed models, by their settings in the report, ordered by lambda.

    Raises:
      OptionsError: a model without a codec, or not made by `nec compress`.
    """
    models = {path: nec_jax.load(path) for path in paths}
    for path, params in models.items():
        if params.codec is None or trained_lambda(params) is None:
            raise OptionsError(f"{path} is not a compressed model: run `nec compress`")
    ordered = sorted(models, key=lambda path: trained_lambda(models[path]) or 0.0)
    names = [f"lambda {trained_lambda(models[path]):g}" for path in ordered]
    return {
        name if names.count(name) == 1 else f"{name} ({path})": models[path]
        for name, path in zip(names, ordered, strict=True)
    }


def trained_lambda(params: NecParams) -> float | None:
    """The lambda in a model's provenance, if any."""
    facts = json.loads(params.provenance).get("compress")
    return float(facts["lambda"]) if isinstance(facts, dict) and "lambda" in facts else None


def methods(
    options: Evaluate, study: Study, base: NecParams, models: dict[str, NecParams]
) -> Iterator[Method]:
    """NEC at every model's lambda, then the baselines, each coded for real.

    Raises:
      OptionsError: a model does not have one of the qualities, or nothing can be refined; raised
        before anything is measured.
    """
    refuse_qualities(options, models)
    refuse_refine(options, models)
    for setting, model in models.items():
        yield from nec_methods(options, study, setting, model, base)
    if options.baselines:
        yield from baseline_methods(options, study, base)


def refuse_qualities(options: Evaluate, models: dict[str, NecParams]) -> None:
    """Raise OptionsError if a model does not have one of `--qualities`."""
    ladders = {name: m.codec for name, m in models.items() if isinstance(m.codec, QualityLadder)}
    if options.qualities and not ladders:
        raise OptionsError("--qualities: none of the models has a codec of many qualities")
    for name, ladder in ladders.items():
        if max(options.qualities, default=0) >= ladder.num_qualities:
            raise OptionsError(
                f"--qualities {max(options.qualities)}: {name or options.model} has qualities 0 to "
                f"{ladder.num_qualities - 1}"
            )


def refuse_refine(options: Evaluate, models: dict[str, NecParams]) -> None:
    """Raise OptionsError if `--refine` would refine nothing."""
    held = [model.codec for model in models.values() if model.codec is not None]
    if options.refine == "own" and not any(codec.refiner for codec in held):
        raise OptionsError(
            "--refine own: none of the models has a refiner: train one with `nec refine`, or pass "
            "--refine fit"
        )
    transform = any(isinstance(codec, QualityLadder | TransformCodec) for codec in held)
    if options.refine == "fit" and not (
        transform or (options.baselines and options.transform_qualities)
    ):
        raise OptionsError(
            "--refine fit: none of the codecs has a transform, and only these have refiners: pass "
            "--transform-qualities, or leave --refine out"
        )


def with_refiner(
    options: Evaluate, codec: EmbeddingCodec, y: NDArray[np.float32], grid: tuple[int, int]
) -> EmbeddingCodec:
    """A codec with the refiner that `--refine` asks for; with none if it can have none.

    Args:
      y: the embeddings [N, n, D] to train it on if the codec has none.
    """
    if options.refine == "no":
        return codec.with_refiner(None)
    fits = isinstance(codec, QualityLadder | TransformCodec) and options.refine == "fit"
    if codec.refiner is not None or not fits:
        return codec
    steps = {} if options.refiner_steps is None else {"steps": options.refiner_steps}
    return codec.with_refiner(refine.fitted(codec, y, grid, **steps))


def to_code(
    options: Evaluate,
    codec: OneQualityCodec,
    y: Sequence[NDArray[np.float32]],
    grid: tuple[int, int],
) -> tuple[Sequence[NDArray[np.float32]], str]:
    """What a codec is given of embeddings [N, n, D] of each split, and what the setting says of it.

    With `--for-refiner`, these are the embeddings that are best for readers that refine.
    """
    if not options.for_refiner or codec.refiner is None:
        return y, ""
    return [codec.aim(part, grid) for part in y], ", for refiner"


def as_refined(
    plain: Method,
    codec: OneQualityCodec,
    grid: tuple[int, int],
    errors_of: Callable[[NDArray[np.float32]], NDArray[np.float64] | None],
) -> Method:
    """A method whose embeddings `codec` decoded, with these embeddings refined.

    Args:
      errors_of: (embeddings of the scored split) -> `Method.errors`.
    """
    refiner, fingerprint = codec.refiner, codec.fingerprint
    assert refiner is not None
    fit, choose, score = (
        np.stack([refiner.refine(y_hat, grid, fingerprint) for y_hat in part])
        for part in plain.values
    )
    return dataclasses.replace(
        plain,
        name=plain.name + REFINED,
        values=(fit, choose, score),
        errors=errors_of(score),
        codec_bytes=plain.codec_bytes + refiner.refiner_bytes,
        facts=plain.facts | {"refiner_bytes": refiner.refiner_bytes},
    )


def nec_methods(
    options: Evaluate, study: Study, setting: str, model: NecParams, base: NecParams
) -> Iterator[Method]:
    """Encode, decode and compare every image of every split, at several qualities if there are.

    Args:
      model: as `load_compressed` returns it, or, with `--model`, `base` itself.
      base: the model that it was adapted from.

    Raises:
      RoundTripError: any image whose decoded bytes differ from its embedding.
    """
    codec = model.codec
    assert codec is not None
    own = bool(options.model)  # coded as it is
    # This takes nearly all of the time.
    y = study.embedded(base) if own else [study.latents(model, split) for split in study.splits()]
    features = model.config.decoder_target == "features"
    goals = y if own and not features else None  # such a decoder has an older base's as target
    if not own and features and model.config.bands == base.config.bands:
        goals = study.embedded(base)
    codec = with_refiner(options, codec, y[0], study.grid(model))
    if not isinstance(codec, QualityLadder):
        given, more = to_code(options, codec.at(), y, study.grid(model))
        yield from nec_method(study, "nec", setting + more, model, codec.at(), given, goals)
        return
    some = np.linspace(0, codec.num_qualities - 1, min(_QUALITIES, codec.num_qualities)).round()
    usual = sorted({*map(int, some), codec.quality}) if own else [codec.quality]
    for quality in options.qualities or usual:
        name, at = "nec", f"quality {quality}"
        if not own:
            name, at = "nec-transform", f"{setting}, {at}"
        given, more = to_code(options, codec.at(quality), y, study.grid(model))
        yield from nec_method(study, name, at + more, model, codec.at(quality), given, goals)


def nec_method(
    study: Study,
    name: str,
    setting: str,
    model: NecParams,
    codec: OneQualityCodec,
    latents: Sequence[NDArray[np.float32]],
    goals: list[NDArray[np.float32]] | None,
) -> Iterator[Method]:
    """A model at one quality, and with refined embeddings too if the codec has a refiner.

    `latents` are those of each split. Raises as `nec_methods`.
    """
    grid = study.grid(model)
    values, blobs = [], []
    for split, y in zip(study.splits(), latents, strict=True):
        embedded = codec.dequantise(codec.quantise(y, grid), grid)
        blobs = [codec.encode(one, grid) for one in y]
        decoded = nec_jax.decode(model, blobs)
        if decoded.tobytes() != embedded.tobytes():
            differ = (decoded != embedded).any((1, 2))
            wrong = [*itertools.compress(split.ids, differ)]
            raise RoundTripError(f"decoding is not exact for {', '.join(wrong[:5])}")
        values.append(decoded)
    estimates = [codec.estimate_bits(*codec.decode_symbols(blob)) / 8 for blob in blobs]
    fit, choose, score = values
    errors = errors_of(study, model, score, goals)
    lam, sizes = trained_lambda(model), np.array([len(blob) for blob in blobs])
    facts = {} if lam is None else {"lambda": lam}
    facts["estimated_bytes_per_image"] = float(np.mean(estimates))
    values = fit, choose, score
    plain = Method(name, setting, model, values, sizes, errors, codec.codec_bytes, facts)
    yield plain
    if codec.refiner is not None:
        yield as_refined(plain, codec, grid, lambda score: errors_of(study, model, score, goals))


def errors_of(
    study: Study,
    model: NecParams,
    score: NDArray[np.float32],
    goals: list[NDArray[np.float32]] | None,
) -> NDArray[np.float64] | None:
    """`Method.errors` of decoded embeddings of the scored split, given what they should be."""
    if goals is None:
        return None
    grid, own = study.grid(model), int(model.config.code_class_token)
    goals = [part[:, -(grid[0] * grid[1]) - own :] for part in goals]
    if goals[2].shape[1] != score.shape[1]:  # the base has no class token
        return None
    return squared_errors(decoded_features(model, score, grid), goals)


def squared_errors(
    found: NDArray[np.float32], y: Sequence[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """`Method.errors`: the squared errors of `found` for the last split of embeddings y."""
    variance = np.maximum(y[0].var((0, 1), dtype=np.float64), 1e-12)
    return (((found - y[-1]) ** 2).mean(1, dtype=np.float64) / variance).mean(1)


def decoded_features(
    model: NecParams, decoded: NDArray[np.float32], grid: tuple[int, int]
) -> NDArray[np.float32]:
    """Apply a model's decoder of features to decoded embeddings, in the units of embeddings.

    Returns them unchanged if the model has no such decoder.
    """
    if model.config.decoder_target != "features":
        return decoded
    own = model.weights["decoder"]["target"]
    predicted = [
        np.asarray(_reconstructed(model.config, model.weights, y_hat[None], grid))[0]
        for y_hat in decoded
    ]
    return np.stack(predicted) * np.asarray(own["std"]) + np.asarray(own["mean"])


_reconstructed = jax.jit(nec.reconstruct, static_argnames=("config", "grid"))


def baseline_methods(options: Evaluate, study: Study, base: NecParams) -> Iterator[Method]:
    """Quantised and uncompressed embeddings of the base, JPEG 2000, and lossless pixels."""
    y = study.embedded(base)
    config = base.config
    ends = np.cumsum([len(part) for part in y])[:-1]

    def method(
        name: str, setting: str, values: Sequence[NDArray], sizes: NDArray, codec_bytes: int = 0
    ) -> Method:
        fit, choose, score = values
        errors = squared_errors(score, y)
        return Method(name, setting, base, (fit, choose, score), sizes, errors, codec_bytes)

    def of_latents(
        name: str, setting: str, code: Callable[[NDArray[np.float32]], baselines.Coded]
    ) -> Method:
        coded = [code(part) for part in y]
        values, last = [c.values for c in coded], coded[-1]
        return method(name, setting, values, last.bytes_per_image, last.codec_bytes)

    for bits in options.uqe_bits:
        yield of_latents("uqe", f"{bits} bit", lambda v, b=bits: baselines.uqe(v, b))
    for bits in options.uqe_bits:
        yield of_latents(
            "uqe-channel", f"{bits} bit", lambda v, b=bits: baselines.uqe_channel(v, b, y[0])
        )
    grid = study.grid(base)
    if options.transform_qualities:
        ladder = fit_transform(y[0], grid)
        # All are cut first, so that an unknown quality is refused before any is measured.
        chosen = [ladder.at(quality).quality for quality in options.transform_qualities]
        ladder = with_refiner(options, ladder, y[0], grid)
        for one in map(ladder.at, chosen):
            given, more = to_code(options, one, y, grid)
            coded = [baselines.coded_by(part, one, grid) for part in given]
            values, last = [c.values for c in coded], coded[-1]
            name = f"quality {one.quality}{more}"
            plain = method("transform", name, values, last.bytes_per_image, last.codec_bytes)
            yield plain
            if one.refiner is not None:
                yield as_refined(plain, one, grid, lambda score: squared_errors(score, y))
    for gain in options.channel_gains:
        codec = baselines.per_channel(y[0], gain, int(config.code_class_token))
        name = f"gain {gain:g}"
        yield of_latents("channels", name, lambda v, c=codec: baselines.coded_by(v, c, grid))
    for name, setting, code in _common(options):
        for zstd, more in ((False, ""), (True, "-zstd")):
            # All splits at once: they share what is fitted.
            coded = code(np.concatenate(y), calibration=y[0], zstd=zstd)
            values, sizes = np.split(coded.values, ends), coded.bytes_per_image[ends[-1] :]
            yield method(name + more, setting, values, sizes, coded.codec_bytes)
    yield of_latents("float16", "float16", baselines.float16)
    if config.channels in (1, 3) and config.dtype in ("uint8", "uint16"):
        for ratio in options.jpeg2000:
            coded = [baselines.jpeg2000(split.images, ratio) for split in study.splits()]
            values = [nec_jax.latents(base, c.values) for c in coded]
            yield method("jpeg2000", f"1:{ratio:g}", values, coded[-1].bytes_per_image)
    else:
        log.warning(
            f"no JPEG 2000: it takes 1 or 3 bands of uint8 or uint16, not {config.channels} of "
            f"{config.dtype}"
        )
    raw = baselines.raw_zstd(study.score.images)
    yield method("raw-zstd", config.dtype, y, raw.bytes_per_image)


def _common(options: Evaluate) -> Iterator[tuple[str, str, Callable[..., baselines.Coded]]]:
    """Name, setting and function of each chosen method of `common_baselines`."""
    for count in options.pca:
        code = functools.partial(common_baselines.pca_int8, components=count)
        yield "pca-int8", f"{count} components", code
    for parts in options.pq:
        code = functools.partial(common_baselines.product_quantised, parts=parts)
        yield "pq", f"{parts} bytes per token", code
    if options.binary:
        yield "binary", "1 bit", common_baselines.binary
