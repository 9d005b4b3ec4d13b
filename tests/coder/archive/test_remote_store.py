"""Archives in object stores: whatever fails, what is read is what was written, or an error."""

import functools
import http.server
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import transform_cases
import zarr
from archive_cases import BAD, CODEC, COUNT, EMBEDDING_HAT, GRID, contents, filled, written
from object_store import FAILURES
from refiner_cases import random_refiner
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore

import coder
from coder import CodecError, FileError, OutputError, StoreError, archive
from coder.archive import exact_copy, zarr_nodes
from coder.archive.remote_store import TRIES, RemoteStore
from coder.cli import main
from coder.errors import NoPermission


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "a.zarr"
    written(path, BAD)
    return path


@pytest.fixture(scope="module")
def large_shards(tmp_path_factory):
    """An archive of which one image is read by the index of its shard."""
    path = tmp_path_factory.mktemp("archive") / "b.zarr"
    filled(path, shard=20)
    return path


@pytest.fixture(scope="module")
def url(whole, server):
    place = f"{server.folder()}/a.zarr"
    server.upload(whole, place)
    return place


@pytest.fixture(scope="module")
def large_url(large_shards, server):
    place = f"{server.folder()}/b.zarr"
    server.upload(large_shards, place)
    return place


def first_try(kind, methods=("GET", "HEAD", "PUT", "DELETE")):
    """The first request for each object fails; of listings, every fourth one."""
    seen = Counter()

    def failure(method, key, number):
        seen[method, key] += 1
        is_first = seen[method, key] == 1 if key else seen[method, key] % 4 == 1
        return kind if method in methods and is_first else None

    return failure


def by_chance(seed, rate):
    def failure(method, key, number):
        chance = random.Random(f"{seed} {number}")
        if chance.random() >= rate:
            return None
        return chance.choices(FAILURES, [1, 15, 15, 15])[0]

    return failure


def result(read, url):
    """What a function returns; None if it raised an error, which names the store."""
    try:
        return read()
    except (StoreError, CodecError) as error:
        text = str(error)
    assert url in text


def buffers(store, *arguments):
    found = sync(store.get(arguments[0], default_buffer_prototype(), *arguments[1:]))
    return None if found is None else found.to_bytes()


def test_it_is_read_as_a_local_one(objects, url, whole, capsys):
    embeddings, local = coder.open(url), coder.open(whole)
    np.testing.assert_array_equal(embeddings[:].data, local[:].data)
    assert embeddings.ids.tolist() == local.ids.tolist()
    group = archive.open_archive(url)
    for name in ("embedding", "class_token", "label", "valid", "id", "error"):
        here = archive.read_array(archive.open_archive(whole), name)
        np.testing.assert_array_equal(archive.read_array(group, name), here)
    for command in ("info", "verify"):
        shown = []
        for place in (whole, url):
            assert main([command, str(place)]) == 0
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1]


def test_it_is_decoded_to_the_same_files(objects, url, whole, tmp_path, capsys):
    assert main(["decode", str(whole), "--out", str(tmp_path / "here")]) == 0
    assert main(["decode", url, "--out", str(tmp_path / "there")]) == 0
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.parametrize("kind", FAILURES)
def test_one_failure_of_each_request_changes_nothing(kind, impatient, large_url, large_shards):
    failure = first_try(kind)

    def without_metadata(method, key, number):
        # A body whose length is wrong and as declared is noticed by what it holds: see below.
        if kind == "short" and key.endswith("zarr.json"):
            return None
        if kind == "hang" and "/embedding/c" not in key:  # which takes its time
            return None
        return failure(method, key, number)

    with impatient.failing(without_metadata):
        embeddings = coder.open(large_url)
        np.testing.assert_array_equal(embeddings[3], EMBEDDING_HAT[3])
        np.testing.assert_array_equal(embeddings[:], EMBEDDING_HAT)
        labels = archive.read_array(archive.open_archive(large_url), "label")
    np.testing.assert_array_equal(labels, np.arange(COUNT))


