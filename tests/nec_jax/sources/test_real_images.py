"""The development data sets, where NEC_DATA names the folder that holds them."""

import os
from pathlib import Path

import numpy as np
import pytest

from nec_jax.sources import open_source
from train.data import read_all

ROOT = Path(os.environ.get("NEC_DATA", ""))
pytestmark = pytest.mark.skipif("NEC_DATA" not in os.environ, reason="set NEC_DATA to run")


def test_uc_merced():
    sizes = {split: len(open_source(str(ROOT / "ucmerced"), split)) for split in ("val", "test")}
    assert sizes == {"val": 420, "test": 420}
    source = open_source(str(ROOT / "ucmerced"))
    assert len(source) == 2100
    assert len(source.classes) == 21
    split = read_all(source, 64, limit=210)
    assert split.skipped == []
    assert split.labels is not None
    assert set(split.labels) == set(range(21))


def test_dubai():
    parts = [open_source(str(ROOT / "dubai"), split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(open_source(str(ROOT / "dubai"))) == 1305
    assert parts[1].mask_classes == ("0", "1", "2", "3", "4")
    split = read_all(parts[1], 256, limit=8)
    assert split.images.shape == (8, 256, 256, 3)
    assert split.masks is not None
    assert set(np.unique(split.masks)) <= {0, 1, 2, 3, 4, 255}
