"""`copy`: the same images and blobs, at another quality, fewer, or of several archives."""

from typing import Any

import numpy as np
import pytest
import transform_cases
import zarr
from archive_cases import contents

import coder
from coder import InputError, OutputError, archive
from coder.archive.copying import copy
from coder.cli import main as command

WHOLE = transform_cases.ladder(True)
GRID = transform_cases.GRID
COUNT, SHARD, QUALITY = 11, 4, 6
Y = transform_cases.embeddings(True, 2 * COUNT)
BAD = {2, 9}


def made(path, first=0, *, quality=QUALITY, classes=("sea", "land"), shard=SHARD):
    """An archive of images `first` to `first + COUNT - 1`, two of them without an embedding."""
    attributes = {"quality": quality, "classes": list(classes), "images": COUNT}
    settings = {"shard": shard, "attributes": attributes}
    with archive.Writer(path, WHOLE.at(quality), COUNT, GRID, **settings) as writer:
        for part in writer.missing():
            numbers = range(part.start, part.stop)
            good = [i + first for i in numbers if i not in BAD]
            writer.write(
                part,
                Y[good],
                [f"image {i + first}" for i in numbers],
                [i % len(classes) if classes else -1 for i in numbers],
                ["no image" if i in BAD else None for i in numbers],
            )
        writer.finish()
    return path


def arrays(path):
    group = archive.open_archive(path)
    return {name: archive.read_array(group, name) for name in ("embedding", "class_token")} | {
        name: archive.read_array(group, name).tolist() for name in ("id", "label", "valid", "error")
    }


def test_a_copy_has_the_same_blobs(tmp_path):
    path = made(tmp_path / "a.zarr")
    assert copy([path], tmp_path / "b.zarr", WHOLE, shard=SHARD) == (COUNT, len(BAD))
    one, two = contents(path), contents(tmp_path / "b.zarr")
    same = {name for name in one if name.name != "zarr.json"}
    assert {name: two[name] for name in same} == {name: one[name] for name in same}


def test_at_another_quality_it_has_what_the_decoded_embeddings_code_to(tmp_path):
    path = made(tmp_path / "a.zarr")
    copy([path], tmp_path / "b.zarr", WHOLE, quality=2, shard=3)
    before, after = arrays(path), arrays(tmp_path / "b.zarr")
    for name in ("id", "label", "valid", "error"):
        assert after[name] == before[name]
    codec = WHOLE.at(2).split()[0]
    for i in set(range(COUNT)) - BAD:
        y = before["embedding"][i].reshape(-1, 12)
        expected = codec.decode(codec.encode(y, GRID))
        np.testing.assert_array_equal(after["embedding"][i].reshape(expected.shape), expected)
    assert archive.open_archive(tmp_path / "b.zarr").attrs["quality"] == 2


def test_archives_are_joined_and_labels_keep_their_names(tmp_path):
    one, two = made(tmp_path / "a.zarr"), made(tmp_path / "b.zarr", COUNT, classes=("ice", "sea"))
    copy([one, two], tmp_path / "c.zarr", WHOLE)
    joined, parts = arrays(tmp_path / "c.zarr"), [arrays(one), arrays(two)]
    group: Any = archive.open_archive(tmp_path / "c.zarr")
    assert group.attrs["classes"] == ["sea", "land", "ice"]
    assert joined["id"] == parts[0]["id"] + parts[1]["id"]
    names = [["sea", "land"], ["ice", "sea"]]
    expected = [
        own[label] if label >= 0 else None
        for own, part in zip(names, parts, strict=True)
        for label in part["label"]
    ]
    found = [group.attrs["classes"][i] if i >= 0 else None for i in joined["label"]]
    assert found == expected
    both = np.concatenate([part["embedding"] for part in parts])
    np.testing.assert_array_equal(joined["embedding"], both)


def test_some_images_are_kept_or_dropped(tmp_path):
    path = made(tmp_path / "a.zarr")
    copy([path], tmp_path / "kept.zarr", WHOLE, keep=["image 3", "image 0"])
    assert arrays(tmp_path / "kept.zarr")["id"] == ["image 0", "image 3"]
    copy([path], tmp_path / "rest.zarr", WHOLE, drop=["image 3", "image 2"])
    assert "image 3" not in arrays(tmp_path / "rest.zarr")["id"]
    assert len(arrays(tmp_path / "rest.zarr")["id"]) == COUNT - 2
    with pytest.raises(InputError, match="1 of 2 listed ids are in no archive, such as 'image x'"):
        copy([path], tmp_path / "no.zarr", WHOLE, keep=["image 3", "image x"])
    with pytest.raises(InputError, match="no image to copy"):
        copy([path], tmp_path / "no.zarr", WHOLE, keep=[])
    assert not (tmp_path / "no.zarr").exists()


def test_a_later_image_replaces_an_earlier_one(tmp_path):
    one = made(tmp_path / "a.zarr")
    copy([made(tmp_path / "b.zarr", 5)], tmp_path / "new.zarr", WHOLE, drop=["image 15"])
    with pytest.raises(InputError, match="two images have the id 'image 5'"):
        copy([one, tmp_path / "new.zarr"], tmp_path / "c.zarr", WHOLE)
    copy([one, tmp_path / "new.zarr"], tmp_path / "c.zarr", WHOLE, replace=True)
    old, new, both = (arrays(tmp_path / name) for name in ("a.zarr", "new.zarr", "c.zarr"))
    assert both["id"] == old["id"][:5] + new["id"]
    np.testing.assert_array_equal(both["embedding"][:5], old["embedding"][:5])
    np.testing.assert_array_equal(both["embedding"][5:], new["embedding"])
    # The second archive is all that is left.
    copy([one, made(tmp_path / "d.zarr")], tmp_path / "e.zarr", WHOLE, replace=True)
    assert arrays(tmp_path / "e.zarr")["id"] == old["id"]


