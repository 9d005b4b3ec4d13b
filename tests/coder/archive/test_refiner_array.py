"""Laws of refiners of archives: who does not ask for them meets no difference at all."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transform_cases
import xarray as xr
import zarr
from archive_cases import CODEC as SCALAR
from archive_cases import change, contents, filled, opened
from folders import KEPT
from refiner_cases import random_refiner
from zarr.storage import MemoryStore, ZipStore

import coder
from coder import FileError, InputError, OutputError, archive
from coder.archive.zarr_codec import NecCodec, nec_codec
from coder.archive.zarr_codec import refined as refined_chunk
from coder.cli import main

COUNT, SHARD, QUALITY = 11, 4, 3
BAD = {2, *range(4, 8)}  # those of the second shard, and one more
WHOLE = transform_cases.ladder(True)
REFINER = random_refiner(WHOLE)
OTHERS = random_refiner(coder.fit(transform_cases.smooth_embeddings(5, 60)))
"""A refiner of another codec."""
CODEC = WHOLE.at(QUALITY)
REFINING = WHOLE.with_refiner(REFINER).at(QUALITY)
Y = transform_cases.embeddings(True, COUNT)
GRID = transform_cases.GRID
GOOD = [i for i in range(COUNT) if i not in BAD]


def refined() -> np.ndarray:
    """What the codec of the archive makes of each image's blob, NaN where there is none."""
    codec, _ = REFINING.split()
    found = np.full((COUNT, *GRID, WHOLE.channels), np.nan, np.float32)
    for i in GOOD:
        found[i] = codec.decode(codec.encode(Y[i, 1:], GRID), refine=True).reshape(*GRID, -1)
    return found


def write(store: Any, codec: coder.TransformCodec = CODEC, stop: int | None = None) -> zarr.Group:
    with archive.Writer(store, codec, COUNT, GRID, shard=SHARD) as writer:
        for part in writer.missing()[:stop]:
            numbers = range(part.start, part.stop)
            ids = [f"image {i}" for i in numbers]
            errors = ["lost" if i in BAD else None for i in numbers]
            writer.write(part, Y[[i for i in numbers if i in GOOD]], ids, numbers, errors)
        if stop is None:
            writer.finish()
        return writer.group


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write(path := tmp_path_factory.mktemp("plain") / "a.zarr")
    return path


@pytest.fixture(scope="module")
def with_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write(path := tmp_path_factory.mktemp("refined") / "a.zarr", REFINING)
    return path


def copied(path: Path, to: Path) -> Path:
    return Path(shutil.copytree(path, to / "copy.zarr"))


def arrays(group: Any) -> dict[str, np.ndarray]:
    return {name: group[name][:] for name in ("embedding", "class_token", "id", "label", "valid")}


def test_adding_one_changes_no_byte_but_those_of_the_group(plain: Path, tmp_path: Path) -> None:
    path = copied(plain, tmp_path)
    group = opened(path, "r+")
    before, values = contents(path), arrays(group)
    archive.add_refiner(group, REFINER)
    after = contents(path)
    own = {Path("refiner") / name for name in ("zarr.json", "file/zarr.json", "file/c/0")}
    assert set(after) - set(before) == own
    assert {name for name in before if before[name] != after[name]} == {Path("zarr.json")}
    assert after[Path("refiner/file/c/0")] == REFINER.to_bytes()
    added = json.loads(after[Path("zarr.json")])
    assert added["attributes"].pop("nec_refiner") == REFINER.fingerprint.hex()
    assert added == json.loads(before[Path("zarr.json")])
    for now in (group, archive.open_archive(path)):
        for name, read in arrays(now).items():
            np.testing.assert_array_equal(read, values[name])
        np.testing.assert_array_equal(archive.read_array(now, "embedding"), values["embedding"])
        np.testing.assert_array_equal(archive.read_array(now, "embedding", refine=True), refined())
        assert archive.read_refiner(now) == REFINER
    archive.add_refiner(group, REFINER)
    assert contents(path) == after


def test_writing_what_was_read_stays_lossless(with_one: Path, tmp_path: Path) -> None:
    path = copied(with_one, tmp_path)
    before, group = contents(path), opened(path, "r+")
    archive.read_array(group, "embedding", refine=True)
    group["embedding"][:SHARD] = group["embedding"][:SHARD]
    archive.finish(group)
    assert contents(path) == before
    assert archive.read_refiner(archive.open_archive(path)) == REFINER


