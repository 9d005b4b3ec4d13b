"""Distillation: the student learns what the teacher makes of the same, equally turned image."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distil_cases import TEACHER, opened, options
from model_cases import random_images, random_weights, tiny_config

import nec_jax
from coder import QualityLadder
from coder.format import container
from nec_jax import NecParams, latents
from nec_jax.models.weight_tree import flatten_weights, split
from nec_jax.sources import open_source
from train.configs.options import OptionsError
from train.data import read_all
from train.engine.processes import StopSignals
from train.engine.step import data_mesh, init_state, make_step
from train.main import main
from train.tasks import distil
from train.tasks import teacher as teacher_of

FAST = ["--steps", "4", "--batch", "4", "--val-every", "2", "--log-every", "3",
        "--checkpoint-every", "2", "--warmup", "1", "--image-size", "64", "--depth", "1",
        "--predictor", "1", "--calibration-images", "16"]  # fmt: skip
RESULTS = ("model.safetensors", "metrics.jsonl")


def arguments(data: Path, workdir: Path, *more: str) -> list[str]:
    return ["distil", "--teacher", str(data / "teacher.safetensors"),
            "--data", f"{data / 'one'},{data / 'two'}", "--cache", str(data / "cache"),
            "--workdir", str(workdir), *FAST, *more]  # fmt: skip


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a run that nobody cut off."""
    folder = tmp_path_factory.mktemp("whole")
    main(arguments(data, folder))
    return folder


def test_a_perfect_prediction_costs_nothing_and_the_mean_one_what_its_deviation_says(
    data: Path, teacher: NecParams
) -> None:
    images = opened(data, teacher)
    base = NecParams(random_weights(tiny_config(depth=1)), tiny_config(depth=1))
    tokens = images.whole_tokens(16)
    weights = distil.starting_weights(options(data), base, teacher, tokens, 2)
    pred = weights["predictor"]["pred"]
    pred["kernel"], pred["bias"] = 0 * pred["kernel"], 0 * pred["bias"]  # predicts the mean
    goal = distil.prediction(options(data), base.config, teacher, 2)
    batch = {"image": jnp.asarray(random_images(0, len(tokens))), "tokens": jnp.asarray(tokens)}
    found = goal.validate(weights, batch, jax.random.split(jax.random.key(0), len(tokens)))
    y = np.asarray(teacher_of.pooled(TEACHER, weights["teacher"], tokens, 2))
    for name, part in (("class", y[:, :1]), ("grid", y[:, 1:])):
        z = np.abs(part - part.mean((0, 1))) / part.std((0, 1))
        expected = np.where(z < 1, z**2 / 2, z - 0.5).mean()
        np.testing.assert_allclose(found[name], expected, rtol=1e-3)
    np.testing.assert_allclose(found["loss"], (found["class"] + found["grid"]) / 2, rtol=1e-6)


@pytest.mark.parametrize(("name", "ratio"), [("adamw", 0.0), ("muon", 0.5)])
def test_training_lowers_the_loss_and_leaves_the_teacher(
    data: Path, teacher: NecParams, name: str, ratio: float
) -> None:
    chosen = options(data, optimiser=name, mask_ratio=ratio, steps=12, warmup=1, lr=3e-3)
    images = opened(data, teacher)
    base = NecParams(random_weights(tiny_config(depth=1)), tiny_config(depth=1))
    weights = distil.starting_weights(chosen, base, teacher, images.whole_tokens(16), 2)
    goal, mesh = distil.prediction(chosen, base.config, teacher, 2), data_mesh()
    trainable, frozen = split(weights, distil.is_trained)
    assert {path.split("/")[0] for path in flatten_weights(trainable)} == {"encoder", "predictor"}
    tx = distil.loop.optimiser(chosen, 0.0)
    state = init_state(trainable, tx, mesh)
    step = make_step(goal, tx, chosen.steps, mesh)
    batch, losses = next(images.batches(64, 4)), []
    for _ in range(chosen.steps):
        state, metrics = step(state, frozen, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]


def test_the_model_codes_at_every_rate_and_says_what_it_was_made_of(
    whole: Path, data: Path
) -> None:
    params = nec_jax.load(whole / "model.safetensors")
    assert isinstance(params.codec, QualityLadder)
    assert params.config.decoder_target == "none"
    images = random_images(5, 3)
    for quality in (None, 0, params.codec.num_qualities - 1):
        blobs = nec_jax.encode(params, images, quality=quality)
        np.testing.assert_array_equal(
            nec_jax.decode(params, blobs), nec_jax.embed(params, images, quality=quality)
        )
    facts = json.loads(params.provenance)["distil"]
    count = sum(len(open_source(str(data / name), "train")) for name in ("one", "two"))
    assert facts["images"] == count
    assert facts["data"] == "one,two"
    record = json.loads((whole / "run.json").read_text())
    assert record["teacher"]["sha256"]
    assert record["command"] == "distil"
    assert record["data"]["train"]["name"] == "one,two"


