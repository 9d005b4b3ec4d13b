"""The commands, on real images (NASA's Blue Marble): train, resume, stop, describe, refuse."""

import json
import logging
import os
from dataclasses import replace
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
import rasterio
from image_files import png
from PIL import Image
from train_cases import run_compress

import coder.cli
import nec_jax
from coder import InputError, OutputError
from nec_jax.images.record import DataError
from nec_jax.models.architecture import model_config
from nec_jax.sources import open_source
from train.configs.options import Compress, Distil, OptionsError, Pretrain
from train.configs.study_options import Evaluate
from train.engine import inputs
from train.engine.initial_model import initial_model
from train.engine.inputs import held_to, in_steps, open_training_source, train_batches
from train.engine.log import messages
from train.engine.run_record import held
from train.main import COMMANDS, kind, main, parse


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
    data = tmp_path / "data"
    for split in ("train", "val"):
        (data / split).mkdir(parents=True)
        for i in range(4):
            path = data / split / f"{i}.tif"
            with rasterio.open(
                path, "w", driver="GTiff", width=40, height=40, count=2, dtype="uint8",
                transform=rasterio.Affine(10.0, 0.0, 0.0, 0.0, -10.0, 0.0),
            ) as file:  # fmt: skip
                file.write(np.full((2, 40, 40), 50 * i, np.uint8))
    (data / "split.csv").write_text(
        "path,label,split\n"
        + "".join(f"{s}/{i}.tif,sea,{s}\n" for s in ("train", "val") for i in range(4))
    )
    with pytest.raises(SystemExit, match="images have 2 channels, the model takes 3"):
        run_compress(smoke_mae, tmp_path / "work", "--data", str(data))
    assert not (tmp_path / "work" / "checkpoints").exists()


def test_describe_prints_sizes_as_json_without_data(capsys: pytest.CaptureFixture) -> None:
    main(["describe", "--arch", "vit-ti", "--trainable", "paper", "--batch", "2"])
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
        (["sweep", "smoke"], "smoke is not a study.*compress --config smoke"),
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
        (["pretrain", "--lr", "nan"], "--lr must be positive and finite"),
        (["pretrain", "--lr", "inf"], "--lr must be positive and finite"),
        (["pretrain", "--weight-decay", "inf"], "--weight-decay must be 0 or more, and finite"),
        (["compress", "--lambda", "inf"], "--lambda must be positive and finite"),
        (["compress", "--density-lr", "inf"], "--density-lr must be positive and finite"),
        (["compress", "--gain", "inf"], "--gain must be positive and finite"),
        (["evaluate", "--channel-gains", "2", "nan"], "--channel-gains must be positive and fin"),
        (["evaluate", "--jpeg2000", "inf"], "--jpeg2000 must be above 1, and finite"),
        (["evaluate", "--pca", "0"], "--pca must be 1 or more"),
        (["evaluate", "--transform-qualities", "-1"], "--transform-qualities must be 0 or more"),
        (["evaluate", "--epochs", "0"], "--epochs must be 1 or more"),
        (["evaluate", "--uqe-bits", "9"], "--uqe-bits must be 1 to 8"),
        (["compare", "x", "--archive", "0"], "--archive must be 1 or more"),
        (["pretrain", "--image-size", "0"], "--image-size must be 1 or more"),
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


def test_the_script_nec_has_every_command() -> None:
    for name in COMMANDS:
        [command] = entry_points(group="nec.commands", name=name)
        assert command.load() is main
        assert coder.cli.OTHERS[name] == kind(name).__doc__.split("\n")[0]


def test_a_config_gives_defaults_that_the_command_line_overrides() -> None:
    plain, smoke = parse("compress", []), parse("compress", ["--config", "smoke"])
    assert smoke == parse("compress", ["--config=smoke"]) != plain
    assert parse("compress", ["--lambda", "3", "--config", "smoke"]) == replace(smoke, lam=3.0)
    assert parse("sweep", ["factorised", "--workdir", "x"]).workdir == Path("x")
    with pytest.raises(OptionsError, match="unknown config 'smok': choose from"):
        parse("compress", ["--config", "smok"])