@pytest.mark.parametrize(
    ("seed", "rate"),
    [
        *((0, 0.1), (1, 0.5)),
        *(
            pytest.param(i, rate, marks=pytest.mark.slow)
            for i in range(2, 9)
            for rate in (0.1, 0.5)
        ),
    ],
)
def test_what_fails_by_chance_gives_the_same_or_an_error(seed, rate, impatient, large_url, capsys):
    def same(read, expected):
        found = result(read, large_url)
        if found is not None:
            np.testing.assert_array_equal(found, expected)

    with impatient.failing(by_chance(seed, rate)):
        same(lambda: coder.open(large_url)[5], EMBEDDING_HAT[5])
        same(lambda: coder.open(large_url)[:], EMBEDDING_HAT)
        group = result(lambda: archive.open_archive(large_url), large_url)
        if group is not None:
            same(lambda: archive.read_array(group, "label"), np.arange(COUNT))
            same(lambda: archive.read_array(group, "embedding", [1, 30]), EMBEDDING_HAT[[1, 30]])
    capsys.readouterr()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 6))]
)
def test_verify_and_copy_of_what_fails_by_chance(seed, impatient, url, whole, tmp_path, capsys):
    with impatient.failing(by_chance(seed, 0.1)):
        status = main(["verify", url])
        out, err = capsys.readouterr()
        assert (status == 0 and "good: no damage" in out) or (status == 1 and url in err)
        for _ in range(20):
            if main(["copy", url, "--out", str(tmp_path / "copy.zarr")]) == 0:
                break
            assert not (tmp_path / "copy.zarr/zarr.json").exists()
            assert url in capsys.readouterr().err
    assert contents(tmp_path / "copy.zarr") == contents(whole)


@pytest.mark.parametrize("kind", ["503", "closed", "hang"])
def test_what_fails_for_ever_is_an_error_that_says_so(kind, impatient, url, capsys):
    store = zarr_nodes.place(url)
    with impatient.failing(lambda *_: kind):
        with impatient.counted() as requests, pytest.raises(StoreError) as caught:
            buffers(store, "valid/c/0")
        assert requests == {("GET", "object"): TRIES}
        assert caught.value.filename == f"{url}/valid/c/0"
        assert f"cannot be read ({TRIES} tries, the last: " in str(caught.value.strerror)
        if kind == "hang":  # of all others, one is enough
            return
        reads = [lambda: coder.open(url), lambda: sync(store.sizes())]
        if kind == "503":  # a HEAD has no body that could be cut short
            reads += [
                lambda: sync(store.exists("label/c/0")),
                lambda: sync(store.getsize("id/c/0")),
            ]
        for read in reads:
            with pytest.raises(StoreError, match=rf"{TRIES} tries.*{url}"):
                read()
        assert main(["verify", url]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"{url}/")
    assert f"{TRIES} tries" in err
    assert "damage" not in out


def test_a_listing_that_fails_is_not_an_empty_one(objects, url, capsys):
    with objects.failing(lambda method, key, number: None if key else "503"):
        with pytest.raises(StoreError, match=rf"cannot be listed.*{url}"):
            coder.open(url)
        assert main(["info", url]) == 1
        assert "cannot be listed" in capsys.readouterr().err


def test_what_another_process_writes_is_seen(objects):
    store = zarr_nodes.place(objects.folder())
    objects.put(f"{store}/a/b", b"12")
    assert sync(store.sizes()) == {"a/b": 2}
    objects.put(f"{store}/a/b", b"123")
    objects.put(f"{store}/a/c", b"1234")
    assert sync(store.exists("a/c"))
    assert sync(store.getsize("a/b")) == 3
    assert sync(_listed(store, "a")) == ["b", "c"]
    assert buffers(store, "a/b") == b"123"


def test_what_is_missing_is_asked_for_once(objects, url):
    store = zarr_nodes.place(url)
    with objects.counted() as requests:
        assert buffers(store, "nothing") is None
    assert requests == {("GET", "object"): 1}
    with objects.counted():
        assert not sync(store.exists("nothing"))
        assert not sync(store.exists("valid"))  # a folder
    assert Counter(objects.keys)[f"{url.partition('bucket/')[2]}/nothing"] == 1
    with pytest.raises(FileNotFoundError, match="nothing"):
        sync(store.getsize("nothing"))
    with pytest.raises(FileError, match=r"nothing\.zarr"):
        coder.open(f"{url}/nothing.zarr")