def test_a_codec_gives_its_refiner_to_the_archive(
    plain: Path, with_one: Path, tmp_path: Path
) -> None:
    path = copied(plain, tmp_path)
    archive.add_refiner(opened(path, "r+"), REFINER)
    assert contents(path) == contents(with_one)  # added later or written from the start
    group = archive.create(tmp_path / "b.zarr", REFINING, COUNT, GRID)
    assert archive.read_refiner(group) == REFINER
    held = nec_codec(group["embedding"])
    assert held == CODEC.split()[0]
    assert held is not None
    assert NecCodec(REFINING.split()[0]).codec.refiner is None


@pytest.mark.parametrize("again", [REFINING, CODEC], ids=["its refiner", "no refiner"])
def test_a_writer_that_resumes_writes_the_same_bytes(
    again: coder.TransformCodec, with_one: Path, tmp_path: Path
) -> None:
    write(tmp_path / "a.zarr", REFINING, stop=1)
    with pytest.raises(FileError, match="still being written"):
        archive.add_refiner(opened(tmp_path / "a.zarr", "r+"), REFINER)
    write(tmp_path / "a.zarr", again)
    assert contents(tmp_path / "a.zarr") == contents(with_one)


def test_a_writer_refuses_another_refiner(with_one: Path, plain: Path) -> None:
    other = WHOLE.with_refiner(random_refiner(WHOLE, seed=3)).at(QUALITY)
    for path, codec in ((with_one, other), (plain, REFINING)):
        with pytest.raises(OutputError, match=r"begun with another refiner \(refiner: "):
            write(path, codec)


def test_a_part_is_refined_by_itself(with_one: Path) -> None:
    expected, group = refined(), opened(with_one)
    mask = np.arange(COUNT) % 3 == 0
    for images in (slice(1, 9, 2), slice(None, None, -1), [9, 2, 9], np.array([0, -1]), mask, []):
        for refine, whole in ((True, expected), (False, group["embedding"][:])):
            found = archive.read_array(group, "embedding", images, refine=refine)
            np.testing.assert_array_equal(found, whole[images])
    assert list(archive.read_array(group, "id", [3, 1])) == ["image 3", "image 1"]
    for images in ([COUNT], [0.5], np.ones(3, bool), "all", 3, [[1, 2]], {}):
        with pytest.raises(InputError, match="images"):
            archive.read_array(group, "embedding", images)


def test_only_the_shards_of_the_part_are_read(with_one: Path, tmp_path: Path) -> None:
    path = copied(with_one, tmp_path)
    (path / "embedding/c/2/0/0/0").write_bytes(b"damaged")
    group = opened(path)
    found = archive.read_array(group, "embedding", [0, 1], refine=True)
    np.testing.assert_array_equal(found, refined()[:2])
    for images in (None, [0, 8]):
        with pytest.raises(FileError, match="embedding is damaged"):
            archive.read_array(group, "embedding", images, refine=True)
    (path / "embedding/c/2/0/0/0").write_bytes((path / "embedding/c/0/0/0/0").read_bytes())
    with pytest.raises(FileError, match="images 0 to 3 in place of images 8 to 10"):
        archive.read_array(group, "embedding", [8], refine=True)


def test_class_tokens_stay_and_other_arrays_have_nothing_to_refine(with_one: Path) -> None:
    group = archive.open_archive(with_one)
    tokens = archive.read_array(group, "class_token", refine=True)
    np.testing.assert_array_equal(tokens, archive.read_array(group, "class_token"))
    with pytest.raises(InputError, match="label holds none"):
        archive.read_array(group, "label", refine=True)