def test_a_sweep_has_one_study(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse("sweep", ["first-density", "--config", "first-patches"])
    assert "Unrecognized options: --config" in capsys.readouterr().err


def test_wrong_patterns_of_weights_are_refused_before_images_are_read(
    smoke_mae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "read_all", lambda *_, **__: pytest.fail("images were read"))
    wrong = Compress(
        data="blue-marble", init=str(smoke_mae), trainable="encoder/no", workdir=tmp_path
    )
    with pytest.raises(InputError, match="no weight's path is 'encoder/no'"):
        inputs.open_run(wrong)


def test_a_message_is_shown_once(capsys: pytest.CaptureFixture) -> None:
    """Also where another library gave the root logger a handler."""
    log, root = logging.getLogger("train.engine.loop"), logging.getLogger()
    handler = logging.StreamHandler()
    root.addHandler(handler)
    try:
        with messages():
            log.info("step 1")
            log.debug("not shown")
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr().err == "step 1\n"
    assert log.getEffectiveLevel() == root.level


def test_help_names_every_command_and_config(capsys: pytest.CaptureFixture) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    commands = ("pretrain", "compress", "evaluate", "sweep", "report")
    assert all(word in text for word in (*commands, "aid-ti", "paper-potsdam", "smoke"))
    with pytest.raises(SystemExit):
        main(["compress", "--help"])
    assert "Weight of the distortion" in " ".join(capsys.readouterr().out.split())


def test_every_training_image_is_held_to_what_the_model_takes(tmp_path: Path) -> None:
    config = model_config("vit-ti", bands=("red", "green", "blue"), image_size=32, patch=8)
    for i in range(6):
        Image.fromarray(np.full((40, 40, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    options = Compress(data=str(tmp_path), split="all", batch=2)
    source = open_training_source(options)
    next(train_batches(options, source, config))
    for bands in (1, 3):
        (tmp_path / "3.png").write_bytes(png(np.zeros((40, 40, bands), np.uint16)))
        batches = train_batches(options, source, config)
        named = rf"3\.png has {bands} bands of uint16; the model takes 3 of uint8"
        with pytest.raises(DataError, match=named):
            list(islice(batches, 3))
    floats = replace(config, dtype="float32", value_range=(0.0, 1.0))
    held_to(floats, {"id": "a.tif", "image": np.ones((4, 5, 3), np.float32)})
    for value in (1.5, np.nan):
        with pytest.raises(DataError, match=r"a\.tif ranges from .* the model takes 0 to 1"):
            held_to(floats, {"id": "a.tif", "image": np.full((4, 5, 3), value, np.float32)})


def images_in(folder: Path) -> Path:
    """Twelve images of two classes."""
    for i in range(12):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(path)
    return folder


def listed(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("inside", ["", "runs", "a", ".hidden"])
@pytest.mark.parametrize(
    "command",
    [
        ["pretrain", "--workdir"],
        ["compress", "--workdir"],
        ["compress", "--proxy", "features", "--trainable", "late", "--cache"],
        ["distil", "--teacher", "x", "--workdir"],
        ["distil", "--teacher", "x", "--cache"],
        ["evaluate", "--out"],
        ["evaluate", "--out", "{tmp}/report", "--cache"],
    ],
)
def test_no_command_writes_into_its_images(
    command: list[str], inside: str, smoke_mae: Path, tmp_path: Path
) -> None:
    images, other = images_in(tmp_path / "im"), images_in(tmp_path / "other")
    before = listed(tmp_path)
    data = f"{other}, {images}" if command[0] == "distil" else str(images)
    words = [word.format(tmp=tmp_path) for word in command] + [str(images / inside)]
    model = {"compress": ["--init"], "evaluate": ["--base"]}.get(command[0])
    words += [*model, str(smoke_mae)] if model else []
    if "--workdir" not in words and command[0] != "evaluate":
        words += ["--workdir", str(tmp_path / "work")]
    with pytest.raises(SystemExit, match=f"lies inside the input {images}: choose another"):
        main([*words, "--data", data])
    assert listed(tmp_path) == before


def test_images_may_lie_in_the_work_folder(tmp_path: Path) -> None:
    images = images_in(tmp_path / "im")
    inputs.refuse_folders(Compress(data=str(images), workdir=tmp_path, cache=tmp_path / "cache"))
    # Names of data sets that are no folders.
    for name in ("blue-marble", "tfds:runs", ""):
        inputs.refuse_folders(Compress(data=name, workdir=tmp_path / "blue-marble" / "runs"))
    assert listed(tmp_path) == listed(images.parent)


@pytest.mark.parametrize("name", ["", "run.json", "metrics.jsonl", "checkpoints", "tensorboard"])
def test_a_work_folder_that_cannot_be_one_is_refused_at_once(name: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    if name:
        work.mkdir()
    if "." in name:
        os.mkfifo(work / name)  # which it would take for ever to read
    else:
        (work / name).write_bytes(b"mine")
    with pytest.raises(SystemExit, match=r"choose another|is a file"):
        main(["pretrain", "--data", "blue-marble", "--workdir", str(work)])
    if not name:
        with pytest.raises(OutputError, match="a folder is needed"), held(work):
            pass


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Compress, {"cache_gb": 3}, "--cache-gb goes with --cache"),
        (Compress, {"cache_gb": 0, "cache": Path("c")}, "--cache-gb must be positive"),
        (Distil, {"cache_gb": -1}, "--cache-gb must be positive"),
        (Evaluate, {"cache_gb": 20.0}, "--cache-gb goes with --cache"),
        (Evaluate, {"heads": ("linear", "conv")}, "--heads conv: not for classification, choose"),
        (Evaluate, {"heads": ("linear",), "task": "segmentation"}, "--heads linear: not for seg"),
        (Evaluate, {"base": "x", "baselines": False}, "nothing to measure, pass --models"),
        (Compress, {"warmup": 11, "steps": 10}, "--warmup 11 is longer than the run of 10 steps"),
        (Pretrain, {"warmup": 11, "steps": 10}, "--warmup 11 is longer than the run of 10 steps"),
        (Distil, {"warmup": 11, "steps": 10}, "--warmup 11 is longer than the run of 10 steps"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused_by_name(
    kind: type, given: dict, message: str
) -> None:
    with pytest.raises(OptionsError, match=message):
        kind(**given)


def test_a_warm_up_may_be_as_long_as_the_run_and_its_default_longer(tmp_path: Path) -> None:
    for options in (Pretrain(steps=4), Distil(steps=4), Compress(warmup=10, steps=10)):
        assert options.warmup >= options.steps
    # Epochs are only known in steps with the images.
    options = Compress(data="blue-marble", chip=32, images=80, epochs=1, batch=8, warmup=10)
    source = open_training_source(options)
    assert in_steps(options, source).steps == 10
    with pytest.raises(OptionsError, match="--warmup 11 is longer than the run of 10 steps"):
        in_steps(replace(options, warmup=11), source)


@pytest.mark.parametrize(
    "named",
    [
        ["--uqe-bits", "3"],
        ["--jpeg2000", "10"],
        ["--transform-qualities", "0"],
        ["--channel-gains", "1"],
        ["--pca", "2"],
        ["--binary"],
    ],
)
def test_baselines_that_are_named_and_left_out_are_refused(
    named: list[str], tmp_path: Path
) -> None:
    command = ["evaluate", "--base", "x", "--models", "y", "--data", "blue-marble"]
    command += ["--no-baselines", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=f"{named[0]}: these are baselines, and --no-baselines"):
        main([*command, *named])
    for empty in ([], ["--uqe-bits"], ["--jpeg2000"]):
        with pytest.raises(SystemExit, match="x: no such model"):
            main([*command, *empty])
    assert not (tmp_path / "out").exists()


def test_images_of_tfds_are_not_cut() -> None:
    with pytest.raises(DataError, match=r"tfds:x: images of TFDS .* chip=4 .* leave it out"):
        open_source("tfds:x", chip=4)
