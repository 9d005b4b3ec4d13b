"""One process writes an archive: two at once, one that is killed, and what one leaves behind."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from archive_cases import (
    BAD,
    CODEC,
    COUNT,
    GRID,
    SHARD,
    Y,
    contents,
    opened,
    written,
)
from folders import ROOT, TESTS
from zarr.storage import FsspecStore, LocalStore

from coder import OutputError, archive, files
from coder.archive.lock import locked
from coder.cli import main


def hold(path, ready, end):
    with archive.Writer(path, CODEC, COUNT, GRID, shard=SHARD):
        ready.set()
        end.wait()


def test_two_processes_do_not_write_one_archive(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready, end = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold, args=(tmp_path / "a", ready, end))
    process.start()
    assert ready.wait(60)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    folder = tmp_path / "a"
    for path in (
        *(folder, str(tmp_path / "link"), LocalStore(folder), f"file://{folder}"),
        *(f"local://{folder}", FsspecStore.from_url(f"file://{folder}"), opened(folder)),
    ):
        with pytest.raises(OutputError, match="another process is writing it"):
            written(path)
        with pytest.raises(OutputError, match="another process is writing it"):
            archive.create(path, CODEC, COUNT, GRID)
    # Whoever reads it sees nothing of the lock.
    assert set(opened(tmp_path / "a")) == {
        "class_token", "embedding", "error", "id", "label", "valid"
    }  # fmt: skip
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (tmp_path / "link").unlink()
    written(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_one_process_does_not_write_it_twice_at_once(tmp_path):
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, shard=SHARD) as writer:
        with pytest.raises(OutputError, match="another process"):
            written(tmp_path / "a")
        writer.missing()
    written(tmp_path / "a")


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    written(tmp_path / ("a" * 255))
    archive.create(tmp_path / ("b" * 255), CODEC, COUNT, GRID)
    assert sorted(path.name[:2] for path in tmp_path.iterdir()) == ["aa", "bb"]


def test_no_locks_are_a_warning(tmp_path, monkeypatch):
    def acquire(self, **_):
        raise NotImplementedError

    monkeypatch.setattr("coder.archive.lock.FileLock.acquire", acquire)
    with pytest.warns(UserWarning, match="has no locks"):
        written(tmp_path / "a")


KILLED = """
import os, signal, sys
from zarr.storage import LocalStore
from archive_cases import written

counts, put = [0, int(sys.argv[2])], LocalStore.set

async def set_or_die(self, *arguments, **settings):
    counts[0] += 1
    if counts[0] > counts[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return await put(self, *arguments, **settings)

LocalStore.set = set_or_die
written(sys.argv[1], {0, 10, *range(16, 24), 36})
"""


@pytest.mark.parametrize("writes", [3, 9, 13, 18, 30])
def test_a_writer_killed_between_any_two_writes_goes_on_to_the_same_archive(writes, tmp_path):
    program = [sys.executable, "-c", KILLED, str(tmp_path / "a"), str(writes)]
    path = os.pathsep.join([str(TESTS), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    killed = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "a").exists() == (writes > 7)
    assert len(list(tmp_path.glob(".*.part"))) == (writes <= 7)
    written(tmp_path / "a", BAD)
    written(tmp_path / "whole", BAD)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")
    # Nothing of what was killed is left, in the archive and beside it.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "whole"]


def test_only_an_archive_s_own_remains_are_removed_and_only_by_who_holds_its_lock(tmp_path):
    def left(name):
        with files.writing_folder(tmp_path / name) as part:
            (part / "zarr.json").write_text("{}")
            shutil.copytree(part, tmp_path / f"copy of {name}")
            kept = part.name
        shutil.rmtree(tmp_path / name)
        return (tmp_path / f"copy of {name}").rename(tmp_path / kept)

    own, other, unnamed = left("a"), left("b"), tmp_path / ".0123456789ab.part"
    unnamed.write_bytes(b"of an earlier version: whose, nobody knows")
    with locked(tmp_path / "a"):
        own.mkdir()  # as if somebody made it now
        with pytest.raises(OutputError, match="another process"):
            written(tmp_path / "a")
        assert own.exists()
    written(tmp_path / "a")
    assert not own.exists()
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a", other, unnamed])
    created = left("c")
    archive.create(tmp_path / "c", CODEC, COUNT, GRID)
    assert not created.exists()


def test_remains_in_an_archive_disturb_nobody_and_go_when_it_is_finished(tmp_path, capsys):
    written(tmp_path / "whole", BAD)
    shutil.copytree(tmp_path / "whole", tmp_path / "a")
    remains = [
        tmp_path / "a" / name
        for name in ("zarr.json.7f.partial", "embedding/c/1/0/0/0.7f.partial", "id/c/1.7f.partial")
    ]
    for path in remains:
        path.write_bytes(b"half")
    for command in ("info", "verify"):
        assert main([command, str(tmp_path / "a")]) == 0
        assert "complete" in capsys.readouterr().out
    archive.finish(opened(tmp_path / "a", mode="r+"))
    assert archive.open_archive(tmp_path / "a").attrs
    written(tmp_path / "a", BAD)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_the_name_of_a_folder_does_not_matter(tmp_path):
    written(tmp_path / "a b")
    for number, store in enumerate(
        (lambda path: f"file://{path}", lambda path: FsspecStore.from_url(f"file://{path}"))
    ):
        path = tmp_path / f"{number} b"
        written(store(path))
        assert contents(path) == contents(tmp_path / "a b")
        assert archive.open_archive(store(path)).attrs


def test_threads_write_one_shard_one_after_another(tmp_path):
    """The last to come has it whole: never the embeddings of one and the labels of another."""
    part = slice(0, SHARD)
    with archive.Writer(tmp_path / "a", CODEC, SHARD, GRID, shard=SHARD) as writer:

        def write(version):
            labels = np.full(SHARD, version)
            ids = [f"{version} {i}" for i in range(SHARD)]
            writer.write(part, Y[part] + version, ids, labels)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, [0, 9, 0, 9, 0, 9]))
        writer.finish()
    group = opened(tmp_path / "a")
    [version] = set(group["label"][:].tolist())
    assert list(group["id"][:]) == [f"{version} {i}" for i in range(SHARD)]
    wanted = CODEC.dequantise(CODEC.quantise(Y[part] + version))[:, 1:].reshape(SHARD, *GRID, 3)
    np.testing.assert_array_equal(group["embedding"][:], wanted)