def test_a_refusal_is_no_missing_object_and_not_tried_again(objects, url, capsys):
    store = zarr_nodes.place(url)
    with objects.failing(lambda *_: "403"):
        with objects.counted() as requests, pytest.raises(NoPermission, match="valid/c/0"):
            buffers(store, "valid/c/0")
        assert requests == {("GET", "object"): 1}
        for read in (store.exists, store.getsize):
            with pytest.raises(NoPermission):
                sync(read("valid/c/0"))
        with pytest.raises(NoPermission):
            sync(store.sizes())
        with pytest.raises(NoPermission, match="give credentials"):
            coder.open(url)
        with pytest.raises(NoPermission, match="cannot be written"):
            sync(store.set("a", default_buffer_prototype().buffer.from_bytes(b"a")))
    embeddings = coder.open(url)
    with objects.failing(lambda *_: "403"), pytest.raises(NoPermission):
        embeddings[1]


def test_a_shard_that_is_lost_or_cut_short_is_damage(objects, large_shards, server):
    place = f"{server.folder()}/a.zarr"
    server.upload(large_shards, place)
    embeddings, group = coder.open(place), archive.open_archive(place)
    shard = (large_shards / "embedding/c/0/0/0/0").read_bytes()
    server.put(f"{place}/embedding/c/0/0/0/0", shard[:40])
    with pytest.raises(FileError, match="cut short"):
        embeddings[3]
    with pytest.raises(FileError, match="embedding is damaged"):
        archive.read_array(group, "embedding", [3])
    sync(zarr_nodes.place(place).delete("embedding/c/0/0/0/0"))
    sync(zarr_nodes.place(place).delete("label/c/0"))
    with pytest.raises(FileError, match=r"embedding/c/0/0/0/0 is lost"):
        embeddings[3]
    for name in ("embedding", "label"):
        with pytest.raises(FileError, match=f"{name}/c/0.* is lost: images 0 to 19"):
            archive.read_array(group, name)


def test_a_range_is_as_long_as_asked_for(objects, url):
    store = zarr_nodes.place(url)
    data = buffers(store, "label/c/0")
    assert data is not None
    for asked, expected in ((RangeByteRequest(3, 9), data[3:9]), (SuffixByteRequest(7), data[-7:])):
        with objects.failing(first_try("short")):
            assert buffers(store, "label/c/0", asked) == expected
        with objects.failing(lambda *_: "short"), pytest.raises(StoreError, match="bytes came of"):
            buffers(store, "label/c/0", asked)
    for asked in (RangeByteRequest(3, 9999), RangeByteRequest(9000, 9999), SuffixByteRequest(9999)):
        with pytest.raises(FileError, match=f"ends after {len(data)} bytes"):
            buffers(store, "label/c/0", asked)
    # What was listed is known to have its size.
    sync(store.sizes("label"))
    with objects.failing(first_try("short")):
        assert buffers(store, "label/c/0") == data
    # The listing may be of an earlier time.
    store._sizes["label/c/0"] = 3
    assert buffers(store, "label/c/0") == data


def test_metadata_that_are_short_are_damaged_metadata(objects, url):
    with objects.failing(lambda method, key, number: "short"), pytest.raises(FileError) as caught:
        coder.open(url)
    assert str(caught.value).startswith(f"{url}: its Zarr metadata are damaged")


def test_requests(objects, large_url, url):
    """docs/consumer.md says these counts."""
    with objects.counted() as requests:
        embeddings = coder.open(large_url)
    assert requests.total() <= 15
    with objects.counted() as requests:
        embeddings[3]
    assert requests == {("GET", "object"): 3, ("GET", "range"): 2}
    with objects.counted() as requests:
        embeddings[4]
    assert requests == {("GET", "range"): 1}
    with objects.counted() as requests:
        embeddings[21]  # of another shard: its marks, its index, its blob
    assert requests == {("GET", "object"): 1, ("GET", "range"): 2}
    embeddings = coder.open(url)
    with objects.counted() as requests:
        embeddings[:]
    assert requests == {("GET", "object"): 2 + 5 + 4}  # metadata; `valid`; shards
    group = archive.open_archive(url)
    with objects.counted() as requests:
        archive.read_array(group, "id")
    assert requests == {("GET", "object"): 1 + 5}


