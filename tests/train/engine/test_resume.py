"""Nothing is lost: a run that was stopped or cut off ends, byte for byte, like one that was not."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from train_cases import SMALL

from train.engine.checkpoint import CheckpointError, Checkpoints
from train.engine.processes import RESUMABLE, StopSignals
from train.main import main

# A line of metrics tells of four steps, so that one that was cut off must remember some of them.
OPTIONS = [*SMALL, "--gain", "identity", "--steps", "6", "--log-every", "4"]
RESULTS = ("model.safetensors", "metrics.jsonl")


def compress(model: Path, folder: Path, *more: str) -> None:
    arguments = ["--init", str(model), "--workdir", str(folder), "--calibration-images", "32"]
    main(["compress", *OPTIONS, *arguments, *more])


def results(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in RESULTS]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(smoke_mae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a run that nobody cut off."""
    folder = tmp_path_factory.mktemp("whole")
    compress(smoke_mae, folder)
    return folder


def at_step(
    monkeypatch: pytest.MonkeyPatch, wanted: int, happens: signal.Signals | type[BaseException]
) -> None:
    """Let something happen once, right after a step."""
    asked = StopSignals.asked

    def act_and_ask(self: StopSignals, step: int) -> bool:
        if step == wanted:
            monkeypatch.undo()
            if not isinstance(happens, signal.Signals):
                raise happens
            signal.raise_signal(happens)
        return asked(self, step)

    monkeypatch.setattr(StopSignals, "asked", act_and_ask)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals,
    smoke_mae: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    at_step(monkeypatch, 3, number)
    with pytest.raises(SystemExit) as stopped:
        compress(smoke_mae, tmp_path)
    assert stopped.value.code == RESUMABLE == 75
    assert "stopped after step 3 of 6: the same command resumes the run" in capsys.readouterr().err
    assert checkpoints(tmp_path) == ["2", "3"]
    compress(smoke_mae, tmp_path)
    assert "calibrated" not in capsys.readouterr().err  # only where nothing is there
    assert results(tmp_path) == results(whole)


def test_a_run_that_cannot_save_stops_all_the_same(
    smoke_mae: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    save = Checkpoints.save

    def full_at_three(self: Checkpoints, step: int, *more: Any) -> None:
        if step == 3:
            raise CheckpointError("make space")
        save(self, step, *more)

    asked = StopSignals.asked
    monkeypatch.setattr(Checkpoints, "save", full_at_three)
    monkeypatch.setattr(StopSignals, "asked", lambda self, step: step == 3 or asked(self, step))
    with pytest.raises(SystemExit) as stopped:
        compress(smoke_mae, tmp_path)
    assert stopped.value.code == RESUMABLE
    assert "make space" in capsys.readouterr().err
    assert checkpoints(tmp_path) == ["2"]


def test_a_crash_loses_the_steps_since_the_checkpoint_and_nothing_else(
    smoke_mae: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 5, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        compress(smoke_mae, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # a torn line
    compress(smoke_mae, tmp_path)
    assert results(tmp_path) == results(whole)


def test_a_finished_run_whose_metrics_are_cut_short_is_not_taken_for_whole(
    smoke_mae: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines)[:-5])
    last = len(lines)
    said = rf"metrics\.jsonl: line {last} of the {last} up to step 6 is missing or cut short"
    with pytest.raises(SystemExit, match=said):
        compress(smoke_mae, tmp_path)
    assert f"metrics.jsonl: line {last} is cut short" in capsys.readouterr().err
    assert path.read_bytes() == b"".join(lines)[:-5]
    path.write_bytes(b"".join(lines))
    compress(smoke_mae, tmp_path)
    assert results(tmp_path) == results(whole)


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(
    smoke_mae: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "6" / "state" / "d")
    moved = ["--checkpoint-every", "3"]  # does not change what is trained
    compress(smoke_mae, tmp_path, *moved)
    printed = capsys.readouterr().err
    assert "the checkpoint of step 6 is damaged" in printed
    assert "resuming at step 4 of 6" in printed
    assert results(tmp_path) == results(whole)
    assert checkpoints(tmp_path) == ["4", "6", "6.damaged"]
    for step in ("4", "6"):
        shutil.rmtree(tmp_path / "checkpoints" / step / "state" / "d")
    with pytest.raises(SystemExit, match=r"no checkpoint in .* can be read .*step 6.*step 4"):
        compress(smoke_mae, tmp_path)


def test_a_work_folder_refuses_other_settings(smoke_mae: Path, whole: Path) -> None:
    changed = r"--steps: 6 -> 8, .*--lambda: 10.0 -> 20.0.*another --workdir"
    with pytest.raises(SystemExit, match=changed):
        compress(smoke_mae, whole, "--lambda", "20", "--steps", "8")


def test_timings_are_no_metrics(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    names = {"step", "split", "loss", "mse", "bits_per_element", "bits_per_image"}
    assert all(set(line) == names for line in lines)
