"""From a trained model to its codec."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import CALIBRATION_IMAGES, FLOAT32, TIES, random_images

import nec_jax
from coder import InputError, ScalarCodec
from nec_jax import NecParams
from nec_jax.calibration import TAIL_MASS, bottleneck_scales, density_pmfs
from nec_jax.models import density
from nec_jax.models.bottleneck import bottleneck

WIDTH = 48


def codec_of(params: NecParams) -> ScalarCodec:
    assert isinstance(params.codec, ScalarCodec)
    return params.codec


@pytest.fixture(scope="module")
def symbols(model: NecParams) -> np.ndarray:
    """What the tables were counted on: int32 [images, 1 + tokens, D]."""
    return codec_of(model).quantise(nec_jax.latents(model, CALIBRATION_IMAGES))


def ideal_bits(codec: ScalarCodec, table: int, symbols: np.ndarray) -> float:
    """What these symbols, all of them in the table, cost under it."""
    places = symbols - codec.tables.minimum[table]
    weights = codec.tables.weights_of(table)
    assert places.min() >= 0
    assert places.max() < weights.size - 1
    return float((24 - np.log2(weights[places].astype(np.float64))).sum())


def test_no_table_costs_more_than_the_density_on_what_it_was_counted_on(model, symbols):
    # (counts + s * prior) / (N + s) lies between the two, and the cost is convex.
    held = model.weights["bottleneck"]["density"]
    median = density.quantile(held, 0.5)
    learned = np.asarray(jax.jit(density.bin_bits)(held, symbols + median), np.float64)
    for start, part in ((0, symbols[:, 1:]), (WIDTH, symbols[:, :1])):
        for d in range(WIDTH):
            counted = ideal_bits(codec_of(model), start + d, part[..., d])
            density_bits = learned[:, 1:, d] if start == 0 else learned[:, :1, d]
            assert counted <= density_bits.sum() * (1 + 1e-5)


def test_tables_pay_off_on_whole_images_and_blobs_of_other_images(model, symbols):
    fresh = codec_of(model).quantise(nec_jax.latents(model, random_images(99, 8)))
    held = model.weights["bottleneck"]["density"]
    learned = float(jax.jit(density.bin_bits)(held, fresh + density.quantile(held, 0.5)).sum())
    counted = sum(codec_of(model).estimate_bits(one) for one in fresh)
    assert 0.5 * learned < counted < learned


def test_codec_and_traced_bottleneck_round_alike_up_to_ties(model):
    y = nec_jax.latents(model, random_images(5, 8))
    codec = codec_of(model)
    ours = codec.dequantise(codec.quantise(y))
    hard, _ = jax.jit(bottleneck, static_argnums=2)(
        model.weights["bottleneck"], jnp.asarray(y), "hard"
    )
    apart = np.abs(ours - np.asarray(hard)) / codec.steps
    moved = apart > 0.5
    assert moved.mean() < TIES
    np.testing.assert_allclose(apart[moved], 1, rtol=1e-3)
    np.testing.assert_allclose(ours[~moved], np.asarray(hard)[~moved], **FLOAT32)


def test_offsets_are_medians_and_steps_are_inverse_gains(model):
    gain = np.exp(np.asarray(model.weights["bottleneck"]["log_gain"]))
    median = np.asarray(density.quantile(model.weights["bottleneck"]["density"], 0.5))
    offsets, steps = bottleneck_scales(model.weights)
    np.testing.assert_allclose(steps * gain, 1, **FLOAT32)
    np.testing.assert_allclose(offsets * gain, median, **FLOAT32)
    np.testing.assert_array_equal(codec_of(model).offsets, offsets)
    np.testing.assert_array_equal(codec_of(model).steps, steps)
    assert offsets.dtype == steps.dtype == np.float32


def test_the_densitys_pmfs_are_its_bins_around_the_median_and_sum_to_one_at_most(model):
    held = model.weights["bottleneck"]["density"]
    median = np.asarray(density.quantile(held, 0.5))
    pmfs = density_pmfs(held)
    assert len(pmfs) == WIDTH
    for d, (minimum, pmf) in enumerate(pmfs):
        assert minimum <= 0 < minimum + pmf.size  # the median's bin is always there
        assert 1 - 1e-5 - TAIL_MASS < pmf.sum() <= 1
        if d == 30:
            one = {name: value[d : d + 1] for name, value in held.items()}
            x = median[d] + (minimum + np.arange(pmf.size, dtype=np.float32))[:, None]
            prob = jax.jit(density.bin_prob)(one, x)[:, 0]
            np.testing.assert_allclose(pmf, prob, **FLOAT32)


def test_the_class_token_has_tables_of_its_own(model, symbols):
    codec = codec_of(model)
    assert codec.class_layout is not None
    assert len(codec.tables) == 2 * WIDTH
    np.testing.assert_array_equal(codec.grid_layout, np.arange(WIDTH))
    np.testing.assert_array_equal(codec.class_layout, WIDTH + np.arange(WIDTH))
    # They code the class token better than the grid's tables would.
    swapped = dataclasses.replace(codec, class_layout=codec.grid_layout)
    own, other = (sum(c.estimate_bits(q) for q in symbols) for c in (codec, swapped))
    assert own < other


def test_without_a_coded_class_token_there_are_tables_of_the_grid_only(grid_only_model, model):
    codec = codec_of(grid_only_model)
    assert codec.class_layout is None
    assert len(codec.tables) == WIDTH
    # Other images, other tables.
    assert (codec.tables.sizes != codec_of(model).tables.sizes[:WIDTH]).any()


def test_calibrating_again_in_batches_changes_nothing_but_the_provenance(bare_model, model):
    batches = (CALIBRATION_IMAGES[i : i + 24] for i in (0, 24, 48))
    again = nec_jax.calibrate(model, batches, {"by": "test"})
    assert again.codec == model.codec
    assert again.weights is model.weights is bare_model.weights
    assert [json.loads(m.provenance) for m in (bare_model, model, again)] == [
        {},
        {"images": 64},
        {"images": 64, "by": "test"},
    ]


def test_calibration_holds_images_to_the_input_contract(bare_model):
    with pytest.raises(InputError, match="float32, the model takes uint8"):
        nec_jax.calibrate(bare_model, CALIBRATION_IMAGES.astype(np.float32))