@pytest.mark.parametrize("most", [1, 60, 100, 10**6])
def test_coded_is_at_the_largest_rate_that_needs_no_more_bytes_than_asked_for(
    whole: Path, data: Path, teacher: NecParams, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    params, images = nec_jax.load(whole / "model.safetensors"), opened(data, teacher)
    found = distil.with_ladder(params, images, 16, most).codec
    assert isinstance(found, QualityLadder)
    y = latents(params, read_all(images.source, 64, limit=16).images)
    sizes = [
        np.mean([len(found.at(r).encode(one, (4, 4))) for one in y])
        for r in range(found.num_qualities)
    ]
    fitting = [quality for quality, size in enumerate(sizes) if size <= most]
    assert found.quality == max(fitting, default=0)
    assert found.transform.class_scale is not None
    # The class token counts as much as the 4 x 4 tokens of the grid.
    np.testing.assert_allclose(found.transform.class_scale, y[:, 0].std(0) / 4, rtol=1e-3)
    assert ("even the lowest quality" in caplog.text) == (not fitting)


def test_the_file_holds_float16_and_the_same_model(whole: Path, tmp_path: Path) -> None:
    params = nec_jax.load(whole / "model.safetensors")
    encoder = flatten_weights(params.weights["encoder"])
    assert all(v.dtype == np.float32 for v in encoder.values())
    stored, _ = container.read(whole / "model.safetensors", "model")
    assert {v.dtype for k, v in stored.items() if k.startswith("weights/encoder/")} == {
        np.dtype(np.float16)
    }
    nec_jax.save(params, tmp_path / "again.safetensors")
    again = nec_jax.load(tmp_path / "again.safetensors")
    for name, leaf in flatten_weights(again.weights).items():
        np.testing.assert_array_equal(leaf, flatten_weights(params.weights)[name])
    assert (tmp_path / "again.safetensors").read_bytes() == (
        whole / "model.safetensors"
    ).read_bytes()


def test_a_run_that_was_cut_off_ends_with_the_same_bytes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--optimiser", "muon", "--views", "1", "2", "--mask-ratio", "0.5")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    main(arguments(data, whole, *more))
    asked = StopSignals.asked

    def die(self: StopSignals, step: int) -> bool:
        if step == 3:
            monkeypatch.undo()
            raise RuntimeError
        return asked(self, step)

    monkeypatch.setattr(StopSignals, "asked", die)
    with pytest.raises(RuntimeError):
        main(arguments(data, cut, *more))
    main(arguments(data, cut, *more))
    for name in RESULTS:
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_another_teacher_is_another_run(data: Path, whole: Path, tmp_path: Path) -> None:
    other = NecParams(random_weights(TEACHER, 1), TEACHER)
    nec_jax.save(other, tmp_path / "other.safetensors")
    with pytest.raises(SystemExit, match="--teacher"):
        main(arguments(data, whole, "--teacher", str(tmp_path / "other.safetensors")))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--teacher", ""], "no teacher: pass --teacher"),
        (["--data", ""], "no data"),
        (["--proxy", "pixels"], "the encoder has fresh weights"),
        (["--decoder-depth", "2"], "--predictor"),
        (["--class-weight", "2"], "--class-weight must be from 0 to 1"),
        (["--views", "0"], "--views must be 1 or more"),
        (["--views", "1", "2", "3"], "--views has 3 numbers, --data 2 data sets"),
        (["--data", "one,"], "a name is missing before or after a comma"),
        (["--calibration-images", "0"], "--calibration-images must be 1 or more"),
        (["--max-bytes", "0"], "--max-bytes must be 1 or more"),
        (["--views", "2", "0"], "--views must be 1 or more"),
        (["--predictor", "-1"], "--predictor must be 0 or more"),
        (["--image-size", "48"], "choose an --image-size of 16, 32, 64, 128"),
        (["--arch", "vit-x"], "unknown architecture"),
    ],
)
def test_options_that_cannot_work_are_refused(
    data: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, OptionsError)) as error:
        main(arguments(data, tmp_path, *more))
    printed = capsys.readouterr()
    text = str(error.value) + printed.out + printed.err
    assert message in re.sub(r"[\s\u2502]+", " ", text)  # a message in a box is wrapped
    assert not (tmp_path / "model.safetensors").exists()