def test_a_zarr_store_of_any_kind_is_wrapped(objects, url, whole):
    expected = coder.open(whole)[:].data
    options = objects.settings()
    for store in (
        FsspecStore.from_url(url, storage_options=options),
        FsspecStore.from_url(url, storage_options=options, allowed_exceptions=(Exception,)),
        zarr.open_group(url, mode="r", storage_options=options),
    ):
        inner: Any = store.store if isinstance(store, zarr.Group) else store
        inner.fs.retries = 1  # of s3fs, each of which would be five requests
        with objects.failing(first_try("503", ["GET"])):
            np.testing.assert_array_equal(coder.open(store)[:].data, expected)
        with objects.failing(lambda *_: "503"), pytest.raises((StoreError, NoPermission)):
            coder.open(store)


FORKED = """
import json, os, signal, sys
import fsspec.config
import numpy as np
import coder

fsspec.config.conf["s3"] = json.loads(sys.argv[1])
embeddings = coder.open(sys.argv[2])
np.save(sys.argv[3] + "/parent.npy", embeddings[3])
child = os.fork()
if child == 0:
    signal.alarm(60)
    np.save(sys.argv[3] + "/child.npy", embeddings[25])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
np.save(sys.argv[3] + "/again.npy", embeddings[4])
"""


def test_a_process_that_was_forked_reads(objects, large_url, tmp_path):
    """So does a worker of PyTorch's DataLoader, with the embeddings that it was given."""
    # Forked from a process of its own: this one may have the threads of JAX.
    command = [sys.executable, "-c", FORKED, json.dumps(objects.settings()), large_url, tmp_path]
    subprocess.run(command, check=True)
    for name, image in (("parent", 3), ("child", 25), ("again", 4)):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), EMBEDDING_HAT[image])


def test_many_objects_are_listed_in_pages(objects):
    place = objects.folder()
    for i in range(1001):
        objects.put(f"{place}/a/{i}", b"1")
    with objects.counted() as requests:
        assert len(sync(zarr_nodes.place(place).sizes("a"))) == 1001
    assert requests == {("GET", "list"): 2}


def test_a_writer_writes_the_same_objects(objects, whole):
    place = f"{objects.folder()}/a.zarr"
    written(place, BAD, stop=1)
    with pytest.raises(FileError, match="still being written"):
        coder.open(place)
    with objects.failing(first_try("closed")):
        written(place, BAD)
    assert objects.objects(place) == contents(whole)
    with pytest.raises(coder.InputError, match="no locks: write it alone"):
        written(place, BAD, shared=True)


def test_a_writer_whose_store_fails_goes_on(objects, whole):
    place, allowed, done = f"{objects.folder()}/a.zarr", 40, False
    written(place, BAD, stop=0)
    while not done:
        left = iter(range(allowed))
        allowed += 90
        with objects.failing(lambda method, *_, left=left: "503" if next(left, -1) < 0 else None):
            done = result(lambda: written(place, BAD), place) is not None
    assert objects.objects(place) == contents(whole)


def test_an_archive_is_not_written_among_other_objects(objects):
    place = objects.folder()
    objects.put(f"{place}/a/b.txt", b"text")
    with pytest.raises(OutputError, match=rf"{place}/a: exists, and holds b\.txt"):
        written(f"{place}/a")
    with pytest.raises(OutputError, match="exists"):
        archive.create(f"{place}/a", CODEC, COUNT, GRID)


def test_a_refiner_is_added(objects, tmp_path, capsys):
    y = transform_cases.smooth_embeddings(5, 20)
    codec = coder.fit(y)
    refiner = random_refiner(codec)
    place = f"{objects.folder()}/a.zarr"
    with archive.Writer(place, codec.at(2), len(y), y.shape[1:3]) as writer:
        for part in writer.missing():
            flat = y[part].reshape(part.stop - part.start, -1, y.shape[3])
            writer.write(part, flat, [str(i) for i in range(part.start, part.stop)])
        writer.finish()
    refiner.save(tmp_path / "refiner.safetensors")
    assert main(["add-refiner", place, "--refiner", str(tmp_path / "refiner.safetensors")]) == 0
    assert main(["verify", place]) == 0
    refined = coder.open(place, refine=True)[:]
    assert main(["copy", place, "--out", str(tmp_path / "a.zarr")]) == 0
    np.testing.assert_array_equal(refined, coder.open(tmp_path / "a.zarr", refine=True)[:])


