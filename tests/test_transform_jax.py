"""The transform in JAX is that of the coder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import CALIBRATION_IMAGES, random_images
from transform_cases import GRID, embeddings, ladder, smooth_embeddings

import coder
import nec_jax
from nec_jax import transform

TIES = 1e-3  # of all coefficients may round differently


@pytest.mark.parametrize("with_class_token", [False, True])
def test_coefficients_and_embeddings_are_those_of_the_coder(with_class_token: bool) -> None:
    own, y = ladder(with_class_token).transform, embeddings(with_class_token)
    c = jax.jit(lambda y: transform.forward(own, y, GRID))(y)
    expected = np.stack([own.forward(one, GRID) for one in y])
    np.testing.assert_allclose(c, expected, atol=1e-4 * np.abs(expected).max())
    back = transform.inverse(own, c, GRID)
    np.testing.assert_allclose(back, y, atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize("grid", [(1, 1), (17, 5), (3, 40)])
def test_other_grids(grid: tuple[int, int]) -> None:
    own, y = ladder().transform, smooth_embeddings(3, 1, grid).reshape(-1, 12)
    expected = own.forward(y, grid)
    c = transform.forward(own, jnp.asarray(y), grid)
    np.testing.assert_allclose(c, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(transform.inverse(own, c, grid), y, atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize("rate", [2, 7, 12])
def test_what_is_rounded_is_what_the_coder_decodes_but_for_ties(rate: int) -> None:
    codec, y = ladder(True).at(rate), embeddings(True)
    found = transform.rounded(codec, jnp.asarray(y), GRID)
    expected = codec.dequantise(codec.quantise(y, GRID), GRID)
    c = np.stack([codec.transform.forward(one, GRID) for one in np.asarray(found)])
    other = np.stack([codec.transform.forward(one, GRID) for one in expected])
    assert (np.abs(c - other) > 0.1 * codec.step).mean() <= TIES


def test_a_model_with_a_ladder(bare_model: nec_jax.NecParams, tmp_path) -> None:
    y = nec_jax.latents(bare_model, CALIBRATION_IMAGES)
    whole = coder.fit(y[:, 1:].reshape(-1, 4, 4, 48), y[:, 0])
    params = dataclasses.replace(bare_model, codec=whole)
    nec_jax.save(params, tmp_path / "m")
    params = nec_jax.load(tmp_path / "m")
    assert params.codec == whole
    images, sizes = random_images(5, 9), []
    for rate in (0, 5, whole.rates - 1):
        blobs = nec_jax.encode(params, images, rate=rate)
        np.testing.assert_array_equal(
            nec_jax.decode(params, blobs), nec_jax.embed(params, images, rate=rate)
        )
        assert blobs[3:4] == nec_jax.encode(params, images[3:4], rate=rate)
        sizes.append(sum(map(len, blobs)))
    assert sizes == sorted(sizes)
    traced = jax.jit(nec_jax.embed_traced)(params, images)
    close = np.isclose(traced, nec_jax.embed(params, images), atol=1e-3)
    assert close.mean() > 0.95  # a tie moves a whole block
    with pytest.raises(coder.InputError, match="has rates 0 to"):
        nec_jax.encode(params, images, rate=99)