def test_what_cannot_be_added_is_refused(plain: Path, tmp_path: Path) -> None:
    path = copied(plain, tmp_path)
    before, group = contents(path), opened(path, "r+")
    served = dict.fromkeys(REFINER.codecs, -1)
    for wrong in (OTHERS, random_refiner(WHOLE, codecs=served)):
        with pytest.raises(InputError, match="another codec"):
            archive.add_refiner(group, wrong)
    with pytest.raises(OutputError, match="open for reading only"):
        archive.add_refiner(opened(path), REFINER)
    with pytest.raises(InputError, match=r"no refiner: coder\.archive\.add_refiner"):
        archive.read_array(group, "embedding", refine=True)
    with pytest.raises(InputError, match="nec_refiner is the archive's own"):
        archive.create(tmp_path / "b", CODEC, 3, GRID, attributes={"nec_refiner": "00"})
    half = {CODEC.fingerprint.hex(): 0}  # and not the codec of its grids alone
    alone = CODEC.with_refiner(random_refiner(WHOLE, codecs=half))
    with pytest.raises(InputError, match="another codec"):
        archive.create(tmp_path / "b", alone, 3, GRID)
    with archive.Writer(path, CODEC, COUNT, GRID, shard=SHARD), pytest.raises(OutputError):
        archive.add_refiner(group, REFINER)
    assert contents(path) == before
    with pytest.raises(InputError, match="another codec"):
        archive.add_refiner(filled(MemoryStore()), REFINER)
    with pytest.raises(FileError, match="not an archive"):
        archive.add_refiner(zarr.create_group(MemoryStore()), REFINER)


def test_another_is_never_replaced(with_one: Path, tmp_path: Path) -> None:
    path = copied(with_one, tmp_path)
    before, group = contents(path), opened(path, "r+")
    other = random_refiner(WHOLE, seed=3)
    with pytest.raises(OutputError, match=r'del group\.attrs\["nec_refiner"\]'):
        archive.add_refiner(group, other)
    assert contents(path) == before
    del group.attrs["nec_refiner"]
    with pytest.raises(OutputError, match=r'del group\["refiner"\]'):
        archive.add_refiner(group, other)
    del group["refiner"]
    archive.add_refiner(group, other)
    assert archive.read_refiner(archive.open_archive(path)) == other


def test_finishing_again_keeps_a_refiner_that_was_added_since(plain: Path, tmp_path: Path) -> None:
    path = copied(plain, tmp_path)
    behind = zarr.open_group(path, mode="r+")
    archive.add_refiner(zarr.open_group(path, mode="r+"), REFINER)
    labels = behind["label"]
    assert isinstance(labels, zarr.Array)
    labels[:] = 7
    archive.finish(behind)
    assert archive.read_refiner(archive.open_archive(path)) == REFINER
    assert archive.read_refiner(behind) == REFINER
    assert 7 in archive.read_array(archive.open_archive(path), "label")


def test_symbols_chosen_for_its_refiner_are_written_as_they_are(tmp_path: Path) -> None:
    """What `aim` returns is coded to the symbols of `encode(for_refiner=True)`."""
    aimed = REFINING.aim(Y, GRID)
    with archive.Writer(tmp_path / "a", REFINING, COUNT, GRID, shard=COUNT) as writer:
        writer.write(slice(0, COUNT), aimed, [str(i) for i in range(COUNT)])
        writer.finish()
    group = archive.open_archive(tmp_path / "a")
    grids, _ = REFINING.split()
    for refine in (False, True):
        found = archive.read_array(group, "embedding", refine=refine)
        for y, one in zip(Y, found, strict=True):
            blob = grids.encode(y[1:], GRID, for_refiner=True)
            np.testing.assert_array_equal(
                one.reshape(-1, WHOLE.channels), grids.decode(blob, refine=refine)
            )


def test_a_group_that_is_behind_changes_nothing(plain: Path, tmp_path: Path) -> None:
    path = copied(plain, tmp_path)
    behind = opened(path, "r+")
    opened(path, "r+").attrs["added"] = 1
    with pytest.raises(OutputError, match="open it again"):
        archive.add_refiner(behind, REFINER)
    assert "added" in opened(path).attrs


