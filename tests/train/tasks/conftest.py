"""Fixtures of the tests of distillation."""

from pathlib import Path

import pytest
from distil_cases import make_teacher, write_data

from nec_jax import NecParams


@pytest.fixture(scope="module")
def teacher() -> NecParams:
    return make_teacher()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))
