"""Metadata of a scene that are damaged, or that claim what no scene has: an error names them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from refiner_cases import random_refiner
from scene_cases import ladder, written_part

import coder
from coder import FileError, InputError
from coder.archive import zarr_nodes
from coder.cli import main
from coder.scenes import scene_layout

pytest.importorskip("rasterio")
TIME = np.datetime64("2026-05-01")
HUGE = 10**9
MEMBERS = (
    *("embedding", "time", "valid", "x", "spatial_ref"),
    *("overviews/2", "overviews/2/embedding", "overviews/2/coverage", "overviews/2/y"),
)
READ = ("embedding", "time", "overviews/2/embedding", "overviews/2/valid")
"""The members that reading an overview opens, by the copy of their metadata in the root."""


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scene_layout, "SHARD", 32)
        patched.setattr(scene_layout, "LARGEST_OVERVIEW", 32)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return written_part(tmp_path_factory.mktemp("scene") / "whole.zarr", time=TIME)


@pytest.fixture
def scene(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "a.zarr")


def errors(scene: Path, capsys) -> dict[str, str]:
    """What each reader of a scene, and its writer, say that is wrong with it."""
    out = scene.parent
    found = {}
    for command in (
        ["info", str(scene)],
        ["verify", str(scene)],
        ["copy", str(scene), "--out", str(out / "copy.zarr")],
        ["export", str(scene), "--level", "2", "--channels", "0", "--out", str(out / "a.tif")],
    ):
        status, said = main(command), capsys.readouterr().err
        assert not status or said, command
        found[command[0]] = said if status else ""
    try:
        opened = coder.open_scene(scene)
        opened.read(level=2, time=0)
        found["open_scene"] = ""
    except FileError as error:
        found["open_scene"] = str(error)
    try:
        written_part(scene, time=TIME)
        found["writer"] = ""
    except FileError as error:
        found["writer"] = str(error)
    return found


def test_a_whole_scene_has_no_fault(scene, capsys):
    assert not any(errors(scene, capsys).values())


@pytest.mark.parametrize(
    ("member", "harm"),
    [*((member, "cut") for member in MEMBERS), ("embedding", "types"), ("x", "types")],
)
def test_damaged_metadata_of_a_member_are_named(scene, member, harm, capsys):
    file = scene / member / "zarr.json"
    text = file.read_text()
    wrong = json.dumps(json.loads(text) | {"shape": "7", "node_type": 5})
    file.write_text(text[: len(text) // 2] if harm == "cut" else wrong)
    found = errors(scene, capsys)
    for reader in ("info", "verify", "copy", "writer"):
        assert f"{member}" in found[reader], reader
        assert "copy the " in found[reader] or "cannot be opened" in found[reader]
    for reader in ("export", "open_scene"):  # they read by the copy in the root, which is right
        assert not found[reader], reader


@pytest.mark.parametrize("member", READ)
def test_a_damaged_copy_of_metadata_is_named(scene, member, capsys):
    file = scene / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["consolidated_metadata"]["metadata"][member]["shape"] = "7"
    file.write_text(json.dumps(metadata))
    found = errors(scene, capsys)
    for reader in ("info", "verify", "export", "open_scene"):
        assert str(scene) in found[reader], reader


@pytest.mark.parametrize("parts", ["as it was", "one"])
@pytest.mark.parametrize("name", ["embedding", "valid", "x", "time", "overviews/2/valid"])
@pytest.mark.parametrize("which", ["its own metadata", "their copy"])
def test_a_shape_that_is_not_the_scenes_is_named_and_exhausts_nothing(
    scene, name, parts, which, capsys, monkeypatch
):
    """Nothing is listed or read of it: the largest array that is read is one of the scene's."""
    file = scene / (f"{name}/zarr.json" if which == "its own metadata" else "zarr.json")
    whole = metadata = json.loads(file.read_text())
    if which == "their copy":
        metadata = whole["consolidated_metadata"]["metadata"][name]
    shape = [HUGE if side not in (1, 12) else side for side in metadata["shape"]]
    shape = [HUGE] if name == "time" else shape
    metadata["shape"] = shape
    if parts == "one":
        metadata["chunk_grid"]["configuration"]["chunk_shape"] = shape
    file.write_text(json.dumps(whole))
    read, largest = zarr_nodes.read, [0]

    def counted(array: zarr.Array, region: Any = slice(None)) -> Any:
        values = read(array, region)
        largest[0] = max(largest[0], values.size)
        return values

    monkeypatch.setattr(zarr_nodes, "read", counted)
    found = errors(scene, capsys)
    if which == "its own metadata":
        for reader in ("info", "verify", "copy", "writer"):
            assert name in found[reader], reader
    else:
        assert name in found["verify"]
        if name in READ:
            assert name in found["export"]
            assert name in found["open_scene"]
    assert largest[0] <= 32 * 32 * 12


@pytest.mark.parametrize("shape", [(), (7,)])
def test_other_embeddings_in_place_of_an_overviews_are_named(scene, shape, capsys):
    shutil.rmtree(scene / "overviews/2/embedding")
    zarr.create_array(scene / "overviews/2/embedding", shape=shape, dtype="f4", fill_value=0)
    metadata = json.loads((scene / "zarr.json").read_text())
    del metadata["consolidated_metadata"]  # else some readers see those that were there
    (scene / "zarr.json").write_text(json.dumps(metadata))
    for reader, said in errors(scene, capsys).items():
        assert "overviews/2/embedding" in said, reader


def test_a_damaged_refiner_is_not_passed_off_as_complete(tmp_path):
    refiner = random_refiner(ladder())
    out = written_part(tmp_path / "a.zarr", refiner=refiner)
    for name in ("refiner/zarr.json", "refiner/file/zarr.json", "refiner/file/c/0"):
        before = (out / name).read_bytes()
        (out / name).write_bytes(before[:-9])
        with pytest.raises(FileError, match="refiner/file is lost or damaged: copy the scene"):
            written_part(out, refiner=refiner)
        (out / name).write_bytes(before)
    written_part(out, refiner=refiner)


def test_going_on_with_or_without_a_refiner_is_said(tmp_path):
    """Silently, the scene would keep what it was begun with."""
    refiner, other = random_refiner(ladder()), random_refiner(ladder(), seed=3)
    out = written_part(tmp_path / "without.zarr")
    with pytest.raises(InputError, match=r"begun without a refiner.*give --no-refiner"):
        written_part(out, refiner=refiner)
    out = written_part(tmp_path / "with.zarr", refiner=refiner)
    with pytest.raises(InputError, match=r"begun with a refiner.*leave --no-refiner out"):
        written_part(out)
    with pytest.raises(InputError, match="begun with another refiner"):
        written_part(out, refiner=other)
