"""`nec encode --scheduler`: the workers of a cluster write the archive that one process writes."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from PIL import Image
from transform_cases import smooth_embeddings
from web_server import web_server

import coder
import nec_jax
from coder import InputError, PoolError
from coder.cli import main as command
from nec_jax.archiving import cluster
from nec_jax.archiving.cluster import encode_on_cluster
from nec_jax.archiving.named_inputs import NamedInputs
from nec_jax.cli.encode_command import NOT_ALL
from nec_jax.images import read

COUNT, SHARD = 23, 4


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A model, images of which one cannot be read, and their archive by a single process."""
    path = tmp_path_factory.mktemp("cluster")
    nec_jax.save(model, path / "model.safetensors")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        file = path / "images" / ("field", "water")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize((50, 40), Image.Resampling.BICUBIC).save(file)
    (path / "images/water/5.png").write_text("no image")
    assert run(path, "plain.zarr") == NOT_ALL
    return path


@pytest.fixture(scope="module")
def workers():
    """A client of two worker processes."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address="127.0.0.1:0", silence_logs=60
        ) as two,
        Client(two) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_left(folder):
    yield
    assert not list(folder.glob(".*"))


def run(folder, out, *more):
    given = ["encode", str(folder / "images"), "--model", str(folder / "model.safetensors")]
    return command([*given, "--out", str(folder / out), "--shard", str(SHARD), *more])


def named(folder):
    return NamedInputs(folder / "model.safetensors", (str(folder / "images"),))


def address(workers: Client) -> str:
    return cast(Any, workers.scheduler).address


def on_cluster(workers, folder, out, **settings):
    notes = {"inputs": [str(folder / "images")]}
    return encode_on_cluster(
        address(workers), named(folder), folder / out, shard=SHARD, notes=notes, **settings
    )


def files(path: Path) -> dict[str, bytes]:
    """All but the notes of a command line."""
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name != "zarr.json"}


def all_files(path: Path) -> dict[str, bytes]:
    return files(path) | {"zarr.json": (path / "zarr.json").read_bytes()}


def test_the_archive_has_the_bytes_of_a_single_process(folder, capsys, monkeypatch):
    """Processes on this machine; the input and the model have names that are relative."""
    monkeypatch.chdir(folder)
    given = ["encode", "images", "--model", "model.safetensors", "--shard", str(SHARD), "--out"]
    assert command([*given, "one.zarr"]) == NOT_ALL
    plain = capsys.readouterr()
    assert command([*given, "many.zarr", "--scheduler", "local:2"]) == NOT_ALL
    many = capsys.readouterr()
    assert all_files(folder / "many.zarr") == all_files(folder / "one.zarr")
    assert files(folder / "many.zarr") == files(folder / "plain.zarr")
    assert many.err.splitlines()[0] == plain.err.splitlines()[0] == "0 of 23 images are there"
    assert many.err.splitlines()[-1].startswith("23 of 23 images, ")
    assert len(many.err.splitlines()) == len(plain.err.splitlines())
    assert "  water/5.png: cannot read " in many.out


def test_the_shards_of_a_killed_worker_are_written_by_others(folder, workers):
    pids = list(cast(dict, workers.run(os.getpid)).values())
    seen = []

    def kill(done, total, written):
        seen.append(done)
        if len(seen) == 2:  # the first shard is written, and both are at others
            os.kill(pids[0], signal.SIGKILL)

    done = on_cluster(workers, folder, "killed.zarr", progress=kill)
    assert (done.images, done.not_valid) == (COUNT, 1)
    # A worker may be killed after it wrote a shard of 4, and before it said so.
    assert done.written in (COUNT, COUNT - 4)
    assert seen == sorted(seen)
    assert files(folder / "killed.zarr") == files(folder / "plain.zarr")
    assert command(["verify", str(folder / "killed.zarr")]) == 0


def test_an_interrupted_run_goes_on(folder, workers):
    def interrupt(done, total, written):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_cluster(workers, folder, "part.zarr", progress=interrupt)
    # The workers have left it: another process may have it alone.
    assert not list((folder / ".part.zarr.writers").glob("writer-*"))
    there = []
    on_cluster(
        workers, folder, "part.zarr", progress=lambda done, total, written: there.append(done)
    )
    assert 0 < there[0] < COUNT
    assert files(folder / "part.zarr") == files(folder / "plain.zarr")


def test_a_worker_is_one_of_several_processes(folder, workers):
    """Another process claims a shard and dies: the workers wait for it, and then write it."""
    encoding = cluster._encoding(named(folder), folder / "shared.zarr", settings())
    with encoding.writer as writer:
        encoding.begin()
        assert writer.claim(slice(4, 8))

        def leave(done, total, written):
            if done == COUNT - 4:
                writer.release(slice(4, 8))

        on_cluster(workers, folder, "shared.zarr", progress=leave)
        writer.finish()
    assert files(folder / "shared.zarr") == files(folder / "plain.zarr")


def test_errors_of_workers_are_those_of_a_single_process(folder, workers, capsys):
    expected = "water/5.png: cannot read"
    for more in ([], ["--scheduler", address(workers)]):
        capsys.readouterr()
        assert run(folder, "strict.zarr", "--strict", *more) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert expected in error
        remove(folder, "strict.zarr")


def fail(name: str) -> None:
    """In a worker, reading this file fails as on a broken disk; "" makes it whole again."""
    opened = getattr(read, "whole_open_regular", read.open_regular)

    def open_or_fail(path):
        if path.name == name:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path)

    read.whole_open_regular = opened  # type: ignore[attr-defined]
    read.open_regular = open_or_fail


def test_a_failing_disk_of_a_worker_stops_the_run_and_marks_no_image(folder, workers, capsys):
    workers.run(fail, "9.png")
    try:
        assert run(folder, "disk.zarr", "--scheduler", address(workers)) == 1
    finally:
        workers.run(fail, "")
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"{folder / 'images/water/9.png'}: Input/output error: the file may be sound")
    )
    assert run(folder, "disk.zarr", "--scheduler", address(workers)) == NOT_ALL
    assert files(folder / "disk.zarr") == files(folder / "plain.zarr")


def settings(**more):
    given = {"split": "all", "quality": None, "image_size": None, "for_refiner": False}
    given |= {"shard": SHARD, "strict": False, "retry": False, "readers": 1, "notes": None}
    return given | more


def worker_of(folder, out, member, versions=None, **more):
    versions = cluster._versions() if versions is None else versions
    one = cluster._Worker(named(folder), folder / out, settings(**more), member, versions, False)
    one.setup(cast(Any, SimpleNamespace(address="tcp://there:1")))
    return one


def test_a_worker_refuses_what_would_make_another_archive(folder, tmp_path):
    begun = cluster._encoding(named(folder), folder / "begun.zarr", settings())
    with begun.writer as writer:
        member = cast(Path, writer.member)
        for text, worker in {
            "it has jax [0-9.]+, and the command has jax 0.1": worker_of(
                folder, "begun.zarr", member, {**cluster._versions(), "jax": "0.1"}
            ),
            "does not see .*begun.zarr": worker_of(folder, "begun.zarr", tmp_path / "none.lock"),
            "was begun with another shard": worker_of(folder, "begun.zarr", member, shard=8),
        }.items():
            with pytest.raises(InputError, match=f"^worker tcp://there:1: .*({text})"):
                worker.write(slice(0, 4))
        # A file system whose locks other machines do not see.
        (tmp_path / "free.lock").touch()
        with pytest.raises(InputError, match="has no locks that reach other machines"):
            worker_of(folder, "begun.zarr", tmp_path / "free.lock").write(slice(0, 4))
        # Other images under the same name.
        moved = folder / "images/field/0.png"
        moved.rename(moved.with_name("renamed.png"))
        with pytest.raises(
            InputError, match=r"^worker tcp://there:1: .*was begun with other images"
        ):
            worker_of(folder, "begun.zarr", member).write(slice(0, 4))
        moved.with_name("renamed.png").rename(moved)
        assert len(writer.missing()) == 6
    remove(folder, "begun.zarr")


def test_a_worker_leaves_when_the_command_is_killed(folder, monkeypatch):
    monkeypatch.setattr(cluster, "_WATCH", 0.01)
    command_ = cluster._encoding(named(folder), folder / "left.zarr", settings())
    with command_.writer as writer:
        worker = worker_of(folder, "left.zarr", cast(Path, writer.member))
        assert worker.write(slice(0, 4)).amount.images == 4
        assert worker.write(slice(0, 4)).amount.images == 0
    assert worker._stop.wait(20)
    worker._close()  # waits for that
    with pytest.raises(cluster._Stopped):
        worker.write(slice(4, 8))
    assert not list((folder / ".left.zarr.writers").glob("writer-*"))
    assert run(folder, "left.zarr") == NOT_ALL


def remove(folder, out):
    shutil.rmtree(folder / out)
    for file in folder.glob(f".{out}*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()


def test_a_codec_is_fitted_to_what_the_workers_compute(workers, tmp_path):
    y = smooth_embeddings(1, 60)

    def made(block_id: tuple[int, ...]) -> np.ndarray:  # a part of what no machine could hold
        (tmp_path / f"{os.getpid()}-{block_id[0]}").touch()
        return y[10 * block_id[0] : 10 * block_id[0] + 10]

    lazy = da.map_blocks(made, chunks=((10,) * 6, *((n,) for n in y.shape[1:])), dtype="f4")
    assert coder.fit(lazy) == coder.fit(y)
    computed = [file.name.split("-") for file in tmp_path.iterdir()]
    assert {int(block) for _, block in computed} == set(range(6))
    assert str(os.getpid()) not in {process for process, _ in computed}


def test_no_scheduler_and_no_worker(folder, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT", 0.2)
    assert run(folder, "none.zarr", "--scheduler", "tcp://127.0.0.1:9") == 1
    assert "tcp://127.0.0.1:9: no dask scheduler answers: start" in capsys.readouterr().err
    for given in ("local:", "local:0", "local:two", "local:999999"):
        assert run(folder, "none.zarr", "--scheduler", given) == 1
        assert f"{given}: give the number of processes, from 1 to" in capsys.readouterr().err
    assert run(folder, "none.zarr", "--scheduler", "local:2", "--retry") == 1
    assert "--retry is for a process that writes alone" in capsys.readouterr().err
    assert not (folder / "none.zarr").exists()
    monkeypatch.setattr(cluster, "_PATIENCE", 0.5)
    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address="127.0.0.1:0", silence_logs=60
        ) as empty,
        pytest.raises(PoolError, match="no worker has been there for"),
    ):
        encode_on_cluster(cast(Any, empty).scheduler_address, named(folder), folder / "none.zarr")
    remove(folder, "none.zarr")


def test_a_table_at_a_url_is_opened_by_workers(folder, workers, capsys):
    root = folder / "images"
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    (root / "images.csv").write_text("\n".join(["path", *names]))
    model = ["--model", str(folder / "model.safetensors"), "--shard", str(SHARD)]
    more = ["--out", str(folder / "web.zarr"), "--scheduler", address(workers)]
    try:
        with web_server(root) as (host, _):
            assert command(["encode", f"{host}/images.csv?sig=SECRET", *model, *more]) == NOT_ALL
    finally:
        (root / "images.csv").unlink()
    shown = capsys.readouterr()
    assert "SECRET" not in shown.out + shown.err
    web, plain = files(folder / "web.zarr"), files(folder / "plain.zarr")
    other = ("label", "error")  # the table has no labels, and the file that is no image a URL
    for name in web.keys() | plain.keys():
        assert name.startswith(other) or web[name] == plain[name]
    remove(folder, "web.zarr")


def test_files_that_no_window_is_cut_from_are_named(folder, workers, capsys):
    more = ["--chip", "40", "--scheduler", address(workers)]
    assert run(folder, "cut.zarr", *more) == NOT_ALL
    bad = folder / "images/water/5.png"
    assert f"  water/5.png: cannot read {bad}: " in capsys.readouterr().out
    left_out = json.loads((folder / "cut.zarr/zarr.json").read_text())["attributes"]
    assert left_out["files_left_out"]["first"][0]["path"] == "water/5.png"
    remove(folder, "cut.zarr")
