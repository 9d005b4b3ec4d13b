"""Refiners of random weights, and tiny models that have one."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
from model_cases import CALIBRATION_IMAGES, pretrained, tiny_config

import nec_jax
from coder import QualityLadder, Refiner
from nec_jax import NecParams
from nec_jax.calibration import fit_latents


def random_refiner(codec: QualityLadder, seed: int = 0, **changes: Any) -> Refiner:
    """A refiner of 9 hidden units for all qualities of a codec; at quality 1 it changes nothing."""
    d, h, c, r = codec.channels, 9, 5 * codec.transform.spatial, codec.num_qualities
    rng = np.random.default_rng(seed)

    def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[0] or 1)).astype(dtype)

    qualities = [codec.at(quality) for quality in range(r)]
    codecs = {one.fingerprint.hex(): i for i, one in enumerate(qualities)}
    codecs |= {one.split()[0].fingerprint.hex(): i for i, one in enumerate(qualities)}
    gains = np.linspace(1, 0.1, r, dtype=np.float32)
    gains[1] = 0
    half = np.float16
    parts: dict[str, Any] = {
        "codecs": codecs | {codec.fingerprint.hex(): -1},
        "mean": codec.transform.mean,
        "scale": codec.transform.scale,
        "token": normal(d, h, dtype=half),
        "basis": normal(d, c, dtype=half),
        "context": normal(2 * c, h, dtype=half),
        "bias": normal(r, h),
        "out": normal(h, d, dtype=half),
        "offset": normal(d),
        "gains": gains,
    }
    return Refiner(**(parts | changes))


@cache
def ladder_model(class_token: bool = True) -> NecParams:
    """A tiny model whose codec has a transform, and no refiner."""
    params = pretrained(tiny_config(code_class_token=class_token), CALIBRATION_IMAGES)
    return fit_latents(params, nec_jax.latents(params, CALIBRATION_IMAGES), 0.3)


def with_refiner(params: NecParams, refiner: Refiner | None) -> NecParams:
    """The model with this refiner, or with none."""
    assert params.codec is not None
    return dataclasses.replace(params, codec=params.codec.with_refiner(refiner))


@cache
def refining_model(class_token: bool = True, seed: int = 0) -> NecParams:
    """`ladder_model` with a refiner."""
    params = ladder_model(class_token)
    assert isinstance(params.codec, QualityLadder)
    return with_refiner(params, random_refiner(params.codec, seed))
