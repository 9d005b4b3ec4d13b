"""The commands, on real images (NASA's Blue Marble): train, resume, stop, describe, refuse."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import nec_jax
from train.main import main

SMALL = [
    "--data", "blue-marble", "--chip", "32", "--val-images", "16", "--batch", "8",
    "--log-every", "1", "--val-every", "4", "--checkpoint-every", "2",
]  # fmt: skip


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked autoencoder after four steps."""
    folder = tmp_path_factory.mktemp("mae")
    arguments = ["--image-size", "32", "--patch", "8", "--depth", "1", "--steps", "4"]
    main(["pretrain", *SMALL, *arguments, "--workdir", str(folder)])
    return folder / "model.safetensors"


def compress(init: Path, folder: Path, *more: str) -> nec_jax.NecParams:
    arguments = ["--init", str(init), "--workdir", str(folder), "--calibration-images", "32"]
    main(["compress", *SMALL, *arguments, "--steps", "6", *more])
    return nec_jax.load(folder / "model.safetensors")


def test_pretraining_writes_a_model_with_the_data_normalisation(pretrained: Path) -> None:
    params = nec_jax.load(pretrained)
    assert params.codec is None
    assert params.config.bands == ("red", "green", "blue")
    # The Blue Marble is dark and blue.
    red, _, blue = params.config.mean
    assert red < blue < 128


@pytest.fixture(scope="session")
def compressed(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nec")
    compress(pretrained, folder)
    return folder


def test_compress_writes_a_codec_metrics_and_events(compressed: Path) -> None:
    params = nec_jax.load(compressed / "model.safetensors")
    assert params.codec is not None
    assert json.loads(params.provenance)["compress"]["lambda"] == 10.0
    lines = [json.loads(x) for x in (compressed / "metrics.jsonl").read_text().splitlines()]
    train = [x for x in lines if x["split"] == "train"]
    val = [x for x in lines if x["split"] == "val"]
    assert [x["step"] for x in train] == [1, 2, 3, 4, 5, 6]
    assert [x["step"] for x in val] == [0, 4, 6]
    assert {"mse", "bits_per_element", "bits_per_image", "loss"} <= val[0].keys()
    assert list((compressed / "tensorboard").iterdir())


def test_a_run_that_is_cut_off_ends_like_one_that_was_not(pretrained: Path, tmp_path: Path) -> None:
    # In a process on one core: on several, XLA's own results differ in the last place now and then.
    program = Path(__file__).with_name("resume_case.py")
    subprocess.run([sys.executable, program, pretrained, tmp_path], check=True)
    whole, resumed = (nec_jax.load(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert resumed.codec == whole.codec
    same = jax.tree.map(np.array_equal, resumed.weights, whole.weights)
    assert all(jax.tree.leaves(same))
    metrics = [
        [
            {k: v for k, v in json.loads(line).items() if k != "images_per_s"}
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("a", "b")
    ]
    assert metrics[0] == metrics[1]


def test_a_work_folder_refuses_other_settings(pretrained: Path, compressed: Path) -> None:
    with pytest.raises(SystemExit, match=r"lambda|lam: 10.0 -> 20.0.*another --workdir"):
        compress(pretrained, compressed, "--lambda", "20")


def test_a_loss_that_is_not_finite_stops_the_run(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"the loss became .* lower --lr"):
        compress(pretrained, tmp_path, "--lr", "1e30")


def test_describe_prints_sizes_as_json_without_data(capsys: pytest.CaptureFixture) -> None:
    main(["compress", "--arch", "vit-ti", "--describe", "--trainable", "paper", "--batch", "2"])
    described = json.loads(capsys.readouterr().out)
    assert list(described) == ["params", "trainable_params", "tokens", "flops_per_step"]
    assert described["tokens"] == 197
    assert 0 < described["trainable_params"] < described["params"]
    assert described["flops_per_step"] > 1e9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "--data", "x"], "pass --init"),
        (["compress", "--init", "no-such", "--data", "x"], "no model 'no-such'"),
        (["compress", "--arch", "vit-ti"], "--arch goes with --describe"),
        (["pretrain"], "pass --data"),
        (["pretrain", "--data", "/no/such/folder"], "/no/such/folder"),
        (["evaluate", "--base", "x"], "evaluate needs --models"),
        (["fly"], "unknown command 'fly'"),
        (["pretrain", "--config", "nothing"], "unknown config 'nothing'"),
        (["compress", "--config", "aid-ti"], "is for pretrain"),
    ],
)
def test_what_cannot_be_run_ends_with_a_message(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["compress", "--lamda", "3"])
    assert stopped.value.code == 2
    assert "lamda" in capsys.readouterr().err


def test_help_names_every_command_and_config(capsys: pytest.CaptureFixture) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("pretrain", "compress", "evaluate", "aid-ti"))
    with pytest.raises(SystemExit):
        main(["compress", "--help"])
    assert "Weight of the distortion" in " ".join(capsys.readouterr().out.split())
