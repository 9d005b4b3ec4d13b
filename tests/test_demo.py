"""The demo's pictures: tiles go where they belong, colours and paint mean what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from model_cases import random_images

import nec_jax
from nec_jax import NecParams
from train import demo, demo_train
from train.data.blue_marble import BlueMarble


def test_a_mosaic_of_all_tiles_is_the_earth() -> None:
    earth = BlueMarble("all", 300)
    tiles = np.stack([earth[i]["image"] for i in range(len(earth))])
    np.testing.assert_array_equal(demo.mosaic(earth, tiles), earth.image)
    # Coarser tiles, such as grids of tokens, take the same places.
    np.testing.assert_array_equal(
        demo.mosaic(earth, tiles[:, ::100, ::100]), earth.image[::100, ::100]
    )


def test_paint_without_any_signal_is_the_mean_colour(model: NecParams) -> None:
    decoder = model.weights["decoder"]
    mute = decoder | {"pred": jax.tree.map(jnp.zeros_like, decoder["pred"])}
    weights = model.weights | {"decoder": mute}
    y_hat = nec_jax.embed(model, random_images(1, 3))
    painted = demo_train.paint(dataclasses.replace(model, weights=weights), y_hat)
    assert painted.dtype == np.uint8
    assert painted.shape == (3, 64, 64, 3)
    assert (painted == np.round(model.config.mean).astype(np.uint8)).all()
