"""The network of refiners in JAX is that of `coder.refiner`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refined_cases import random_refiner, refining_model
from transform_cases import CHANNELS, ladder, smooth_embeddings

import coder
from coder import EmbeddingCodec, QualityLadder
from nec_jax.models.refiner_network import aim, arrays, arrays_of, refined, shapes

RELATIVE = 1e-5  # to the largest magnitude of an embedding, as format.md allows two readers


def assert_refined_alike(
    codec: EmbeddingCodec, y_hat: np.ndarray, grid: tuple[int, int], quality: int
) -> None:
    """In NumPy one by one, and in JAX all at once."""
    one = codec.at(quality)
    assert one.refiner is not None
    expected = np.stack([one.refiner.refine(y, grid, one.fingerprint) for y in y_hat])
    found = jax.jit(refined, static_argnames="grid")(arrays_of(one), y_hat, grid)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())
    first = y_hat.shape[-2] - grid[0] * grid[1]
    np.testing.assert_array_equal(found[:, :first], y_hat[:, :first])
    assert np.array_equal(found, y_hat) == (one.refiner.gains[quality] == 0)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("grid", [(6, 6), (1, 1), (1, 5), (4, 1), (2, 3)])
@pytest.mark.parametrize("quality", [0, 1, 5])
def test_it_refines_as_numpy_does(class_token: bool, grid: tuple[int, int], quality: int) -> None:
    codec = ladder(class_token)
    y_hat = smooth_embeddings(3, 4, grid).reshape(4, -1, CHANNELS)
    y_hat = np.pad(y_hat, [(0, 0), (int(class_token), 0), (0, 0)], constant_values=7)
    assert_refined_alike(codec.with_refiner(random_refiner(codec)), y_hat, grid, quality)


def test_tokens_of_a_codec_without_grids_are_refined_one_by_one() -> None:
    vectors = smooth_embeddings(1, 200).reshape(-1, CHANNELS)
    codec = coder.fit(vectors)
    assert not codec.transform.spatial
    refiner = random_refiner(codec)
    assert not refiner.context.size
    codec = codec.with_refiner(refiner)
    assert_refined_alike(codec, vectors[:40].reshape(4, 10, CHANNELS), (10, 1), 0)
    held = arrays_of(codec.at(0))
    whole = refined(held, jnp.asarray(vectors[:40]), (40, 1))
    alone = refined(held, jnp.asarray(vectors[7:8]), (1, 1))
    np.testing.assert_allclose(alone[0], whole[7], rtol=1e-5, atol=1e-5)


def test_a_trained_refiner_too() -> None:
    y = smooth_embeddings(1, 40)
    codec = ladder()
    codec = codec.with_refiner(coder.fit_refiner(codec, y, hidden=16, steps=20))
    for quality in (0, codec.num_qualities - 1):
        one = codec.at(quality)
        y_hat = one.dequantise(one.quantise(y[:3].reshape(3, -1, CHANNELS), (6, 6)), (6, 6))
        assert_refined_alike(codec, y_hat, (6, 6), quality)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("quality", [0, 1, 5])
def test_it_moves_embeddings_as_numpy_does(class_token: bool, quality: int) -> None:
    codec = ladder(class_token)
    one = codec.with_refiner(random_refiner(codec)).at(quality)
    assert one.refiner is not None
    y = smooth_embeddings(3, 4, (6, 6)).reshape(4, -1, CHANNELS)
    y = np.pad(y, [(0, 0), (int(class_token), 0), (0, 0)], constant_values=7)
    y_hat = one.dequantise(one.quantise(y, (6, 6)), (6, 6))
    pairs = zip(y, y_hat, strict=True)
    both = [one.refiner.aim(*pair, (6, 6), one.fingerprint) for pair in pairs]
    expected = np.stack([moved for moved, _ in both])
    found, error = jax.jit(aim, static_argnames="grid")(arrays_of(one), y, y_hat, (6, 6))
    assert error.shape == (4, 1, 1)
    np.testing.assert_allclose(error[:, 0, 0], [error for _, error in both], rtol=1e-4)
    if one.refiner.gains[quality] == 0:
        np.testing.assert_array_equal(found, y)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_arrays_are_float32_of_the_shapes_that_are_said() -> None:
    codec = refining_model().codec
    assert isinstance(codec, QualityLadder)
    assert codec.refiner is not None
    held = arrays(codec.refiner, 3)
    like = shapes(codec.channels, {name: np.asarray(value) for name, value in held.items()})
    assert jax.tree.structure(held) == jax.tree.structure(like)
    assert {k: (v.shape, v.dtype) for k, v in held.items()} == {
        k: (v.shape, v.dtype) for k, v in like.items()
    }
    with jax.enable_x64(True):
        assert {leaf.dtype for leaf in arrays(codec.refiner, 3).values()} == {np.dtype("f4")}
