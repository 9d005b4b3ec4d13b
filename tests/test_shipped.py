"""The model that ships: it is there, whole, small, and worth compressing."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest

import coder
import nec_jax
from coder.__main__ import main
from nec_jax import NecParams, heads
from nec_jax.params import model_path
from train.data import open_source, read_all

NAME = "nec-vit-ti"
CARD = Path(__file__).parent.parent / "docs" / "models" / f"{NAME}.md"


@pytest.fixture(scope="module")
def params() -> NecParams:
    return nec_jax.load(NAME)


def test_the_file_is_small_and_the_one_of_its_card() -> None:
    data = model_path(NAME).read_bytes()
    assert len(data) <= 16e6
    assert re.findall(r"`([0-9a-f]{64})`", CARD.read_text()) == [hashlib.sha256(data).hexdigest()]


def test_consumers_have_the_same_codec(params: NecParams, capsys) -> None:
    assert coder.EmbeddingCodec.load(NAME) == params.codec
    assert main(["info", NAME]) == 0
    assert "rates 0 to 16, 10 if not told" in capsys.readouterr().out


def test_land_and_water_are_told_from_blobs(params: NecParams) -> None:
    """On longitudes that the head did not see."""
    train, test = (
        read_all(open_source("blue-marble", split, chip=90), 128, limit=100)
        for split in ("train", "test")
    )
    assert train.labels is not None
    y = nec_jax.latents(params, train.images), nec_jax.latents(params, test.images)
    assert isinstance(params.codec, coder.RateLadder)
    for rate in (7, params.codec.rate_index):
        codec = params.codec.at(rate)
        blobs = [codec.encode(one, (8, 8)) for one in y[1]]
        seen = codec.dequantise(codec.quantise(y[0], (8, 8)), (8, 8))
        head = heads.fit(
            params, seen, train.labels, kind="linear", classes=("ocean", "land", "lake", "coast")
        )
        found = heads.classify(head, nec_jax.decode(params, blobs))
        common = np.bincount(train.labels).argmax()
        assert np.mean(found == test.labels) > 0.88 > np.mean(test.labels == common)


@pytest.mark.slow
@pytest.mark.skipif("NEC_DATA" not in os.environ, reason="NEC_DATA is not set")
def test_scenes_are_told_as_the_card_says(params: NecParams) -> None:
    folder = str(Path(os.environ["NEC_DATA"]) / "ucmerced")
    train, val = (read_all(open_source(folder, split), 128) for split in ("train", "val"))
    assert train.labels is not None
    head = heads.fit(
        params,
        nec_jax.latents(params, train.images),
        train.labels,
        kind="class-linear",
        classes=open_source(folder, "val").classes,
    )
    found = heads.classify(head, nec_jax.latents(params, val.images))
    assert np.mean(found == val.labels) > 0.88
