"""The model that ships: it is there, whole, small, and does what README and card say."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import ROOT
from PIL import Image

import coder
import nec_jax
from coder.cli import main
from nec_jax import NecParams, heads
from nec_jax.model_file import model_path
from nec_jax.sources import open_source
from train.data import read_all

NAME = "nec-vit-ti"
CARD = (ROOT / "docs" / "models" / f"{NAME}.md").read_text()
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def params() -> NecParams:
    return nec_jax.load(NAME)


def default_row() -> list[float]:
    """Of UC Merced at the default quality: quality; bytes, linear, class-linear of val; ..."""
    [row] = re.findall(r"\| quality (\d+) \(the default\) \|(.*)\|", CARD)
    return [float(n) for n in (row[0], *row[1].replace("*", "").replace(",", "").split("|"))]


def test_the_file_is_small_and_the_one_of_its_card() -> None:
    data = model_path(NAME).read_bytes()
    assert len(data) <= 16e6
    assert re.findall(r"`([0-9a-f]{64})`", CARD) == [hashlib.sha256(data).hexdigest()]


def test_consumers_have_the_same_codec(params: NecParams, capsys) -> None:
    assert coder.load(NAME) == params.codec
    assert main(["info", NAME]) == 0
    assert (
        f"qualities 0 to 16; quality {default_row()[0]:.0f} is used unless"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_the_kinds_of_the_earths_surface_are_classified_from_blobs(params: NecParams) -> None:
    """On longitudes that the head did not see; a random encoder has 0.90 here, uncompressed."""
    train, test = (
        read_all(open_source("blue-marble", split, chip=90), 128, limit=300)
        for split in ("train", "test")
    )
    assert train.labels is not None
    y = nec_jax.latents(params, train.images), nec_jax.latents(params, test.images)
    assert isinstance(params.codec, coder.QualityLadder)
    for quality in (7, params.codec.quality):
        codec = params.codec.at(quality)
        blobs = [codec.encode(one, (8, 8)) for one in y[1]]
        seen = codec.dequantise(codec.quantise(y[0], (8, 8)), (8, 8))
        classes = ("ocean", "land", "lake", "coast")
        head = heads.fit(params, seen, train.labels, kind="class-linear", classes=classes)
        found = heads.predict(head, nec_jax.decode(params, blobs))
        assert head.config.refine
        plain, refined = (
            nec_jax.decode(params, blobs, refine=refine)[:, 1:] - y[1][:, 1:]
            for refine in (False, True)
        )
        assert np.mean(np.square(refined)) < 0.85 * np.mean(np.square(plain))
        common = np.bincount(train.labels).argmax()
        assert np.mean(found == test.labels) > 0.92 > np.mean(test.labels == common)


def test_the_readmes_examples_work(tmp_path: Path, monkeypatch, params: NecParams) -> None:
    """One after another, on tiles of the Earth; an untrained encoder has an accuracy of 0.92."""
    tiles = open_source("blue-marble", "test", chip=90)
    part = read_all(tiles, 128, limit=120)
    assert part.labels is not None
    for i, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
        folder = tmp_path / "IMAGES" / tiles.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    y = nec_jax.latents(params, part.images)
    np.save(tmp_path / "mine.npy", y[:, 1:].reshape(-1, 8, 8, y.shape[-1]))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    first = np.zeros(0)
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(code, names)
        if "first.blob" in code and "y_hat" in code:
            first = names["y_hat"]
            assert np.array_equal(first, nec_jax.decode(params, names["blobs"][:1])[0])
    assert first.shape == (65, 192)
    assert 300 < np.mean([len(blob) for blob in names["blobs"]]) < 400
    assert names["accuracy"] > 0.85
    assert names["y_hat"].shape == (64, 192)


@pytest.mark.slow
@pytest.mark.skipif("NEC_DATA" not in os.environ, reason="NEC_DATA is not set")
def test_scenes_are_classified_as_the_card_says(params: NecParams) -> None:
    """After the codec, within a deviation of the sampling of 420 images; and without it."""
    folder = str(Path(os.environ["NEC_DATA"]) / "ucmerced")
    train, val = (read_all(open_source(folder, split), 128) for split in ("train", "val"))
    assert train.labels is not None
    y, z = (nec_jax.latents(params, part.images) for part in (train, val))
    assert params.codec is not None
    codec, classes = params.codec.at(), open_source(folder, "val").classes
    head = heads.fit(params, y, train.labels, kind="class-linear", classes=classes)
    assert np.mean(heads.predict(head, z) == val.labels) > 0.88
    blobs = [codec.encode(one, (8, 8)) for one in z]
    seen = codec.dequantise(codec.quantise(y, (8, 8)), (8, 8))
    head = heads.fit(params, seen, train.labels, kind="class-linear", classes=classes)
    found = heads.predict(head, nec_jax.decode(params, blobs))
    _, size, _, accuracy, *_ = default_row()
    assert np.mean([len(blob) for blob in blobs]) == pytest.approx(size, rel=0.01)
    assert 100 * np.mean(found == val.labels) == pytest.approx(accuracy, abs=1.6)
