"""What a run prints at its end, and that the command it proposes can be given."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

import nec_jax
from nec_jax.sources import open_source
from train.configs.options import Compress
from train.configs.study_options import Evaluate
from train.engine.run_record import duration, next_command, print_summary


def summary(
    folder: Path, blobs: list[bytes], capsys: pytest.CaptureFixture
) -> tuple[str, list[str]]:
    """What was printed, and the command that it ends with."""
    path = folder / "model.safetensors"
    record = json.loads((folder / "run.json").read_text())
    source = open_source("blue-marble", "train", chip=32)
    print_summary(record, path, source, nec_jax.load(path), blobs)
    text = capsys.readouterr().err
    return text, shlex.split(text.splitlines()[-1].removeprefix("next: "))


def test_compression_ends_with_real_bytes_and_an_evaluation(
    smoke_mae: Path, smoke_nec: Path, capsys: pytest.CaptureFixture
) -> None:
    text, command = summary(smoke_nec, [b"1234", b"123456789"], capsys)
    lines = [json.loads(line) for line in (smoke_nec / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (line for line in lines if line["split"] == "val")
    assert f"{first['loss']:.4g} -> {last['loss']:.4g}" in text
    estimates = [f"{line['bits_per_image'] / 8:,.1f}" for line in (first, last)]
    assert " -> ".join(estimates) in text
    assert "6.5 (2 of val)" in text
    assert command[:2] == ["nec", "evaluate"]
    options = tyro.cli(Evaluate, args=command[2:])
    model = smoke_nec / "model.safetensors"
    assert (options.base, options.models) == (str(smoke_mae), (str(model),))
    assert (options.data, options.chip) == ("blue-marble", 32)


def test_pre_training_ends_with_a_compression(
    smoke_mae: Path, capsys: pytest.CaptureFixture
) -> None:
    text, command = summary(smoke_mae.parent, [], capsys)
    assert "codec" not in text
    assert command[:2] == ["nec", "compress"]
    options = tyro.cli(Compress, args=command[2:])
    assert options.init == str(smoke_mae)
    assert options.workdir != smoke_mae.parent


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (65, "1 min 05 s"), (3723, "1 h 02 min 03 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("cut", [False, True])
def test_the_next_command_cuts_as_this_one_did(smoke_nec: Path, tmp_path: Path, cut: bool) -> None:
    (tmp_path / "sea").mkdir()
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(tmp_path / "sea" / "a.png")
    record = json.loads((smoke_nec / "run.json").read_text())
    record["config"] |= {"data": str(tmp_path), "chip": 256}
    # Without a chip, 256 is the value of a run from before it could be left out.
    for chip in (256,) if cut else (None, 256):
        record["config"]["chip"] = chip
        source = open_source(tmp_path, chip=256 if cut else None)
        command = next_command(record, smoke_nec / "model.safetensors", source)
        assert ("--chip" in command) == cut
