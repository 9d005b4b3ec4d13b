"""info, verify and decode of archives: what is lost, damaged or unfinished is named, never read."""

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from archive_cases import (
    BAD,
    CLASS_TOKEN_HAT,
    CODEC,
    COUNT,
    EMBEDDING_HAT,
    GRID,
    SHARD,
    Y,
    change,
    contents,
    created,
    filled,
    opened,
    written,
)
from coder_cases import own_lines
from folders import ROOT, TESTS
from zarr.core.sync import sync

from coder import CodecError, FileError, archive
from coder.archive import zarr_nodes
from coder.cli import main
from coder.errors import NoPermission

KEPT = TESTS / "kept/2026-11/archive.zarr"


def shards(path) -> list[Path]:
    return sorted(name for name in contents(path) if name.name != "zarr.json")


def test_a_whole_archive_is_good(run, whole, tmp_path):
    status, out, err = run("info", whole)
    assert (status, err) == (0, "")
    assert "\narchive: 37 images, 26 valid, 26 labelled; complete\n" in out
    assert "  image 10, image 10, is not valid: no image: 10.png\n" in out
    assert "  and 6 more: the array `error` says why\n" in out
    status, out, err = run("verify", whole)
    assert (status, err) == (0, "")
    assert "archive: 37 images, 26 valid, 26 labelled; complete\n" in out
    assert out.endswith("good: no damage\n")
    assert run("decode", whole)[0::2] == (0, "")
    decoded = {path.stem: np.load(path) for path in (tmp_path / "out").iterdir()}
    valid = decoded["valid"]
    assert sorted(decoded) == ["class_token", "embedding", "id", "label", "valid"]
    np.testing.assert_array_equal(np.flatnonzero(~valid), sorted(BAD))
    for name, expected in (("embedding", EMBEDDING_HAT), ("class_token", CLASS_TOKEN_HAT)):
        np.testing.assert_array_equal(decoded[name][valid], expected[valid])
        assert np.isnan(decoded[name][~valid]).all()
    np.testing.assert_array_equal(decoded["label"], np.where(valid, np.arange(COUNT), -1))
    assert list(decoded["id"]) == [f"image {i}" for i in range(COUNT)]


def test_every_part_that_is_lost_is_named(run, whole, tmp_path):
    # The third shard has no valid image: no floats and no labels. The fourth has no errors.
    assert len(shards(whole)) == 4 * 3 + 2 * 5 + 4
    copy = tmp_path / "a.zarr"
    for name in shards(whole):
        shutil.copytree(whole, copy)
        (copy / name).unlink()
        number = int(name.parts[2])
        last = min(8 * number + 8, COUNT) - 1
        message = f"{copy}: {name} is lost: images {8 * number} to {last}\n"
        for command in ("info", "verify", "decode") if number == 1 else ("verify",):
            status, out, err = run(command, copy)
            assert (status, err) == (1, message), name
            assert "good" not in out
        assert not (tmp_path / "out").exists()
        # No reader takes what is lost for an embedding.
        if name.parts[0] in ("embedding", "class_token"):
            assert np.isnan(opened(copy)[name.parts[0]][8 * number : last + 1]).all()
        shutil.rmtree(copy)


@pytest.mark.parametrize("name", ["class_token", "embedding", "error", "id", "label", "valid"])
def test_a_lost_array_is_named(name, run, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "a.zarr")
    for lose in ((tmp_path / "a.zarr" / name / "zarr.json").unlink, None):
        if lose is None:
            shutil.rmtree(tmp_path / "a.zarr" / name)
        else:
            lose()
        for command in ("info", "verify", "decode"):
            status, _, err = run(command, tmp_path / "a.zarr")
            assert status == 1
            assert f"a.zarr: {name}/zarr.json is lost, and with it the whole array\n" in err
            assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_lost_metadata_of_the_group_are_named(run, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "a.zarr")
    (tmp_path / "a.zarr/zarr.json").unlink()
    for command in ("info", "verify", "decode"):
        status, out, err = run(command, tmp_path / "a.zarr")
        assert (status, out) == (1, "")
        assert "without a Zarr array or group" in err
        assert "its own zarr.json is lost" in err


