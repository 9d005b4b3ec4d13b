"""Laws of blocks, bands and the transform."""

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

import coder
from coder import CodecError
from coder.transform import BANDS, LARGEST, Transform, bands_of_grid, cosines, parts, spans
from coder.transform.dct import over_blocks, product
from coder.transform.frequencies import bands_of_block

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


@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (0, 5, 7),  # a band that a grid lacks
        (1, 768, 768),
        (300, 768, 1),
        (16, 16, 6144),
        (197, 768, 768),
        (17, 768, 342),  # a row more than whole pieces have, and a column
        (9, 8193, 4),
        (5, 1, 9),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_products_in_pieces_are_products(m, k, n, order):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(m, k)).astype(np.float32, order=order)
    for shape in ((k, n), (3, k, n)):
        b = rng.normal(size=shape).astype(np.float32, order=order)
        found = product(a, b)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.float64(a) @ b, rtol=0, atol=2e-6 * k)


CODE = """
import hashlib, time
import numpy as np
import coder
from coder.transform import Transform, cosines

rng = np.random.default_rng(0)
rows = cosines(768)  # orthonormal
norms = np.abs(rows).max(1) / 127
basis = np.rint(rows / norms[:, None]).astype(np.int8)
vectors = [rng.normal(size=768), np.ones(768)]
wide = Transform(*vectors, basis, norms, *vectors)
wide.__dict__["analysis"] = np.float32(rows.T)  # without LAPACK, which has threads
shipped = coder.load("nec-vit-ti")
units = shipped.transform
y = np.float32(units.mean + units.scale * rng.laplace(size=(65, 192)) / 2)
c = np.float32(rng.laplace(size=(197, 768)))
digest = hashlib.sha256()

def code():
    for quality in (0, 8, 16):
        blob = shipped.at(quality).encode_quietly(y, (8, 8))
        digest.update(blob + shipped.decode(blob).tobytes())
    y_hat = wide.inverse(c, (14, 14))
    digest.update(y_hat.tobytes() + wide.forward(y_hat, (14, 14)).tobytes())

code()  # LAPACK makes the pseudo-inverses
time.sleep(0.5)  # its threads go to sleep
start, own = time.process_time(), time.thread_time()
for _ in range(5):
    code()
own = time.thread_time() - own
print(digest.hexdigest(), (time.process_time() - start - own) / own)
"""


def test_no_thread_of_blas_takes_part_and_none_changes_the_bits():
    outputs = [
        subprocess.run(
            [sys.executable, "-c", CODE],
            env=os.environ | {"OPENBLAS_NUM_THREADS": str(count)},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout.split()
        for count in (1, 2, 8)
    ]
    digests, shares = zip(*outputs, strict=True)
    assert len(set(digests)) == 1
    # Seconds of other threads, of those of the one that codes.
    assert max(map(float, shares)) < 0.05


def test_limits_on_threads_stay_as_they_are():
    codec, limits = coder.load("nec-vit-ti"), threadpoolctl.threadpool_info()
    y = np.zeros((65, 192), np.float32)
    blob = codec.encode(y, (8, 8))

    def decode(_):
        codec.decode(blob)
        return threadpoolctl.threadpool_info()

    with ThreadPoolExecutor(2) as threads:
        assert all(seen == limits for seen in threads.map(decode, range(20)))
    assert threadpoolctl.threadpool_info() == limits


def test_spans_are_the_parts_one_after_another():
    for side in (1, 15, 16, 17, 33, 100):
        assert [span.stop - span.start for span in spans(side)] == parts(side)
        assert [k for span in spans(side) for k in range(side)[span]] == list(range(side))
