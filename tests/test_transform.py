"""Laws of blocks, bands and the transform."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coder import CodecError
from coder.bands import BANDS, LARGEST, bands_of_block, bands_of_grid, parts
from coder.transform import Transform, cosines, over_blocks

GRIDS = [(1, 1), (1, 7), (13, 1), (17, 31), (16, 16), (14, 14), (64, 64), (33, 5)]


def random_transform(seed=0, channels=9, components=9, class_token=False, **settings):
    rng = np.random.default_rng(seed)
    rows = np.linalg.qr(rng.normal(size=(channels, channels)))[0][:components]
    norms = np.abs(rows).max(1) / 127
    numbers: list[Any] = [rng.normal(size=channels) for _ in range(4)]
    return Transform(
        numbers[0],
        np.exp(numbers[1]),
        np.rint(rows / norms[:, None]).astype(np.int8),
        norms,
        numbers[2] if class_token else None,
        np.exp(numbers[3]) if class_token else None,
        **settings,
    )


@given(st.integers(1, 300))
def test_parts_make_up_their_side_and_differ_by_one_at_most(side):
    found = parts(side)
    assert sum(found) == side
    assert max(found) <= LARGEST
    assert max(found) - min(found) <= 1
    assert len(found) == -(-side // LARGEST)


@pytest.mark.parametrize("grid", GRIDS)
def test_bands_rise_with_frequency_and_zero_is_alone_in_its_own(grid):
    height, width = parts(grid[0])[0], parts(grid[1])[0]
    bands = bands_of_block(height, width)
    assert bands[0, 0] == 0
    assert np.count_nonzero(bands == 0) == 1
    assert bands.max() < BANDS
    for axis in (0, 1):
        assert (np.diff(bands.astype(int), axis=axis) >= 0).all()
    np.testing.assert_array_equal(bands, bands_of_block(width, height).T)


@pytest.mark.parametrize("grid", GRIDS)
def test_bands_of_a_grid_are_those_of_its_blocks(grid):
    bands = bands_of_grid(*grid)
    assert bands.shape == grid
    blocks = len(parts(grid[0])) * len(parts(grid[1]))
    assert np.count_nonzero(bands == 0) == blocks


def test_a_frequency_has_one_band_at_every_resolution():
    # A half of the highest frequency, in blocks of 4, 8 and 16.
    assert {int(bands_of_block(n, n)[n // 2, 0]) for n in (4, 8, 16)} == {5}


@pytest.mark.parametrize("side", [1, 2, 7, 16])
def test_the_cosines_are_orthonormal_and_their_first_is_constant(side):
    matrix = cosines(side).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(side), atol=1e-6)
    np.testing.assert_allclose(matrix[0], side**-0.5, rtol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_over_blocks_keeps_energy_and_is_inverted(grid):
    values = np.random.default_rng(0).normal(size=(grid[0] * grid[1], 3)).astype(np.float32)
    c = over_blocks(values, grid, inverse=False)
    np.testing.assert_allclose((c**2).sum(), (values**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(over_blocks(c, grid, inverse=True), values, atol=1e-5)


def test_a_constant_grid_has_one_coefficient_a_block():
    c = over_blocks(np.ones((17 * 31, 1), np.float32), (17, 31), inverse=False).reshape(17, 31)
    np.testing.assert_array_equal(np.abs(c) > 1e-4, bands_of_grid(17, 31) == 0)


@pytest.mark.parametrize("components", [9, 4])
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_coefficients_are_found_again(grid, class_token, components):
    transform = random_transform(class_token=class_token, components=components)
    count = grid[0] * grid[1] + class_token
    c = np.random.default_rng(1).normal(size=(count, components)).astype(np.float32)
    y = transform.inverse(c, grid)
    assert y.dtype == np.float32
    np.testing.assert_allclose(transform.forward(y, grid), c, atol=1e-4)


def test_all_components_lose_nothing_and_errors_count_in_units_of_the_scale():
    transform = random_transform()
    y = np.random.default_rng(1).normal(size=(36, 9)).astype(np.float32)
    c = transform.forward(y, (6, 6))
    np.testing.assert_allclose(transform.inverse(c, (6, 6)), y, atol=1e-4)
    error = np.random.default_rng(2).normal(size=c.shape).astype(np.float32)
    moved = (transform.inverse(c + error, (6, 6)) - y) / transform.scale
    np.testing.assert_allclose((moved**2).sum(), (error**2).sum(), rtol=0.02)


def test_without_places_tokens_do_not_see_each_other():
    transform = random_transform(spatial=False)
    y = np.random.default_rng(1).normal(size=(10, 9)).astype(np.float32)
    whole = transform.forward(y, (10, 1))
    alone = np.concatenate([transform.forward(one[None], (1, 1)) for one in y])
    np.testing.assert_allclose(whole, alone, atol=1e-5)
    assert not transform.columns((10, 1)).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": np.zeros(8)},
        {"scale": np.zeros(9)},
        {"norms": -np.ones(9)},
        {"norms": np.ones(8)},
        {"basis": np.zeros((9, 9))},
        {"basis": np.zeros((10, 9), np.int8), "norms": np.ones(10)},
        {"class_mean": np.zeros(9)},
        {"class_mean": np.full(9, np.nan), "class_scale": np.ones(9)},
        {"class_mean": np.zeros(3), "class_scale": np.ones(9)},
        {"class_mean": np.zeros(9), "class_scale": np.zeros(9)},
        {"class_mean": np.zeros(9), "class_scale": np.full(9, 1e30)},
    ],
)
def test_what_is_no_transform_is_refused(changes):
    with pytest.raises(CodecError):
        dataclasses.replace(random_transform(), **changes)


def test_rows_that_depend_on_one_another_are_refused_when_used():
    transform = random_transform()
    twice = transform.basis.copy()
    twice[1] = twice[0]
    with pytest.raises(CodecError, match="orthonormal"):
        dataclasses.replace(transform, basis=twice).forward(np.zeros((1, 9), np.float32), (1, 1))
