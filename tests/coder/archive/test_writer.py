"""archive.Writer: alone, stopped at any moment and run again, past images that cannot be read."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_cases import (
    BAD,
    CLASS_TOKEN_HAT,
    CODEC,
    COUNT,
    EMBEDDING_HAT,
    GRID,
    SHARD,
    Y,
    contents,
    opened,
    written,
)
from coder_cases import fitted_codec
from folders import TESTS
from transform_cases import class_tokens, ladder, smooth_embeddings
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ZipStore

from coder import CodecError, InputError, OutputError, UnusualEmbedding, archive, fit

OTHER = fitted_codec(Y, class_token=True, step=2.0)


def shown_codec(codec) -> str:
    return " and ".join(part.fingerprint[:4].hex() for part in codec.split())


def fsspec_store(path):
    return FsspecStore.from_url(f"memory://{path.name}")


@pytest.mark.parametrize(
    "store",
    [lambda path: MemoryStore(), fsspec_store, str, LocalStore, Path],
    ids=["memory", "fsspec", "str", "local", "path"],
)
def test_an_unreadable_image_costs_its_row(store, tmp_path):
    store = store(tmp_path / "a")
    written(store, BAD, attributes={"data": "here"})
    group = opened(store)
    valid = np.array([i not in BAD for i in range(COUNT)])
    np.testing.assert_array_equal(group["valid"][:], valid)
    np.testing.assert_array_equal(group["embedding"][:][valid], EMBEDDING_HAT[valid])
    assert np.isnan(group["embedding"][:][~valid]).all()
    np.testing.assert_array_equal(group["class_token"][:][valid], CLASS_TOKEN_HAT[valid])
    assert np.isnan(group["class_token"][:][~valid]).all()
    assert group["error"][10] == "no image: 10.png"
    assert group["error"][11] == ""
    assert list(group["id"][:]) == [f"image {i}" for i in range(COUNT)]
    np.testing.assert_array_equal(group["label"][:], np.where(valid, np.arange(COUNT), -1))
    assert group.attrs["data"] == "here"
    assert group.attrs["nec_archive"]["state"] == "complete"
    assert archive.not_valid(group, 2) == (
        11,
        [(0, "image 0", "no image: 0.png"), (10, "image 10", "no image: 10.png")],
    )


@pytest.mark.parametrize("stop", range(6))
def test_a_stopped_writer_goes_on_to_the_same_archive(stop, tmp_path):
    written(tmp_path / "whole", BAD)
    written(tmp_path / "part", BAD, stop=stop)
    assert opened(tmp_path / "part").attrs["nec_archive"]["state"] == "writing"
    assert archive.not_valid(opened(tmp_path / "part"))[0] == len(
        [i for i in BAD if i < stop * SHARD]
    )
    before = contents(tmp_path / "part")
    with archive.Writer(tmp_path / "part", CODEC, COUNT, GRID, shard=SHARD) as writer:
        assert len(writer.missing()) == 5 - stop
    assert contents(tmp_path / "part") == before
    written(tmp_path / "part", BAD)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part", "whole"]


@pytest.mark.parametrize("name", ["embedding/c/1/0/0/0", "class_token/c/1/0", "valid/c/1"])
def test_a_lost_shard_is_written_again(name, tmp_path):
    written(tmp_path / "a", BAD)
    before = contents(tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        assert writer.missing() == [slice(8, 16)]
    written(tmp_path / "a", BAD)
    assert contents(tmp_path / "a") == before


def test_damage_of_what_is_valid_is_written_again(tmp_path):
    written(tmp_path / "a", BAD)
    before = contents(tmp_path / "a")
    for data in (b"", b"damaged"):
        (tmp_path / "a/valid/c/1").write_bytes(data)
        written(tmp_path / "a", BAD)
        assert contents(tmp_path / "a") == before


@pytest.mark.parametrize("stop", [None, 3])
@pytest.mark.parametrize("size", [0, 5, -1])
def test_a_shard_that_is_cut_short_is_written_again(size, stop, tmp_path):
    written(tmp_path / "whole", BAD)
    written(tmp_path / "a", BAD, stop=stop)
    shard = tmp_path / "a/embedding/c/1/0/0/0"
    shard.write_bytes(shard.read_bytes()[:size])
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        assert slice(8, 16) in writer.missing()
    written(tmp_path / "a", BAD)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_unreadable_images_are_read_again_on_demand(tmp_path):
    written(tmp_path / "whole")
    written(tmp_path / "a", BAD)
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        assert writer.missing() == []
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD, retry=True) as writer:
        assert [part.start for part in writer.missing()] == [0, 8, 16, 32]
    written(tmp_path / "a", retry=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")
    # And back: a shard without a valid image holds no embeddings.
    written(tmp_path / "a", BAD - {0}, retry=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_a_shard_whose_rewriting_is_stopped_is_to_be_written(tmp_path, monkeypatch):
    written(tmp_path / "a", BAD)
    # Otherwise refused before anything is changed.
    monkeypatch.setattr(archive.Writer, "_refuse_uncodable", lambda *_: None)
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD, retry=True) as writer:
        far = Y[:SHARD].copy()
        far[3, 0, 0] = 1e30  # of a class token: the embeddings are written before
        with pytest.raises(InputError):
            writer.write(slice(0, 8), far, [f"{i}" for i in range(8)])
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        assert writer.missing() == [slice(0, 8)]
        with pytest.raises(CodecError, match="images 0 to 7 are not written"):
            writer.finish()


def test_a_strict_writer_stops_at_an_unreadable_image(tmp_path):
    with pytest.raises(InputError, match=r"a: image 10, image 10: no image: 10\.png"):
        written(tmp_path / "a", BAD - {0}, strict=True)
    assert archive.written_shards(opened(tmp_path / "a")["valid"]) == {0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": COUNT + 1}, "another number of images .*`nec append` adds"),
        ({"count": COUNT - 8}, r"another number of images \(number of images: 37, now 29\): give"),
        ({"grid": (4, 3)}, r"another grid \(grid: \(3, 4\), now \(4, 3\)\)"),
        ({"shard": 4}, r"another shard \(shard: 8, now 4\)"),
        (
            {"codec": OTHER},
            f"another codec .codec: {shown_codec(CODEC)}, now {shown_codec(OTHER)}",
        ),
        ({"codec": fitted_codec(Y[:, 1:], class_token=False)}, "another codec"),
        ({"attributes": {"data": "there"}}, r"another data \(data: here, now there\)"),
        ({"attributes": {"data": "x" * 999}}, r"another data \(data: here, now x{60} \.\.\.\)"),
        ({"attributes": {"new": "x"}}, r"another new \(new: None, now x\)"),
        ({"attributes": {"more": [1]}, "count": 5}, "another more, number of images"),
    ],
)
def test_other_settings_are_named(changes, message, tmp_path):
    written(tmp_path / "a", stop=1, attributes={"data": "here"})
    before = contents(tmp_path / "a")
    settings = {"codec": CODEC, "count": COUNT, "grid": GRID, "shard": SHARD, **changes}
    with (
        pytest.raises(OutputError, match=f"a: was begun with {message}"),
        archive.Writer(tmp_path / "a", settings.pop("codec"), **settings),
    ):
        pass
    assert contents(tmp_path / "a") == before


def test_an_archive_of_an_earlier_version_is_not_gone_on_with(tmp_path):
    kept = tmp_path / "archive.zarr"
    shutil.copytree(TESTS / "kept/2026-11/archive.zarr", kept)
    with (
        pytest.raises(OutputError, match="not an archive of this version"),
        archive.Writer(kept, CODEC, 10, (2, 2), shard=4),
    ):
        pass
    assert list(tmp_path.iterdir()) == [kept]


def test_class_tokens_of_unreadable_images_are_not_unusual():
    """They are left out, wherever the others lie; warnings are errors here."""
    far = 0.1 * class_tokens(1, 200) + 100
    codec = fit(smooth_embeddings(1, 200), far).at(8)
    y = np.concatenate([far[:64, None], smooth_embeddings(1, 64).reshape(64, 36, -1)], axis=1)
    with archive.Writer(MemoryStore(), codec, 256, (6, 6)) as writer:
        ids = [f"{i}" for i in range(256)]
        writer.write(slice(0, 256), y, ids, errors=["no"] * 192 + [None] * 64)
        writer.finish()
    assert np.abs(archive.read_array(writer.group, "class_token")[192:] - far[:64]).max() < 0.5


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    ids, y, broken = [f"{i}" for i in range(8)], Y[:8], Y[1:8].copy()
    broken[4, 7, 1] = np.inf
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        before = contents(tmp_path / "a")
        refused: list[Any] = [
            (slice(0, 7), (y[:7], ids[:7]), "no shard"),
            (slice(4, 12), (y, ids), "no shard"),
            (slice(32, 40), (y, ids), "no shard"),
            (0, (y, ids), "images 0 are no shard: give one of `missing`, a slice"),
            (slice(0, 8), (y, set(ids)), "ids are a set, which has no order"),
            (slice(0, 8), (y, ids, None, {"", "no"}), "errors are a set, which has no order"),
            (slice(0, 8), (y, ids, np.zeros((8, 1), int)), r"labels of shape \(8, 1\): give one"),
            (slice(0, 8), (y, ids, np.eye(8, dtype=int)), r"labels of shape \(8, 8\): give one"),
            (slice(0, 8), (y, ids, 3), r"labels of shape \(\): give one for each image, \[8\]"),
            (slice(0, 8), (y, ids[:7]), "7 ids for 8 images"),
            (slice(0, 8), (y, ids, [1]), "1 labels for 8 images"),
            (slice(0, 8), (y, ids, np.full(8, 0.5)), "labels are whole numbers"),
            (slice(0, 8), (y, ids, np.full(8, 1 << 40)), "labels are whole numbers"),
            (slice(0, 8), (y, ids, None, ["no"]), "1 errors for 8 images"),
            (slice(0, 8), (y[:, 1:], ids), "give 8 of 13 tokens of 3 channels"),
            (slice(0, 8), (y, ids, None, ["no", *[None] * 7]), "give 7 of 13 tokens"),
            (slice(0, 8), (np.full_like(y, np.nan), ids), "image 0 has NaN"),
            (slice(0, 8), (np.ma.masked_less(y, -1), ids), "masked"),
            (slice(0, 8), (broken, ids, None, ["no", *[None] * 7]), "image 5 has NaN"),
        ]
        for images, arguments, message in refused:
            with pytest.raises(InputError, match=message):
                writer.write(images, *arguments)
        assert contents(tmp_path / "a") == before


@pytest.mark.parametrize("there", [False, True])
def test_a_codec_of_many_rates_is_refused_by_an_archive_that_is_there_too(there, tmp_path):
    if there:
        written(tmp_path / "a")
    codec: Any = ladder()
    writer = archive.Writer(tmp_path / "a", codec, COUNT, GRID, shard=SHARD)
    with pytest.raises(CodecError, match="has one quality: cut one out of the codec"), writer:
        pass


@pytest.mark.parametrize("complete", [False, True])
def test_what_the_codec_refuses_takes_away_no_shard_that_was_written(complete, tmp_path):
    path, ids = tmp_path / "a", [f"image {i}" for i in range(8)]
    errors = ["no", *[None] * 7]  # so that embeddings are those of images 1 to 7
    with archive.Writer(path, CODEC, 16, GRID, shard=8) as writer:
        for part in writer.missing()[: 1 + complete]:
            names = [f"image {i}" for i in range(part.start, part.stop)]
            writer.write(part, Y[:7], names, errors=errors)
        if complete:
            writer.finish()
    before = contents(path)
    far = Y[:7].copy()
    far[4, 2, 1] = 1e30
    with archive.Writer(path, CODEC, 16, GRID, shard=8, retry=True) as writer:
        with pytest.raises(InputError, match=r"image 5: .*too far"):
            writer.write(slice(0, 8), far, ids, errors=errors)
        assert contents(path) == before


def test_a_warning_that_is_an_error_takes_away_no_shard_that_was_written(tmp_path):
    y = smooth_embeddings(3, 40, GRID)
    codec, path = fit(y).at(8), tmp_path / "a"
    y = y.reshape(len(y), -1, y.shape[-1])
    ids = [f"image {i}" for i in range(8)]
    with archive.Writer(path, codec, 8, GRID) as writer:
        writer.write(slice(0, 8), y[:8], ids)
        writer.finish()
    before = contents(path)
    far = y[:8].copy()
    far[4] *= 1e5
    with archive.Writer(path, codec, 8, GRID) as writer:
        with pytest.raises(UnusualEmbedding):  # the suite makes errors of warnings
            writer.write(slice(0, 8), far, ids)
        assert contents(path) == before
        with pytest.warns(UnusualEmbedding):
            writer.write(slice(0, 8), far, ids)
        writer.finish()


@pytest.mark.parametrize("make", [archive.create, archive.Writer])
def test_a_zip_file_is_refused_and_a_folder_that_is_zipped_is_read(make, tmp_path):
    store = ZipStore(tmp_path / "a.zip", mode="w")
    with (
        pytest.raises(OutputError, match=r"ZipStore deletes nothing.* write a folder"),
        make(store, CODEC, COUNT, GRID),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    written(tmp_path / "a")
    shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "a")
    with ZipStore(tmp_path / "b.zip", mode="r") as zipped:
        group = archive.open_archive(zipped)
        np.testing.assert_array_equal(archive.read_array(group, "embedding"), EMBEDDING_HAT)
    store = MemoryStore(read_only=True)
    with pytest.raises(OutputError, match="reading only"), make(store, CODEC, COUNT, GRID):
        pass


def test_ids_and_errors_of_any_text_are_kept(tmp_path):
    # The name of a file that is not UTF-8, as Python gives it; a lone surrogate; long ones.
    ids = [os.fsdecode(b"caf\xe9.png"), "\ud800", "Łódź/☃ 😀.png", "x" * 65535, "x", "a\nb"]
    with archive.Writer(tmp_path / "a", CODEC, 6, GRID) as writer:
        writer.write(
            slice(0, 6), Y[:5], ids, errors=["", "", "", "", "", " cannot\n\tread \udce9\0 "]
        )
        writer.finish()
    group = opened(tmp_path / "a")
    assert list(group["id"][:]) == ["caf\\xe9.png", "\\ud800", *ids[2:]]
    assert group["error"][5] == "cannot read \\xe9\\x00"
    assert list(group["label"][:]) == [-1] * 6


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_a_label_that_is_masked_is_none(dtype, tmp_path):
    labels = np.ma.array(np.arange(COUNT, dtype=dtype), mask=np.arange(COUNT) % 3 == 0)
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        for part in writer.missing():
            ids = [f"{i}" for i in range(part.start, part.stop)]
            writer.write(part, Y[part], ids, labels[part])
        writer.finish()
    expected = np.where(np.arange(COUNT) % 3 == 0, -1, np.arange(COUNT))
    np.testing.assert_array_equal(opened(tmp_path / "a")["label"][:], expected)


def test_integers_are_warned_of_once_by_a_writer(tmp_path):
    whole = Y.round().clip(-99, 99).astype(np.int8)
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        first, *others = writer.missing()
        with pytest.warns(UnusualEmbedding, match="are int8: integers") as caught:
            writer.write(first, whole[first], [f"{i}" for i in range(SHARD)])
        assert [warning.filename for warning in caught] == [__file__]
        for part in others:  # warnings are errors
            writer.write(part, whole[part], [f"{i}" for i in range(part.start, part.stop)])


def test_a_writer_works_in_its_block_alone(tmp_path):
    ids = [f"image {i}" for i in range(COUNT)]
    writer = archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD)
    with pytest.raises(InputError, match="works in its block"):
        writer.missing()
    with writer:
        for part in writer.missing():
            writer.write(part, Y[part], ids[part])
        writer.finish()
    before = contents(tmp_path / "a")
    for call in (
        lambda: writer.write(slice(0, SHARD), Y[:SHARD], ids[:SHARD]),
        writer.missing,
        writer.finish,
    ):
        with pytest.raises(InputError, match="works in its block"):
            call()
    assert contents(tmp_path / "a") == before


def test_what_would_be_dropped_is_refused(tmp_path):
    ids = [f"image {i}" for i in range(SHARD)]
    with archive.Writer(tmp_path / "a", CODEC, SHARD, GRID, shard=SHARD) as writer:
        part = slice(0, SHARD)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"errors": ["bad"] * SHARD}, "every image has an error, and embeddings"),
            ({"errors": "x" * SHARD}, "errors are one text"),
            ({"ids": "x" * SHARD}, "ids are one text"),
        ]
        for given, message in wrong:
            with pytest.raises(InputError, match=message):
                writer.write(part, Y[part], **{"ids": ids, **given})
    with pytest.raises(InputError, match="shard is 10000000: give a whole number, 1 to 65536"):
        archive.create(tmp_path / "b", CODEC, 5, GRID, shard=10**7)


def test_a_strict_writer_does_not_finish_what_is_not_valid(tmp_path):
    ids = [f"image {i}" for i in range(SHARD)]
    settings = (tmp_path / "a", CODEC, SHARD, GRID)
    with archive.Writer(*settings, shard=SHARD) as writer:
        writer.write(slice(0, SHARD), Y[1:SHARD], ids, errors=["broken", *[""] * (SHARD - 1)])
    with (
        pytest.raises(InputError, match="1 images are not valid, the first 0, image 0: broken"),
        archive.Writer(*settings, shard=SHARD, strict=True) as writer,
    ):
        writer.finish()


def test_a_shard_that_another_process_wrote_meanwhile_is_not_claimed(tmp_path):
    """Two writers of one process take each shard once, though both saw all of them missing."""
    path = tmp_path / "a.zarr"
    settings = {"shard": SHARD, "shared": True}
    with (
        archive.Writer(path, CODEC, COUNT, GRID, **settings) as one,
        archive.Writer(path, CODEC, COUNT, GRID, **settings) as two,
    ):
        taken: list[list[slice]] = [[], []]
        claims = [one.claims(), two.claims()]
        for turn in range(100):
            part = next(claims[turn % 2], None)
            if part is None:
                continue
            taken[turn % 2].append(part)
            ids = [f"image {i}" for i in range(part.start, part.stop)]
            (one, two)[turn % 2].write(part, Y[part], ids)
        assert taken[0]
        assert taken[1]
        assert len(taken[0] + taken[1]) == -(-COUNT // SHARD)
        assert not one.missing()
        one.finish()
        two.finish()
    written(tmp_path / "b.zarr")
    assert not list(tmp_path.glob(".*"))
    assert archive.read_array(archive.open_archive(path), "id")[3] == "image 3"


def test_a_claim_ends_with_its_writer(tmp_path):
    path = tmp_path / "a.zarr"
    settings = {"shard": SHARD, "shared": True}
    with archive.Writer(path, CODEC, COUNT, GRID, **settings) as one:
        claimed = list(one.claims())
        with archive.Writer(path, CODEC, COUNT, GRID, **settings) as two:
            assert list(two.claims()) == []
            assert two.missing() == claimed
    with archive.Writer(path, CODEC, COUNT, GRID, **settings) as two:
        assert list(two.claims()) == claimed


def test_a_writer_alone_is_refused_while_others_share(tmp_path):
    path = tmp_path / "a.zarr"
    with (
        archive.Writer(path, CODEC, COUNT, GRID, shard=SHARD, shared=True),
        pytest.raises(OutputError, match="another process is writing it"),
    ):
        archive.Writer(path, CODEC, COUNT, GRID, shard=SHARD).__enter__()
    with pytest.raises(InputError, match="retry is for a process that writes alone"):
        archive.Writer(path, CODEC, COUNT, GRID, shared=True, retry=True).__enter__()


def test_a_shard_may_be_claimed_in_one_thread_and_written_in_another(tmp_path):
    """The claim ends with the write, and leaves no open file."""
    path, folder = tmp_path / "a.zarr", tmp_path / ".a.zarr.writers"
    with (
        archive.Writer(path, CODEC, COUNT, GRID, shard=SHARD, shared=True) as writer,
        ThreadPoolExecutor(1) as other,
    ):
        for part in writer.claims():
            ids = [f"image {i}" for i in range(part.start, part.stop)]
            other.submit(writer.write, part, Y[part], ids).result()
            assert not list(folder.glob("shard-*"))
            links = [link for link in Path("/proc/self/fd").glob("*") if link.is_symlink()]
            assert not [link for link in links if "shard-" in str(link.readlink())]
        writer.finish()


def test_many_damaged_shards_are_written_again(tmp_path):
    written(tmp_path / "a")
    for file in (tmp_path / "a/valid/c").iterdir():
        damaged = bytearray(file.read_bytes())
        damaged[-1] ^= 1
        file.write_bytes(damaged)
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        assert [part.start for part in writer.missing()] == list(range(0, COUNT, SHARD))
