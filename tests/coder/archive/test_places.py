"""Shards in another's place: every array's, for every reader, and whoever goes on with them."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from archive_cases import (
    CODEC,
    COUNT,
    EMBEDDING,
    GRID,
    SHARD,
    Y,
    contents,
    created,
    filled,
    opened,
    written,
)
from folders import KEPT
from zarr.storage import LocalStore, MemoryStore

import coder
from coder import CodecError, FileError, archive
from coder.cli import main

BAD = {0, 10, *range(16, 24)}  # no two shards are alike; the third has none that is valid
NAMES = ["class_token", "embedding", "error", "id", "label", "valid"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "a.zarr"
    written(path, BAD)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "a.zarr"))


def shard(path, name, number) -> Path:
    return (
        path / name / "c" / str(number) / {"embedding": "0/0/0", "class_token": "0"}.get(name, "")
    )


def exchange(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    assert first != second
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("name", NAMES)
def test_shards_that_changed_places_are_named(name, copy, capsys, tmp_path):
    exchange(shard(copy, name, 0), shard(copy, name, 1))
    assert main(["verify", str(copy)]) == 1
    out, err = capsys.readouterr()
    keys = [shard(Path(), name, i).as_posix() for i in (0, 1)]
    for key, other, images, theirs in (
        (*keys, "0 to 7", "8 to 15"),
        (*keys[::-1], "8 to 15", "0 to 7"),
    ):
        assert (
            f"{copy}: {key} holds what {other} held when the archive was finished, images {theirs} "
            f"in place of images {images}: copy the archive again; if it was written on purpose, "
        ) in err
    # Where `valid` is another, images cannot be counted.
    assert "; not whole\n" in out or "not whole; images cannot be counted" in out
    assert "2 shards that are not those that were finished" in out
    assert "good" not in out
    # Of `valid`, embeddings that are not stored are named too.
    assert len(err.splitlines()) == 2 or name == "valid"
    with pytest.raises(FileError, match=f"a.zarr: {keys[0]} holds what {keys[1]} held"):
        archive.read_array(opened(copy), name)
    # The text of errors stays in the archive.
    if name != "error":
        assert main(["decode", str(copy), "--out", str(tmp_path / "out")]) == 1
        assert str(copy) in capsys.readouterr().err
        assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", ["class_token", "embedding"])
def test_a_shard_where_there_was_none_is_named(name, copy, capsys):
    """No image of it is valid; a reader who does not look at `valid` would read another's."""
    target = shard(copy, name, 2)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(shard(copy, name, 1), target)
    assert main(["verify", str(copy)]) == 1
    key = target.relative_to(copy).as_posix()
    assert f"{key} holds what " in capsys.readouterr().err


def test_what_is_written_again_is_named_until_the_archive_is_finished_again(copy, capsys):
    group = opened(copy, mode="r+")
    group["label"][3] = 99
    assert main(["verify", str(copy)]) == 1
    assert (
        "label/c/0 does not hold what it held when the archive was finished, images 0 to 7: copy"
        in (capsys.readouterr().err)
    )
    with pytest.raises(FileError, match=r"call coder\.archive\.finish"):
        archive.labelled(group)
    archive.finish(group)
    assert main(["verify", str(copy)]) == 0
    assert archive.read_array(group, "label")[3] == 99


def test_the_digests_are_those_that_the_format_says(copy, tmp_path):
    """docs/format.md, section 9: of the stored bytes of each shard, in order."""
    filled(tmp_path / "b.zarr")
    for path in (copy, tmp_path / "b.zarr"):
        state = opened(path).attrs["nec_archive"]
        for name in NAMES:
            numbers = [n for first, end in state["shards"][name] for n in range(first, end)]
            stored = [shard(path, name, n).read_bytes() for n in numbers]
            digests = "".join(hashlib.sha256(data).hexdigest()[:8] for data in stored)
            assert state["sha256"][name] == digests
    assert opened(copy).attrs["nec_archive"]["shards"]["embedding"] == [[0, 2], [3, 5]]


@pytest.mark.parametrize("store", [lambda path: MemoryStore(), LocalStore])
def test_writers_of_any_order_leave_the_same_digests(store, tmp_path):
    def state(order):
        group = created(place := store(tmp_path / str(len(order))), CODEC, COUNT, GRID, shard=SHARD)
        for start in order:
            part = slice(start, min(start + SHARD, COUNT))
            other = opened(place, mode="r+")
            other["embedding"][part], other["class_token"][part] = EMBEDDING[part], Y[part, 0]
            other["valid"][part] = True
        archive.finish(group)
        return opened(place).attrs["nec_archive"]

    starts = list(range(0, COUNT, SHARD))
    assert state(starts) == state([*starts[::-1], 0])