class _Http(http.server.SimpleHTTPRequestHandler):
    lists, status = True, 0

    def log_message(self, format, *args):
        pass

    def send_head(self):
        if self.status and "/c/" in self.path:
            self.send_error(self.status)
            return None
        if not self.lists and self.path.endswith("/"):
            self.send_error(404)
            return None
        return super().send_head()


@pytest.fixture
def web(whole, monkeypatch):
    """A web server of an archive, which lists folders and serves no ranges."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("coder.archive.remote_store.WAIT", 0)

    class Handler(_Http):
        pass

    handler = functools.partial(Handler, directory=str(whole.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.zarr", Handler
    server.shutdown()
    server.server_close()


def test_a_web_server(web, whole, capsys):
    url, handler = web
    expected = archive.read_array(archive.open_archive(whole), "embedding")
    np.testing.assert_array_equal(
        archive.read_array(archive.open_archive(url), "embedding"), expected
    )
    assert main(["verify", url]) == 1
    assert "serves no ranges" in capsys.readouterr().err
    store = zarr_nodes.place(url)
    with pytest.raises(StoreError, match="serves no ranges"):
        buffers(store, "label/c/0", RangeByteRequest(0, 3))
    with pytest.raises(OutputError, match="only read"):
        archive.create(f"{url}/new", CODEC, COUNT, GRID)
    # fsspec's HTTP files are "not found" whatever fails.
    assert sync(store.exists("label/c/0"))
    assert not sync(store.exists("label/c/99"))
    for handler.status, kind in ((503, StoreError), (403, NoPermission)):
        for read in (store.exists, store.getsize):
            with pytest.raises(kind):
                sync(read("label/c/0"))
        with pytest.raises(kind):
            buffers(store, "label/c/0")
    handler.status, handler.lists = 0, False
    with pytest.raises(StoreError, match="lists no folders"):
        coder.open(url)


def test_a_folder_below_that_cannot_be_listed_is_an_error(monkeypatch):
    """fsspec's own walk through folders leaves it out."""
    monkeypatch.setattr("coder.archive.remote_store.WAIT", 0)
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    class Failing(fsspec.get_filesystem_class("memory")):
        store, pseudo_dirs, protocol, cachable = {}, [""], "failing", False
        left = 0

        def ls(self, path, detail=True, **options):
            if path.endswith("/b") and self.left:
                self.left -= 1
                raise OSError(5, "failed")
            return super().ls(path, detail, **options)

    memory = Failing()
    memory.pipe("/root/a/b/c", b"123")
    memory.pipe("/root/d", b"12")
    store = RemoteStore(
        FsspecStore(AsyncFileSystemWrapper(memory, asynchronous=True), path="/root")
    )
    assert sync(store.sizes()) == {"a/b/c": 3, "d": 2}
    memory.left = TRIES - 1
    assert sync(store.sizes()) == {"a/b/c": 3, "d": 2}
    memory.left = TRIES
    with pytest.raises(StoreError, match="cannot be listed"):
        sync(store.sizes())
    assert sync(_listed(store, "a/b")) == ["c"]


async def _listed(store, prefix):
    return [name async for name in store.list_dir(prefix)]


