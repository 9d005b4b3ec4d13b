"""Where cells lie: laws of the grid of a scene."""

import numpy as np
import pytest

from coder import InputError
from coder.scenes.scene_grid import SceneGrid

GRID = SceneGrid("WKT", "EPSG:32633", (160.0, 0.0, 500000.0, 0.0, -80.0, 6000000.0), (30, 50))


def test_every_centre_lies_in_its_cell_and_in_the_bounds():
    west, south, east, north = GRID.bounds
    for row, y in enumerate(GRID.y):
        for column, x in enumerate(GRID.x):
            assert GRID.cell(x, y) == (row, column)
            assert west < x < east
            assert south < y < north


def test_a_window_has_the_cells_that_bounds_contain_a_part_of():
    rng = np.random.default_rng(1)
    for _ in range(200):
        rows, columns = np.sort(rng.integers(0, (31, 51), (2, 2)), axis=0).T
        if rows[0] == rows[1] or columns[0] == columns[1]:
            continue
        part = GRID.part(slice(*rows), slice(*columns))
        assert GRID.window(part.bounds) == (slice(*rows), slice(*columns))
        west, south, east, north = part.bounds
        larger = GRID.window((west - 1, south - 1, east + 1, north + 1))
        assert larger[0] == slice(max(0, rows[0] - 1), min(30, rows[1] + 1))
        assert larger[1] == slice(max(0, columns[0] - 1), min(50, columns[1] + 1))


def test_the_part_of_a_grid_has_the_centres_of_its_cells():
    part = GRID.part(slice(3, 9), slice(40, 50))
    np.testing.assert_array_equal(part.x, GRID.x[40:])
    np.testing.assert_array_equal(part.y, GRID.y[3:9])


def test_a_coarser_grid_has_the_same_corner_and_covers_the_scene():
    coarse = GRID.coarser(4)
    assert coarse.shape == (8, 13)
    west, south, east, north = GRID.bounds
    assert (coarse.bounds[0], coarse.bounds[3]) == (west, north)
    assert coarse.bounds[1] <= south
    assert coarse.bounds[2] >= east


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0, 0, 1, 1), "lie outside the scene, whose bounds are"),
        ((10, 0, 0, 1), "west must be below east"),
        ((0, 0, float("nan"), 1), "give west, south, east, north"),
        ((0, 0, 1), "give west, south, east, north"),
    ],
)
def test_bounds_that_are_no_window_are_refused(bounds, message):
    with pytest.raises(InputError, match=message):
        GRID.window(bounds)


def test_a_point_outside_is_refused():
    with pytest.raises(InputError, match="lies outside the scene"):
        GRID.cell(0, 0)
    with pytest.raises(InputError, match=r"the point \(1234567\.5, 7654321\) lies outside"):
        GRID.cell(1234567.5, 7654321)


@pytest.mark.parametrize(
    "transform", [(1, 0, 0, 0, 1, 0), (1, 0.1, 0, 0, -1, 0), (-1, 0, 0, 0, -1, 0)]
)
def test_a_grid_that_is_not_north_up_is_refused(transform):
    with pytest.raises(InputError, match="north-up"):
        SceneGrid("WKT", None, transform, (1, 1))


@pytest.mark.parametrize("shape", [(1, 2**24 + 1), (2**19, 2**19)])
def test_a_grid_has_no_more_cells_than_a_scene_can_list(shape):
    with pytest.raises(InputError, match="make several of it"):
        SceneGrid("", None, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), shape)


@pytest.mark.parametrize(
    "transform",
    [
        (1e-9, 0.0, 5e9, 0.0, -1e-9, 4e9),  # the centres of neighbours would be one number
        (1e308, 0.0, 0.0, 0.0, -1e308, 0.0),  # the far edge is infinite
    ],
)
def test_a_grid_whose_numbers_do_not_tell_cells_apart_is_refused(transform):
    with pytest.raises(InputError, match="is the transform right"):
        SceneGrid("", None, transform, (8, 8))
