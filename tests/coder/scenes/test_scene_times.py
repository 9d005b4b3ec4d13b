"""Scenes that are written in several calls, some of which are stopped, or with damage in them."""

import errno
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scene_cases
import zarr
from scene_cases import ladder

import coder
from coder import FileError, InputError
from coder.archive import zarr_nodes
from coder.cli import main
from coder.scenes import scene_writer
from coder.scenes.scene_writer import SceneWriter

pytest.importorskip("rasterio")
PART = np.s_[80:144, 60:120]  # of the scene of the other tests: 4 shards of 32 x 32
GRID = scene_cases.grid().part(*PART)
Y, COVERAGE = (of_cells[PART] for of_cells in scene_cases.cells())


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    monkeypatch.setattr("coder.scenes.scene_layout.SHARD", 32)
    monkeypatch.setattr("coder.scenes.scene_layout.LARGEST_OVERVIEW", 32)


def writer(out: Path, **settings) -> SceneWriter:
    settings = {"made": {"model": "m"}, "step": {"files": ["a.tif"]}} | settings
    return SceneWriter(out, ladder().at(8), GRID, **settings)


def written(out: Path, **settings) -> Path:
    with writer(out, **settings) as writing:
        for part in writing.missing():
            writing.write(part, Y[part], COVERAGE[part])
        writing.finish()
    return out


def begin(out: Path, *, parts: int = 2, **settings) -> None:
    """Write some parts of a scene, as a process does that is killed then."""
    with writer(out, **settings) as writing:
        for part in writing.missing()[:parts]:
            writing.write(part, Y[part] - 1, COVERAGE[part])


def test_a_time_that_is_not_complete_hides_no_other_and_can_be_left(tmp_path):
    days = [np.datetime64(f"2026-05-{day:02}") for day in (1, 2, 3)]
    out = written(tmp_path / "t.zarr", time=days[0])
    scene = coder.open_scene(out)
    before = scene.read(time=0)
    begin(out, time=days[1])
    for _ in range(2):  # another reader, and one that was there
        np.testing.assert_array_equal(scene.read(time=0), before)
        scene = coder.open_scene(out)
        assert scene.times is not None
        assert len(scene.times) == 1
    assert main(["verify", str(out)]) == 0
    written(out, time=days[0])  # which is complete, and stays so
    with pytest.warns(UserWarning, match="2026-05-02.* not complete: what was written of them is"):
        begin(out, time=days[1], step={"files": ["other.tif"]})
    with writer(out, time=days[1], step={"files": ["other.tif"]}) as writing:
        assert len(writing.missing()) == 2  # it goes on
    with pytest.warns(UserWarning, match="2026-05-02"):
        written(out, time=days[2])
    fresh = written(tmp_path / "fresh.zarr", time=days[0])
    written(fresh, time=days[2])
    assert zarr_nodes.sizes(out) == zarr_nodes.sizes(fresh)
    for key in zarr_nodes.sizes(out):
        assert (out / key).read_bytes() == (fresh / key).read_bytes(), key


@pytest.mark.parametrize("grown", [0, 2])
def test_a_writer_that_is_killed_while_its_arrays_grow_goes_on_or_is_left(
    tmp_path, monkeypatch, grown
):
    days = [np.datetime64(f"2026-05-{day:02}") for day in (1, 2, 3)]
    out = written(tmp_path / "t.zarr", time=days[0])
    resize, left = zarr.Array.resize, [grown]

    def stop(self, shape):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        resize(self, shape)

    with monkeypatch.context() as patched:
        patched.setattr(zarr.Array, "resize", stop)
        with pytest.raises(KeyboardInterrupt):
            written(out, time=days[1])
    with pytest.raises(FileError, match="still being written"):
        coder.open_scene(out)
    other, third = (tmp_path / f"{name}.zarr" for name in ("other", "third"))
    shutil.copytree(out, other)
    shutil.copytree(out, third)
    written(out, time=days[1])
    for path, day in ((other, days[2]), (third, days[0])):
        with pytest.warns(UserWarning, match="2026-05-02"):
            written(path, time=day)
    for path, count in ((out, 2), (other, 2), (third, 1)):
        assert main(["verify", str(path)]) == 0
        times = coder.open_scene(path).times
        assert times is not None
        assert len(times) == count


