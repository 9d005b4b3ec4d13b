"""`nec info`, `nec verify`, `nec decode` and `nec copy` of a scene."""

import json
from pathlib import Path

import numpy as np
import pytest
from scene_cases import grid, written

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


def test_verify_names_what_is_damaged_lost_or_exchanged(tmp_path, capsys):
    out = written(tmp_path / "a.zarr")
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


def test_a_damaged_scene_is_not_copied(tmp_path, capsys):
    out = written(tmp_path / "a.zarr")
    shard = out / "embedding/c/0/1/0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))
    assert main(["copy", str(out), "--out", str(tmp_path / "b.zarr")]) == 1
    assert "does not hold what it held" in capsys.readouterr().err


def test_a_scene_that_lost_a_shard_is_not_copied(tmp_path, capsys):
    out = written(tmp_path / "a.zarr")
    (out / "coverage/c/0/1").unlink()
    assert main(["copy", str(out), "--out", str(tmp_path / "b.zarr")]) == 1
    assert "coverage/c/0/1 is lost" in capsys.readouterr().err
    assert not (tmp_path / "b.zarr").exists()


def test_decode_writes_every_array(path, tmp_path):
    assert main(["decode", str(path), "--out", str(tmp_path / "d")]) == 0
    read = np.load(tmp_path / "d/embedding.npy")
    np.testing.assert_array_equal(read, coder.open_scene(path).read())
    assert (tmp_path / "d/overviews/2/embedding.npy").exists()
