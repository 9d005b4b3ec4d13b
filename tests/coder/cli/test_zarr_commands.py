"""info, verify and decode: archives of an earlier version, other Zarr stores, damaged metadata."""

import errno
import os
import shutil
from typing import Any

import numpy as np
import pytest
import zarr
from archive_cases import (
    GRID,
    Y,
    change,
    filled,
    opened,
)
from folders import TESTS

from coder import FileError, archive
from coder.cli import main
from coder.embedding_files import open_embeddings

KEPT = TESTS / "kept/2026-11/archive.zarr"


def test_an_archive_of_an_earlier_version_is_read_and_what_is_unknown_is_said(run, tmp_path):
    line = "archive: 10 images, valid unknown, 10 labelled; completeness unknown: written by an ear"
    for command in ("info", "verify", "decode"):
        status, out, err = run(command, KEPT)
        assert (status, err) == (0, "")
        assert line in out
    assert "embedding" in archive.open_archive(KEPT)
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == [
        "class_token", "embedding", "id", "label"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["embedding/c/1/0/0/0", "class_token/c/2/0", "id/c/0"])
def test_a_shard_that_an_archive_of_an_earlier_version_lacks_is_named(name, run, tmp_path):
    """It reads as the fill value, which is 0 there."""
    copy = tmp_path / "a.zarr"
    shutil.copytree(KEPT, copy)
    (copy / name).unlink()
    array = name.split("/")[0]
    number = int(name.split("/")[2])
    images = f"images {4 * number} to {min(4 * number + 4, 10) - 1}"
    message = f"{name} is not stored (lost, or never written): {images}"
    for command in ("info", "verify", "decode"):
        status, out, err = run(command, copy)
        assert (status, err) == (1, f"{copy}: {message}\n")
        assert "good" not in out
        if command != "decode":
            assert "archive: 10 images, valid unknown, 10 labelled; not whole\n" in out
        if command == "verify":
            [line] = [line for line in out.splitlines() if line.startswith(f"{array}: ")]
            assert line.endswith("read, 1 of 3 shards are not stored (lost, or never written)")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileError, match="is not stored") as caught:
        archive.open_archive(copy)
    assert str(caught.value).startswith(f"{copy}: {message}: copy the archive again")


@pytest.mark.parametrize("name", ["embedding", "id", "label"])
def test_an_array_that_an_archive_of_an_earlier_version_lost_is_named(name, run, tmp_path):
    copy = tmp_path / "a.zarr"
    shutil.copytree(KEPT, copy)
    for lose in ((copy / name / "zarr.json").unlink, lambda: shutil.rmtree(copy / name)):
        lose()
        for command in ("info", "verify", "decode"):
            status, out, err = run(command, copy)
            line = f"{copy}: {name}/zarr.json is lost, and with it the whole array\n"
            assert (status, err) == (1, line)
            assert "good" not in out
        with pytest.raises(FileError, match=f"{name}/zarr.json is lost"):
            archive.open_archive(copy)


def test_what_an_archive_of_an_earlier_version_may_have_lost_is_unknown(run, tmp_path):
    """Whether it had class tokens; and, without any embedding, whether it is an archive at all."""
    copy = tmp_path / "a.zarr"
    shutil.copytree(KEPT, copy)
    (copy / "class_token/zarr.json").unlink()
    assert run("verify", copy)[2] == (
        f"{copy}: class_token/zarr.json is lost, and with it the whole array\n"
    )
    shutil.rmtree(copy / "class_token")
    status, out, err = run("verify", copy)
    assert (status, err) == (0, "")
    assert "completeness unknown: written by an earlier version\n" in out
    (copy / "embedding/zarr.json").unlink()
    assert run("verify", copy)[2] == (
        f"{copy}: embedding/zarr.json is lost, and with it the whole array\n"
    )
    shutil.rmtree(copy / "embedding")
    status, out, err = run("verify", copy)
    assert (status, err) == (0, "")
    assert "no archive, or one that lost its embeddings: completeness unknown" in out
    with pytest.raises(FileError, match="not an archive of images"):
        archive.open_archive(copy)


@pytest.mark.parametrize("name", ["embedding", "valid", "error"])
def test_an_archive_that_lost_its_record_and_an_array_is_no_other_store(name, run, tmp_path):
    filled(tmp_path / "a.zarr")
    change(tmp_path / "a.zarr/zarr.json", lambda d: d["attributes"].pop("nec_archive"))
    shutil.rmtree(tmp_path / "a.zarr" / name)
    for command in ("info", "verify", "decode"):
        status, _, err = run(command, tmp_path / "a.zarr")
        assert status == 1
        assert "its attribute nec_archive is lost: copy the archive again" in err


def test_an_archive_of_an_earlier_version_may_have_no_labels(run, tmp_path):
    """zarr stores no shard whose labels are all -1, the fill value."""
    copy = tmp_path / "a.zarr"
    shutil.copytree(KEPT, copy)
    opened(copy, mode="r+")["label"][:] = -1
    assert not list((copy / "label/c").glob("*"))
    for command in ("info", "verify", "decode"):
        assert run(command, copy)[::2] == (0, "")
    assert archive.open_archive(copy)


def store_of_other_arrays(path) -> dict[str, np.ndarray]:
    arrays = {
        "complex": np.arange(6).reshape(2, 3) * 1j,
        "scalar": np.array(5.0),
        "empty": np.zeros((0, 4), np.float32),
        "long": np.arange(10),
        "sub/below": np.ones((3, 3)),
    }
    group = zarr.create_group(path)
    for name, values in arrays.items():
        group.create_array(name, data=values)
    text = np.array([["a", "bb"], ["", "łódź"]])
    group.create_array("text", shape=(2, 2), dtype=str)[:] = text
    return {**arrays, "text": text}