def test_a_part_without_a_valid_image_is_copied(tmp_path):
    path = made(tmp_path / "a.zarr", shard=1)
    copy([path], tmp_path / "b.zarr", WHOLE, shard=1)
    assert arrays(tmp_path / "b.zarr")["valid"] == arrays(path)["valid"]
    copy([path], tmp_path / "c.zarr", WHOLE, keep=["image 2", "image 9"])
    assert arrays(tmp_path / "c.zarr")["valid"] == [False, False]


def test_other_images_than_those_of_a_copy_that_is_there_are_refused(tmp_path):
    path = made(tmp_path / "a.zarr")
    copy([path], tmp_path / "b.zarr", WHOLE, keep=["image 0", "image 3"])
    before = contents(tmp_path / "b.zarr")
    with pytest.raises(OutputError, match="begun with another copied_images"):
        copy([path], tmp_path / "b.zarr", WHOLE, keep=["image 0", "image 4"])
    assert contents(tmp_path / "b.zarr") == before


def test_a_copy_says_what_it_is(tmp_path, capsys):
    path = made(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="a copy cannot be better"):
        copy([path], tmp_path / "b.zarr", WHOLE, quality=QUALITY + 1)
    group = zarr.open_group(path, mode="r+")
    names = ("model_name", "model_sha256", "codec", "image_size", "written_by")
    group.attrs.update(dict.fromkeys(names, "x") | {"for_refiner": True})
    copy([path], tmp_path / "c.zarr", WHOLE, quality=2)
    attributes = archive.open_archive(tmp_path / "c.zarr").attrs
    assert "for_refiner" not in attributes
    assert attributes["copied_from_quality"] == QUALITY
    command(["info", str(tmp_path / "c.zarr")])
    out = capsys.readouterr().out
    assert "codec x, quality 2\n" in out
    assert f"copied from {path}, of quality {QUALITY}" in out


def test_a_copy_lies_in_no_archive(tmp_path):
    path = made(tmp_path / "a.zarr")
    for inside in ("b.zarr", "embedding/b.zarr"):
        with pytest.raises(OutputError, match=r"lies in .*, another archive"):
            copy([path], path / inside, WHOLE)


def test_labels_without_a_name_are_refused(tmp_path):
    path = made(tmp_path / "a.zarr")
    zarr.open_group(path, mode="r+").attrs["classes"] = ["sea"]
    with pytest.raises(InputError, match="has the label 1, and names of 1 classes"):
        copy([path], tmp_path / "b.zarr", WHOLE)
    zarr.open_group(path, mode="r+").attrs["classes"] = ["sea", "sea"]
    with pytest.raises(InputError, match="two classes of one name"):
        copy([path], tmp_path / "b.zarr", WHOLE)


def test_what_does_not_fit_is_refused(tmp_path):
    path = made(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="has another codec than"):
        copy([path, made(tmp_path / "b.zarr", COUNT, quality=3)], tmp_path / "c.zarr", WHOLE)
    with pytest.raises(InputError, match="two images have the id 'image 0'"):
        copy([path, made(tmp_path / "d.zarr")], tmp_path / "c.zarr", WHOLE)
    other = coder.fit(transform_cases.smooth_embeddings(5, 60))
    with pytest.raises(InputError, match="was not coded by this codec"):
        copy([path], tmp_path / "e.zarr", other)
    for name in ("c.zarr", "e.zarr"):
        assert not (tmp_path / name).exists()
    # Images without labels join those that have some.
    copy([path, made(tmp_path / "f.zarr", COUNT, classes=())], tmp_path / "g.zarr", WHOLE)
    assert set(arrays(tmp_path / "g.zarr")["label"][COUNT:]) == {-1}


def test_an_interrupted_copy_goes_on_to_the_same_end(tmp_path, monkeypatch):
    path = made(tmp_path / "a.zarr")
    copy([path], tmp_path / "whole.zarr", WHOLE, quality=3, shard=3)
    write, count = archive.Writer.write, 0

    def write_or_die(self, *args):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return write(self, *args)

    monkeypatch.setattr(archive.Writer, "write", write_or_die)
    with pytest.raises(KeyboardInterrupt):
        copy([path], tmp_path / "part.zarr", WHOLE, quality=3, shard=3)
    copy([path], tmp_path / "part.zarr", WHOLE, quality=3, shard=3)
    assert count == 2 + 1 + 2
    assert contents(tmp_path / "part.zarr") == contents(tmp_path / "whole.zarr")


def test_the_command(tmp_path, capsys):
    path = made(tmp_path / "a.zarr")
    WHOLE.save(tmp_path / "codec")
    (tmp_path / "ids.txt").write_text("image 4\r\nimage 2\n\n", "utf-8-sig")
    words = ["copy", str(path), "--codec", str(tmp_path / "codec"), "--out"]
    assert command([*words, str(tmp_path / "b.zarr"), "--drop", str(tmp_path / "ids.txt")]) == 0
    assert "9 images, 1 not valid" in capsys.readouterr().out
    assert command([*words, str(tmp_path / "c.zarr"), "--quality", "99"]) == 1
    assert "qualities 0 to" in capsys.readouterr().err
