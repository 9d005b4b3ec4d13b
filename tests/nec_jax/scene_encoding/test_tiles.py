"""The latents of a region of a scene, on a tiny model."""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
from model_cases import FLOAT32, NETWORK, random_images, tiny_config
from numpy.typing import NDArray

import nec_jax
from coder import InputError
from nec_jax import NecParams
from nec_jax.api import latents_of
from nec_jax.scene_encoding import tiles
from nec_jax.scene_encoding.tiles import fill_missing, region_latents, windows_of

PATCH, SIDE, HALO = 16, 4, 1
EVERYTHING = slice(None), slice(None)
Latents = tuple[NDArray[np.float32], NDArray[np.uint8]]


class MemoryScene:
    """A scene in memory, that counts what is read. What is not valid has the value 255."""

    def __init__(self, image: NDArray[np.uint8], valid: NDArray[np.bool_] | None = None):
        self.image = image
        self.valid = np.ones(image.shape[:2], bool) if valid is None else valid
        self.strips: list[tuple[int, int, int, int]] = []

    def read(self, row: int, column: int, height: int, width: int):
        self.strips.append((row, column, height, width))
        image = np.full((height, width, 3), 255, np.uint8)
        valid = np.zeros((height, width), bool)
        rows = slice(max(row, 0), min(row + height, self.image.shape[0]))
        columns = slice(max(column, 0), min(column + width, self.image.shape[1]))
        at = (
            slice(rows.start - row, rows.stop - row),
            slice(columns.start - column, columns.stop - column),
        )
        seen = self.valid[rows, columns]
        image[at] = np.where(seen[..., None], self.image[rows, columns], 255)
        valid[at] = seen
        return image, valid

    def latents(
        self,
        params: NecParams,
        rows: slice = EVERYTHING[0],
        columns: slice = EVERYTHING[1],
        *,
        side: int = SIDE,
        halo: int = HALO,
    ) -> Latents:
        shape = self.image.shape[:2]
        return region_latents(params, self.read, shape, rows, columns, side=side, halo=halo)


