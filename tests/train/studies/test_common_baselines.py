"""What embeddings are compressed with in practice: real sizes, and errors as they must be."""

import numpy as np
import pytest
from transform_cases import CHANNELS, embeddings

from coder import InputError
from train.studies import common_baselines

TRAIN, Y = embeddings(False, 60, seed=1), embeddings(False)
TOKENS = Y.shape[1]


def error(values: np.ndarray) -> float:
    return float(np.square(values - Y).mean())


def test_components_cost_a_byte_each_and_more_of_them_lose_less():
    errors = []
    for count in (1, 4, CHANNELS):
        coded = common_baselines.pca_int8(Y, count, TRAIN, zstd=False)
        np.testing.assert_array_equal(coded.bytes_per_image, TOKENS * count)
        assert coded.codec_bytes == 4 * (CHANNELS * count + CHANNELS + count)
        errors.append(error(coded.values))
    assert sorted(errors, reverse=True) == errors
    # All of them: what is left is the rounding of a byte, and what was clipped.
    assert errors[-1] < 1e-3 * Y.var()


def test_the_components_are_those_that_explain_most():
    tokens = TRAIN.reshape(-1, CHANNELS).astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(tokens.T))[::-1]
    coded = common_baselines.pca_int8(TRAIN, 3, TRAIN, zstd=False)
    left = np.square(coded.values - TRAIN).mean() * CHANNELS
    assert left == pytest.approx(values[3:].sum(), rel=0.02)


def test_a_bit_says_on_which_side_of_its_mean_a_channel_is():
    coded = common_baselines.binary(Y, TRAIN, zstd=False)
    np.testing.assert_array_equal(coded.bytes_per_image, TOKENS * -(-CHANNELS // 8))
    mean = TRAIN.reshape(-1, CHANNELS).mean(0)
    np.testing.assert_array_equal(coded.values > mean, mean < Y)
    assert error(coded.values) < error(np.broadcast_to(mean, Y.shape))


def test_codebooks_cost_a_byte_a_part():
    errors = []
    for parts in (1, 3, 6):
        coded = common_baselines.product_quantised(Y, parts, TRAIN, zstd=False)
        np.testing.assert_array_equal(coded.bytes_per_image, TOKENS * parts)
        errors.append(error(coded.values))
    assert sorted(errors, reverse=True) == errors


def test_zstd_changes_sizes_alone():
    plain, packed = (
        common_baselines.binary(np.tile(Y[:2], (1, 40, 1)), TRAIN, zstd=z) for z in (False, True)
    )
    np.testing.assert_array_equal(plain.values, packed.values)
    assert (packed.bytes_per_image < plain.bytes_per_image).all()


def test_a_channel_that_never_changes_keeps_its_value():
    y = Y.copy()
    y[..., 0] = 5
    coded = common_baselines.binary(y, y, zstd=False)
    np.testing.assert_array_equal(coded.values[..., 0], 5)


def test_embeddings_that_do_not_fit_are_refused():
    for code in (
        lambda y, t: common_baselines.pca_int8(y, 2, t, zstd=False),
        lambda y, t: common_baselines.product_quantised(y, 1, t, zstd=False),
        lambda y, t: common_baselines.binary(y, t, zstd=False),
    ):
        with pytest.raises(InputError, match="calibration has 12 channels, y 5"):
            code(Y[..., :5], TRAIN)
    with pytest.raises(InputError, match="36 tokens to train on: 256 are needed"):
        common_baselines.product_quantised(Y, 1, TRAIN[:1], zstd=False)
    with pytest.raises(InputError, match="give a divisor of"):
        common_baselines.product_quantised(Y, 5, TRAIN, zstd=False)


@pytest.mark.parametrize("components", [0, CHANNELS + 1])
def test_other_numbers_of_components_are_refused(components):
    with pytest.raises(InputError, match="components"):
        common_baselines.pca_int8(Y, components, TRAIN, zstd=False)