@pytest.mark.parametrize("name", NAMES)
def test_a_writer_does_not_take_them_for_right(name, copy):
    before = contents(copy)
    exchange(shard(copy, name, 0), shard(copy, name, 1))
    exchanged = contents(copy)
    message = f"{name}/c/0.* holds what .* delete {name}/c/0.*, and this writer writes it again"
    with archive.Writer(copy, CODEC, COUNT, GRID, shard=SHARD) as writer:
        assert writer.missing() == []
        with pytest.raises(FileError, match=message):
            writer.finish()
        ids = [f"image {i}" for i in range(32, COUNT)]
        with pytest.raises(FileError, match=message):
            writer.write(slice(32, COUNT), Y[32:], ids)
    assert contents(copy) == exchanged
    for number in (0, 1):
        shard(copy, name, number).unlink()
    written(copy, BAD)
    assert contents(copy) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_writer_does_not_finish_what_lost_a_shard(name, copy):
    shard(copy, name, 1).unlink()
    with (
        pytest.raises(FileError, match=f"{name}/c/1.* is lost: images 8 to 15"),
        archive.Writer(copy, CODEC, COUNT, GRID, shard=SHARD) as writer,
    ):
        writer.finish()


@pytest.mark.parametrize("name", NAMES)
def test_what_else_was_lost_is_not_forgotten_when_a_writer_is_stopped(name, copy):
    """It drops the record to write the first; from then on, `valid` must say what is missing."""
    before = contents(copy)
    shard(copy, name, 1).unlink()
    shard(copy, "embedding", 4).unlink()
    with archive.Writer(copy, CODEC, COUNT, GRID, shard=SHARD) as writer:
        assert writer.missing() == [slice(8, 16), slice(32, COUNT)]
        ids = [f"image {i}" for i in range(32, COUNT)]
        writer.write(slice(32, COUNT), Y[32:], ids, np.arange(32, COUNT))
    with archive.Writer(copy, CODEC, COUNT, GRID, shard=SHARD) as writer:
        assert writer.missing() == [slice(8, 16)]
    written(copy, BAD)
    assert contents(copy) == before


class Killed(BaseException):
    pass


def small(path, bad, **settings) -> None:
    """Two shards of two images."""
    with archive.Writer(path, CODEC, 4, GRID, shard=2, **settings) as writer:
        for part in writer.missing():
            numbers = range(part.start, part.stop)
            good = [i for i in numbers if i not in bad]
            errors = ["no image" if i in bad else None for i in numbers]
            writer.write(part, Y[good], [f"image {i}" for i in numbers], numbers, errors)
        writer.finish()


@pytest.mark.parametrize("retry", [False, True])
def test_a_writer_that_ends_at_any_write_goes_on_to_the_same_archive(retry, monkeypatch, tmp_path):
    """A new one, or one that reads again what could not be read; its digests are the same too."""
    small(tmp_path / "whole", {2})
    put = LocalStore.set
    left = 0

    async def put_or_end(self, *arguments, **settings):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return await put(self, *arguments, **settings)

    monkeypatch.setattr(LocalStore, "set", put_or_end)
    path, writes, ended = tmp_path / "0", 0, False
    while not ended:
        path = tmp_path / str(writes)
        left = 99
        if retry:
            small(path, {0, 1, 2, 3})
        left = writes
        try:
            small(path, {2}, retry=retry)
        except Killed:
            left = 99
            small(path, {2}, retry=retry)
            assert contents(path) == contents(tmp_path / "whole"), writes
            writes += 1
        else:
            ended = True
    assert writes > 10
    assert "sha256" in opened(path).attrs["nec_archive"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda sums: sums.update(id="0123"),
        lambda sums: sums.update(id=sums["id"].upper().replace("0", "g")),
        lambda sums: sums.update(id=7),
        lambda sums: sums.pop("id"),
        lambda sums: sums.update(more=""),
    ],
)
def test_damaged_digests_are_damaged_metadata(edit, copy, capsys):
    data = json.loads((copy / "zarr.json").read_text())
    edit(data["attributes"]["nec_archive"]["sha256"])
    (copy / "zarr.json").write_text(json.dumps(data))
    assert main(["verify", str(copy)]) == 1
    assert "its attribute nec_archive is damaged" in capsys.readouterr().err
    with pytest.raises(CodecError, match="nec_archive is damaged"):
        archive.read_array(opened(copy), "id")


def test_of_an_archive_that_was_finished_without_them_it_is_unknown(tmp_path, capsys):
    shutil.copytree(KEPT / "2026-11-valid/archive.zarr", tmp_path / "a.zarr")
    unknown = "complete; whether each shard is in its place is unknown: finished by an earlier ver"
    for command in ("info", "verify"):
        assert main([command, str(tmp_path / "a.zarr")]) == 0
        assert unknown in capsys.readouterr().out
    group = archive.open_archive(tmp_path / "a.zarr")
    assert len(archive.read_array(group, "embedding")) == 10
    # A writer that writes nothing does not say that it knows.
    before = contents(tmp_path / "a.zarr")
    codec = coder.load(KEPT / "2026-11-valid/codec.safetensors")
    with archive.Writer(
        tmp_path / "a.zarr", codec.at(codec.num_qualities - 1), 10, (2, 2), shard=4
    ) as writer:
        assert writer.missing() == []
        writer.finish()
    assert contents(tmp_path / "a.zarr") == before
    archive.finish(zarr.open_group(tmp_path / "a.zarr", mode="r+"))
    assert main(["verify", str(tmp_path / "a.zarr")]) == 0
    assert unknown not in capsys.readouterr().out
    after = contents(tmp_path / "a.zarr")
    assert {name for name in after if after[name] != before[name]} == {Path("zarr.json")}