def damage(path: Path, how: str) -> None:
    array = path / "refiner" / "file"
    if how == "lost":
        shutil.rmtree(array)
    elif how == "lost chunk":
        (array / "c/0").unlink()
    elif how == "flipped":
        data = bytearray((array / "c/0").read_bytes())
        data[-1] ^= 1
        (array / "c/0").write_bytes(data)
    elif how == "cut":
        (array / "c/0").write_bytes((array / "c/0").read_bytes()[:100])
    elif how == "metadata":
        (array / "zarr.json").write_text("{")
    elif how == "another file":
        CODEC.save(array / "c/0")
        size = (array / "c/0").stat().st_size
        change(array / "zarr.json", lambda data: data.update(shape=[size]))
        change(
            array / "zarr.json",
            lambda data: data["chunk_grid"]["configuration"].update(chunk_shape=[size]),
        )
    elif how == "huge":
        whole = {"name": "regular", "configuration": {"chunk_shape": [1 << 40]}}
        change(array / "zarr.json", lambda data: data.update(shape=[1 << 40], chunk_grid=whole))
        (array / "c/0").unlink()
    elif how == "of many chunks":
        change(array / "zarr.json", lambda data: data.update(shape=[1 << 40]))
    elif how == "another type":
        change(array / "zarr.json", lambda data: data.update(data_type="int8"))
    elif how == "another":
        change(path / "zarr.json", lambda data: data["attributes"].update(nec_refiner="ab" * 32))
    elif how == "no text":
        change(path / "zarr.json", lambda data: data["attributes"].update(nec_refiner=[1]))
    else:
        group = opened(path, "r+")
        del group["refiner"]
        data = np.frombuffer(OTHERS.to_bytes(), np.uint8)
        group.create_array("refiner/file", data=data, compressors=None)
        group.attrs["nec_refiner"] = OTHERS.fingerprint.hex()


