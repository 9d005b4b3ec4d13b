"""Maps of heads: of any window the part of the whole map, without seams where the head allows."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from export_cases import CLASSES, cells, codec_of, grid_of, head_of, written

import coder
from coder import Head, InputError
from coder.scenes import class_map
from coder.scenes.class_map import NONE, Windows, windows, write_map
from coder.scenes.scene_part import part_of
from coder.scenes.scene_writer import SceneWriter
from coder.task_heads import head_layers

rasterio = pytest.importorskip("rasterio")
SIZES = [((4, 4), (32, 32)), ((4, 6), (10, 15)), ((3, 5), (3, 10)), ((2, 2), (4, 4))]


def mapped(part, head, path) -> np.ndarray:
    write_map(part, head, path, overwrite=True)
    with rasterio.open(path) as found:
        return found.read(1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    shape = (37, 50)
    return coder.open_scene(written(tmp_path_factory.mktemp("scenes") / "a.zarr", shape))


@pytest.fixture(scope="module")
def whole_scene(tmp_path_factory):
    """A scene without a cell that is not valid."""
    shape, path = (37, 50), tmp_path_factory.mktemp("scenes") / "a.zarr"
    with SceneWriter(path, codec_of(), grid_of(shape), made={}, step={}) as writer:
        for part in writer.missing():
            covered = np.full(shape, 100, np.uint8)
            writer.write(part, cells(shape, holes=False)[part], covered[part])
        writer.finish()
    return coder.open_scene(path)


@pytest.mark.parametrize(("grid", "mask_size"), SIZES)
def test_a_linear_head_maps_as_if_its_grid_were_the_scene(whole_scene, tmp_path, grid, mask_size):
    head = head_of("token-linear", grid, mask_size)
    found = mapped(part_of(whole_scene), head, tmp_path / "a.tif")
    scale = [pixels / cell for cell, pixels in zip(grid, mask_size, strict=True)]
    y = whole_scene.read()[None]
    # Whole cells, so that the oracle has whole pixels: nothing but the nearest cell is added.
    y = np.pad(y, [(0, 0), (0, -37 % grid[0]), (0, -50 % grid[1]), (0, 0)], mode="edge")
    logits = head_layers.dense(head._weights, "head/classifier", y - head._weights["scaling/mean"])
    size = (round(y.shape[1] * scale[0]), round(y.shape[2] * scale[1]))
    expected = head_layers.resized(logits, size)[0].argmax(-1)[: found.shape[0], : found.shape[1]]
    assert found.shape == (int(np.ceil(37 * scale[0])), int(np.ceil(50 * scale[1])))
    inside = found != NONE  # all but pixels whose centre lies beyond the last cell
    assert inside[: int(37 * scale[0]), : int(50 * scale[1])].all()
    assert (found != expected)[inside].mean() < 1e-3  # ties, in other orders of adding
    assert len(np.unique(found[inside])) == 3


@pytest.mark.parametrize("kind", ["token-linear", "conv"])
@pytest.mark.parametrize("mask_size", [(32, 32), (6, 6), (20, 32)])
def test_the_map_of_a_window_is_the_part_of_the_whole_map(scene, tmp_path, kind, mask_size):
    head = head_of(kind, (4, 4), mask_size)
    whole, rng = mapped(part_of(scene), head, tmp_path / "a.tif"), np.random.default_rng(0)
    for _ in range(6):
        (top, left), (bottom, right) = np.sort(rng.integers(0, (37, 50), (2, 2)), axis=0)
        part = replace(part_of(scene), rows=slice(top, bottom + 1), columns=slice(left, right + 1))
        found = mapped(part, head, tmp_path / "b.tif")
        with rasterio.open(tmp_path / "a.tif") as a, rasterio.open(tmp_path / "b.tif") as b:
            row, column = a.index(b.bounds.left + a.res[0] / 2, b.bounds.top - a.res[1] / 2)
            assert a.res == b.res
            west, south, east, north = part.grid.bounds
            assert b.bounds.left <= west < b.bounds.left + a.res[0]
            assert b.bounds.right >= east - 1e-6 > b.bounds.right - a.res[0] - 2e-6
            assert b.bounds.top >= north - 1e-6
            assert b.bounds.bottom <= south + 1e-6
        height, width = found.shape
        np.testing.assert_array_equal(found, whole[row : row + height, column : column + width])


def test_pixels_have_a_class_where_their_cell_has_an_embedding(scene, tmp_path):
    found = mapped(part_of(scene), head_of(), tmp_path / "a.tif")
    valid = scene.valid().repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(found != NONE, valid)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.nodata == NONE
        assert file.res == (20, 20)
        assert file.dtypes == ("uint8",)


def test_classes_have_names_and_colours(scene, tmp_path):
    write_map(part_of(scene), head_of(), tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.tags()["class_1"] == CLASSES[1]
        colours = [file.colormap(1)[i] for i in range(3)]
        assert len(set(colours)) == 3
    # GDAL's own reader of the file beside it: its VRT holds the names.
    from rasterio.shutil import copy

    copy(tmp_path / "a.tif", tmp_path / "a.vrt", driver="VRT")
    text = (tmp_path / "a.vrt").read_text()
    assert "<Category>water</Category>" in text
    assert "<Category>&lt;forest&gt; &amp; farm</Category>" in text
    # The attribute table has the same names and colours.
    table = ElementTree.parse(tmp_path / "a.tif.aux.xml").find(".//GDALRasterAttributeTable")
    assert table is not None
    rows = [[cell.text or "" for cell in row] for row in table.iter("Row")]
    assert [row[:2] for row in rows] == [[str(i), name] for i, name in enumerate(CLASSES)]
    assert [tuple(map(int, row[2:])) for row in rows] == [colour[:3] for colour in colours]


def test_names_of_an_earlier_map_do_not_stay(scene, tmp_path):
    from coder.scenes.raster_export import write_channels

    write_map(part_of(scene), head_of(), tmp_path / "a.tif")
    assert (tmp_path / "a.tif.aux.xml").exists()
    write_channels(part_of(scene), tmp_path / "a.tif", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_many_classes_have_colours_of_their_own():
    colours = class_map._colours(255)
    assert len(set(colours)) == 255


def test_the_nearest_embedding_stands_for_one_that_is_missing():
    y = np.full((3, 4, 2), np.nan, np.float32)
    y[0, 0], y[2, 3] = (1, 2), (3, 4)
    filled = class_map._filled(y)
    np.testing.assert_array_equal(filled[0, 1], (1, 2))
    np.testing.assert_array_equal(filled[2, 1], (3, 4))
    assert np.isnan(y[0, 1]).all()
    assert not np.isnan(filled).any()


@pytest.mark.parametrize(("side", "pixels"), [(14, 224), (14, 256), (4, 32), (3, 9), (14, 7)])
def test_cores_tile_the_pixels(side, pixels):
    found = windows(side, pixels)
    assert found.step * pixels % side == 0
    assert found.margin + found.core <= pixels
    for cells_ in (slice(0, 50), slice(7, 9), slice(3, 30)):
        wanted = found.pixels_of(cells_)
        numbers = found.numbers(wanted)
        covered = [i * found.core + found.margin + j for i in numbers for j in range(found.core)]
        assert covered == list(range(covered[0], covered[0] + len(covered)))
        assert covered[0] <= wanted.start
        assert wanted.stop - 1 <= covered[-1]
        assert covered[0] + found.core > wanted.start  # no window too many
        assert covered[-1] - found.core < wanted.stop - 1
        inside = found.cells_of(np.arange(wanted.start, wanted.stop))
        assert inside.min() >= cells_.start - (pixels % side != 0)
        assert inside.max() <= cells_.stop
    assert windows(14, 224) == Windows(14, 224, 7)


def test_heads_that_make_no_map_are_refused(scene, tmp_path):
    cases = [
        (head_of("attention", mask_size=None), r"\(attention\) gives one class for an image"),
        (head_of("class-linear", mask_size=None), r"\(class-linear\) gives one class"),
        (head_of(width=8), "takes embeddings of 8 channels, the scene has 6"),
        (head_of("conv", with_decoder=True), "reads the class token, which scenes do not have"),
        (head_of(mask_size=(33, 32)), "have no pixels in common"),
    ]
    for head, message in cases:
        with pytest.raises(InputError, match=message):
            write_map(part_of(scene), head, tmp_path / "a.tif")
    assert not list(tmp_path.iterdir())


def test_a_head_with_another_refiner_is_refused(scene, tmp_path, monkeypatch):
    from coder.archive import refiner_array

    head = head_of()
    refining = Head(replace(head.settings, refiner="a" * 64), head._weights)
    monkeypatch.setitem(scene.facts, refiner_array.ATTRIBUTE, "b" * 64)
    with pytest.raises(InputError, match="another refiner than the scene"):
        write_map(part_of(scene), refining, tmp_path / "a.tif")


def test_a_head_with_the_decoder_maps_if_its_model_has_no_class_token(scene, tmp_path):
    head = head_of("conv", with_decoder=True, class_token=False)
    found = mapped(part_of(scene), head, tmp_path / "a.tif")
    assert set(np.unique(found)) <= {0, 1, 2, NONE}


def test_a_map_reads_cells_and_not_overviews(tmp_path):
    scene = coder.open_scene(written(tmp_path / "a.zarr"))
    with pytest.raises(InputError, match="leave the level out"):
        write_map(part_of(scene, level=2), head_of(), tmp_path / "a.tif")