def test_damage_anywhere_is_named_with_its_file(run, whole, tmp_path):
    copy = tmp_path / "a.zarr"
    shutil.copytree(whole, copy)
    for name in shards(whole)[::4]:
        path, good = copy / name, (whole / name).read_bytes()
        bad = [good[:5], good + b"\0"]
        for bit in range(3, 8 * len(good), 8 * len(good) // 3):
            flipped = bytearray(good)
            flipped[bit // 8] ^= 1 << bit % 8
            bad.append(bytes(flipped))
        for data in bad:
            path.write_bytes(data)
            status, out, err = run("verify", copy)
            assert status == 1, name
            assert all(line.startswith(f"{path}: {name.parts[0]}[") for line in err.splitlines())
            assert f"{err.count(chr(10))} damaged chunks" in out or err.count("\n") == 1
        path.write_bytes(b"")
        assert run("verify", copy)[::2] == (1, f"{copy}: {name} is an empty file\n")
        path.write_bytes(bad[0])
        if name.parts[0] != "error":
            status, _, err = run("decode", copy, "--overwrite")
            assert status == 1
            assert err.startswith(f"{path}: {name.parts[0]}[")
            assert err.count("\n") == 1
            assert not list((tmp_path / "out").glob("*"))
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        path.write_bytes(good)
    assert run("verify", copy)[0] == 0


def test_an_embedding_that_is_marked_valid_and_is_not_there_is_damage(run, tmp_path):
    group = written(tmp_path / "a.zarr")
    group["embedding"][11] = np.nan
    # Of an archive with digests, it is another shard than the one that was finished.
    change(tmp_path / "a.zarr/zarr.json", lambda d: d["attributes"]["nec_archive"].pop("sha256"))
    for command in ("verify", "decode"):
        status, _, err = run(command, tmp_path / "a.zarr")
        assert status == 1
        assert err == (
            f"{tmp_path}/a.zarr/embedding/c/1/0/0/0: embedding[11:12, 0:3, 0:4, 0:3]: the image is "
            "marked valid, and its embedding is not stored\n"
        )


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_an_unfinished_archive_says_so(stop, run, tmp_path):
    written(tmp_path / "a.zarr", BAD, stop=stop)
    message = (
        "still being written, or its writer was stopped: "
        f"{stop} of 5 shards of `embedding` are there; run the writer again"
    )
    status, out, err = run("info", tmp_path / "a.zarr")
    assert (status, err) == (0, "")
    valid = 8 * stop - len([i for i in BAD if i < 8 * stop]) - 3 * (stop == 5)
    assert f"archive: 37 images, {valid} valid so far; {message}\n" in out
    status, out, err = run("verify", tmp_path / "a.zarr")
    assert (status, err) == (1, f"{tmp_path}/a.zarr: {message}\n")
    assert out.endswith("not finished\n")
    assert run("decode", tmp_path / "a.zarr") == (1, "", f"{tmp_path}/a.zarr: {message}\n")
    assert not (tmp_path / "out").exists()


DAMAGED = 200


def test_damage_is_one_line_for_each_chunk_and_nothing_else(tmp_path):
    """Of many chunks that are read at once: what is still being read ends quietly."""
    y = np.random.default_rng(0).laplace(size=(256, 13, 3)).astype(np.float32)
    with archive.Writer(tmp_path / "a.zarr", CODEC, 256, GRID) as writer:
        writer.write(slice(0, 256), y, [f"{i}" for i in range(256)])
        writer.finish()
    path = tmp_path / "a.zarr/embedding/c/0/0/0/0"
    data = bytearray(path.read_bytes())
    index = np.frombuffer(data[-16 * 256 - 4 : -4], "<u8").reshape(256, 2).astype(int)
    for start, size in index[:DAMAGED]:
        data[start + size - 1] ^= 1
    path.write_bytes(data)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def coder(*arguments):
        program = [sys.executable, "-m", "coder", *map(str, arguments)]
        done = subprocess.run(program, capture_output=True, text=True, env=environment)
        assert done.returncode == 1
        return own_lines(done.stderr)

    lines = coder("verify", tmp_path / "a.zarr")
    assert len(lines) == DAMAGED
    for i, line in enumerate(lines):
        where = f"{path}: embedding[{i}:{i + 1}, 0:3, 0:4, 0:3]"
        assert line.startswith(f"{where}: the blob's checksum is wrong")
    assert coder("decode", tmp_path / "a.zarr", "--out", tmp_path / "out") == lines[:1]
    assert not (tmp_path / "out").exists()  # though class_token could be decoded


def test_decode_looks_for_damage_only_in_the_row_of_shards_that_cannot_be_read(
    run, tmp_path, monkeypatch
):
    """What could be read is not read again to name what could not."""
    filled(tmp_path / "a.zarr")
    path = tmp_path / "a.zarr/embedding/c/3/0/0/0"
    data = bytearray(path.read_bytes())
    data[11] ^= 1  # of the first chunk
    path.write_bytes(data)
    parts, read = [], zarr_nodes.read

    def counting(array, *region):
        parts.extend(one[0].start for one in region)
        return read(array, *region)

    monkeypatch.setattr(zarr_nodes, "read", counting)
    status, _, err = run("decode", tmp_path / "a.zarr/embedding")  # alone, it has no checksums
    assert status == 1
    assert f"{path}: embedding[{3 * SHARD}:{3 * SHARD + 1}, " in err
    assert [parts.count(start) for start in range(0, 3 * SHARD, SHARD)] == [1, 1, 1]
    assert list((tmp_path / "out").glob("*")) == []


def test_a_read_that_fails_leaves_nothing_that_goes_on(tmp_path):
    filled(tmp_path / "a.zarr", shard=COUNT)
    path = tmp_path / "a.zarr/embedding/c/0/0/0/0"
    data = bytearray(path.read_bytes())
    data[11] ^= 1  # of the first chunk
    path.write_bytes(data)

    async def tasks() -> int:
        return len(asyncio.all_tasks())

    with pytest.raises(CodecError):
        zarr_nodes.read(opened(tmp_path / "a.zarr")["embedding"])
    assert sync(tasks()) == 1


def test_decode_replaces_nothing_and_never_writes_into_the_archive(run, whole, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "id.npy").write_bytes(b"old")
    status, _, err = run("decode", whole)
    assert (status, err) == (
        1,
        f"{out}/id.npy: exists: choose another output, or replace it with --overwrite\n",
    )
    assert sorted(p.name for p in out.iterdir()) == ["id.npy", "notes.txt"]
    assert run("decode", whole, "--overwrite")[0] == 0
    assert np.load(out / "id.npy").shape == (COUNT,)
    assert (out / "notes.txt").read_text() == "mine"
    before = contents(whole)
    (tmp_path / "link").symlink_to(whole)
    for place in (whole, whole / "new", whole / "embedding", tmp_path / "link/new"):
        assert main(["decode", str(whole), "--out", str(place), "--overwrite"]) == 1
    assert contents(whole) == before
    assert main(["decode", str(whole), "--out", str(out / "notes.txt")]) == 1
    assert main(["decode", str(whole), "--out", str(tmp_path / "no/out")]) == 1


def test_a_folder_of_archives_names_them(run, tmp_path):
    (tmp_path / "many/other").mkdir(parents=True)
    for name in ("a.zarr", "b.zarr"):
        created(tmp_path / "many" / name, CODEC, 4, GRID)
    for command in ("info", "verify", "decode"):
        status, out, err = run(command, tmp_path / "many")
        assert (status, out) == (1, "")
        assert "without a Zarr array or group; it holds a.zarr, b.zarr: give one" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["embedding", "class_token", "id", "label", "valid", "error"])
def test_an_array_of_another_archive_is_named(name, tmp_path, capsys):
    """Each array is sound, but they do not belong together."""
    of_images(tmp_path / "a", COUNT)
    of_images(tmp_path / "b", COUNT - 9)
    shutil.rmtree(tmp_path / "a" / name)
    shutil.copytree(tmp_path / "b" / name, tmp_path / "a" / name)
    assert main(["verify", str(tmp_path / "a")]) == 1
    assert "one is of another archive" in capsys.readouterr().err
    assert main(["decode", str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    with pytest.raises(FileError, match="one is of another archive"):
        archive.open_archive(tmp_path / "a")


def test_a_copy_that_was_put_together_elsewhere_must_be_finished_again(tmp_path, capsys):
    of_images(tmp_path / "a", COUNT)
    data = xr.open_zarr(tmp_path / "a", consolidated=False)
    both = xr.concat([data, data], "image").load()
    both.to_zarr(tmp_path / "both", consolidated=False, zarr_format=3)
    with pytest.raises(FileError, match=r"coder\.archive\.finish"):
        archive.open_archive(tmp_path / "both")
    assert main(["verify", str(tmp_path / "both")]) == 1
    assert "coder.archive.finish" in capsys.readouterr().err


def test_a_part_of_an_archive_is_not_called_damaged(tmp_path, capsys):
    of_images(tmp_path / "a", COUNT)
    data = xr.open_zarr(tmp_path / "a", consolidated=False).isel(image=slice(0, SHARD)).load()
    data.to_zarr(tmp_path / "part", consolidated=False, zarr_format=3)
    with pytest.raises(FileError, match=r"1 shards, .* lists 5: it is a part of an archive, or"):
        archive.open_archive(tmp_path / "part")
    assert main(["verify", str(tmp_path / "part")]) == 1
    assert "it is a part of an archive" in capsys.readouterr().err
    archive.finish(zarr.open_group(tmp_path / "part", mode="r+"))
    assert main(["verify", str(tmp_path / "part")]) == 0


def of_images(path, count):
    with archive.Writer(path, CODEC, count, GRID, shard=SHARD) as writer:
        for part in writer.missing():
            ids = [f"image {i}" for i in range(part.start, part.stop)]
            writer.write(part, Y[part], ids)
        writer.finish()


# Before a command: root's right to read everything is dropped.
UNPRIVILEGED = (
    *("setpriv", "--bounding-set=-dac_override,-dac_read_search"),
    "--inh-caps=-dac_override,-dac_read_search",
)


def test_what_may_not_be_read_is_not_called_lost(whole, tmp_path):
    path = tmp_path / "a.zarr"
    shutil.copytree(whole, path)
    (path / "embedding/c").chmod(0)
    before = UNPRIVILEGED if os.geteuid() == 0 else ()
    if before and not shutil.which(before[0]):
        pytest.skip("root may read everything, and setpriv is not here")
    commands = [
        ["-m", "coder", "verify", path],
        ["-m", "coder", "info", path],
        ["-m", "coder", "decode", path, "--out", tmp_path / "out"],
    ]
    if importlib.util.find_spec("sklearn"):  # which the base install lacks
        commands.append([ROOT / "examples/probe.py", path])
    try:
        for command in commands:
            done = subprocess.run(
                [*before, sys.executable, *map(str, command)], capture_output=True, text=True
            )
            assert done.returncode == 1
            assert re.search(r"a\.zarr(: |/)embedding/c:? cannot be read: no perm", done.stderr)
            for word in ("lost", "again", "not whole", "Traceback"):
                assert word not in done.stderr + done.stdout.replace("lost or unreadable", "")
    finally:
        (path / "embedding/c").chmod(0o755)


@pytest.mark.parametrize("name", ["embedding/c/0/0/0/0", "id/c/1", "label/zarr.json", "zarr.json"])
def test_a_file_that_may_not_be_read_is_named(name, run, whole, tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    shutil.copytree(whole, path)
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda p, *rest, **more: access(p, *rest, **more) and Path(p) != path / name
    )
    for command in ("verify", "info", "decode"):
        status, out, err = run(command, path)
        assert status == 1
        assert re.search(rf"{name}:? cannot be read: no permission", err)
        assert "lost" not in out.replace("lost or unreadable", "") + err
    # What cannot be opened is an error of its own.
    error = FileError if "label" in name else NoPermission
    with pytest.raises(error, match="no permission"):
        archive.open_archive(path)
