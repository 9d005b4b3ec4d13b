"""The model that a run starts from: given or fresh, with other bands, a decoder or a teacher."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import nec_jax
from nec_jax.images.record import DataError, Record, Source
from nec_jax.input_bands import with_bands
from nec_jax.model_file import NecParams
from nec_jax.models.architecture import DTYPES, ModelConfig, model_config
from nec_jax.models.nec import init_weights
from nec_jax.models.weight_tree import Weights, split
from train.configs.options import Compress, OptionsError, Training
from train.data import read_all
from train.data.untagged_nodata import UntaggedNodata

log = logging.getLogger(__name__)

_SAMPLE = 512  # images that the normalisation of bands is measured on
_FEATURE_SAMPLE = 128  # and the scale of features
_IMAGE_SIZE = 128  # default side of images if there is no --init, pixels
FEATURE_DEPTH = 1  # default number of blocks of a decoder of features
PIXEL_DEPTH = 8  # and of a decoder of pixels that replaces one of features, as in MAE

Embed = Callable[[NecParams, int], NDArray[np.float32]]


def given_model(options: Training) -> NecParams | None:
    """The model of `--init`, if there is one."""
    if not options.init:
        return None
    base = nec_jax.load(options.init)
    if options.arch not in (None, base.config.arch):
        raise OptionsError(
            f"--arch {options.arch}: the model of --init, {options.init}, is a "
            f"{base.config.arch}: leave --arch out"
        )
    return base


def fresh_model(options: Training, source: Source) -> NecParams:
    """Random weights for the bands, dtype and normalisation of the data."""
    if options.proxy == "features":
        raise OptionsError("--proxy features compares with the features of a model: pass --init")
    size = options.image_size or _IMAGE_SIZE
    contract = measure_bands(source, size)
    channels = len(contract["mean"])
    named = {1: ("grey",), 3: ("red", "green", "blue")}
    bands = options.bands or named.get(channels, tuple(f"band_{i + 1}" for i in range(channels)))
    if len(bands) != channels or any("=" in band for band in bands):
        raise OptionsError(
            f"--bands {' '.join(bands)}: the images of {source.name} have {channels} bands; "
            f"without --init give {channels} names, none with ="
        )
    config = fresh_config(options, image_size=size, bands=bands, **contract)
    return NecParams(init_weights(config, jax.random.key(options.seed)), config)


def fresh_config(options: Training, **contract: Any) -> ModelConfig:
    """The configuration of a fresh model from the options, for an input contract."""
    names = ("image_size", "depth", "patch", "decoder_depth", "code_class_token", "precision")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return model_config(options.arch or "vit-ti", **(given | contract))


def initial_model(
    options: Training, base: NecParams | None, source: Source, embed: Embed | None = None
) -> NecParams:
    """A fresh model; or the given one with the bands of `--bands` and the decoder for `--proxy`.

    A new decoder is random; one of features starts as the identity.

    Args:
      embed: (model, limit) -> embeddings of at most `limit` images of the source, if there is a
        faster way than from the images.
    """
    if base is None:
        return fresh_model(options, source)
    base = dataclasses.replace(base, codec=None, config=as_asked(options, base.config))
    if options.bands:
        log.info("measuring the bands of the training images")
        contract = measure_bands(source, base.config.image_size)
        found = len(contract["mean"])
        if found != len(options.bands):
            raise OptionsError(
                f"--bands has {len(options.bands)} names, and the images of {source.name} have "
                f"{found} bands: give one for each"
            )
        base = with_bands(base, options.bands, **contract)
    config = config_for(options, base.config)
    # After the bands: they change the scale of the features.
    rescaled = bool(options.bands) and config.decoder_target == "features"
    if config == base.config and not rescaled:
        return base
    decoder = _fresh_decoder(config, jax.random.key(options.seed))
    if config.decoder_target == "features":
        log.info("measuring the model's features")
        if embed is None:
            some = read_all(source, config.image_size, limit=_FEATURE_SAMPLE).images
            decoder["target"] = feature_scale(nec_jax.latents(base, some))
        else:
            decoder["target"] = feature_scale(embed(base, _FEATURE_SAMPLE))
    return dataclasses.replace(base, weights=base.weights | {"decoder": decoder}, config=config)


def config_for(options: Training, config: ModelConfig) -> ModelConfig:
    """The configuration to train: that of `--init`, with the decoder that the options ask for.

    Raises:
      OptionsError: the model has no decoder and `--proxy` is not given, or asks for one that
        `compress` cannot train; `--decoder-depth` without a new decoder.
    """
    config = as_asked(options, config)
    now = target = config.decoder_target
    if options.proxy is None and now == "none":
        raise OptionsError(
            "the model has no decoder, so nothing measures distortion: pass --proxy features, or "
            "pre-train a decoder of pixels first (nec pretrain --init MODEL --proxy pixels "
            "--trainable decoder)"
        )
    if options.proxy is not None and (options.proxy, now) != ("pixels", "normalised-pixels"):
        target = options.proxy
    if target == "pixels" and now in ("none", "features") and isinstance(options, Compress):
        raise OptionsError(
            "the model has no decoder of pixels, and a random one measures nothing: train one "
            "first (nec pretrain --init MODEL --proxy pixels --trainable decoder), or pass "
            "--proxy features"
        )
    if target == now:
        if options.decoder_depth not in (None, config.decoder_depth):
            raise OptionsError(
                "--decoder-depth is for a new decoder; this model has one of "
                f"{config.decoder_depth} blocks"
            )
        return config
    if target == "features":
        depth = FEATURE_DEPTH
    else:
        depth = PIXEL_DEPTH if now == "features" else config.decoder_depth
    return dataclasses.replace(
        config,
        decoder_target=target,
        decoder_depth=options.decoder_depth or depth,
        decoder_positions="sincos",
    )


def as_asked(options: Training, config: ModelConfig) -> ModelConfig:
    """The configuration after `--precision` and `--code-class-token`."""
    if options.precision is not None:
        config = dataclasses.replace(config, precision=options.precision)
    if options.code_class_token in (None, config.code_class_token):
        return config
    if config.decoder_target != "none" and config.decoder_positions == "learned":
        raise OptionsError("--code-class-token: the decoder has learned positions of its tokens")
    return dataclasses.replace(config, code_class_token=options.code_class_token)


@functools.partial(jax.jit, static_argnames="config")
def _fresh_decoder(config: ModelConfig, key: jax.Array) -> Weights:
    return init_weights(config, key)["decoder"]


def feature_scale(y: np.ndarray) -> Weights:
    """Mean and deviation [D] of embeddings [N, n, D], over images and tokens.

    A deviation is at least a thousandth of the median, so that a nearly constant channel is not
    magnified.
    """
    mean = y.mean((0, 1), dtype=np.float64)
    std = y.std((0, 1), dtype=np.float64)
    std = np.maximum(std, 1e-3 * np.median(std) + 1e-12)
    return {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}


def with_teacher(config: ModelConfig, weights: Weights, rule: Any) -> Weights:
    """Weights for training on features: "teacher" keeps the initial values of what trains."""
    if config.decoder_target != "features":
        return weights
    return {**weights, "teacher": split(weights, rule)[0]["encoder"]}


def without_teacher(weights: Weights) -> Weights:
    """The inverse of `with_teacher`."""
    return {name: part for name, part in weights.items() if name != "teacher"}


def mask_ratio(options: Training, config: ModelConfig) -> float:
    """`--mask-ratio`, or the default of the proxy: 0 for features, else 0.75."""
    if options.mask_ratio is not None:
        return options.mask_ratio
    return 0.0 if config.decoder_target == "features" else 0.75


def measure_bands(source: Source, size: int) -> dict[str, Any]:
    """Normalisation, dtype and range of the images of a source.

    Raises:
      DataError: an image has a dtype that no model takes.
    """
    marks = UntaggedNodata()

    def look(record: Record) -> None:
        dtype = record["image"].dtype
        if dtype.name not in DTYPES:
            raise DataError(
                f"{record['id']} of {source.name} is {dtype}, a model takes {', '.join(DTYPES)}: "
                "convert the files (gdal_translate -ot Float32)"
            )
        marks(record)

    sample = read_all(source, size, limit=_SAMPLE, check=look).images
    marks.warn(source.name)
    pixels = sample.reshape(-1, sample.shape[-1]).astype(np.float64)
    limits = np.iinfo(sample.dtype) if sample.dtype.kind in "iu" else np.finfo(sample.dtype)
    mean = pixels.mean(0)
    deviation = np.maximum(pixels.std(0), 1e-6 * np.maximum(1.0, np.abs(mean)))
    return {
        "mean": tuple(float(f"{v:.6g}") for v in mean),
        "std": tuple(float(f"{v:.6g}") for v in deviation),
        "dtype": sample.dtype.name,
        "value_range": (float(limits.min), float(limits.max)),
    }
