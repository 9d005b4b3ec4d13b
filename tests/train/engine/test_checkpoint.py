"""Checkpoints: bounded in number, intact or refused, and safe from a disk that is full."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train.engine.checkpoint import CheckpointError, Checkpoints
from train.engine.step import data_mesh, replicated

SHAPES = {
    "weights": jax.ShapeDtypeStruct((300, 100), np.float32),
    "step": jax.ShapeDtypeStruct((), np.int32),
}


def state(step: int) -> Any:
    noise = np.random.default_rng(step).normal(size=(300, 100)).astype(np.float32)
    return {"weights": jax.device_put(noise), "step": jax.device_put(np.int32(step))}


def position(step: int) -> dict[str, Any]:
    return {"data": {"next_index": step}, "pending": [{"loss": 0.1 * step}]}


def save(folder: Path, *steps: int) -> None:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, state(step), position(step))
    checkpoints.close()


def restored(folder: Path) -> int:
    """The step that is restored, once it is known to be the one that was saved."""
    step, found, where = Checkpoints(folder).restore(SHAPES, replicated(data_mesh(1)))
    assert where == position(step)
    same = jax.tree.map(np.array_equal, found, state(step))
    assert all(jax.tree.leaves(same))
    return step


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow over `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 10)
    assert Checkpoints(tmp_path).steps == [2, 10]
    assert restored(tmp_path) == 10


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/d/*"])
def test_damage_anywhere_is_noticed(damage: Any, name: str, tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    [path] = (tmp_path / "2").glob(name)
    damage(path)
    assert restored(tmp_path) == 1
    assert Checkpoints(tmp_path).steps == [1]  # so that step 2 can be saved again
    # Set aside, not deleted: what can be saved of it is the user's to say.
    assert (tmp_path / "2.damaged" / "SHA256SUMS").exists()
    save(tmp_path, 2)
    [path] = (tmp_path / "2").glob(name)
    damage(path)
    assert restored(tmp_path) == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["1", "2.damaged", "2.damaged-2"]


@pytest.mark.parametrize("where", ["sums", "digest", "orbax"])
def test_an_error_of_reading_changes_nothing(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    def fail_wrapped(*_: Any, **__: Any) -> Any:
        try:
            fail()
        except OSError as error:
            raise ValueError("Error reading local file") from error

    with monkeypatch.context() as patched:
        if where == "sums":
            patched.setattr(Path, "read_text", fail)
        elif where == "digest":
            patched.setattr("train.engine.checkpoint.sha256", fail)
        else:
            patched.setattr("train.engine.checkpoint.ocp.load_checkpointables", fail_wrapped)
        with pytest.raises(CheckpointError, match=r"2 cannot be read now .*Nothing was changed"):
            restored(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert restored(tmp_path) == 2


def test_a_whole_checkpoint_of_another_model_is_not_damaged(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    other = SHAPES | {"weights": jax.ShapeDtypeStruct((7, 7), np.int8), "more": SHAPES["step"]}
    with pytest.raises(CheckpointError, match="is whole, but of another run"):
        Checkpoints(tmp_path).restore(other, replicated(data_mesh(1)))
    assert Checkpoints(tmp_path).steps == [1, 2]


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    save(tmp_path, 1)
    command = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert not subprocess.run(command, cwd=tmp_path / "1").returncode


def test_a_checkpoint_without_its_sums_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "2" / "SHA256SUMS").unlink()
    assert restored(tmp_path) == 1
    assert "of step 2 is damaged (SHA256SUMS is missing" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.damaged"]


def test_a_checkpoint_has_its_name_only_with_its_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def killed(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("train.engine.checkpoint.files.write_text", killed)
        with pytest.raises(CheckpointError):
            save(tmp_path, 2)
    assert restored(tmp_path) == 1
    # What is left of it goes, and it can be saved again.
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    save(tmp_path, 2)
    assert restored(tmp_path) == 2


def test_a_checkpoint_under_the_name_of_another_step_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 12)
    shutil.copytree(tmp_path / "12", tmp_path / "99")
    assert restored(tmp_path) == 12
    assert "of step 99 is damaged (it is of step 12: " in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "12", "99.damaged"]


def test_a_run_is_not_started_again_where_no_checkpoint_is_whole(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for path in tmp_path.glob("*/state/d/*"):
        flip(path)
    with pytest.raises(
        CheckpointError, match=r"step 2: .*does not match; step 1: .* delete the work folder"
    ):
        restored(tmp_path)
    assert Checkpoints(tmp_path).steps == [1, 2]


def test_a_full_disk_ends_with_a_message_and_spares_the_checkpoint_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    with full_disk(2**16), pytest.raises(CheckpointError, match="make space") as caught:
        save(tmp_path, 2)
    assert str(caught.value) == (
        f"cannot write a checkpoint to {tmp_path} (File too large). Earlier ones are whole: make "
        "space, and give the same command again"
    )
    # orbax's threads would say it with their tracebacks.
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")
    assert restored(tmp_path) == 1
    save(tmp_path, 2)
    assert restored(tmp_path) == 2
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["1", "2"]


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "make space"), (errno.EIO, "check the disk")]
)
def test_what_the_system_says_of_a_checkpoint_is_said_in_a_line(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("Writing failed\nin a thread") from OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("train.engine.checkpoint.ocp.save_checkpointables_async", fail)
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path, 2)
    reason = os.strerror(number)
    assert str(caught.value).startswith(
        f"cannot write a checkpoint to {tmp_path} ({reason}). Earlier ones are whole: {remedy}"
    )
    assert restored(tmp_path) == 1
