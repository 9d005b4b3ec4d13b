"""What `nec encode SCENE.tif` refuses, and what it writes beside a scene."""

import json
import os
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from scene_rasters import earth, put_scene

import coder
import nec_jax
from coder.cli import main
from coder.scenes.scene_writer import SceneWriter
from nec_jax.images.record import DataError
from nec_jax.scene_encoding.raster_scene import RasterScene
from nec_jax.scene_encoding.scene_archive import encode_scene

COMMAND = ["--model", "nec-vit-ti", "--scene", "--no-refiner", "--out"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_input_is_never_replaced_by_a_preview(capsys):
    tif = put_scene(Path("a.preview.tif"), earth(64, 64))
    before = tif.read_bytes()
    assert main(["encode", str(tif), *COMMAND, "a.zarr"]) == 1
    assert "a.preview.tif is an input" in capsys.readouterr().err
    assert tif.read_bytes() == before
    assert not Path("a.zarr").exists()


@pytest.mark.parametrize("name", ["a.preview.tif", "a.stac.json"])
def test_a_file_of_somebody_else_is_not_replaced(name, capsys):
    put_scene(Path("in.tif"), earth(64, 64))
    Path(name).write_text('{"id": "mine"}')
    assert main(["encode", "in.tif", *COMMAND, "a.zarr", "--time", "2026-05-01"]) == 1
    assert f"{name} exists, and nec encode did not write it" in capsys.readouterr().err
    assert Path(name).read_text() == '{"id": "mine"}'
    assert not Path("a.zarr").exists()


@pytest.mark.parametrize("given", ["tiles", "tiles/*.tif"])
def test_previews_in_the_folder_of_the_inputs_are_no_inputs(given, capsys):
    Path("tiles").mkdir()
    put_scene(Path("tiles/in.tif"), earth(64, 64))
    for name in ("a", "b", "a"):  # each leaves a preview there
        assert main(["encode", given, *COMMAND, f"tiles/{name}.zarr", "--time", "2026-05-01"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert main(["info", "tiles/a.zarr"]) == 0


def test_times_are_read_as_iso_8601_has_them(capsys):
    put_scene(Path("in.tif"), earth(64, 64))
    for text in ("20260501", "2026-05-02T10:30+02:00", "2026-05-03T10:30Z"):
        assert main(["encode", "in.tif", *COMMAND, "a.zarr", "--time", text]) == 0
    times = coder.open_scene("a.zarr").times
    assert times is not None
    expected = [datetime(2026, 5, 1), datetime(2026, 5, 2, 8, 30), datetime(2026, 5, 3, 10, 30)]
    assert np.array(times).astype(datetime).tolist() == expected
    for text in ("now", "today", "-1", "NaT", "1e3", "99999-01-01", ""):
        assert main(["encode", "in.tif", *COMMAND, "a.zarr", f"--time={text}"]) == 1
        assert "give a time such as" in capsys.readouterr().err


def test_a_source_that_changes_while_it_is_encoded_is_noticed():
    tif = put_scene(Path("in.tif"), earth(64, 64))
    source = RasterScene([tif], nec_jax.load("nec-vit-ti").config)
    source.refuse_changes()
    state = tif.stat()
    os.utime(tif, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"in\.tif was changed while it was encoded"):
        encode_scene(nec_jax.load("nec-vit-ti"), source, Path("a.zarr"))
    tif.unlink()
    with pytest.raises(DataError, match=r"in\.tif was deleted while"):
        source.refuse_changes()
    assert not list(Path("a.zarr/valid").rglob("c/*"))  # nothing is written of either state


def test_a_source_that_changes_before_encoding_goes_on_is_noticed(monkeypatch, capsys):
    command = ["encode", "in.tif", *COMMAND, "a.zarr"]
    put_scene(Path("in.tif"), earth(64, 64))
    with monkeypatch.context() as patched:
        patched.setattr(SceneWriter, "finish", lambda self: sys.exit("stopped"))
        with pytest.raises(SystemExit, match="stopped"):
            main(command)
    put_scene(Path("in.tif"), earth(64, 64, row=720))
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "with other files or settings for this scene (file_times)" in error


def test_the_preview_stays_that_of_the_last_time(capsys):
    put_scene(Path("in.tif"), earth(64, 64))
    put_scene(Path("later.tif"), earth(64, 64)[::-1])
    for name, time in (("in", "2026-05-01"), ("later", "2026-05-02"), ("in", "2026-05-01")):
        assert main(["encode", f"{name}.tif", *COMMAND, "a.zarr", "--time", time]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert main(["export", "a.zarr", "--preview", "--time=2026-05-02", "--out", "last.tif"]) == 0
    with rasterio.open("a.preview.tif") as beside, rasterio.open("last.tif") as last:
        np.testing.assert_array_equal(beside.read(), last.read())


def test_an_item_that_is_exported_has_the_preview_beside_the_scene():
    put_scene(Path("in.tif"), earth(64, 64))
    assert main(["encode", "in.tif", *COMMAND, "a.zarr"]) == 0
    Path("items").mkdir()
    out = Path("items/a.json")
    assert main(["export", "a.zarr", "--time", "2026-05-01", "--out", str(out)]) == 0
    href = json.loads(out.read_text())["assets"]["preview"]["href"]
    assert (out.parent / href).samefile("a.preview.tif")


def test_a_small_georeferenced_file_is_an_image_and_says_so(capsys):
    put_scene(Path("in.tif"), earth(128, 128))
    command = ["encode", "in.tif", "--model", "nec-vit-ti", "--no-refiner", "--out", "a.zarr"]
    assert main(command) == 0
    assert "in.tif is georeferenced: it becomes an image" in (said := capsys.readouterr().err)
    assert "--scene makes a map" in said


def test_a_scene_without_refiner_does_not_silently_stay_one(capsys):
    put_scene(Path("in.tif"), earth(64, 64))
    command = ["encode", "in.tif", *COMMAND, "a.zarr"]
    assert main(command) == 0
    capsys.readouterr()
    assert main([word for word in command if word != "--no-refiner"]) == 1
    assert "a.zarr: was begun without a refiner, and now there is one: give --no-refiner" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(("side", "halo"), [(16, 0), (32, 0), (64, 1)])
def test_small_windows_have_a_halo_of_a_quarter(side, halo):
    put_scene(Path("in.tif"), earth(64, 64))
    assert main(["encode", "in.tif", *COMMAND, "a.zarr", "--image-size", str(side)]) == 0
    state = json.loads(Path("a.zarr/zarr.json").read_text())["attributes"]["nec_scene"]
    assert (state["made"]["side"], state["made"]["halo"]) == (side // 16, halo)


@pytest.mark.parametrize("side", [928, 2048, 1 << 30])
def test_windows_that_take_too_much_memory_are_refused(side, capsys):
    put_scene(Path("in.tif"), earth(64, 64))
    assert main(["encode", "in.tif", *COMMAND, "a.zarr", "--image-size", str(side)]) == 1
    error = capsys.readouterr().err
    assert "takes too much memory; give --image-size 912 or less" in error
    assert error.count("\n") == 1
    assert not Path("a.zarr").exists()


def test_a_scene_without_a_place_on_earth_has_no_item_and_is_complete(capsys):
    site = 'ENGCRS["site",EDATUM["x"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],{}]'
    crs = rasterio.CRS.from_wkt(site.format('LENGTHUNIT["metre",1]'))
    put_scene(Path("in.tif"), earth(64, 64), crs=crs)
    assert main(["encode", "in.tif", *COMMAND, "a.zarr", "--time", "2026-05-01"]) == 0
    assert "no STAC Item is written: the scene's outline has no place" in capsys.readouterr().out
    assert coder.open_scene("a.zarr").grid.code is None
    assert main(["encode", "in.tif", *COMMAND, "."]) == 1
    assert "is no name of a scene" in capsys.readouterr().err