@pytest.mark.parametrize("time", [None, np.datetime64("2026-05-01")])
def test_a_disk_that_is_full_at_the_end_is_named_and_the_scene_goes_on(tmp_path, monkeypatch, time):
    record, out = scene_writer._record, tmp_path / "a.zarr"

    def full(group, state, *others):
        if state["state"] == "complete":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        record(group, state, *others)

    sources = {"attributes": {"geoemb:source_data": ["file:a.tif"]}, "time": time}
    with monkeypatch.context() as patched:
        patched.setattr(scene_writer, "_record", full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left") as error:
                written(out, **sources)
            assert error.value.filename == str(out)
    written(out, **sources)
    whole = written(tmp_path / "whole.zarr", **sources)
    for key in zarr_nodes.sizes(out) | zarr_nodes.sizes(whole):
        assert (out / key).read_bytes() == (whole / key).read_bytes(), key


def test_a_scene_that_is_repaired_always_has_the_copies_of_its_metadata(tmp_path, monkeypatch):
    """Whenever the writer is killed: nothing would restore them."""
    settings = {"attributes": {"geoemb:source_data": ["file:a.tif"]}}
    out = written(tmp_path / "a.zarr", **settings)
    (out / "valid/c/0/0").unlink()
    before = (out / "zarr.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(scene_writer, "_record", lambda *arguments: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            written(out, **settings)
    assert (out / "zarr.json").read_bytes() == before
    written(out, **settings)
    assert (out / "zarr.json").read_bytes() == before


def test_a_time_that_no_reader_would_take_is_refused_before_it_is_begun(tmp_path, monkeypatch):
    out = written(tmp_path / "t.zarr", time=np.datetime64("2026-05-01"))
    before = (out / "zarr.json").read_bytes()
    monkeypatch.setattr(zarr_nodes, "MOST_SHARDS", 7)  # a time has 4
    with pytest.raises(InputError, match=r"one more time.*more than 7 shards.*another place"):
        written(out, time=np.datetime64("2026-06-01"))
    assert (out / "zarr.json").read_bytes() == before


def test_a_new_time_without_a_cell_can_be_discarded(tmp_path):
    out = written(tmp_path / "t.zarr", time=np.datetime64("2026-05-01"))
    before = zarr_nodes.sizes(out)
    with writer(out, time=np.datetime64("2026-05-02")) as writing:
        for part in writing.missing():
            writing.write(part, np.full_like(Y[part], np.nan), np.zeros_like(COVERAGE[part]))
        assert writing.valid_count() == 0
        writing.discard()
    assert zarr_nodes.sizes(out) == before
    coder.open_scene(out)


def test_a_scene_without_a_part_that_is_written_is_begun_anew(tmp_path):
    out = tmp_path / "a.zarr"
    begin(out, parts=0, made={"model": "other"}, step={"files": ["cut short.tif"]})
    written(out)
    whole = written(tmp_path / "whole.zarr")
    assert (out / "zarr.json").read_bytes() == (whole / "zarr.json").read_bytes()


def test_encoding_again_does_not_pass_damage_off_as_complete(tmp_path):
    out = written(tmp_path / "a.zarr")
    first, second = (out / f"embedding/c/{place}/0" for place in ("0/1", "1/0"))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    written(out)  # it is complete, and nothing is written
    assert main(["verify", str(out)]) == 1
    first.unlink()
    with pytest.raises(FileError, match="is valid, and has no embedding"):
        coder.open_scene(out).at(GRID.x[48], GRID.y[8])
    written(out)  # what is lost is written again
    assert first.read_bytes() == kept
    assert main(["verify", str(out)]) == 0
    (out / "valid/c/0/1").unlink()
    first.unlink()
    with pytest.raises(FileError, match="valid/c/0/1 is lost"):
        coder.open_scene(out).read()
    with writer(out) as writing:
        (part,) = writing.missing()
        writing.write(part, Y[part] + 1, COVERAGE[part])
        with pytest.raises(FileError, match="embedding/c/0/1/0 does not hold what it held"):
            writing.finish()


@pytest.mark.parametrize("moved", ["attributes", "x", "overview"])
def test_a_scene_that_says_that_it_lies_elsewhere_is_not_good(tmp_path, moved, capsys):
    out = written(tmp_path / "a.zarr")
    group = zarr.open_group(out, mode="r+", use_consolidated=False)
    if moved == "x":
        group["x"][0] = 1.0  # type: ignore[index]
    else:
        one = group if moved == "attributes" else zarr.open_group(out / "overviews/2", mode="r+")
        one.attrs["spatial:transform"] = [160.0, 0.0, 1.0, 0.0, -160.0, 2.0]
    assert main(["verify", str(out)]) == 1
    assert "zarr.json" in capsys.readouterr().err or moved == "x"