def test_any_zarr_store_is_read_as_it_is(run, tmp_path):
    expected = store_of_other_arrays(tmp_path / "a.zarr")
    for command in ("info", "verify", "decode"):
        status, out, err = run(command, tmp_path / "a.zarr")
        assert (status, err) == (0, "")
        assert "holds no array of the nec codec" in out
        assert "archive:" not in out
    for name, values in expected.items():
        read = np.load(tmp_path / f"out/{name}.npy")
        np.testing.assert_array_equal(read, values)
        assert read.dtype == values.dtype


@pytest.mark.parametrize("kind", ["array", "group"])
def test_zarr_of_version_2_is_read(kind, run, tmp_path):
    if kind == "array":
        zarr.create_array(tmp_path / "a.zarr", data=np.arange(10), zarr_format=2)
    else:
        group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
        group.create_array("a", data=np.arange(10))
    for command in ("info", "verify", "decode"):
        assert run(command, tmp_path / "a.zarr")[::2] == (0, "")
    np.testing.assert_array_equal(np.load(tmp_path / "out/a.npy"), np.arange(10))


def codec_of(data: dict[str, Any], text: str) -> None:
    data["codecs"][0]["configuration"]["codecs"][0]["configuration"]["codec"] = text


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("embedding/", lambda d: codec_of(d, "!"), "embedding cannot be opened: the codec in"),
        ("embedding/", lambda d: codec_of(d, "eJwDAAAAAAE="), "embedding cannot be opened: dam"),
        ("label/", lambda d: d["codecs"].append({"name": "x.y"}), "label cannot be opened: "),
        ("id/", lambda d: d.pop("shape"), "id cannot be opened: "),
        ("", lambda d: d.update(node_type="x"), "its Zarr metadata are damaged: "),
        (
            "",
            lambda d: d["attributes"].update(nec_archive={"version": 2}),
            "an archive of version 2, this reads 1: update nec-jax",
        ),
        (
            "",
            lambda d: d["attributes"].update(nec_archive=None),
            "its attribute nec_archive is damaged",
        ),
        (
            "",
            lambda d: d["attributes"]["nec_archive"].update(shards={"id": [[3, 1]]}),
            "its attribute nec_archive is damaged: shards 3 to 1",
        ),
        (
            "",
            lambda d: d["attributes"].update(
                nec_archive={"version": 1, "state": "complete", "shards": {"id": [[0, 1 << 50]]}}
            ),
            "id has 5 shards, and the attribute nec_archive lists 1125899906842624: it is a part",
        ),
        ("", lambda d: d["attributes"].pop("nec_archive"), "its attribute nec_archive is lost"),
    ],
)
def test_damaged_metadata_say_whose_they_are(name, edit, message, run, tmp_path):
    filled(tmp_path / "a.zarr")
    change(tmp_path / f"a.zarr/{name}zarr.json", edit)
    for command in ("info", "verify", "decode"):
        status, _, err = run(command, tmp_path / "a.zarr")
        assert status == 1
        assert err.startswith(f"{tmp_path}/a.zarr: {message}")
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_array_that_may_not_be_read_is_no_array_with_lost_chunks(run, tmp_path, monkeypatch):
    np.save(tmp_path / "y.npy", Y[:, 1:].reshape(len(Y), *GRID, -1))
    assert not main(["encode", str(tmp_path / "y.npy"), "--out", str(tmp_path / "y.zarr")])
    scandir = os.scandir

    def refused(folder):
        if str(folder) == str(tmp_path / "y.zarr/c"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refused)
    status, out, err = run("info", tmp_path / "y.zarr")
    assert status == 1
    assert "y.zarr: c cannot be read: no permission" in err
    assert "  unknown which of " in out
    with pytest.raises(FileError, match="no permission"):
        open_embeddings(tmp_path / "y.zarr")


@pytest.mark.parametrize("kind", ["array", "group", "archive"])
def test_an_array_of_any_claimed_size_exhausts_nothing(kind, run, tmp_path):
    """Its places are counted and not listed, and only those that are stored are looked at."""
    path = tmp_path / "a.zarr"
    if kind == "archive":
        filled(path)
        change(path / "label/zarr.json", lambda d: d.update(shape=[10**15]))
    else:
        node: Any = path if kind == "array" else zarr.create_group(path).store_path / "a"
        zarr.create_array(node, data=np.ones((4, 4)), chunks=(2, 2))
        inner = path if kind == "array" else path / "a"
        change(inner / "zarr.json", lambda d: d.update(shape=[10**9, 10**9]))
    for command in ("info", "verify", "decode"):
        status, _, err = run(command, path)
        assert status == 1
        assert "and at most 2,097,152 can be read" in err


def test_shards_of_very_many_chunks_are_refused(run, tmp_path):
    sides: dict[str, Any] = {"shape": (8, 8), "shards": (8, 8), "chunks": (2, 2)}
    zarr.create_array(tmp_path / "a.zarr", dtype="f4", **sides)[:] = 1
    assert run("verify", tmp_path / "a.zarr")[0] == 0
    many = [10**6, 10**6]

    def claim(metadata: dict[str, Any]) -> None:
        metadata["shape"] = metadata["chunk_grid"]["configuration"]["chunk_shape"] = many

    change(tmp_path / "a.zarr/zarr.json", claim)
    status, _, err = run("verify", tmp_path / "a.zarr")
    assert status == 1
    assert "have 250,000,000,000 chunks each" in err
