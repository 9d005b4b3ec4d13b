"""What is drawn of a model in training, and that drawing it changes nothing."""

import io
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import TESTS
from model_cases import random_images, random_weights, tiny_config
from PIL import Image
from tensorboardX.proto import event_pb2

from nec_jax import NecParams
from nec_jax.models import nec
from nec_jax.models.freezing import trainable_rule
from nec_jax.models.weight_tree import Weights
from train.engine.initial_model import with_teacher
from train.engine.pictures import pictures_of, principal_colours

COUNT, SIDE, GAP = 5, 64, 2
Event = vars(event_pb2)["Event"]  # made at run time, unknown to a type checker


def rows(picture: np.ndarray) -> np.ndarray:
    """A picture of `COUNT` images a row -> [rows, COUNT, SIDE, SIDE, 3]."""
    padded = np.pad(picture, [(0, GAP), (0, GAP), (0, 0)])
    tiles = padded.reshape(-1, SIDE + GAP, COUNT, SIDE + GAP, 3).transpose(0, 2, 1, 3, 4)
    return tiles[:, :, :SIDE, :SIDE]


def mute(weights: Weights) -> Weights:
    """Weights whose decoder predicts nothing but zeros."""
    decoder = weights["decoder"]
    pred = jax.tree.map(jnp.zeros_like, decoder["pred"])
    return weights | {"decoder": decoder | {"pred": pred}}


def test_hidden_patches_are_grey_and_then_the_decoders(bare_model: NecParams) -> None:
    images = random_images(3, COUNT)
    draw = pictures_of(bare_model.config, {"image": images}, 0.75, coded=False)
    pictures = draw(mute(bare_model.weights))
    original, seen, decoded = rows(pictures["reconstruction"])
    np.testing.assert_array_equal(original, images)
    hidden = (seen == 128).all(axis=-1)
    assert hidden.mean() == 0.75
    np.testing.assert_array_equal(seen[~hidden], images[~hidden])
    np.testing.assert_array_equal(decoded[~hidden], images[~hidden])
    assert (decoded[hidden] == np.round(bare_model.config.mean)).all()
    np.testing.assert_array_equal(
        draw(mute(bare_model.weights))["reconstruction"], pictures["reconstruction"]
    )


def test_normalised_patches_get_their_mean_back() -> None:
    config = tiny_config(decoder_target="normalised-pixels")
    images = random_images(4, COUNT)
    draw = pictures_of(config, {"image": images}, 0.0, coded=False)
    original, decoded = rows(draw(mute(random_weights(config)))["reconstruction"])
    # Nothing is hidden, so that all is decoded; a patch of 16 x 16 is one grey.
    patches = images.reshape(COUNT, 4, 16, 4, 16, 3) / np.array(config.std)
    offset = (np.array(config.mean) / config.std).mean()
    grey = patches.mean((2, 4, 5), keepdims=True) - offset
    expected = grey * np.array(config.std) + np.array(config.mean)
    expected = np.broadcast_to(np.clip(expected, 0, 255), patches.shape).reshape(images.shape)
    np.testing.assert_array_equal(original, images)
    assert np.abs(decoded - expected).max() < 0.51


def test_colours_are_the_bands_of_that_name_in_their_range() -> None:
    config = tiny_config(
        bands=("nir", "blue", "Green", "red"), mean=(1e4,) * 4, std=(5e3,) * 4, dtype="uint16",
        value_range=(0.0, 65535.0),
    )  # fmt: skip
    images = random_images(5, COUNT, channels=4).astype(np.uint16) * 100
    draw = pictures_of(config, {"image": images}, 0.0, coded=False)
    original = rows(draw(random_weights(config))["reconstruction"])[0]
    for channel, band in enumerate((3, 2, 1)):
        low, high = np.percentile(images[..., band], [2, 98])
        expected = 255 * np.clip((images[..., band] - low) / (high - low), 0, 1)
        assert np.abs(original[..., channel] - expected).max() < 0.51


def test_features_that_are_kept_have_the_colours_of_their_target() -> None:
    config = tiny_config(decoder_target="features")
    weights = mute(random_weights(config))  # predicts what it gets
    weights = with_teacher(config, weights, trainable_rule("late", config))
    images = random_images(6, COUNT)
    draw = pictures_of(config, {"image": images}, 0.0, coded=False)
    original, target, decoded = rows(draw(weights)["features"])
    np.testing.assert_array_equal(original, images)
    assert np.abs(target.astype(int) - decoded).max() <= 1
    assert target.std() > 20
    # From tokens that have passed the first block the same is drawn, without the images.
    tokens = np.asarray(nec.prefix(config, weights, jnp.asarray(images), 1))
    draw = pictures_of(config, {"tokens": tokens}, 0.0, coded=False, start=1)
    again = rows(draw(weights)["features"])
    assert np.abs(again - np.stack([target, decoded]).astype(int)).max() <= 1


def test_colours_follow_the_principal_components_and_no_offset() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 16, 3)) * [9.0, 3.0, 1.0]
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0][:3]
    tokens = (scores @ basis).astype(np.float32)
    colours = principal_colours(tokens)
    assert colours.shape == (5, 4, 4, 3)
    assert colours.min() == 0
    assert colours.max() == 1
    for i in range(3):
        found, meant = colours[..., i].ravel(), scores[..., i].ravel()
        assert abs(np.corrcoef(found, meant)[0, 1]) > 0.95
    np.testing.assert_allclose(principal_colours(tokens + 7), colours, atol=1e-3)


def test_events_hold_the_pictures_of_every_validation(smoke_nec: Path) -> None:
    found = {}
    for path in sorted((smoke_nec / "tensorboard").iterdir()):
        for event in events(path):
            for value in event.summary.value:
                if value.HasField("image"):
                    with Image.open(io.BytesIO(value.image.encoded_image_string)) as image:
                        found[event.step, value.tag] = np.asarray(image)
    names = ("pictures/reconstruction", "pictures/symbols")
    assert set(found) == {(step, name) for step in (0, 4, 6) for name in names}
    # Training moves the density, and with it what is drawn.
    assert (found[0, names[1]] != found[6, names[1]]).any()


def events(path: Path) -> Iterator[Any]:
    """The records of an event file: length, its checksum, bytes, their checksum."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + size])
        at += 16 + size


@pytest.mark.slow
def test_a_model_does_not_depend_on_pictures(smoke_mae: Path, tmp_path: Path) -> None:
    # On one core: on several, XLA's own results differ in the last place now and then.
    program = (
        "import os, sys; from pathlib import Path\n"
        "if sys.platform == 'linux': os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        f"sys.path.insert(0, {str(TESTS)!r})\n"
        "from train.tasks import compress; from train_cases import run_compress\n"
        "init, folder = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "run_compress(init, folder / 'with', '--gain', 'identity')\n"
        "compress.pictures_of = lambda *_, **__: None\n"
        "run_compress(init, folder / 'without', '--gain', 'identity')\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, smoke_mae, tmp_path], check=True, capture_output=True
    )
    one, two = ((tmp_path / name / "model.safetensors") for name in ("with", "without"))
    assert one.read_bytes() == two.read_bytes()
