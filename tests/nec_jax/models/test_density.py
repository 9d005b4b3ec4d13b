"""The factorised density: laws of a distribution, then the numbers of Balle 2018."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import FLOAT32

from nec_jax.models import density
from nec_jax.models.density import LIKELIHOOD_FLOOR, init_density, quantile

CHANNELS = 5
FAR_OUT = np.array([[-1e5], [1e5]], np.float32) * np.ones(CHANNELS, np.float32)

# Compiled, for the sake of the tests' time.
bin_bits, bin_prob = jax.jit(density.bin_bits), jax.jit(density.bin_prob)
logits_cdf = jax.jit(density.logits_cdf)


@jax.jit
def total_bits(params, x):
    return jax.value_and_grad(lambda p, x: density.bin_bits(p, x).sum(), argnums=(0, 1))(params, x)


def fresh_density(channels: int = CHANNELS) -> density.Params:
    return jax.jit(init_density, static_argnums=1)(jax.random.key(2), channels)


def shaped_density(channels: int = CHANNELS) -> density.Params:
    """As after training: every matrix, bias and gate away from its start."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: init_density(key, channels), jax.random.key(0))
    return {
        name: jnp.asarray(
            -1.5 * name.startswith("matrix") + 0.7 * rng.normal(size=leaf.shape), jnp.float32
        )
        for name, leaf in shapes.items()
    }


def logistic(slope: float, shift: float) -> density.Params:
    """No hidden units: c(x) = sigmoid(slope * x + shift)."""
    return {
        "matrix_0": jnp.full((1, 1, 1), np.log(np.expm1(slope)), jnp.float32),
        "bias_0": jnp.full((1, 1), shift, jnp.float32),
    }


def test_the_cdf_increases_from_zero_to_one():
    params = shaped_density()
    x = np.linspace(-60, 60, 4001, dtype=np.float32)[:, None] * np.ones(CHANNELS, np.float32)
    logits = logits_cdf(params, x)
    assert (np.diff(logits, axis=0) > 0).all()
    far = jax.nn.sigmoid(logits_cdf(params, FAR_OUT))
    np.testing.assert_allclose(far[0], 0, atol=LIKELIHOOD_FLOOR)
    np.testing.assert_array_equal(far[1], 1)


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_bins_that_tile_the_line_sum_to_one(offset):
    bins = np.arange(-3000, 3001)[:, None] + np.full(CHANNELS, offset, np.float32)
    prob = np.asarray(bin_prob(shaped_density(), bins), np.float64)
    assert (prob >= 0).all()
    np.testing.assert_allclose(prob.sum(axis=0), 1, **FLOAT32)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_bin_is_the_difference_of_two_cdfs_at_its_ends(fresh):
    params = fresh_density(512) if fresh else shaped_density(512)
    # In float64, where the textbook formula does no harm; the bins around the median included.
    x = quantile(params, 0.5) + np.arange(-3, 4)[:, None].astype(np.float32)
    ends = [np.asarray(logits_cdf(params, x + half), np.float64) for half in (-0.5, 0.5)]
    lower, upper = (1 / (1 + np.exp(-end)) for end in ends)
    np.testing.assert_allclose(bin_prob(params, x), upper - lower, **FLOAT32)


def test_without_hidden_units_it_is_a_logistic_distribution():
    slope, shift = 0.8, -0.4
    x = np.linspace(-9, 9, 181, dtype=np.float32)[:, None]
    centre, scale = -shift / slope, 1 / slope
    # The logistic distribution's cdf by its other name.
    cdf = 0.5 + 0.5 * np.tanh(
        (x.astype(np.float64) - centre + np.array([[-0.5, 0.5]])) / (2 * scale)
    )
    params = logistic(slope, shift)
    np.testing.assert_allclose(bin_prob(params, x)[:, 0], cdf[:, 1] - cdf[:, 0], **FLOAT32)
    np.testing.assert_allclose(quantile(params, 0.5), [centre], **FLOAT32)
    np.testing.assert_allclose(quantile(params, 0.9), [centre + scale * np.log(9)], **FLOAT32)
    assert {k: v.shape for k, v in init_density(jax.random.key(0), 3, widths=()).items()} == {
        "matrix_0": (3, 1, 1),
        "bias_0": (3, 1),
    }


def test_the_most_probable_bin_of_a_symmetric_density_is_not_impossible():
    # c(-1/2) and c(1/2) have opposite logits: a sign of their sum would be zero.
    np.testing.assert_allclose(
        bin_prob(logistic(1.0, 0.0), jnp.zeros((1, 1))), [[np.tanh(0.25)]], **FLOAT32
    )


def test_the_right_tail_is_as_precise_as_the_left():
    x = jnp.arange(0.0, 40.0)[:, None]
    left, right = bin_prob(logistic(1.0, 0.0), -x), bin_prob(logistic(1.0, 0.0), x)
    np.testing.assert_array_equal(left, right)
    assert 0 < float(right[-1, 0]) < 1e-16  # far below the spacing of float32 at one


