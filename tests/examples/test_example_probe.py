"""examples/probe.py: learns from what is labelled and valid, and says why it cannot."""

import runpy
import shutil
import sys

import numpy as np
import pytest
import zarr
from archive_cases import CODEC, COUNT, GRID, SHARD, Y, written
from folders import ROOT, TESTS

from coder import FileError, InputError, archive

EXAMPLE = ROOT / "examples" / "probe.py"


@pytest.fixture
def run(capsys, monkeypatch):
    def run(path) -> str:
        monkeypatch.setattr(sys, "argv", ["probe.py", str(path)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return capsys.readouterr().out

    return run


def labelled(path, labels, bad=(), count=COUNT) -> None:
    with archive.Writer(path, CODEC, count, GRID, shard=SHARD) as writer:
        for part in writer.missing():
            numbers = range(part.start, part.stop)
            errors = ["no" if i in bad else None for i in numbers]
            y = Y[[i for i in numbers if i not in bad]].copy()
            # A class shows in every token.
            y[..., 0] += 9 * labels[[i for i in numbers if i not in bad], None]
            writer.write(part, y, [f"{i}" for i in numbers], labels[part], errors)
        writer.finish()


def test_images_without_label_or_embedding_are_left_out(run, tmp_path):
    labels = np.arange(COUNT) % 3
    labelled(tmp_path / "all", labels)
    assert run(tmp_path / "all").startswith("37 images, 3 classes: ")
    labels[10:20] = -1
    labelled(tmp_path / "some", labels, bad={3, 10, 30})
    first, second = run(tmp_path / "some").splitlines()
    assert first == "12 images are left out: they have no label, or are not valid"
    assert second.startswith("25 images, 3 classes: ")


@pytest.mark.parametrize(
    ("labels", "count", "message"),
    [
        (np.full(COUNT, -1), COUNT, "no labels, in 0 images"),
        (np.zeros(COUNT, int), COUNT, "one class only, in 37 images"),
        (np.arange(COUNT), 4, "4 labelled images are too few"),
        (np.arange(COUNT) % 5 == 4, 5, "5 labelled images are too few"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(labels, count, message, run, tmp_path):
    labelled(tmp_path / "a", labels.astype(int), count=count)
    with pytest.raises(SystemExit, match=f"a: {message}"):
        run(tmp_path / "a")


def test_what_is_no_whole_archive_is_refused_in_one_line(run, tmp_path):
    written(tmp_path / "part", stop=1)
    written(tmp_path / "damaged")
    path = tmp_path / "damaged/embedding/c/0/0/0/0"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "plain").mkdir()
    zarr.create_group(tmp_path / "scenes").create_array("scene", data=np.ones((4, 4, 3)))
    for name, message in (
        ("none", "no such Zarr group or array"),
        ("plain", "without a Zarr array or group"),
        ("scenes", "not an archive of images"),
        ("part", "1 of 5 shards"),
        ("damaged", "embedding is damaged .*nec verify"),
    ):
        with pytest.raises(SystemExit, match=f"error: {tmp_path}/{name}: .*{message}") as caught:
            run(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_an_archive_of_an_earlier_version_that_lost_a_shard_is_refused(run, tmp_path):
    """It reads as zeros there, of which a probe would learn."""
    kept = TESTS / "kept/2026-11/archive.zarr"
    shutil.copytree(kept, tmp_path / "a.zarr")
    (tmp_path / "a.zarr/embedding/c/1/0/0/0").unlink()
    with pytest.raises(SystemExit, match=r"error: .*embedding/c/1/0/0/0 is not stored"):
        run(tmp_path / "a.zarr")


def test_embeddings_in_other_places_are_refused(run, tmp_path):
    """Of which a probe would learn with the labels of others."""
    labelled(tmp_path / "a", np.arange(COUNT) % 3)
    one, other = (tmp_path / f"a/embedding/c/{i}/0/0/0" for i in (0, 1))
    one.rename(tmp_path / "moved")
    other.rename(one)
    (tmp_path / "moved").rename(other)
    with pytest.raises(SystemExit, match=r"embedding/c/0/0/0/0 holds what embedding/c/1/0/0/0 he"):
        run(tmp_path / "a")


def test_reading_an_archive_gives_nan_where_it_is_not_valid(tmp_path):
    group = written(tmp_path / "a", {3})
    for name in ("embedding", "class_token"):
        values = archive.read_array(group, name).reshape(COUNT, -1)
        assert list(np.flatnonzero(np.isnan(values).all(1))) == [3]
    assert archive.read_array(group, "label")[3] == -1
    with pytest.raises(InputError):
        archive.labelled(written(tmp_path / "b", set(range(1, COUNT))))
    path = tmp_path / "a/valid/c/0"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileError, match="a: valid is damaged"):
        archive.labelled(group)
