"""run.json: what it holds, what a second start adds, and which data it takes for the same."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coder import CodecError, FileError, InputError, OutputError
from nec_jax import NecParams
from nec_jax.images.record import Source
from nec_jax.sources import open_source
from train.configs.options import Compress, OptionsError
from train.data import fingerprint
from train.engine import run_record
from train.engine.log import MetricsLog, read_metrics
from train.engine.run_record import git_revision, sha256


def folder_of_files(root: Path) -> Source:
    """Three images, which nothing here decodes."""
    root.mkdir()
    for name in "abc":
        (root / f"{name}.png").write_bytes(name.encode() * 100)
    return open_source(str(root))


def test_a_run_says_what_it_was_made_of(smoke_mae: Path, smoke_nec: Path) -> None:
    record = json.loads((smoke_nec / "run.json").read_text())
    assert record["command"] == "compress"
    assert record["config"]["lam"] == 10.0
    assert record["init"] == {"path": str(smoke_mae), "sha256": sha256(smoke_mae)}
    assert record["model_sha256"] == sha256(smoke_nec / "model.safetensors")
    for role in ("train", "val"):
        source = open_source("blue-marble", role, chip=32)
        assert record["data"][role] == fingerprint(source)
    [start] = record["starts"]
    assert start["packages"].keys() == set(run_record.PACKAGES)
    assert start["start"] <= start["end"]


def test_another_start_is_added_and_ends_the_one_before(tmp_path: Path) -> None:
    source, options = folder_of_files(tmp_path / "data"), Compress(workdir=tmp_path)
    run_record.begin(options, {"train": source})
    path = tmp_path / "run.json"
    record = json.loads(path.read_text())
    assert record["starts"][0]["end"] is None
    # As if it had begun at 1970-01-01 and been cut off 90 s later.
    record["starts"][0]["start"] = "1970-01-01T00:00:00+00:00"
    path.write_text(json.dumps(record))
    (tmp_path / "metrics.jsonl").touch()
    os.utime(tmp_path / "metrics.jsonl", (90, 90))
    run_record.begin(options, {"train": source})
    (tmp_path / "model.safetensors").touch()
    record = run_record.finish(tmp_path)
    first, second = record["starts"]
    assert first["end"] == "1970-01-01T00:01:30+00:00"
    assert second["end"] >= second["start"] > first["end"]
    assert 90 <= record["wall_s"] < 150
    assert json.loads(path.read_text()).items() >= record.items()


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    source, options = folder_of_files(tmp_path / "data"), Compress(workdir=tmp_path)
    run_record.begin(options, {"train": source})
    (tmp_path / "data" / "b.png").write_bytes(b"more")
    with pytest.raises(OptionsError, match="begun with another data of the same name"):
        run_record.begin(options, {"train": source})


def test_a_fingerprint_is_that_of_ids_sizes_and_content(tmp_path: Path) -> None:
    source = folder_of_files(tmp_path / "data")
    first = fingerprint(source)
    assert first["images"] == 3
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere" / "data")
    moved = tmp_path / "elsewhere" / "data"
    assert fingerprint(open_source(str(moved))) == first
    seen = {first["sha256"]}
    (moved / "b.png").write_bytes(b"B" * 100)
    seen.add(fingerprint(open_source(str(moved)))["sha256"])
    (moved / "b.png").write_bytes(b"B" * 101)
    seen.add(fingerprint(open_source(str(moved)))["sha256"])
    (moved / "b.png").rename(moved / "d.png")
    gone = open_source(str(moved))
    seen.add(fingerprint(gone)["sha256"])
    (moved / "d.png").unlink()
    seen.add(fingerprint(gone)["sha256"])  # listed, but no longer there
    seen.add(fingerprint(open_source(str(moved)))["sha256"])
    assert len(seen) == 6


def test_the_tiles_of_blue_marble_are_listed_as_they_are_read() -> None:
    source = open_source("blue-marble", "val", chip=300)
    ids, files = zip(*source.files(), strict=True)
    assert list(ids) == [f"{source[i]['id']},300" for i in range(len(source))]
    assert all(file.is_file() for file in set(files))


def test_the_revision_is_that_of_the_packages_own_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    assert git_revision(tmp_path) is None
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "loop.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "notes.txt").write_text("no part of the packages")
    found = git_revision(tmp_path)
    assert found is not None
    assert len(found["revision"]) == 40
    assert found["dirty"] is False
    (tmp_path / "train" / "loop.py").write_text("x = 1\n")
    assert git_revision(tmp_path) == {**found, "dirty": True}
    # Installed into another project's checkout.
    assert git_revision(tmp_path / "train") is None


def test_what_changes_no_result_may_change(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    before = Compress(workdir=workdir, cache=tmp_path / "a")
    run_record.begin(before, {})
    (workdir / "model.safetensors").touch()
    same = Compress(
        workdir=workdir, cache=tmp_path / "b", cache_gb=40, checkpoint_every=7, microbatch=8
    )
    run_record.refuse_changed_config(same)
    with pytest.raises(OptionsError, match=r"\(--cache: True -> False\)"):
        run_record.refuse_changed_config(Compress(workdir=workdir))


def test_a_work_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    options = Compress(workdir=tmp_path / "run")
    # Another process, which is killed: nothing but its end gives the folder back.
    holder = (
        "import sys; from pathlib import Path; from train.engine.run_record import held\n"
        "with held(Path(sys.argv[1])): print('has it', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, options.workdir]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        with (
            pytest.raises(OptionsError, match="another run is at work in"),
            run_record.recorded(options, {}),
        ):
            pass
        assert not (options.workdir / "run.json").exists()
        other.kill()
    with run_record.recorded(options, {}):
        assert (options.workdir / "run.json").exists()


def test_a_run_ends_after_its_blobs(tmp_path: Path, bare_model: NecParams) -> None:
    options = Compress(workdir=tmp_path / "run")

    def blobs() -> list[bytes]:
        raise InputError("they cannot be coded")

    sources = {"train": folder_of_files(tmp_path / "images")}
    with (
        pytest.raises(InputError, match="they cannot be coded"),
        run_record.recorded(options, sources) as end,
    ):
        end(bare_model, blobs)
    [start] = json.loads((options.workdir / "run.json").read_text())["starts"]
    assert start["end"] is None


def test_where_nothing_was_trained_mended_options_begin_anew(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    wrong, right = (Compress(workdir=workdir, batch=batch) for batch in (7, 8))
    run_record.begin(wrong, {})
    run_record.refuse_changed_config(right)
    run_record.begin(right, {})
    record = json.loads((workdir / "run.json").read_text())
    assert record["config"]["batch"] == 8
    assert len(record["starts"]) == 1
    (workdir / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(OptionsError, match="--batch: 8 -> 7"):
        run_record.refuse_changed_config(wrong)


def test_a_run_from_before_an_option_goes_on_with_its_default(tmp_path: Path) -> None:
    source, options = folder_of_files(tmp_path / "data"), Compress(workdir=tmp_path / "run")
    run_record.begin(options, {"train": source})
    (tmp_path / "run/model.safetensors").write_bytes(b"")
    path = tmp_path / "run/run.json"
    record = json.loads(path.read_text())
    del record["config"]["codec"]
    path.write_text(json.dumps(record))
    run_record.refuse_changed_config(options)
    with pytest.raises(OptionsError, match="--codec: 'per-channel' -> 'transform'"):
        run_record.refuse_changed_config(Compress(workdir=options.workdir, codec="transform"))


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl"])
def test_what_no_run_wrote_is_not_replaced(name: str, tmp_path: Path) -> None:
    """A converted model may lie in the very folder that is named as --workdir."""
    (tmp_path / name).write_bytes(b"mine")
    with (
        pytest.raises(OptionsError, match=f"holds {name} and no run.json: no run wrote it"),
        run_record.recorded(Compress(workdir=tmp_path), {}),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == [name]


def test_a_run_from_before_chip_could_be_left_out_goes_on(tmp_path: Path) -> None:
    source, options = folder_of_files(tmp_path / "data"), Compress(workdir=tmp_path / "run")
    run_record.begin(dataclasses.replace(options, chip=256), {"train": source})
    (tmp_path / "run/model.safetensors").write_bytes(b"")
    run_record.refuse_changed_config(options)
    run_record.begin(options, {"train": source})  # the same images: nothing was cut
    with pytest.raises(OptionsError, match="--chip: 256 -> 64"):
        run_record.refuse_changed_config(dataclasses.replace(options, chip=64))


NO_RECORDS = ["", "{", "[]", "{}", '{"config": 3, "starts": []}', '{"config": {}, "starts": [1]}']


@pytest.mark.parametrize("text", [*NO_RECORDS, None])
def test_a_damaged_record_is_named(text: str | None, tmp_path: Path) -> None:
    options, path = Compress(workdir=tmp_path), tmp_path / "run.json"
    write_or_pipe(path, text)
    (tmp_path / "model.safetensors").touch()
    for read in (
        lambda: run_record.refuse_changed_config(options),
        lambda: run_record.begin(options, {}),
        lambda: run_record.finish(tmp_path),
    ):
        with pytest.raises(FileError, match=r"run\.json: "):
            read()


@pytest.mark.parametrize("text", ["{\n", "[]\n", "{}\n", '{"step": "1"}\n', "\xff\n", None])
def test_damaged_metrics_are_named(text: str | None, tmp_path: Path) -> None:
    write_or_pipe(tmp_path / "metrics.jsonl", text)
    with pytest.raises(CodecError, match=r"metrics\.jsonl: "):
        MetricsLog(tmp_path, start=2)
    with pytest.raises(FileError, match=r"metrics\.jsonl: "):
        read_metrics(tmp_path / "metrics.jsonl")


def test_metrics_may_be_missing_empty_or_torn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.touch()
    assert read_metrics(path) == []
    line = json.dumps({"step": 1, "split": "val", "loss": 0.1 + 0.2})
    path.write_text(f'{line}\n{line.replace("1", "3", 1)}\n{{"step": 4, "sp')
    caplog.clear()
    MetricsLog(tmp_path, start=2).close()
    assert path.read_text() == line + "\n"
    assert caplog.messages == [f"{path}: line 3 is cut short, and left out"]


def test_a_resumed_run_needs_the_lines_that_its_checkpoint_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"

    def log(start: int, lines: int | None) -> MetricsLog:
        opened = MetricsLog(tmp_path, start, lines)
        opened.close()
        return opened

    first = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        first.write(step, "train", {"loss": 0.5})
    first.sync()
    first.close()
    assert first.lines == 3
    assert log(3, 3).lines == 3
    assert log(2, 2).lines == 2  # and what follows is written again
    whole = path.read_bytes()
    for content in (whole[:-3], whole[: whole.index(b"\n") + 1], b""):
        path.write_bytes(content)
        number = content.count(b"\n") + 1
        with pytest.raises(
            FileError, match=rf"metrics\.jsonl: line {number} of the 2 up to step 2 is missing or"
        ):
            log(2, 2)
        assert path.read_bytes() == content
    assert log(2, None).lines == 0  # of an older run nobody counted
    path.unlink()
    caplog.clear()
    log(2, 2)
    assert "metrics.jsonl is gone: it begins after step 2" in caplog.text


def test_a_full_disk_is_said_of_metrics_and_events_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = MetricsLog(tmp_path, 0)
    [events] = (tmp_path / "tensorboard").iterdir()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"metrics\.jsonl: cannot be written \(No space left on"):
        opened.sync()
    for step in (1, 2):
        opened.draw(step, "train", {"loss": 0.5})
    opened.close()
    said = f"{events}: cannot be written (No space left on device): TensorBoard will lack the rest"
    assert caplog.messages == [said]


def write_or_pipe(path: Path, text: str | None) -> None:
    """A file of this text; or a pipe, which it would take for ever to read."""
    if text is None:
        os.mkfifo(path)
    else:
        path.write_bytes(text.encode("latin-1"))
