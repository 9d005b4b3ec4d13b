"""Shared fixtures: one tiny model, calibrated once a session."""

import pytest
from model_cases import CALIBRATION_IMAGES, pretrained, tiny_config

from nec_jax import NecParams, calibrate


@pytest.fixture(scope="session")
def bare_model() -> NecParams:
    """A tiny model without a codec."""
    return pretrained(tiny_config(), CALIBRATION_IMAGES)


@pytest.fixture(scope="session")
def grid_only_model() -> NecParams:
    """A tiny model with a codec that does not code the class token."""
    images = CALIBRATION_IMAGES[:8]
    return calibrate(pretrained(tiny_config(code_class_token=False), images), images)


@pytest.fixture(scope="session")
def model(bare_model: NecParams) -> NecParams:
    """A tiny model with a codec."""
    return calibrate(bare_model, CALIBRATION_IMAGES, {"images": 64})
