"""Ids and labels of an archive: what cannot be kept as it is given is refused, with its image."""

from typing import Any

import numpy as np
import pytest
from archive_cases import CODEC, COUNT, GRID, SHARD, Y, contents, opened, written

from coder import InputError, archive
from coder.archive import image_ids

IDS = [f"image {i}" for i in range(COUNT)]


def with_one(index: int, value: Any) -> list[Any]:
    return [value if i == index else name for i, name in enumerate(IDS[8:16])]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (with_one(2, ""), "image 10 has an empty id: give each image"),
        (with_one(2, "a\0b"), r"image 10 has the id 'a\\x00b': leave out its NUL"),
        (with_one(7, "image 15\0"), r"image 15 has the id 'image 15\\x00': leave out its NUL"),
        (with_one(5, "x" * 65536), "image 13 has an id of 65,536 characters, 'x{40}' and so on"),
        (with_one(5, "ü" * 32768), "image 13 has an id of 32,768 characters, .* at most 65,535 b"),
        (with_one(0, "x" * 9_000_000), "image 8 has an id of 9,000,000 characters"),
        (with_one(3, "image 9"), "image 11 has the id 'image 9', as image 9 has: give each its"),
        (with_one(3, 11), "image 11 has the id 11: give text"),
        (with_one(3, None), "image 11 has the id None: give text"),
        (with_one(3, b"image 11"), "image 11 has the id b'image 11': give text"),
        # Of other shards: of one that is written, and of one that a stopped writer wrote.
        (with_one(4, "image 20"), "image 12 has the id 'image 20', as image 20 has"),
        (with_one(4, "image 3"), "image 12 has the id 'image 3', as image 3 has"),
    ],
)
def test_an_id_that_cannot_be_kept_is_refused(ids, message, tmp_path):
    written(tmp_path / "a", stop=1)
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        writer.write(slice(16, 24), Y[16:24], IDS[16:24])
        before = contents(tmp_path / "a")
        with pytest.raises(InputError, match=message) as refused:
            writer.write(slice(8, 16), Y[8:16], ids)
        assert len(str(refused.value)) < 300
        assert contents(tmp_path / "a") == before
        # Its own are not another's, be they written again.
        for _ in range(2):
            writer.write(slice(8, 16), Y[8:16], IDS[8:16])


def test_an_id_that_was_given_up_may_be_another_s(tmp_path):
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        writer.write(slice(0, 8), Y[:8], IDS[:8])
        writer.write(slice(0, 8), Y[:8], [f"new {i}" for i in range(8)])
        writer.write(slice(8, 16), Y[8:16], IDS[:8])
        with pytest.raises(InputError, match="image 16 has the id 'new 3', as image 3 has"):
            writer.write(slice(16, 24), Y[16:24], ["new 3", *IDS[17:24]])


def test_which_ids_are_known_is_always_right():
    rng = np.random.default_rng(0)
    known, all_of_them = image_ids.Known(), {}
    for first in range(0, 3000, 30):
        ids = [str(i) for i in rng.integers(0, 2000, int(rng.integers(1, 30)))]
        found = sorted(known.candidates(ids))
        expected = [(i, row) for i, name in enumerate(ids) for row in all_of_them.get(name, [])]
        assert found == sorted(expected)
        known.add(ids, first)
        for i, name in enumerate(ids):
            all_of_them.setdefault(name, []).append(first + i)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1, 3, 4, -2, 6, 7], "image 13, image 13, has the label -2: labels are whole"),
        ([0, 1, -1, 3, 4, 1 << 31, 6, 7], "image 13, image 13, has the label 2147483648"),
        (np.arange(8, dtype=np.uint64) << np.uint64(61), "image 9, image 9, has the label 2305843"),
        ([0.0] * 8, "labels are float64: labels are whole numbers"),
        ([True] * 8, "labels are bool: labels are whole numbers"),
        (["1"] * 8, "labels are <U1: labels are whole numbers"),
    ],
)
def test_a_label_that_cannot_be_kept_is_refused(labels, message, tmp_path):
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        before = contents(tmp_path / "a")
        with pytest.raises(InputError, match=message):
            writer.write(slice(8, 16), Y[8:16], IDS[8:16], labels)
        assert contents(tmp_path / "a") == before
        writer.write(slice(8, 16), Y[8:16], IDS[8:16], [-1, 2**31 - 1, 0, 3, 4, 5, 6, 7])
    assert list(opened(tmp_path / "a")["label"][8:11]) == [-1, 2**31 - 1, 0]
