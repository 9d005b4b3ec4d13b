"""`coder.open`: an archive's embeddings as a sequence, the same floats as Zarr reads."""

import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import transform_cases
import zarr
from archive_cases import BAD, COUNT, EMBEDDING_HAT, GRID, SHARD, filled, written
from refiner_cases import random_refiner
from zarr.storage import LocalStore

import coder
from coder import BlobError, FileError, InputError, archive

SHAPE = (COUNT, *GRID, 3)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives") / "a.zarr"
    written(folder, BAD)
    return folder


def test_it_has_the_floats_that_zarr_reads(path):
    embeddings = coder.open(path)
    group: Any = zarr.open_group(path, mode="r")
    there = group["embedding"][:]
    assert (embeddings.shape, embeddings.dtype, embeddings.ndim) == (SHAPE, np.float32, 4)
    assert len(embeddings) == COUNT
    keys = [
        slice(None), (), slice(3, 20, 4), [5, 1, 5], [], np.arange(COUNT) % 3 == 0, ...,
        (slice(2, 9), 1), (..., 0), ([3, 4], slice(None), 2, slice(0, 2)), np.array([35, 2]),
    ]  # fmt: skip
    for key in keys:
        found = embeddings[key]
        here = there[key] if isinstance(key, tuple) else there[(key,)]
        np.testing.assert_array_equal(np.ma.getdata(found), here)
        np.testing.assert_array_equal(np.ma.getmaskarray(found), np.isnan(here))
    for number in (1, -2, np.int64(30)):
        np.testing.assert_array_equal(embeddings[number], there[number])
        assert not isinstance(embeddings[number], np.ma.MaskedArray)
    np.testing.assert_array_equal(embeddings[5, 1, ..., 2], there[5, 1, ..., 2])


def test_images_without_embedding_are_masked_or_refused(path):
    embeddings = coder.open(path)
    assert not embeddings.valid[sorted(BAD)].any()
    for one in (embeddings, coder.open(path, masked=False)):  # alone, it would lose its mask
        with pytest.raises(InputError, match=r"image 10 has no embedding: no image: 10.png"):
            one[10]
        with pytest.raises(InputError, match="image 36 has no embedding"):
            one.__getitems__([3, -1])
    assert np.ma.getmaskarray(embeddings[9:11]).any((1, 2, 3)).tolist() == [False, True]
    strict = coder.open(path, masked=False)
    assert strict[9].shape == (*GRID, 3)
    with pytest.raises(InputError, match=r"image 10 has no embedding: no image: 10.png"):
        strict[9:12]
    assert len(strict[strict.valid]) == COUNT - len(BAD)


def test_it_says_ids_labels_and_classes(path, tmp_path):
    embeddings = coder.open(path)
    assert embeddings.ids[3] == "image 3"
    assert embeddings.labels[3] == 3
    assert embeddings.classes == ()
    written(tmp_path / "b.zarr", attributes={"classes": ["sea", "land"]})
    assert coder.open(tmp_path / "b.zarr").classes == ("sea", "land")


def test_other_images_are_refused(path):
    embeddings = coder.open(path)
    with pytest.raises(IndexError, match=f"image {COUNT} of {COUNT}"):
        embeddings[COUNT]
    assert len([embeddings[i] for i in np.flatnonzero(embeddings.valid)]) == COUNT - len(BAD)
    with pytest.raises(InputError, match="only the first axis takes a list"):
        embeddings[[1, 2], [0, 1]]
    for key in (None, (1, True), (1, None)):
        with pytest.raises(InputError):
            embeddings[key]
    for key in ([COUNT], "a", 0.5, np.ones(3, bool)):
        with pytest.raises(InputError, match=f"of {COUNT}|give a slice"):
            embeddings[key]


def test_it_goes_to_other_processes(path):
    embeddings = coder.open(path)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(embeddings))[4], embeddings[4])
    with coder.Pool(embeddings.codec, 2) as pool:
        np.testing.assert_array_equal(embeddings.read(pool=pool).data, embeddings[:].data)