def image_of(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    side = -(-max(height, width) // 8) * 8
    return random_images(seed, 1, side)[0, :height, :width]


def grids(params: NecParams, images: NDArray) -> NDArray[np.float32]:
    """Latents of windows, [N, SIDE, SIDE, D]."""
    y = nec_jax.latents(params, images)[:, int(params.config.code_class_token) :]
    return y.reshape(len(images), SIDE, SIDE, -1)


def batches_of(monkeypatch: pytest.MonkeyPatch, look: Callable[[NDArray], int]) -> list[int]:
    """What `look` says of each batch that is encoded."""
    seen: list[int] = []

    def each(batches: Iterable[NDArray]) -> Iterator[NDArray]:
        for batch in batches:
            seen.append(look(batch))
            yield batch

    monkeypatch.setattr(tiles, "latents_of", lambda p, batches: latents_of(p, each(batches)))
    return seen


@pytest.fixture(scope="module", params=["bare_model", "grid_only_model"])
def params(request: pytest.FixtureRequest) -> NecParams:
    """With a class token in the latents, and without."""
    return request.getfixturevalue(request.param)


def test_without_halo_latents_are_those_of_windows_side_by_side(params):
    image = image_of(128, 192)
    y, coverage = MemoryScene(image).latents(params, halo=0)
    assert y.shape == (8, 12, 48)
    assert y.dtype == np.float32
    assert coverage.dtype == np.uint8
    assert (coverage == 100).all()
    for row in (0, 4):
        for column in (0, 4, 8):
            window = image[row * 16 : (row + 4) * 16, column * 16 : (column + 4) * 16]
            expected = grids(params, window[None])[0]
            np.testing.assert_array_equal(y[row : row + 4, column : column + 4], expected)


def test_a_latent_is_the_weighted_mean_of_what_its_windows_say(bare_model):
    # Cores of 2 cells: cell (4, 5) is in the windows from rows 1 and 3, and columns 3 and 5.
    image = image_of(160, 160)
    y, _ = MemoryScene(image).latents(bare_model)
    weights = np.sin(np.pi / 8 * np.array([1, 3])) ** 2  # raised cosines over an overlap of 2
    np.testing.assert_allclose(weights.sum(), 1)
    expected = 0
    for row in (1, 3):
        for column in (3, 5):
            window = image[row * 16 : (row + 4) * 16, column * 16 : (column + 4) * 16]
            here = 4 - row, 5 - column
            weight = np.prod([weights[min(place, 3 - place)] for place in here])
            expected = expected + weight * grids(bare_model, window[None])[0][here]
    np.testing.assert_allclose(y[4, 5], expected, **FLOAT32)


@pytest.mark.parametrize(("side", "halo"), [(4, 0), (4, 1), (3, 1), (5, 2)])
def test_a_latent_does_not_depend_on_the_region(bare_model, side, halo):
    valid = np.ones((150, 170), bool)
    valid[:70, :40] = False
    scene = MemoryScene(image_of(150, 170), valid)
    whole, coverage = scene.latents(bare_model, side=side, halo=halo)
    assert np.isnan(whole).any()
    rng = np.random.default_rng(0)
    regions = [(slice(3, 4), slice(7, 8)), (slice(0, 10), slice(5, 11))]
    for _ in range(4):
        (top, bottom), (left, right) = (np.sort(rng.choice(n, 2, False)) for n in (11, 12))
        regions.append((slice(int(top), int(bottom)), slice(int(left), int(right))))
    for region in regions:
        y, seen = scene.latents(bare_model, *region, side=side, halo=halo)
        np.testing.assert_array_equal(y, whole[region])
        np.testing.assert_array_equal(seen, coverage[region])


def test_regions_side_by_side_are_the_whole(bare_model):
    scene = MemoryScene(image_of(144, 144))
    whole, _ = scene.latents(bare_model)
    parts = [
        [scene.latents(bare_model, slice(r, r + 3), slice(c, c + 3))[0] for c in (0, 3, 6)]
        for r in (0, 3, 6)
    ]
    rows = [np.concatenate(row, axis=1) for row in parts]
    np.testing.assert_array_equal(np.concatenate(rows), whole)


def test_a_latent_does_not_depend_on_other_parts_of_the_scene(bare_model):
    image = image_of(192, 192)
    other = image.copy()
    other[:, 128:] = 255 - other[:, 128:]
    one, two = (MemoryScene(i).latents(bare_model)[0] for i in (image, other))
    # Windows begin at columns -1, 1, 3, 5: those from 5 on reach column 8.
    np.testing.assert_array_equal(one[:, :5], two[:, :5])
    assert (one[:, 5] != two[:, 5]).any()


def test_the_batch_size_of_the_model_is_used_and_changes_little(bare_model):
    scene = MemoryScene(image_of(112, 144))
    config = dataclasses.replace(bare_model.config, coding_batch=3)
    other = dataclasses.replace(bare_model, config=config)
    np.testing.assert_allclose(scene.latents(other)[0], scene.latents(bare_model)[0], **NETWORK)


def test_coverage_is_rounded_down_but_not_to_nothing(bare_model):
    valid = np.zeros((64, 64), bool)
    cells = {(0, 0): 256, (0, 1): 255, (0, 2): 128, (0, 3): 127, (1, 0): 1, (1, 1): 0, (1, 2): 3}
    for (row, column), count in cells.items():
        cell = np.zeros(256, bool)
        cell[:count] = True
        valid[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = cell.reshape(16, 16)
    y, coverage = MemoryScene(image_of(64, 64), valid).latents(bare_model)
    found = {cell: int(coverage[cell]) for cell in cells}
    assert found == {
        (0, 0): 100, (0, 1): 99, (0, 2): 50, (0, 3): 49, (1, 0): 1, (1, 1): 0, (1, 2): 1,
    }  # fmt: skip
    np.testing.assert_array_equal(np.isnan(y).all(-1), coverage < 50)
    np.testing.assert_array_equal(np.isnan(y).any(-1), coverage < 50)


def test_the_last_cells_may_lie_partly_beyond_the_scene(bare_model):
    scene = MemoryScene(image_of(40, 70))  # 2.5 x 4.4 cells
    y, coverage = scene.latents(bare_model)
    np.testing.assert_array_equal(coverage, [[100] * 4 + [37], [100] * 4 + [37], [50] * 4 + [18]])
    np.testing.assert_array_equal(np.isnan(y).any(-1), coverage < 50)


@pytest.mark.parametrize("halo", [0, 1])
def test_values_of_missing_pixels_change_nothing(bare_model, halo):
    image = image_of(96, 96)
    valid = np.ones((96, 96), bool)
    valid[20:60, 30:] = False
    valid[::7, ::5] = False

    def with_missing(value: int) -> Latents:
        scene = MemoryScene(image, valid)

        def read(*box: int):
            pixels, seen = scene.read(*box)
            pixels[~seen] = value
            return pixels, seen

        return region_latents(bare_model, read, (96, 96), *EVERYTHING, side=SIDE, halo=halo)

    for one, other in zip(with_missing(0), with_missing(200), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isfinite(with_missing(0)[0][0]).all()


def test_windows_without_a_latent_are_not_encoded(bare_model, monkeypatch):
    valid = np.zeros((128, 192), bool)
    valid[:, 64:128] = True
    scene = MemoryScene(image_of(128, 192), valid)
    encoded = batches_of(monkeypatch, len)
    y, _ = scene.latents(bare_model, halo=0)
    assert sum(encoded) == 2
    assert np.isfinite(y[:, 4:8]).all()
    assert np.isnan(y[:, :4]).all()
    assert np.isnan(y[:, 8:]).all()


def test_a_scene_without_a_valid_pixel_has_no_latents(bare_model):
    scene = MemoryScene(image_of(64, 96), np.zeros((64, 96), bool))
    y, coverage = scene.latents(bare_model)
    assert y.shape == (4, 6, 48)
    assert np.isnan(y).all()
    assert not coverage.any()


def test_an_edge_hardly_changes_smooth_surroundings(bare_model):
    flat = np.full((128, 128, 3), 90, np.uint8)
    whole, _ = MemoryScene(flat).latents(bare_model)
    cut, _ = MemoryScene(flat[:72, :88]).latents(bare_model)
    np.testing.assert_array_equal(cut[:4, :5], whole[:4, :5])


def test_pixels_are_read_in_strips_of_the_region(bare_model):
    scene = MemoryScene(image_of(320, 320))
    scene.latents(bare_model, slice(6, 12), slice(8, 12))
    # Rows of cores that reach rows 6 to 11: from core 2 (rows 4, 5; its window ends at row 6).
    assert [row for row, *_ in scene.strips] == [16 * (2 * core - 1) for core in range(2, 7)]
    assert {strip[1:] for strip in scene.strips} == {(16 * 5, 64, 16 * 10)}


def test_reading_runs_one_strip_ahead_in_another_thread(bare_model):
    scene = MemoryScene(image_of(160, 32))
    threads = set()

    def read(*box: int):
        threads.add(threading.current_thread())
        return scene.read(*box)

    region_latents(bare_model, read, (160, 32), *EVERYTHING, side=SIDE, halo=HALO)
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_at_most_one_strip_is_read_ahead(bare_model, monkeypatch):
    scene = MemoryScene(image_of(160, 256))  # 8 windows in a strip: a batch
    read = batches_of(monkeypatch, lambda _: len(scene.strips))
    scene.latents(bare_model)
    assert len(read) == len(scene.strips) == 5
    assert all(strips <= i + 2 for i, strips in enumerate(read))


def test_an_error_of_the_reader_is_raised(bare_model):
    def read(row: int, *_: int):
        if row > 0:
            raise OSError("cannot read scene.tif: connection lost")
        return np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), bool)

    with pytest.raises(OSError, match=r"scene\.tif"):
        region_latents(bare_model, read, (160, 32), *EVERYTHING, side=SIDE, halo=HALO)


@pytest.mark.parametrize(
    ("side", "halo", "message"),
    [(4, 2, "core is left"), (4, -1, "halo"), (0, 0, "multiple of the patch")],
)
def test_windows_that_cannot_be(bare_model, side, halo, message):
    with pytest.raises(InputError, match=message):
        MemoryScene(image_of(64, 64)).latents(bare_model, side=side, halo=halo)


@pytest.mark.parametrize(
    "rows", [slice(0, 5), slice(2, 2), slice(-1, 2), slice(3, 1), slice(0, 4, 2)]
)
def test_regions_that_are_not_within_the_scene(bare_model, rows):
    with pytest.raises(InputError, match=r"rows .* of a scene that has 4"):
        MemoryScene(image_of(64, 64)).latents(bare_model, rows)


def wrong_valid(image: NDArray, valid: NDArray) -> tuple[NDArray, NDArray]:
    return image, valid[:, :1]


def valid_of_gdal(image: NDArray, valid: NDArray) -> tuple[NDArray, NDArray]:
    return image, np.where(valid, 255, 0).astype(np.uint8)


def wrong_dtype(image: NDArray, valid: NDArray) -> tuple[NDArray, NDArray]:
    return image.astype(np.float32), valid


def wrong_bands(image: NDArray, valid: NDArray) -> tuple[NDArray, NDArray]:
    return image[..., :2], valid


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_valid, "which pixels are valid"),
        (valid_of_gdal, "must be bool"),
        (wrong_dtype, "float32"),
        (wrong_bands, "2 channels"),
    ],
)
def test_pixels_that_the_model_does_not_take(
    bare_model, change: Callable[[NDArray, NDArray], tuple[NDArray, NDArray]], message: str
):
    scene = MemoryScene(image_of(64, 64))
    with pytest.raises(InputError, match=message):
        region_latents(
            bare_model, lambda *box: change(*scene.read(*box)), (64, 64), *EVERYTHING,
            side=SIDE, halo=HALO,
        )  # fmt: skip


def test_missing_pixels_mirror_the_valid_ones():
    image = np.arange(9)[None, :, None] * np.ones((4, 1, 1), int)
    valid = np.zeros((4, 9), bool)
    valid[:, 2:5] = True
    # Mirrored at columns 2 and 4; columns 7 and 8 mirror what was filled.
    found = fill_missing(image, valid)
    np.testing.assert_array_equal(found[..., 0], [[4, 3, 2, 3, 4, 3, 2, 3, 4]] * 4)


def test_a_single_valid_pixel_fills_all():
    image = np.arange(16).reshape(4, 4, 1)
    valid = image[..., 0] == 6
    assert (fill_missing(image, valid) == 6).all()


def test_an_image_without_missing_pixels_stays_as_it_is():
    image = image_of(32, 32)
    assert fill_missing(image, np.ones((32, 32), bool)) is image


def test_default_windows_are_as_large_as_training_images():
    assert windows_of(tiny_config(image_size=128), None, None) == (8, 2)
    assert windows_of(tiny_config(image_size=224), None, None) == (14, 3)
    assert windows_of(tiny_config(image_size=32), None, None) == (2, 0)
