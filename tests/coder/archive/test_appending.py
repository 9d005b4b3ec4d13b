"""`append`: images are added to an archive in place, whatever is interrupted."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import transform_cases
import zarr
from archive_cases import contents
from zarr.storage import LocalStore

from coder import FileError, InputError, OutputError, archive
from coder.archive.appending import append, undo_append
from coder.archive.copying import copy
from coder.cli import main as command

WHOLE = transform_cases.ladder(True)
GRID = transform_cases.GRID
SHARD, QUALITY = 4, 6
Y = transform_cases.embeddings(True, 40)
COLUMNS = {"cloud": "float64", "time": "datetime64[us]", "place": str}


def made(path, numbers, *, bad=(), classes=("sea", "land"), columns=COLUMNS, more=None, quality=6):
    """An archive of the images of these numbers; those of `bad` have no embedding."""
    attributes = {"quality": quality, "model": "m", **(more or {})}
    attributes |= {"classes": list(classes)} if classes else {}
    numbers, count = list(numbers), len(numbers)
    settings = {"shard": SHARD, "attributes": attributes, "columns": columns}
    with archive.Writer(path, WHOLE.at(quality), count, GRID, **settings) as writer:
        for part in writer.missing():
            own = numbers[part]
            values = {
                "cloud": [i / 8 for i in own],
                "time": [np.datetime64(i, "us") for i in own],
                "place": [f"place {i}" for i in own],
            }
            writer.write(
                part,
                Y[[i for i in own if i not in bad]],
                [f"image {i}" for i in own],
                [i % len(classes) if classes else -1 for i in own],
                ["no image" if i in bad else None for i in own],
                {name: values[name] for name in columns},
            )
        writer.finish()
    return path


def everything(path):
    """All that an archive's arrays hold, by name."""
    group = archive.open_archive(path)
    names = ["embedding", "class_token", "id", "label", "valid", "error"]
    return {
        name: archive.read_array(group, name).tolist()
        for name in [*names, *archive.columns_of(group)]
    }


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        values, others = np.array(one[name]), np.array(two[name])
        if name == "class_token":  # those of a chunk are decoded by one product, of its own shape
            np.testing.assert_allclose(values, others, rtol=2e-5, atol=2e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(values, others, name)


def is_shard_below(name, number):
    """Whether a file holds a shard before one of this number."""
    return name.parts[1:2] == ("c",) and int(name.parts[2]) < number


@pytest.mark.parametrize(("first", "added"), [(8, 1), (8, 13), (11, 1), (11, 3), (11, 13)])
def test_it_is_what_joining_gives(tmp_path, first, added):
    one = made(tmp_path / "archive.zarr", range(first), bad={2, first - 1})
    two = made(tmp_path / "more.zarr", range(first, first + added), bad={first})
    copy([one, two], tmp_path / "joined.zarr", WHOLE, shard=SHARD)
    before = contents(one)
    assert append(one, [two]) == (first + added, added, 1)
    assert_same(everything(one), everything(tmp_path / "joined.zarr"))
    assert command(["verify", str(one)]) == 0
    after = contents(one)
    kept = [name for name in before if is_shard_below(name, first // SHARD)]
    assert len(kept) >= first // SHARD * 8  # arrays; `error` only if there are some
    assert all(after[name] == before[name] for name in kept)
    assert not [name for name in tmp_path.iterdir() if name.name.startswith(".")]


@pytest.mark.parametrize(("bad", "other"), [({2, 10, 11}, {13}), (set(), set(range(12, 17)))])
def test_images_without_embeddings_stay_so(tmp_path, bad, other):
    one = made(tmp_path / "archive.zarr", range(11), bad=bad)
    append(one, [made(tmp_path / "more.zarr", range(11, 21), bad=bad | other)])
    found = everything(one)
    assert [i for i, valid in enumerate(found["valid"]) if not valid] == sorted(bad | other)
    assert {i for i, error in enumerate(found["error"]) if error} == bad | other
    assert np.isnan(found["embedding"]).all((1, 2, 3)).tolist() == [not v for v in found["valid"]]


def damage(file):
    """Change a byte."""
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)


class Killed(Exception):
    """An interruption."""


def killed_at(monkeypatch, call):
    """Let one write of a store, and all later ones, fail."""
    done, write = 0, LocalStore.set

    async def written(self, key, value):
        nonlocal done
        done += 1
        if done > call:
            raise Killed
        await write(self, key, value)

    monkeypatch.setattr(LocalStore, "set", written)


def test_interrupted_anywhere_it_keeps_the_old_images_and_goes_on(tmp_path, monkeypatch):
    made(tmp_path / "archive.zarr", range(6), columns={})
    more = made(tmp_path / "more.zarr", range(6, 9), bad={7}, columns={})
    other = made(tmp_path / "other.zarr", range(20, 22), columns={})
    before = everything(tmp_path / "archive.zarr")
    expected = shutil.copytree(tmp_path / "archive.zarr", tmp_path / "whole" / "archive.zarr")
    append(expected, [more])
    others = shutil.copytree(tmp_path / "archive.zarr", tmp_path / "others" / "archive.zarr")
    append(others, [other])
    call, states = 0, set()
    while True:
        path = shutil.copytree(tmp_path / "archive.zarr", tmp_path / f"{call}" / "archive.zarr")
        try:
            with monkeypatch.context() as patched:
                killed_at(patched, call)
                append(path, [more])
            break
        except Killed:
            pass
        try:
            assert_same(everything(path), before)
            states.add("complete")
            back = shutil.copytree(path, tmp_path / f"{call}" / "back" / "archive.zarr")
            assert undo_append(back) == (call > 0)
            assert contents(back) == contents(tmp_path / "archive.zarr")
        except FileError:
            with pytest.raises(FileError, match="give the same `nec append` again"):
                archive.open_archive(path)
            states.add("writing")
            with (
                pytest.raises(OutputError, match="give the same `nec append` again"),
                archive.Writer(path, WHOLE.at(QUALITY), 6, GRID),
            ):
                pass
            with pytest.raises(FileError, match="give the same `nec append` again"):
                archive.finish(zarr.open_group(path, mode="r+"))
            back = shutil.copytree(path, tmp_path / f"{call}" / "back" / "archive.zarr")
            assert undo_append(back)
            assert contents(back) == contents(tmp_path / "archive.zarr")
            shutil.copytree(path, back, dirs_exist_ok=True)
            append(back, [other])
            assert_same(everything(back), everything(others))
        assert append(path, [more]) == (9, 3, 1)
        assert contents(path) == contents(expected)
        call += 1
    assert states == {"complete", "writing"}
    assert call > 15


def test_other_images_may_follow_an_interruption_before_the_last_step(tmp_path, monkeypatch):
    path = made(tmp_path / "archive.zarr", range(6))
    whole = shutil.copytree(path, tmp_path / "whole" / "archive.zarr")
    long = made(tmp_path / "long.zarr", range(20, 40), bad={21})
    with monkeypatch.context() as patched:
        killed_at(patched, 15)
        with pytest.raises(Killed):
            append(path, [long])
    more = made(tmp_path / "more.zarr", range(6, 13))
    append(path, [more])
    append(whole, [more])
    assert contents(path) == contents(whole)


def test_other_embeddings_of_the_same_ids_are_other_images(tmp_path, monkeypatch):
    path = made(tmp_path / "archive.zarr", range(6))
    whole = shutil.copytree(path, tmp_path / "whole" / "archive.zarr")
    more = made(tmp_path / "more.zarr", range(6, 18))
    with monkeypatch.context() as patched:
        killed_at(patched, 15)
        with pytest.raises(Killed):
            append(path, [more])
    shutil.rmtree(more)
    monkeypatch.setitem(globals(), "Y", Y[::-1])
    made(more, range(6, 18))
    append(path, [more])
    append(whole, [more])
    assert contents(path) == contents(whole)


def test_what_others_do_between_is_kept(tmp_path, monkeypatch):
    """Shards of the archive are written again after an interruption: that is no last step."""
    path = made(tmp_path / "archive.zarr", range(6), bad={1}, columns={})
    more = made(tmp_path / "more.zarr", range(6, 18), columns={})
    with monkeypatch.context() as patched:
        killed_at(patched, 15)
        with pytest.raises(Killed):
            append(path, [more])
    attributes = {"quality": QUALITY, "model": "m", "classes": ["sea", "land"]}
    settings = {"shard": SHARD, "attributes": attributes, "retry": True}
    with archive.Writer(path, WHOLE.at(QUALITY), 6, GRID, **settings) as writer:
        [part] = writer.missing()
        ids = [f"image {i}" for i in range(4)]
        writer.write(part, Y[:4], ids, [0, 1, 0, 1])
    with pytest.raises(FileError, match="still being written"):
        append(path, [more])
    with archive.Writer(path, WHOLE.at(QUALITY), 6, GRID, **settings) as writer:
        writer.finish()
    append(path, [more])
    copy([made(tmp_path / "all.zarr", range(18), columns={})], tmp_path / "b.zarr", WHOLE, shard=4)
    assert_same(everything(path), everything(tmp_path / "b.zarr"))


def test_the_same_again_writes_nothing(tmp_path):
    path, two = made(tmp_path / "archive.zarr", range(6)), made(tmp_path / "more.zarr", range(6, 9))
    append(path, [two])
    before = contents(path)
    assert append(path, [two]) == (9, 0, 0)
    assert contents(path) == before


def test_classes_and_attributes(tmp_path):
    about = {"data": "one", "images": 6, "image_names": "ab", "image_sizes": "cd"}
    path = made(tmp_path / "archive.zarr", range(6), more=about)
    about |= {"data": "two", "images": 5}
    two = made(tmp_path / "more.zarr", range(6, 11), classes=("ice", "sea"), more=about)
    made(tmp_path / "third.zarr", range(20, 21), classes=())
    append(path, [two, tmp_path / "third.zarr"])
    attributes: Any = archive.open_archive(path).attrs
    assert attributes["classes"] == ["sea", "land", "ice"]
    labels = everything(path)["label"]
    assert labels == [0, 1, 0, 1, 0, 1, 2, 0, 2, 0, 2, -1]
    first, second = attributes["nec_appended"]
    assert (first["archive"], first["images"], first["data"]) == (str(two), 5, "two")
    assert "model" not in first  # which both have
    assert second["images"] == 1
    assert not {"images", "image_names", "image_sizes", "nec_appending"} & set(attributes)
    append(path, [made(tmp_path / "fourth.zarr", range(30, 31))])
    assert len(archive.open_archive(path).attrs["nec_appended"]) == 3  # type: ignore[arg-type]


def test_what_was_added_before_is_left_out_unless_it_was_dropped(tmp_path):
    path = made(tmp_path / "archive.zarr", range(6))
    two, three = (made(tmp_path / f"{i}.zarr", range(i, i + 3)) for i in (6, 9))
    append(path, [two])
    assert append(path, [two, three]) == (12, 3, 0)
    copy([path], tmp_path / "less.zarr", WHOLE, drop=[f"image {i}" for i in range(6, 9)])
    assert "nec_appended" not in archive.open_archive(tmp_path / "less.zarr").attrs
    assert append(tmp_path / "less.zarr", [two]) == (12, 3, 0)
    (tmp_path / "again").mkdir()
    made(tmp_path / "again" / "6.zarr", [6, 7, 8], bad={7})
    with pytest.raises(InputError, match="has the id 'image 6'"):
        append(path, [tmp_path / "again" / "6.zarr"])


def test_valid_says_which_images_have_an_embedding_and_not_errors(tmp_path):
    path = made(tmp_path / "archive.zarr", range(6))
    two = made(tmp_path / "more.zarr", range(6, 12), bad={8})
    group: Any = zarr.open_group(two, mode="r+")
    group["error"][:] = np.array(["", "odd", "", "", "", ""], object)
    archive.finish(group)
    expected = everything(two)
    append(path, [two])
    found = everything(path)
    for name in ("embedding", "valid", "id"):
        np.testing.assert_array_equal(np.array(found[name][6:]), np.array(expected[name]))
    assert found["error"][6:] == ["", "", "not valid, and no reason is known", "", "", ""]


def test_a_damaged_source_leaves_the_archive_as_it_was(tmp_path):
    path = made(tmp_path / "archive.zarr", range(6), columns={})
    two = made(tmp_path / "more.zarr", range(6, 9), columns={})
    before = everything(path)
    file = two / "embedding/c/0/0/0/0"
    damage(file)
    with pytest.raises(FileError, match="embedding is damaged"):
        append(path, [two])
    assert_same(everything(path), before)
    assert not undo_append(path)


def test_columns(tmp_path):
    path = made(tmp_path / "archive.zarr", range(3))
    append(path, [made(tmp_path / "more.zarr", range(3, 5), columns={"place": str})])
    found = everything(path)
    assert found["place"] == [f"place {i}" for i in range(5)]
    assert np.isnan(found["cloud"][3:]).all()
    assert found["time"][3:] == [None, None]
    other = made(tmp_path / "other.zarr", range(8, 9))
    less = made(tmp_path / "less.zarr", range(9, 12), columns={})
    with pytest.raises(InputError, match=r"other.zarr has the column cloud, which .* lacks"):
        append(less, [other])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quality": 3}, "has another codec than"),
        ({"more": {"model": "n"}}, "was made by another model than"),
        ({"classes": ()}, "labels without names"),
        ({"numbers": range(2, 4)}, "has the id 'image 2', and so has"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, settings, message):
    path = made(tmp_path / "archive.zarr", range(6))
    two = made(tmp_path / "more.zarr", settings.pop("numbers", range(6, 9)), **settings)
    if settings.get("classes") == ():
        zarr.open_group(two, mode="r+")["label"][:] = 1  # type: ignore[index]
        archive.finish(zarr.open_group(two, mode="r+"))
    before = contents(path)
    with pytest.raises(InputError, match=message):
        append(path, [two])
    assert contents(path) == before
    for name in (path, two):
        with pytest.raises(InputError, match=r"has the id|two images have the id"):
            append(path, [name, name])


def test_a_damaged_archive_is_refused(tmp_path):
    path, two = made(tmp_path / "archive.zarr", range(6)), made(tmp_path / "more.zarr", range(6, 9))
    file = path / "embedding/c/1/0/0/0"
    damage(file)
    with pytest.raises(FileError, match="embedding/c/1/0/0/0 does not hold what it held"):
        append(path, [two])
    assert "nec_appending" not in zarr.open_group(path, mode="r").attrs
    file.unlink()
    with pytest.raises(FileError, match="is lost"):
        append(path, [two])
    with pytest.raises(InputError, match="no archive to append"):
        append(two, [])


def test_in_an_object_store_that_fails_now_and_then(tmp_path, impatient):
    path = made(tmp_path / "archive.zarr", range(6), columns={})
    two = made(tmp_path / "more.zarr", range(6, 9), columns={})
    url = f"{impatient.folder()}/archive.zarr"
    impatient.upload(path, url)
    append(path, [two])
    with impatient.failing(lambda method, key, count: "503" if count % 9 == 1 else None):
        append(url, [two])
    assert_same(everything(url), everything(path))
    assert impatient.objects(url) == contents(path)


def test_the_command(tmp_path, capsys):
    path, two = made(tmp_path / "archive.zarr", range(6)), made(tmp_path / "more.zarr", range(6, 9))
    words = ["append", str(path), str(two)]
    assert command(words) == 0
    assert "archive.zarr: 3 images were added, 0 of them not valid; it has 9" in (
        capsys.readouterr().out
    )
    assert command(["info", str(path)]) == 0
    assert "images that were added" not in capsys.readouterr().out  # which is of `nec encode`
    assert command([*words, "--undo"]) == 1
    assert command(words[:2]) == 1
    assert capsys.readouterr().err.count("give archives to add, or --undo") == 2
    assert command([*words[:2], "--undo"]) == 0
    assert "nothing is being added to it" in capsys.readouterr().out
    assert command([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 0
    assert command(["append", str(tmp_path / "no.zarr"), str(two)]) == 1
    assert command(["append", str(path), str(tmp_path / "no.zarr")]) == 1
    assert capsys.readouterr().err.count("no.zarr: no such Zarr group or array") == 2