DAMAGE = {
    "lost": "refiner/file is lost or damaged",
    "lost chunk": "refiner/file is lost or damaged",
    "flipped": "SHA-256",
    "cut": "refiner/file is lost or damaged",
    "metadata": "refiner/file is lost or damaged",
    "another file": "a codec file where a refiner file is needed",
    "huge": "1,099,511,627,776 bytes",
    "of many chunks": "makes [0-9,]+ chunks, and at most",
    "another type": "not an array of bytes",
    "another": "not the one that nec_refiner names",
    "no text": "not the one that nec_refiner names",
    "of another codec": "belongs to another codec",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_one_is_named_when_it_is_needed_alone(
    how: str, with_one: Path, tmp_path: Path
) -> None:
    path = copied(with_one, tmp_path)
    damage(path, how)
    group = archive.open_archive(path)
    expected = opened(with_one)["embedding"][:]
    np.testing.assert_array_equal(archive.read_array(group, "embedding"), expected)
    for read in (
        lambda: archive.read_array(group, "embedding", refine=True),
        lambda: archive.read_array(group, "embedding", [0], refine=True),
        lambda: archive.read_refiner(group),
    ):
        with pytest.raises(FileError, match=DAMAGE[how]) as caught:
            read()
        assert str(path) in str(caught.value)
    write(path)  # a writer checks the other arrays, and finishes
    archive.finish(opened(path, "r+"))
    if how in ("another", "no text", "of another codec"):
        return
    archive.add_refiner(opened(path, "r+"), REFINER)  # mends it
    assert contents(path) == contents(with_one)
    damage(path, how)
    write(path, REFINING)  # and so does a writer that has it
    assert contents(path) == contents(with_one)


def test_an_interrupted_addition_is_completed(with_one: Path, tmp_path: Path) -> None:
    path = copied(with_one, tmp_path)
    del opened(path, "r+").attrs["nec_refiner"]
    with pytest.raises(OutputError, match="another refiner, or a part of one"):
        archive.add_refiner(opened(path, "r+"), random_refiner(WHOLE, 5))
    archive.add_refiner(opened(path, "r+"), REFINER)
    assert contents(path) == contents(with_one)


def test_what_is_no_refiner_or_group_is_refused(plain: Path) -> None:
    group: Any
    for group in (opened(plain, "r+"), plain):
        with pytest.raises(InputError, match="a str is no refiner: give"):
            archive.add_refiner(group, "refiner.safetensors")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is no group: give"):
        archive.add_refiner(plain, REFINER)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a str is no refiner"):
        CODEC.with_refiner("refiner.safetensors")  # type: ignore[arg-type]


def test_xarray_and_zip_files_read_it(with_one: Path, tmp_path: Path) -> None:
    data = xr.open_zarr(with_one, consolidated=False)
    assert data.embedding.dims == ("image", "y", "x", "channel")
    assert "refiner" not in data  # which it would join to the images
    assert xr.concat([data, data], "image").sizes == {**data.sizes, "image": 2 * COUNT}
    np.testing.assert_array_equal(data.embedding.values, opened(with_one)["embedding"][:])
    shutil.make_archive(str(tmp_path / "a"), "zip", with_one)
    with ZipStore(tmp_path / "a.zip", mode="r") as store:
        group = archive.open_archive(store)
        found = archive.read_array(group, "embedding", [0], refine=True)
    np.testing.assert_array_equal(found, refined()[:1])


def test_archives_in_other_stores_have_refiners(with_one: Path) -> None:
    store = MemoryStore()
    group = write(store)
    archive.add_refiner(group, REFINER)
    np.testing.assert_array_equal(archive.read_array(group, "embedding", refine=True), refined())
    made = MemoryStore()
    write(made, REFINING)

    async def keys(of: MemoryStore) -> list[str]:
        return sorted([name async for name in of.list()])

    assert asyncio.run(keys(store)) == asyncio.run(keys(made))


def test_copies_of_metadata_are_kept(plain: Path, tmp_path: Path) -> None:
    path = copied(plain, tmp_path)
    for mode in (None, False):  # whatever the caller's object knows
        group = zarr.open_group(path, mode="r+", use_consolidated=mode)
        archive.add_refiner(group, REFINER)
        assert group.attrs["nec_refiner"] == REFINER.fingerprint.hex()
        assert main(["verify", str(path)]) == 0
        xr.open_zarr(path).close()  # warnings are errors
        assert archive.read_refiner(archive.open_archive(path)) == REFINER
        group.attrs["other"] = 1  # written by this object
        assert main(["verify", str(path)]) == 0
        group = zarr.open_group(path, mode="r+")
        del group.attrs["nec_refiner"]
        del group["refiner"]
    bare = Path(shutil.copytree(plain, tmp_path / "bare.zarr"))
    change(bare / "zarr.json", lambda data: data.pop("consolidated_metadata"))
    archive.add_refiner(opened(bare, "r+"), REFINER)  # of an earlier version: still none
    assert opened(bare).metadata.consolidated_metadata is None


def test_an_array_of_the_same_name_is_only_an_array(plain: Path, tmp_path: Path) -> None:
    path = copied(plain, tmp_path)
    opened(path, "r+").create_array("refiner", data=np.arange(COUNT, dtype=np.int32))
    group = archive.open_archive(path)
    np.testing.assert_array_equal(archive.read_array(group, "refiner"), np.arange(COUNT))
    before = contents(path)
    with pytest.raises(OutputError, match=r'del group\["refiner"\]'):
        archive.add_refiner(opened(path, "r+"), REFINER)
    assert contents(path) == before


@pytest.mark.parametrize("kept", ["2026-11", "2026-11-valid", "2026-11-digests"])
def test_old_archives_are_read_as_before(kept: str) -> None:
    group = archive.open_archive(KEPT / kept / "archive.zarr")
    with pytest.raises(InputError, match="has no refiner"):
        archive.read_array(group, "embedding", refine=True)
    assert not np.isnan(archive.read_array(group, "embedding", [0])).any()
    with pytest.raises(InputError, match="only codecs with a transform"):
        SCALAR.with_refiner(REFINER)


def test_chunks_of_unrelated_tokens_with_gaps_are_refined(tmp_path: Path) -> None:
    """What is missing stays as it is; the others are refined as their blob is."""
    y = transform_cases.smooth_embeddings(5, 20).reshape(-1, 12)
    ladder = coder.fit(y)
    refiner = random_refiner(ladder)
    codec = ladder.at(3)
    assert not codec.spatial
    array: Any = zarr.create_array(
        tmp_path / "a.zarr",
        shape=(40, 12),
        dtype="float32",
        chunks=(20, 12),
        serializer=NecCodec(codec),
        compressors=None,
        fill_value=np.nan,
    )
    values = y[:40].copy()
    gaps = [0, 7, 19, 25]
    values[gaps] = np.nan
    array[:] = values
    chunk = refined_chunk(array[:20], codec, refiner, np.nan)
    assert np.flatnonzero(np.isnan(chunk).any(axis=1)).tolist() == [0, 7, 19]
    there = ~np.isnan(values[:20, 0])
    blob = codec.encode(values[:20][there], (1, int(there.sum())))
    expected = codec.with_refiner(refiner).decode(blob, refine=True)
    np.testing.assert_array_equal(chunk[there], expected)
