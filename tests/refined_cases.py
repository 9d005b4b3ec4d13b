"""Refiners of random weights, and tiny models that have one."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import refiner_cases
from model_cases import CALIBRATION_IMAGES, pretrained, tiny_config

import nec_jax
from coder import QualityLadder, Refiner
from nec_jax import NecParams
from nec_jax.calibration import fit_latents


def random_refiner(codec: QualityLadder, seed: int = 0, **changes: Any) -> Refiner:
    """A random refiner in the units of the codec, which changes nothing at quality 1."""
    gains = np.linspace(1, 0.1, codec.num_qualities, dtype=np.float32)
    gains[1] = 0
    own = {"mean": codec.transform.mean, "scale": codec.transform.scale, "gains": gains}
    return refiner_cases.random_refiner(codec, seed, **(own | changes))


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
