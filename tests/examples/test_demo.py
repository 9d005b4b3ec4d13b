"""The demo's pictures: tiles go where they belong, colours and paint mean what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from model_cases import random_images

import nec_jax
from examples import demo, demo_train
from nec_jax import NecParams
from nec_jax.images.size_rule import fit_to
from nec_jax.sources.blue_marble import BlueMarble
from train.studies import evaluate


def test_a_mosaic_of_all_tiles_is_the_earth() -> None:
    earth = BlueMarble("all", 300)
    tiles = np.stack([earth[i]["image"] for i in range(len(earth))])
    np.testing.assert_array_equal(demo_train.mosaic(earth, tiles), earth.image)
    # Coarser tiles, such as grids of tokens, take the same places.
    np.testing.assert_array_equal(
        demo_train.mosaic(earth, tiles[:, ::100, ::100]), earth.image[::100, ::100]
    )


def test_the_map_is_learned_on_the_training_longitudes_alone(model: NecParams) -> None:
    earth = BlueMarble("all", 300)
    side = model.config.image_size
    tiles = np.stack([fit_to(earth[i]["image"], side) for i in range(len(earth))])
    y = nec_jax.latents(model, tiles)
    held = set(BlueMarble("test", 300).windows)
    test = np.array([window in held for window in earth.windows])
    assert 0 < test.sum() < len(test)
    maps, accuracy = demo_train.land_and_water(model, earth, y, kind="token-linear")
    assert maps.shape == (len(earth), 300, 300)
    shuffled = y.copy()
    shuffled[test] = y[test][::-1]
    others, worse = demo_train.land_and_water(model, earth, shuffled, kind="token-linear")
    np.testing.assert_array_equal(others[~test], maps[~test])
    assert worse < accuracy
    assert accuracy > 0.8


def test_the_report_of_the_demo_has_all_methods() -> None:
    options = dataclasses.replace(demo.OPTIONS, limit=24)
    params = nec_jax.load(demo.MODEL)
    study = evaluate.open_study(options, params)
    result = evaluate.evaluate(options, study, params, {"": params})
    points = [(p["method"], p["setting"]) for p in result["points"]]
    qualities = [setting for method, setting in points if method == "nec"]
    assert len(qualities) >= 3
    assert params.codec is not None
    assert f"quality {params.codec.quality}" in qualities
    assert {m for m, _ in points} == {
        "nec", "nec-refined", "uqe", "uqe-channel", "float16", "jpeg2000", "raw-zstd"
    }  # fmt: skip


def test_paint_without_any_signal_is_the_mean_colour(model: NecParams) -> None:
    decoder = model.weights["decoder"]
    mute = decoder | {"pred": jax.tree.map(jnp.zeros_like, decoder["pred"])}
    weights = model.weights | {"decoder": mute}
    y_hat = nec_jax.embed(model, random_images(1, 3))
    painted = demo_train.paint(dataclasses.replace(model, weights=weights), y_hat)
    assert painted.dtype == np.uint8
    assert painted.shape == (3, 64, 64, 3)
    assert (painted == np.round(model.config.mean).astype(np.uint8)).all()
