"""Shared fixtures: one tiny model, calibrated once a session."""

import pytest
from model_cases import pretrained, random_images, tiny_config

from nec_jax import NecParams, calibrate


@pytest.fixture(scope="session")
def bare_model() -> NecParams:
    """A tiny model without a codec."""
    return pretrained(tiny_config())


@pytest.fixture(scope="session")
def model(bare_model: NecParams) -> NecParams:
    """A tiny model with a codec."""
    return calibrate(bare_model, random_images(7, 64), {"images": 64})
