"""`nec info`, `nec verify`, `nec decode` and `nec copy` of a scene."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from scene_cases import grid, writer, written

import coder
from coder.archive import zarr_nodes
from coder.cli import main

pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("scenes") / "a.zarr")


def test_info_says_where_the_scene_lies(path, capsys):
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "scene"
    assert facts["scene"]["crs"] == "EPSG:32633"
    assert facts["scene"]["state"] == "complete"
    assert tuple(facts["scene"]["bounds"]) == grid().bounds


def test_verify_names_what_is_damaged_lost_or_exchanged(path, tmp_path, capsys):
    out = shutil.copytree(path, tmp_path / "a.zarr")
    assert main(["verify", str(out)]) == 0
    first, second = (out / "embedding/c/0" / name / "0" for name in ("0", "1"))
    kept = first.read_bytes(), second.read_bytes()
    for what, harm in {
        "embedding/c/0/0/0 is lost": lambda: first.unlink(),
        "holds what embedding/c/0/1/0 held": lambda: first.write_bytes(kept[1]),
        "embedding[": lambda: first.write_bytes(kept[0][:-9] + b"x" + kept[0][-8:]),
    }.items():
        harm()
        capsys.readouterr()
        assert main(["verify", str(out)]) == 1
        assert what in capsys.readouterr().err
        first.write_bytes(kept[0])
    assert main(["verify", str(out)]) == 0


def test_a_copy_has_the_same_bytes(path, tmp_path, capsys):
    out = tmp_path / "b.zarr"
    assert main(["copy", str(path), "--out", str(out)]) == 0
    assert "a scene" in capsys.readouterr().out
    sizes = zarr_nodes.sizes(path)
    assert all((out / key).read_bytes() == (path / key).read_bytes() for key in sizes)


def test_a_damaged_scene_is_not_copied(path, tmp_path, capsys):
    out = shutil.copytree(path, tmp_path / "a.zarr")
    shard = out / "embedding/c/0/1/0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))
    assert main(["copy", str(out), "--out", str(tmp_path / "b.zarr")]) == 1
    assert "does not hold what it held" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["embedding/c/0/1/0", "overviews/2/valid/c/0/1"])
def test_a_scene_that_lost_a_shard_is_not_copied(path, tmp_path, capsys, key):
    out = tmp_path / "a.zarr"
    shutil.copytree(path, out)
    (out / key).unlink()
    assert main(["copy", str(out), "--out", str(tmp_path / "b.zarr")]) == 1
    assert f"{key} is lost: `nec verify` says more" in capsys.readouterr().err
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize("key", ["x/c/0", "y/c/0", "overviews/4/x/c/0"])
def test_lost_coordinates_are_named_and_are_not_zero(path, tmp_path, capsys, key):
    out = tmp_path / "a.zarr"
    shutil.copytree(path, out)
    (out / key).unlink()
    assert main(["verify", str(out)]) == 1
    assert f"{key} is lost" in capsys.readouterr().err
    assert np.isnan(np.asarray(zarr.open_array(out / key.removesuffix("/c/0"))[:])).all()


def test_a_scene_that_gets_one_more_time_has_lost_nothing(tmp_path, capsys):
    first, second = np.array(["2026-05-01", "2026-06-01"], "datetime64[us]")
    out = written(tmp_path / "a.zarr", time=first)
    with writer(out, time=second):
        pass
    assert main(["info", str(out)]) == 0
    said = capsys.readouterr()
    assert "one more, 2026-06-01T00:00:00.000000, was begun, and is not complete" in said.out
    assert said.err == ""
    assert main(["verify", str(out)]) == 0  # what is there is whole
    capsys.readouterr()
    written(out, time=second)
    (out / "time/c/0").unlink()
    assert main(["verify", str(out)]) == 1
    assert "time/c/0 is lost" in capsys.readouterr().err


def test_decode_writes_every_array(path, tmp_path):
    assert main(["decode", str(path), "--out", str(tmp_path / "d")]) == 0
    read = np.load(tmp_path / "d/embedding.npy")
    np.testing.assert_array_equal(read, coder.open_scene(path).read())
    assert (tmp_path / "d/overviews/2/embedding.npy").exists()