def test_bits_are_minus_log2_of_the_probability():
    params = shaped_density()
    x = np.linspace(-8, 8, 65, dtype=np.float32)[:, None] * np.ones(CHANNELS, np.float32)
    prob = np.asarray(bin_prob(params, x), np.float64)
    assert prob.min() > LIKELIHOOD_FLOOR
    np.testing.assert_allclose(2.0 ** -np.asarray(bin_bits(params, x), np.float64), prob, **FLOAT32)


def test_no_symbol_costs_more_than_the_floor_allows():
    assert LIKELIHOOD_FLOOR == 1e-9
    bits = bin_bits(shaped_density(), FAR_OUT)
    np.testing.assert_allclose(bits, -np.log2(1e-9), **FLOAT32)


def test_below_the_floor_only_a_gradient_that_raises_the_probability_passes():
    inside, below = 1e-3, 1e-12
    for prob, sign, passes in [(inside, 1, 1), (inside, -1, 1), (below, 1, 0), (below, -1, 1)]:
        grad = jax.grad(lambda p, s=sign: s * density._floor(p))(jnp.float32(prob))
        assert float(grad) == sign * passes
    # So a symbol that is too improbable still pulls its density towards itself.
    x = jnp.array([[25.0]])
    assert float(bin_prob(logistic(1.0, 0.0), x)[0, 0]) < LIKELIHOOD_FLOOR
    pull = total_bits(logistic(1.0, 0.0), x)[1][0]["bias_0"]
    assert float(pull[0, 0]) > 0  # a smaller bias moves the density to the right


@pytest.mark.parametrize("size", [1e2, 1e6, 1e20])
def test_gradients_are_finite_for_extreme_inputs(size):
    x = size * np.array([[-1], [0], [1]], np.float32) * np.ones(CHANNELS, np.float32)
    bits, grads = total_bits(shaped_density(), x)
    assert all(np.isfinite(g).all() for g in (bits, *jax.tree.leaves(grads)))


@pytest.mark.parametrize("prob", [1e-9, 0.5, 1 - 1e-9])
def test_the_quantile_inverts_the_cdf(prob):
    params = shaped_density()
    logits = np.asarray(logits_cdf(params, quantile(params, prob)))
    np.testing.assert_allclose(logits, np.log(prob) - np.log1p(-prob), rtol=1e-5, atol=1e-5)


def test_quantiles_carry_no_gradient():
    params = shaped_density()
    grads = jax.jit(jax.grad(lambda p: quantile(p, 0.5).sum()))(params)
    assert all(not np.any(g) for g in grads.values())


def test_match_moments_gives_the_median_and_the_width_that_are_asked_for():
    mean = np.array([-40, -1, 0, 3, 500], np.float32)
    std = np.array([0.05, 1, 30, 0.5, 100], np.float32)
    matched = jax.jit(density.match_moments)(fresh_density(), mean, std)
    low, middle, high = ((np.asarray(quantile(matched, p)) - mean) / std for p in (0.1, 0.5, 0.9))
    assert np.abs(middle).max() < 1e-2
    # A logistic distribution of unit deviation: ln 9 scales of sqrt(3) / pi on each side.
    np.testing.assert_allclose(high - low, 2 * np.log(9) * np.sqrt(3) / np.pi, rtol=0.02)


def test_a_channel_has_58_parameters_in_the_shapes_of_the_paper():
    module = density.FactorisedDensity(7)
    params: Any = module.init(jax.random.key(0))["params"]
    assert {name: value.shape for name, value in params.items()} == {
        "matrix_0": (7, 3, 1),
        "matrix_1": (7, 3, 3),
        "matrix_2": (7, 3, 3),
        "matrix_3": (7, 3, 3),
        "matrix_4": (7, 1, 3),
        "bias_0": (7, 3),
        "bias_1": (7, 3),
        "bias_2": (7, 3),
        "bias_3": (7, 3),
        "bias_4": (7, 1),
        "gate_0": (7, 3),
        "gate_1": (7, 3),
        "gate_2": (7, 3),
        "gate_3": (7, 3),
    }
    assert sum(value.size for value in params.values()) == 7 * 58
    held: Any = module.apply({"params": params})
    assert held.keys() == params.keys()
    assert all(np.array_equal(held[name], params[name]) for name in held)


def test_channels_are_independent_and_depend_on_nothing_else():
    params = shaped_density()
    x = np.linspace(-3, 3, 2 * CHANNELS, dtype=np.float32).reshape(2, CHANNELS)
    one = {name: value[2:3] for name, value in params.items()}
    np.testing.assert_allclose(bin_bits(one, x[:, 2:3])[:, 0], bin_bits(params, x)[:, 2], **FLOAT32)
