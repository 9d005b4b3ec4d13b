"""`compress --codec transform`: what trains, what is shipped, and how it is measured."""

import json
from pathlib import Path

import numpy as np
import pytest
from train_cases import SMALL, run_compress

import nec_jax
from coder import QualityLadder
from nec_jax.models.weight_tree import flatten_weights
from nec_jax.sources import open_source
from train.configs.options import Compress, OptionsError
from train.data import read_all
from train.main import main


@pytest.mark.slow
def test_a_decoder_for_all_rates_of_an_encoder_that_stays(
    encoder_only: Path, tmp_path: Path
) -> None:
    more = [*SMALL, "--gain", "any", "--trainable", "decoder", "--cache", str(tmp_path / "cache")]
    main([
        "compress", "--init", str(encoder_only), "--workdir", str(tmp_path), "--proxy", "features",
        "--codec", "transform", "--steps", "4", "--calibration-images", "64", *more,
    ])  # fmt: skip
    params, base = nec_jax.load(tmp_path / "model.safetensors"), nec_jax.load(encoder_only)
    before, after = flatten_weights(base.weights), flatten_weights(params.weights)
    for name in before:
        if name.startswith("encoder/"):
            np.testing.assert_array_equal(before[name], after[name])
    assert np.abs(after["decoder/pred/kernel"]).max() > 0  # it starts at zero
    assert isinstance(params.codec, QualityLadder)
    images = read_all(open_source("blue-marble", "val", chip=32), 32, limit=4).images
    sizes = [
        sum(map(len, nec_jax.encode(params, images, quality=quality))) for quality in (2, 6, 10)
    ]
    assert sizes == sorted(sizes)
    assert sizes[2] > 2 * sizes[0]

    main([
        "evaluate", "--base", str(encoder_only), "--models", str(tmp_path / "model.safetensors"),
        "--data", "blue-marble", "--chip", "32", "--limit", "40", "--heads", "linear",
        "--no-decoder-heads", "--qualities", "4", "9", "--no-baselines",
        "--out", str(tmp_path / "e"),
    ])  # fmt: skip
    command = ["evaluate", "--base", str(encoder_only), "--data", "blue-marble", "--chip", "32"]
    command += ["--models", str(tmp_path / "model.safetensors"), "--limit", "40"]
    with pytest.raises(SystemExit, match="--qualities 99: lambda 10 has qualities 0 to"):
        main([*command, "--qualities", "4", "99"])
    points = json.loads((tmp_path / "e/report.json").read_text())["points"]
    assert [p["method"] for p in points] == ["nec-transform"] * 2
    assert points[0]["setting"] == "lambda 10, quality 4"
    assert points[0]["mse"] > points[1]["mse"] > 0
    assert points[0]["bytes_per_image"] < points[1]["bytes_per_image"]


@pytest.mark.slow
def test_the_last_block_trains_through_it_for_pixels(smoke_mae: Path, tmp_path: Path) -> None:
    params = run_compress(smoke_mae, tmp_path, "--codec", "transform", "--gain", "calibrated")
    assert isinstance(params.codec, QualityLadder)
    facts = json.loads(params.provenance)["compress"]
    assert (facts["codec"], facts["proxy"]) == ("transform", "pixels")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "transform", "gain": "identity"}, "--gain identity is not for --codec transf"),
        ({"gain": "any"}, "--gain any is not for --codec per-channel"),
        ({"trainable": "decoder"}, "--trainable decoder: choose from paper"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        Compress(**options)