WORKERS = """
import hashlib, multiprocessing, sys, time
import coder

def digest(embeddings):
    return hashlib.sha256(embeddings[:].tobytes()).hexdigest()

def read(embeddings, results):
    first = digest(embeddings)
    start, own = time.process_time(), time.thread_time()
    for _ in range(3):
        digest(embeddings)
    own = time.thread_time() - own
    results.put((first, (time.process_time() - start - own) / own))

if __name__ == "__main__":
    embeddings = coder.open("a.zarr", refine=True)
    expected = digest(embeddings)  # zarr's threads are there, and a fork does not copy them
    context = multiprocessing.get_context(sys.argv[1])
    results = context.Queue()
    workers = [context.Process(target=read, args=(embeddings, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=100) for _ in workers]
    for worker in workers:
        worker.join()
    assert {one for one, _ in found} == {expected}
    print(max(share for _, share in found))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_each_of_many_workers_decodes_on_one_thread(tmp_path, method):
    codec: Any = coder.load("nec-vit-ti").at(14)
    rng = np.random.default_rng(0)
    mean, scale = codec.transform.mean, codec.transform.scale
    y = (mean + scale * rng.laplace(size=(12, 65, 192)) / 8).astype(np.float32)
    with archive.Writer(tmp_path / "a.zarr", codec, len(y), (8, 8)) as writer:
        for part in writer.missing():
            writer.write(part, y[part], [str(i) for i in range(part.start, part.stop)])
        writer.finish()
    (tmp_path / "program.py").write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, "program.py", method],
        cwd=tmp_path,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "4"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    # Seconds of other threads, such as those that read files, of those of the one that decodes.
    assert float(done.stdout) < 0.2


def test_threads_whose_reads_fail_at_once_all_end(path, monkeypatch):
    embeddings, threads = coder.open(path), 4
    barrier = threading.Barrier(threads)

    async def fails(*_: Any, **__: Any) -> None:
        raise TimeoutError("too slow")

    def read(number: int) -> str:
        barrier.wait()
        with pytest.raises((FileError, OSError)) as caught:
            embeddings[number]
        return str(caught.value)

    monkeypatch.setattr(LocalStore, "get", fails)
    for _ in range(20):
        with ThreadPoolExecutor(threads) as pool:
            found = [pool.submit(read, number) for number in range(threads)]
            assert all("too slow" in one.result(timeout=30) for one in found)


ENDS = """
from concurrent.futures import ThreadPoolExecutor

import coder

embeddings = coder.open("a.zarr")
pool = ThreadPoolExecutor(8)
for number in range(80):
    pool.submit(embeddings.__getitem__, number % len(embeddings))
"""


def test_a_program_ends_while_its_threads_read(path):
    """As a loader does that reads ahead of what is used."""
    subprocess.run([sys.executable, "-c", ENDS], cwd=path.parent, check=True, timeout=100)


def test_it_is_a_source_of_grain_and_has_batches_for_torch(path):
    embeddings = coder.open(path)
    grain: Any = pytest.importorskip("grain")  # not in the base install
    source: Any = embeddings
    batch = next(iter(grain.MapDataset.source(source).slice(slice(1, 9)).batch(4)))
    np.testing.assert_array_equal(batch, EMBEDDING_HAT[1:5])
    for one, number in zip(embeddings.__getitems__([4, 1]), (4, 1), strict=True):
        np.testing.assert_array_equal(one, EMBEDDING_HAT[number])


def test_it_refines(tmp_path):
    y = transform_cases.smooth_embeddings(5, 20)
    codec = coder.fit(y)
    one = codec.with_refiner(random_refiner(codec)).at(2)
    grid = y.shape[1:3]
    with archive.Writer(tmp_path / "a.zarr", one, len(y), grid) as writer:
        for part in writer.missing():
            flat = y[part].reshape(part.stop - part.start, -1, y.shape[3])
            writer.write(part, flat, [str(i) for i in range(part.start, part.stop)])
        writer.finish()
    refined = coder.open(tmp_path / "a.zarr", refine=True)
    group = archive.open_archive(tmp_path / "a.zarr")
    expected = archive.read_array(group, "embedding", refine=True)
    np.testing.assert_array_equal(refined[:], expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(refined))[3], expected[3])
    assert not np.array_equal(coder.open(tmp_path / "a.zarr")[:], expected)
    filled(tmp_path / "plain.zarr")
    with pytest.raises(InputError, match="has no refiner"):
        coder.open(tmp_path / "plain.zarr", refine=True)


@pytest.mark.parametrize("key", [3, slice(0, SHARD)])
def test_damage_is_named(path, tmp_path, key):
    shutil.copytree(path, tmp_path / "a.zarr")
    shard = tmp_path / "a.zarr/embedding/c/0/0/0/0"
    good = shard.read_bytes()
    embeddings = coder.open(tmp_path / "a.zarr")
    shard.unlink()
    with pytest.raises(FileError, match=r"a\.zarr: embedding/c/0/0/0/0 is lost"):
        embeddings[key]
    shard.write_bytes(good[:-7])
    with pytest.raises(FileError, match=r"embedding/c/0/0/0/0 is cut short or damaged"):
        embeddings[key]
    for place in range(0, len(good) - 16 * SHARD - 4, 5):
        shard.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises((BlobError, FileError), match=r"image \d|embedding/c/0"):
            coder.open(tmp_path / "a.zarr")[:SHARD]


def test_an_archive_that_is_not_complete_is_refused(tmp_path):
    written(tmp_path / "a.zarr", stop=2)
    with pytest.raises(FileError, match="still being written"):
        coder.open(tmp_path / "a.zarr")
