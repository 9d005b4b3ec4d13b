"""`encode_scene` and `nec encode SCENE.tif`: pixels at a place become embeddings at that place."""

import json
import re
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
from image_files import write_raster
from scene_rasters import NORTH, SIDE, WEST, earth, put_scene

import coder
import nec_jax
from coder import InputError
from coder.archive import zarr_nodes
from coder.cli import main
from nec_jax.images.record import DataError
from nec_jax.scene_encoding.raster_scene import RasterScene
from nec_jax.scene_encoding.scene_archive import encode_scene, quality_for_scene
from nec_jax.scene_encoding.tiles import region_latents

HEIGHT, WIDTH = 300, 260  # no multiples of the patch


@cache
def shipped() -> nec_jax.NecParams:
    return nec_jax.load("nec-vit-ti")


def encoded(out: Path, *names: Path, **settings):
    scene = RasterScene(names, shipped().config, **settings.pop("reading", {}))
    return scene, encode_scene(shipped(), scene, out, **settings)


@pytest.fixture(scope="module")
def tif(tmp_path_factory) -> Path:
    """A scene with an oblique corner of missing pixels."""
    bands = np.maximum(earth(HEIGHT, WIDTH), 1)
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    bands[:, row + column < 120] = 0
    return put_scene(tmp_path_factory.mktemp("tif") / "a.tif", bands, nodata=0)


