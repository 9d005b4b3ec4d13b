"""What `nec encode SCENE.tif` writes beside a scene replaces nothing that is not its own."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from scene_rasters import earth, put_scene

import coder
from coder.cli import main

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