def test_copies(objects, whole, tmp_path, capsys):
    place = f"{objects.folder()}/a.zarr"
    assert main(["copy", str(whole), "--out", place]) == 0
    out, err = capsys.readouterr()
    count = len(contents(whole))
    size = sum(map(len, contents(whole).values()))
    assert out == (
        f"{place}: {COUNT} images, {size:,} bytes in {count} objects, {count} of them copied now\n"
    )
    assert err == f"{count} of {count} objects\n"
    assert objects.objects(place) == contents(whole)
    with objects.counted() as requests:
        assert main(["copy", str(whole), "--out", place]) == 0
    assert not requests["PUT", "object"]
    assert "0 of them copied now" in capsys.readouterr().out
    # What is lost is mended.
    sync(zarr_nodes.place(place).delete("label/c/0"))
    assert exact_copy.copy_exactly(whole, place).copied == 1
    other = f"{objects.folder()}/b.zarr"
    assert main(["copy", place, "--out", other]) == 0
    assert main(["copy", other, "--out", str(tmp_path / "b.zarr")]) == 0
    assert main(["copy", str(tmp_path / "b.zarr"), "--out", str(tmp_path / "c.zarr")]) == 0
    assert contents(tmp_path / "c.zarr") == contents(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.zarr", "c.zarr"]


def test_a_copy_that_is_interrupted_goes_on(objects, whole, capsys):
    place = f"{objects.folder()}/a.zarr"
    puts, done = 0, False
    while not done:
        left = iter(range(9))

        def failure(method, *_, left=left):
            return "503" if method == "PUT" and next(left, -1) < 0 else None

        before = set(objects.objects(place))
        with objects.failing(failure):
            done = result(lambda: exact_copy.copy_exactly(whole, place), place) is not None
        if not done:
            with pytest.raises(FileError):
                coder.open(place)
        assert len(set(objects.objects(place)) - before) <= 9
        puts += len(set(objects.objects(place)) - before)
    assert objects.objects(place) == contents(whole)
    assert puts >= len(contents(whole))


def test_a_copy_refuses_another_and_damage(objects, whole, large_shards, tmp_path):
    place = f"{objects.folder()}/a.zarr"

    def no_record(method, key, number):
        return "503" if method == "PUT" and key.endswith("a.zarr/zarr.json") else None

    with objects.failing(no_record), pytest.raises(StoreError):
        exact_copy.copy_exactly(whole, place)
    assert len(objects.objects(place)) == len(contents(whole))  # all but one, and the mark
    with pytest.raises(OutputError, match=f"{place}: has a part of a copy of another archive"):
        exact_copy.copy_exactly(large_shards, place)
    exact_copy.copy_exactly(whole, place)
    with pytest.raises(OutputError, match="exists, and is no copy of this archive"):
        exact_copy.copy_exactly(large_shards, place)
    objects.put(f"{place}/label/c/0", b"123")
    with pytest.raises(FileError, match="label/c/0 does not hold what it held"):
        exact_copy.copy_exactly(place, tmp_path / "copy.zarr")
    assert not (tmp_path / "copy.zarr/zarr.json").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("text")
    with pytest.raises(OutputError, match="exists, and holds file"):
        exact_copy.copy_exactly(whole, tmp_path / "other")
    with pytest.raises(OutputError, match="another archive: choose a place beside it"):
        exact_copy.copy_exactly(large_shards, whole / "inside")
    written(tmp_path / "part.zarr", stop=1)
    with pytest.raises(FileError, match="still being written"):
        exact_copy.copy_exactly(tmp_path / "part.zarr", tmp_path / "copy2.zarr")


def test_a_copy_has_what_was_listed_and_no_more(objects, whole, tmp_path):
    place = f"{objects.folder()}/a.zarr"
    objects.upload(whole, place)
    sync(zarr_nodes.place(place).delete("zarr.json"))
    objects.put(f"{place}/{exact_copy.MARK}", b"{}")
    with pytest.raises(OutputError, match="has a part of a copy of another"):
        exact_copy.copy_exactly(whole, place)
    sync(zarr_nodes.place(place).delete(exact_copy.MARK))
    with pytest.raises(OutputError, match="exists, and holds"):
        exact_copy.copy_exactly(whole, place)
    objects.put(f"{place}/zarr.json", (whole / "zarr.json").read_bytes())
    objects.put(f"{place}/label/c/99", b"more")
    with pytest.raises(OutputError, match="label/c/99 was not in the archive"):
        exact_copy.copy_exactly(whole, place)


def test_a_refused_copy_deletes_nothing(tmp_path, whole):
    (tmp_path / "downloads").mkdir()
    for name in ("film.partial", "doc.txt"):
        (tmp_path / "downloads" / name).write_bytes(b"1")
    with pytest.raises(OutputError, match="exists, and holds"):
        exact_copy.copy_exactly(whole, tmp_path / "downloads")
    assert {p.name for p in (tmp_path / "downloads").iterdir()} == {"film.partial", "doc.txt"}