@pytest.fixture(scope="module")
def out(tif, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("out") / "a.zarr"
    encoded(path, tif)
    return path


def test_a_cell_holds_what_its_windows_say_within_the_error_of_the_codec(tif, out):
    scene = coder.open_scene(out)
    source = RasterScene([tif], shipped().config)
    y, coverage = region_latents(
        shipped(), source.read, source.shape, slice(None), slice(None), side=8, halo=2
    )
    np.testing.assert_array_equal(scene.coverage(), coverage)
    np.testing.assert_array_equal(scene.valid(), coverage >= 50)
    read = scene.read()
    np.testing.assert_array_equal(np.isnan(read), np.isnan(y))
    assert np.nanmean(np.square(read - y)) < 0.6 * np.nanvar(y, axis=(0, 1)).mean()
    finest = 16
    better = out.with_name("finest.zarr")
    encoded(better, tif, quality=finest)
    error = np.square(coder.open_scene(better).read() - y)
    assert np.nanmean(error) < 0.2 * np.nanmean(np.square(read - y))


def test_ten_points_lie_where_rasterio_has_them(tif, out):
    scene, rng = coder.open_scene(out), np.random.default_rng(3)
    with rasterio.open(tif) as dataset:
        inverse = ~dataset.transform
    for row, column in rng.integers(0, scene.grid.shape, (10, 2)):
        x, y = scene.grid.x[column], scene.grid.y[row]
        a, b, c, d, e, f = inverse[:6]
        at = (a * x + b * y + c, d * x + e * y + f)  # column, row
        assert at == pytest.approx((16 * column + 8, 16 * row + 8), abs=1e-6)


@pytest.mark.parametrize("turn", [{"south_up": True}, {"mirrored": True}])
def test_how_rows_are_stored_changes_no_byte(tif, out, turn, tmp_path):
    with rasterio.open(tif) as dataset:
        bands = dataset.read()
    other = put_scene(tmp_path / "b.tif", bands, nodata=0, **turn)
    encoded(tmp_path / "b.zarr", other)
    for name in ("embedding", "valid", "coverage", "x", "y"):
        for path in (out / name).rglob("*"):
            if path.is_file() and path.name != "zarr.json":
                assert (tmp_path / "b.zarr" / path.relative_to(out)).read_bytes() == (
                    path.read_bytes()
                )
    ours, theirs = (coder.open_scene(path).grid for path in (out, tmp_path / "b.zarr"))
    assert ours == theirs


def test_a_mosaic_of_two_halves_is_the_whole(tif, out, tmp_path):
    with rasterio.open(tif) as dataset:
        bands = dataset.read()
    left = put_scene(tmp_path / "l.tif", bands[:, :, :101], nodata=0)
    right = put_scene(tmp_path / "r.tif", bands[:, :, 101:], column=101, nodata=0)
    encoded(tmp_path / "m.zarr", right, left)
    np.testing.assert_array_equal(
        coder.open_scene(tmp_path / "m.zarr").read(), coder.open_scene(out).read()
    )


def test_windows_that_do_not_overlap_are_plain_images(tif, tmp_path):
    _, done = encoded(tmp_path / "h.zarr", tif, halo=0, quality=16)
    assert (done.side, done.halo) == (8, 0)
    with rasterio.open(tif) as dataset:
        pixels = dataset.read(window=((128, 256), (128, 256)))
    y = nec_jax.latents(shipped(), np.moveaxis(pixels, 0, -1)[None])[0, 1:].reshape(8, 8, -1)
    read = coder.open_scene(tmp_path / "h.zarr").read(slice(8, 16), slice(8, 16))
    assert np.mean(np.square(read - y)) < 0.1 * y.var()


def test_a_stopped_encoding_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("coder.scenes.scene_layout.SHARD", 16)  # several parts
    tif = put_scene(tmp_path / "b.tif", earth(300, 530))
    encoded(tmp_path / "whole.zarr", tif)

    class Stopped(Exception):
        pass

    def stop(done, total, stored):
        if stored:
            raise Stopped

    for _ in range(3):
        with pytest.raises(Stopped):
            encoded(tmp_path / "part.zarr", tif, progress=stop)
    _, done = encoded(tmp_path / "part.zarr", tif)
    assert 0 < done.written < 19 * 34
    sizes = zarr_nodes.sizes(tmp_path / "whole.zarr")
    assert sizes == zarr_nodes.sizes(tmp_path / "part.zarr")
    for key in sizes:
        files = (tmp_path / name / key for name in ("whole.zarr", "part.zarr"))
        assert len({path.read_bytes() for path in files}) == 1, key
    _, again = encoded(tmp_path / "part.zarr", tif)
    assert again.written == 0


def test_other_settings_do_not_go_on_with_a_scene(tif, out):
    for settings, message in (
        ({"quality": 3}, "was made with quality"),
        ({"halo": 1}, "was made with halo 2, and now it is 1"),
        ({"time_of": np.datetime64("2026-01-01")}, "has no times"),
        ({"reading": {"nodata": 7}}, "with other files or settings"),
    ):
        with pytest.raises(InputError, match=message):
            encoded(out, tif, **settings)


def test_a_scene_without_data_is_refused_and_leaves_nothing(tmp_path):
    tif = put_scene(tmp_path / "none.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
    with pytest.raises(DataError, match="no cell of the scene has data"):
        encoded(tmp_path / "none.zarr", tif)
    assert not (tmp_path / "none.zarr").exists()


def test_files_on_both_sides_of_the_antimeridian_are_no_scene_around_the_earth(tmp_path):
    names = []
    for name, west in (("east", 179.0), ("west", -180.0)):
        names.append(tmp_path / f"{name}.tif")
        place = {"crs": "EPSG:4326", "transform": rasterio.Affine(0.01, 0, west, 0, -0.01, 10)}
        write_raster(names[-1], earth(32, 100), **place)
    with pytest.raises(DataError, match="on both sides of the antimeridian"):
        RasterScene(names, shipped().config)
    with rasterio.open(names[1], "r+") as file:
        file.transform = rasterio.Affine(0.01, 0, 180, 0, -0.01, 10)
    assert RasterScene(names, shipped().config).shape == (32, 200)


def test_the_quality_that_fits_is_found(tmp_path):
    scene = RasterScene([put_scene(tmp_path / "b.tif", earth(256, 512))], shipped().config)
    low, high = (quality_for_scene(shipped(), scene, max_bytes=size) for size in (200, 2000))
    assert 0 <= low < high <= 16
    assert quality_for_scene(shipped(), scene, max_mse=0.05) > quality_for_scene(
        shipped(), scene, max_mse=0.5
    )


def test_the_command_encodes_a_scene_of_13_bands_by_the_options_that_it_names(
    tmp_path, monkeypatch, capsys
):
    """Each refusal names the option that mends it: what it names is passed on."""
    monkeypatch.chdir(tmp_path)
    names = [*(f"B{i:02}" for i in range(1, 9)), "B8A", "B09", "B10", "B11", "B12"]
    rgb = earth(96, 1056, column=2000).astype(np.uint16) * 12 + 200
    bands = np.stack([rgb[{"B04": 0, "B03": 1}.get(name, 2)] for name in names])
    put_scene(tmp_path / "a.tif", bands, south_up=True)
    with rasterio.open("a.tif", "r+") as dataset:
        for number, name in enumerate(names, 1):
            dataset.set_band_description(number, name)
    command = ["encode", "a.tif", "--model", "nec-vit-ti", "--out", "a.zarr"]
    for option in ("--bands 4 3 2", "--value-range [0-9]+ [0-9]+"):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert error.count("a.tif") == 1
        found = re.search(option, error)
        assert found, error
        command += found[0].split()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "one scene of 96 x 1,056 px in EPSG:32633" in said
    with rasterio.open("a.preview.tif") as preview:
        assert preview.crs.to_epsg() == 32633
        assert preview.transform[:6] == (16 * SIDE, 0, WEST, 0, -16 * SIDE, NORTH)
        assert (preview.read(4) == 255).all()
    state = json.loads(Path("a.zarr/zarr.json").read_text())["attributes"]["nec_scene"]
    (step,) = state["steps"]
    assert step["preparation"]["bands"] == [[4, "B04"], [3, "B03"], [2, "B02"]]
    assert step["preparation"]["flipped"] == {"south_up": 1, "mirrored": 0}
    assert main(["verify", "a.zarr"]) == 0
    assert main(command) == 0
    assert "nothing was written" in capsys.readouterr().out


def test_times_of_the_command_are_one_more_dimension(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, row in (("a", 700), ("b", 705)):
        put_scene(tmp_path / f"{name}.tif", earth(64, 64, row=row))
    command = ["--model", "nec-vit-ti", "--out", "t.zarr", "--no-refiner", "--time"]
    for name, time in (("a", "2026-05-01"), ("b", "2026-06-01T10:30")):
        assert main(["encode", f"{name}.tif", *command, time]) == 0
    scene = coder.open_scene("t.zarr")
    assert scene.times is not None
    assert list(map(str, scene.times)) == [
        "2026-05-01T00:00:00.000000",
        "2026-06-01T10:30:00.000000",
    ]
    assert (scene.read(time=0) != scene.read(time=1)).any()
    item = json.loads(Path("t.stac.json").read_text())
    assert item["properties"]["start_datetime"] < item["properties"]["end_datetime"]
    capsys.readouterr()
    assert main(["encode", "b.tif", *command, "auto"]) == 1
    assert "--time auto: the files state no time" in capsys.readouterr().err
    for wrong in ("May", "today", "2026"):
        assert main(["encode", "b.tif", *command, wrong]) == 1
        assert "give a time such as" in capsys.readouterr().err
    assert main(["encode", "b.tif", *command, "20260601T1230+02:00"]) == 0  # that of before
    assert "nothing was written" in capsys.readouterr().out


def test_an_input_is_not_replaced_by_what_is_written_beside_the_scene(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    tif = put_scene(tmp_path / "a.preview.tif", earth(64, 64))
    before = tif.read_bytes()
    command = ["encode", tif.name, "--model", "nec-vit-ti", "--scene", "--out", "a.zarr"]
    assert main(command) == 1
    assert "is an input" in capsys.readouterr().err
    assert tif.read_bytes() == before
    assert not Path("a.zarr").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--chip 64 --scene", "--chip is for archives of images, and the input is a scene"),
        ("--scene --strict", "--strict is for archives of images"),
        ("--scene --halo 4", "the halo must be at least 0 and less than half the side"),
        ("--scene --image-size 100", "not a multiple of the patch"),
        ("--scene --value-range 5 5", "the lower one first"),
        ("--nodata 0", "--nodata is for embeddings and scenes"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, option, message):
    monkeypatch.chdir(tmp_path)
    put_scene(tmp_path / "a.tif", earth(64, 64))
    command = ["encode", "a.tif", "--model", "nec-vit-ti", "--out", "o.zarr", *option.split()]
    assert main(command) == 1
    assert message in capsys.readouterr().err
    assert not Path("o.zarr").exists()


def test_small_georeferenced_images_are_images_unless_a_scene_is_asked_for(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    put_scene(tmp_path / "a.tif", earth(64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["encode", "a.tif", "--model", "nec-vit-ti", "--out", "images.zarr"]) == 0
    assert len(coder.open("images.zarr")) == 1
    assert main(["encode", "a.tif", "--model", "nec-vit-ti", "--out", "s.zarr", "--scene"]) == 0
    assert coder.open_scene("s.zarr").grid.shape == (4, 4)
