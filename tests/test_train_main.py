"""The commands, on real images (NASA's Blue Marble): train, resume, stop, describe, refuse."""

import json
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import jax
import numpy as np
import pytest
import rasterio
from train_cases import run_compress

import nec_jax
from train.config import Compress, OptionsError
from train.initial import initial_model
from train.inputs import in_steps, open_training_source
from train.main import main


def test_pretraining_writes_a_model_with_the_data_normalisation(smoke_mae: Path) -> None:
    params = nec_jax.load(smoke_mae)
    assert params.codec is None
    assert params.config.bands == ("red", "green", "blue")
    # The Blue Marble is dark and blue.
    red, _, blue = params.config.mean
    assert red < blue < 128


def test_compress_writes_a_codec_metrics_and_events(smoke_nec: Path) -> None:
    params = nec_jax.load(smoke_nec / "model.safetensors")
    assert params.codec is not None
    assert json.loads(params.provenance)["compress"]["lambda"] == 10.0
    lines = [json.loads(x) for x in (smoke_nec / "metrics.jsonl").read_text().splitlines()]
    train = [x for x in lines if x["split"] == "train"]
    val = [x for x in lines if x["split"] == "val"]
    assert [x["step"] for x in train] == [1, 2, 3, 4, 5, 6]
    assert [x["step"] for x in val] == [0, 4, 6]
    assert {"mse", "bits_per_element", "bits_per_image", "loss"} <= val[0].keys()
    assert list((smoke_nec / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(smoke_mae: Path, tmp_path: Path) -> None:
    # Neither lines of metrics nor validations are due when the checkpoints are.
    often = ["--log-every", "100", "--val-every", "100", "--checkpoint-every", "1"]
    for _ in range(2):  # the second time, from the checkpoint of the first step
        with pytest.raises(SystemExit, match=r"no longer finite at step 2: lower --lr"):
            run_compress(smoke_mae, tmp_path, "--lr", "1e30", "--gain", "identity", *often)
        steps = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()]
        assert steps == ["1"]


def test_another_architecture_than_the_config_is_for_is_refused(smoke_mae: Path) -> None:
    arguments = ["--init", str(smoke_mae), "--data", "blue-marble"]
    with pytest.raises(SystemExit, match=r"--arch vit-b: .* is a vit-ti"):
        main(["compress", "--config", "paper-ucmerced", *arguments])


def test_fewer_images_and_epochs() -> None:
    options = Compress(data="blue-marble", chip=32, images=100, epochs=3, batch=8)
    source, whole = (open_training_source(o) for o in (options, replace(options, images=None)))
    assert len(source) == 100
    assert in_steps(options, source).steps == 38  # 300 images, rounded up
    ids = [record["id"] for record in map(source.__getitem__, range(100))]
    assert len(set(ids)) == 100
    # Evenly spread: the last comes from the last hundredth.
    assert ids[0] == whole[0]["id"]
    assert ids[99] == whole[99 * len(whole) // 100]["id"]
    assert len(open_training_source(replace(options, images=10**6))) == len(whole)
    with pytest.raises(IndexError):
        source[100]


def test_the_class_token_can_be_left_out(smoke_mae: Path) -> None:
    base = nec_jax.load(smoke_mae)
    source = open_training_source(Compress(data="blue-marble", chip=32))
    without = initial_model(Compress(code_class_token=False), base, source)
    assert not without.config.code_class_token
    same = jax.tree.map(np.array_equal, without.weights, base.weights)
    assert all(jax.tree.leaves(same))
    learned = replace(base, config=replace(base.config, decoder_positions="learned"))
    with pytest.raises(OptionsError, match="learned positions"):
        initial_model(Compress(code_class_token=False), learned, source)


def test_images_of_other_bands_are_refused_before_training(smoke_mae: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for i in range(4):
            path = tmp_path / split / f"{i}.tif"
            with rasterio.open(
                path, "w", driver="GTiff", width=40, height=40, count=2, dtype="uint8",
                transform=rasterio.Affine(10.0, 0.0, 0.0, 0.0, -10.0, 0.0),
            ) as file:  # fmt: skip
                file.write(np.full((2, 40, 40), 50 * i, np.uint8))
    (tmp_path / "split.csv").write_text(
        "path,label,split\n"
        + "".join(f"{s}/{i}.tif,sea,{s}\n" for s in ("train", "val") for i in range(4))
    )
    with pytest.raises(SystemExit, match="images have 2 channels, the model takes 3"):
        run_compress(smoke_mae, tmp_path / "work", "--data", str(tmp_path))
    assert not (tmp_path / "work" / "checkpoints").exists()


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
        (["compress", "--init", "no-such", "--data", "blue-marble"], "no-such: no such model"),
        (["compress", "--arch", "vit-ti"], "--arch and --trainable all"),
        (["pretrain"], "pass --data"),
        (["pretrain", "--data", "/no/such/folder"], "/no/such/folder"),
        (["evaluate", "--base", "x"], "no data: pass --data"),
        (["fly"], "unknown command 'fly'"),
        (["pretrain", "--config", "nothing"], "unknown config 'nothing'"),
        (["pretrain", "--config=nothing"], "unknown config 'nothing'"),
        (["sweep", "nothing.toml"], "no file nothing.toml"),
        (["sweep", "smoke"], "smoke is no study.*compress --config smoke"),
        (["sweep", "blue-marble"], "pretrain --config blue-marble"),
        (["report", "nothing.csv"], "nothing.csv: no such table: give the results.csv of a sweep"),
        (["evaluate", "--data", "blue-marble"], "no model: pass --model"),
        (["pretrain", "--arch", "vit-x", "--data", "blue-marble"], "unknown architecture 'vit-x'"),
        (["compress", "--config", "aid-ti"], "is for pretrain"),
    ],
)
def test_what_cannot_be_run_ends_with_a_message(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "--lamda", "3"], "lamda"),
        (["pretrain", "--steps", "0"], "--steps must be 1 or more"),
        (["compress", "--images", "0"], "--images must be 1 or more"),
        (["compress", "--batch", "8", "--microbatch", "3"], "--microbatch 3 must divide --batch 8"),
        (["compress", "--depth", "2", "--init", "x"], "--depth: these come from --init"),
        (["compress", "--lambda", "-1"], "--lambda must be positive"),
        (["compress", "--density-lr", "0"], "--density-lr must be positive"),
        (["pretrain", "--lr", "nan"], "--lr must be positive"),
        (["pretrain", "--warmup", "-1"], "--warmup must be 0 or more"),
        (["compress", "--trainable", "decoder"], "--trainable decoder: choose from"),
        (["evaluate", "--split", "train"], "--split train would score"),
    ],
)
def test_wrong_options_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_console_script_is_the_same_command() -> None:
    [script] = entry_points(group="console_scripts", name="nec-train")
    assert script.load() is main


def test_help_names_every_command_and_config(capsys: pytest.CaptureFixture) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    commands = ("pretrain", "compress", "evaluate", "sweep", "report")
    assert all(word in text for word in (*commands, "aid-ti", "paper-potsdam", "smoke"))
    with pytest.raises(SystemExit):
        main(["compress", "--help"])
    assert "Weight of the distortion" in " ".join(capsys.readouterr().out.split())
