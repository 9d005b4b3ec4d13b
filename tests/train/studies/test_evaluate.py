"""The study: scores, real sizes, and the three files of a report."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import coder
import nec_jax
from nec_jax.api import with_coding
from nec_jax.calibration import calibrate_latents, fit_latents
from nec_jax.images.record import IGNORE, DataError
from nec_jax.sources import open_source
from train.configs.options import Compress, OptionsError
from train.configs.study_options import Evaluate
from train.data import Split, read_all
from train.engine import initial_model
from train.engine.activation_cache import Prefix
from train.main import main
from train.studies import evaluate, methods, report, scores
from train.tasks import refine

KEYS = {
    "method", "setting", "task", "head", "with_decoder", "bytes_per_image", "codec_bytes",
    "metric", "mean", "std", "seeds",
}  # fmt: skip


def test_top1_counts_what_is_right() -> None:
    counts = scores.top1(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]), 3)
    assert one_training(*counts).percent() == [75.0]


def test_mean_iou_leaves_ignored_pixels_and_absent_classes_out() -> None:
    target = np.array([[[0, 0, 1, IGNORE]]])
    predicted = np.array([[[0, 1, 1, 1]]])
    # Class 0: 1 of 2; class 1: 1 of 2; class 2 occurs in neither.
    assert one_training(*scores.mean_iou(predicted, target, 3)).percent() == [50.0]
    whole = scores.mean_iou(target[..., :3], target[..., :3], 3)
    assert one_training(*whole).percent() == [100.0]


def test_a_score_of_images_taken_twice_is_that_of_so_many_images() -> None:
    generator = np.random.default_rng(0)
    target = generator.integers(0, 4, (5, 6, 6))
    predicted = np.where(generator.random(target.shape) < 0.6, target, 0)
    times = np.array([2, 0, 1, 3, 1])
    again = np.repeat(predicted, times, axis=0), np.repeat(target, times, axis=0)
    once = one_training(*scores.mean_iou(predicted, target, 4)).percent(times)
    assert once == one_training(*scores.mean_iou(*again, 4)).percent()


def one_training(hits: np.ndarray, totals: np.ndarray) -> scores.Scores:
    return scores.Scores(hits[None], totals[None])


def study_options(smoke_mae: Path, smoke_nec: Path, task: str, split: str) -> Evaluate:
    return Evaluate(
        models=(str(smoke_nec / "model.safetensors"),),
        base=str(smoke_mae),
        data="blue-marble",
        chip=32,
        limit=40,
        task=task,  # type: ignore[arg-type]
        split=split,
    )


@pytest.mark.parametrize("split", ["val", "test"])
def test_what_fits_chooses_and_scores_is_disjoint(
    smoke_mae: Path, smoke_nec: Path, split: str
) -> None:
    options = study_options(smoke_mae, smoke_nec, "classification", split)
    study = evaluate.open_study(options, nec_jax.load(smoke_mae))
    names = [name for part in study.splits() for name in part.ids]
    assert len(names) == len(set(names))


def test_images_can_be_of_another_size_than_the_models(smoke_mae: Path, smoke_nec: Path) -> None:
    options = study_options(smoke_mae, smoke_nec, "segmentation", "val")
    options = dataclasses.replace(options, image_size=64, limit=10)
    study = evaluate.open_study(options, nec_jax.load(smoke_mae))
    [(setting, params)] = methods.load_compressed(options.models).items()
    [method] = methods.nec_methods(options, study, setting, params, nec_jax.load(smoke_mae))
    assert params.config.image_size == 32
    assert method.values[2].shape[:2] == (10, 1 + 8 * 8)


def test_nec_sizes_are_those_of_the_blobs_and_near_the_estimate(
    smoke_mae: Path, smoke_nec: Path
) -> None:
    options = study_options(smoke_mae, smoke_nec, "classification", "val")
    study = evaluate.open_study(options, nec_jax.load(smoke_mae))
    [(setting, params)] = methods.load_compressed(options.models).items()
    [method] = methods.nec_methods(options, study, setting, params, nec_jax.load(smoke_mae))
    blobs = nec_jax.encode(params, study.score.images)
    assert method.bytes_per_image == np.mean([len(blob) for blob in blobs])
    estimate = method.facts["estimated_bytes_per_image"]
    assert estimate < method.bytes_per_image <= 1.01 * estimate + 16


def test_baselines_that_are_asked_for_are_measured(smoke_mae: Path, smoke_nec: Path) -> None:
    options = study_options(smoke_mae, smoke_nec, "classification", "val")
    asked = {
        "transform_qualities": (0, 3),
        "channel_gains": (0.5,),
        "pca": (4,),
        "pq": (2,),
        "binary": True,
    }
    options = dataclasses.replace(options, jpeg2000=(), uqe_bits=(), **asked)
    base = nec_jax.load(smoke_mae)
    study = evaluate.open_study(options, base)
    found = {f"{m.name} {m.setting}": m for m in methods.baseline_methods(options, study, base)}
    names = ["pca-int8 4 components", "pq 2 bytes per token", "binary 1 bit"]
    zipped = [name.replace(" ", "-zstd ", 1) for name in names]
    assert {
        "transform quality 0",
        "transform quality 3",
        "channels gain 0.5",
        *names,
        *zipped,
    } < set(found)
    assert found["pca-int8 4 components"].bytes_per_image == 17 * 4
    assert found["pq 2 bytes per token"].bytes_per_image == 17 * 2
    for name in found:
        shapes = [part.shape for part in found[name].values]
        assert shapes == [part.shape for part in found["float16 float16"].values], name
    with pytest.raises(coder.InputError, match="quality 99: this codec has qualities 0 to"):
        list(
            methods.baseline_methods(
                dataclasses.replace(options, transform_qualities=(0, 99)), study, base
            )
        )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pca": (0,)}, "1 or"),
        ({"pq": (0,)}, "1 or"),
        ({"channel_gains": (0.0,)}, "must be positive"),
        ({"qualities": (-1,)}, "0 or"),
        ({"transform_qualities": (-1,)}, "0 or"),
    ],
)
def test_baselines_that_cannot_be_are_refused_at_once(asked: dict, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        Evaluate(**asked)


def test_errors_are_of_the_tokens_that_both_have(encoder_only: Path) -> None:
    whole = nec_jax.load(encoder_only)
    study = evaluate.open_study(Evaluate(data="blue-marble", chip=32, limit=40), whole)
    assert whole.config.code_class_token
    without = untrained(whole, code_class_token=False)
    [method] = methods.nec_methods(Evaluate(), study, "lambda 10", without, whole)
    y = [part[:, 1:] for part in study.embedded(whole)]
    assert method.values[2].shape == y[2].shape
    assert method.errors is not None
    found = methods.decoded_features(without, method.values[2], study.grid(without))
    np.testing.assert_array_equal(method.errors, methods.squared_errors(found, y))

    # A token that the base has not cannot be compared.
    [method] = methods.nec_methods(
        Evaluate(), study, "lambda 10", untrained(whole, code_class_token=True), without
    )
    assert method.errors is None


def untrained(base: nec_jax.NecParams, *, code_class_token: bool) -> nec_jax.NecParams:
    """A model with a decoder of features and a per-channel codec, as training would start."""
    options = Compress(proxy="features", code_class_token=code_class_token)
    source = open_source("blue-marble", "train", chip=32)
    params = initial_model.initial_model(options, base, source)
    y = nec_jax.latents(params, read_all(source, 32, limit=32).images)
    return calibrate_latents(params, [y], {"compress": {"lambda": 10.0}})


def test_an_inexact_round_trip_is_never_reported(
    smoke_mae: Path, smoke_nec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = study_options(smoke_mae, smoke_nec, "classification", "val")
    study = evaluate.open_study(options, nec_jax.load(smoke_mae))
    decode = nec_jax.decode
    monkeypatch.setattr(nec_jax, "decode", lambda p, b: decode(p, b) + np.float32(1e-6))
    [(setting, params)] = methods.load_compressed(options.models).items()
    with pytest.raises(methods.RoundTripError, match=r"not exact for .*bmng"):
        list(methods.nec_methods(options, study, setting, params, nec_jax.load(smoke_mae)))


@pytest.mark.parametrize(
    ("task", "heads"),
    [("classification", 4), pytest.param("segmentation", 3, marks=pytest.mark.slow)],
)
def test_the_command_reports_every_method(
    smoke_mae: Path, smoke_nec: Path, tmp_path: Path, task: str, heads: int
) -> None:
    main([
        "evaluate", "--base", str(smoke_mae), "--models", str(smoke_nec / "model.safetensors"),
        "--data", "blue-marble", "--chip", "32", "--limit", "40", "--seeds", "2", "--epochs", "1",
        "--task", task, "--uqe-bits", "3", "--jpeg2000", "10", "--out", str(tmp_path),
    ])  # fmt: skip
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["roundtrip_exact"] is True
    assert written["images"] == 40
    assert written["split"] == "val"
    names = ["nec", "uqe", "uqe-channel", "float16", "jpeg2000", "raw-zstd"]
    assert [p["method"] for p in written["points"]] == [m for m in names for _ in range(heads)]
    for point in written["points"]:
        # The model decodes pixels: nothing says how far its embedding may be from the base's.
        nec = point["method"] == "nec"
        extra = {"lambda", "estimated_bytes_per_image"} if nec else {"mse"}
        assert set(point) == KEYS | extra
        assert 0 <= point["mean"] <= 100
        assert point["seeds"] == (1 if point["head"].endswith("linear") else 2)
    text = (tmp_path / "report.md").read_text()
    assert text.count("\n| nec |") == 1
    with np.load(tmp_path / "images.npz") as each:
        for i, point in enumerate(written["points"]):
            assert each[f"{i}.bytes"].mean() == pytest.approx(point["bytes_per_image"], abs=0.005)
            scored = scores.Scores(each[f"{i}.hits"], each[f"{i}.totals"])
            assert scored.percent().mean() == pytest.approx(point["mean"], abs=0.0005)
    assert (tmp_path / "rate_distortion.png").read_bytes()[:4] == b"\x89PNG"


def test_a_model_with_a_codec_of_its_own_is_scored_at_its_rates(
    encoder_only: Path, tmp_path: Path
) -> None:
    params, path = nec_jax.load(encoder_only), tmp_path / "own.safetensors"
    images = read_all(open_source("blue-marble", "train", chip=32), 32, limit=64).images
    params = fit_latents(params, nec_jax.latents(params, images), step=0.5)
    assert isinstance(params.codec, coder.QualityLadder)
    codec = dataclasses.replace(params.codec, quality=1)
    nec_jax.save(dataclasses.replace(params, codec=codec), path)
    command = ["evaluate", "--model", str(path), "--data", "blue-marble", "--chip", "32"]
    command += ["--limit", "20", "--heads", "linear", "--out", str(tmp_path)]
    main([*command, "--no-baselines"])
    points = json.loads((tmp_path / "report.json").read_text())["points"]
    assert {point["method"] for point in points} == {"nec"}
    assert len(points) == 9  # from the first of its qualities to the last, and the one that it uses
    qualities = [point["setting"] for point in points]
    assert [*qualities[:2], qualities[-1]] == [
        "quality 0",
        "quality 1",
        f"quality {codec.num_qualities - 1}",
    ]
    sizes, errors = ([point[name] for point in points] for name in ("bytes_per_image", "mse"))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    before = (tmp_path / "report.json").read_bytes()
    with pytest.raises(SystemExit, match=r"report.json: exists: .* --overwrite"):
        main([*command, "--no-baselines"])
    assert (tmp_path / "report.json").read_bytes() == before
    main([*command, "--qualities", "3", "--uqe-bits", "3", "--jpeg2000", "10", "--overwrite"])
    points = json.loads((tmp_path / "report.json").read_text())["points"]
    assert [p["setting"] for p in points if p["method"] == "nec"] == ["quality 3"]
    assert {"uqe", "float16", "jpeg2000"} < {p["method"] for p in points}


def test_refined_embeddings_are_methods_of_their_own(
    encoder_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    params, path = nec_jax.load(encoder_only), tmp_path / "own.safetensors"
    images = read_all(open_source("blue-marble", "train", chip=32), 32, limit=64).images
    params = fit_latents(params, nec_jax.latents(params, images), step=0.5)
    nec_jax.save(params, path)
    command = ["evaluate", "--model", str(path), "--data", "blue-marble", "--chip", "32"]
    command += ["--limit", "40", "--heads", "linear", "--qualities", "3", "6", "--out"]
    main([
        *command, str(tmp_path), "--refine", "fit", "--refiner-steps", "40", "--overwrite",
        "--transform-qualities", "3", "6", "--uqe-bits", "3", "--jpeg2000", "10",
    ])  # fmt: skip
    points = json.loads((tmp_path / "report.json").read_text())["points"]
    found = {(p["method"], p["setting"]): p for p in points}
    for name in ("nec", "transform"):
        for quality in (3, 6):
            plain = found[name, f"quality {quality}"]
            refined = found[f"{name}-refined", f"quality {quality}"]
            assert refined["bytes_per_image"] == plain["bytes_per_image"]
            assert refined["codec_bytes"] == plain["codec_bytes"] + refined["refiner_bytes"]
            assert 0 < refined["mse"] < plain["mse"]
            assert "refiner_bytes" not in plain
    text = (tmp_path / "report.md").read_text()
    assert text.count("| nec-refined | quality") == 2
    assert "what a decoder needs once, with the refiner if embeddings are refined" in text
    capsys.readouterr()
    main(["compare", str(tmp_path), "--resamples", "3"])
    printed = capsys.readouterr().out
    for label in ("NEC, refined", "transform, untrained, refined", "transform, untrained"):
        assert label in printed

    with pytest.raises(SystemExit, match="none of the models has a refiner: train one with `nec"):
        main([*command, str(tmp_path / "no"), "--refine", "own"])


def test_a_model_is_measured_with_its_own_refiner(encoder_only: Path) -> None:
    bare = nec_jax.load(encoder_only)
    images = read_all(open_source("blue-marble", "train", chip=32), 32, limit=64).images
    y = nec_jax.latents(bare, images)
    params = fit_latents(bare, y, step=0.5)
    assert params.codec is not None
    codec = params.codec.with_refiner(refine.fitted(params.codec, y, (4, 4), steps=9))
    own = dataclasses.replace(params, codec=codec)
    options = Evaluate(model="own", refine="own", qualities=(6,), heads=("linear",))
    study = evaluate.open_study(Evaluate(data="blue-marble", chip=32, limit=40), own)
    methods.refuse_refine(options, {"": own})
    first, second = methods.nec_methods(options, study, "", own, own)
    assert (first.name, second.name) == ("nec", "nec-refined")
    blobs = nec_jax.encode(own, study.score.images, quality=6)
    for method, on in ((first, False), (second, True)):
        decoded = np.stack([codec.decode(blob, refine=on) for blob in blobs])
        np.testing.assert_array_equal(method.values[2], decoded)
        # Heads do not refine again.
        alike = [
            evaluate.score_head(options, study, one, "linear", False)
            for one in (method, dataclasses.replace(method, model=params))
        ]
        np.testing.assert_array_equal(alike[0].hits, alike[1].hits)
    chosen = dataclasses.replace(options, for_refiner=True)
    plain, refined = methods.nec_methods(chosen, study, "", own, own)
    assert (plain.setting, refined.setting) == ("quality 6, for refiner",) * 2
    blobs = nec_jax.encode(own, study.score.images, quality=6, for_refiner=True)
    for method, on in ((plain, False), (refined, True)):
        decoded = np.stack([codec.decode(blob, refine=on) for blob in blobs])
        np.testing.assert_array_equal(method.values[2], decoded)
        assert method.bytes_per_image == np.mean([len(blob) for blob in blobs])
    [alone] = methods.nec_methods(dataclasses.replace(options, refine="no"), study, "", own, own)
    np.testing.assert_array_equal(alone.values[2], first.values[2])


def test_nothing_to_refine_is_refused(encoder_only: Path) -> None:
    models = {"": untrained(nec_jax.load(encoder_only), code_class_token=True)}
    with pytest.raises(OptionsError, match=r"none of the codecs has a transform.*leave --refine"):
        methods.refuse_refine(Evaluate(refine="fit"), models)
    methods.refuse_refine(Evaluate(refine="fit", transform_qualities=(3,)), models)
    with pytest.raises(OptionsError, match="--for-refiner needs a refiner: pass --refine own"):
        Evaluate(for_refiner=True)
    with pytest.raises(OptionsError, match="--refiner-steps goes with --refine fit"):
        Evaluate(refine="own", refiner_steps=3)


def test_a_model_alone_must_have_many_rates_and_no_others_beside_it(smoke_nec: Path) -> None:
    model = ["--model", str(smoke_nec / "model.safetensors")]
    with pytest.raises(
        SystemExit, match=r"--model needs a codec of many qualities.*pass this model by --models"
    ):
        main(["evaluate", *model, "--data", "blue-marble"])
    for other in ({"base": "x"}, {"models": ("x",)}, {"cache": Path("x")}):
        with pytest.raises(OptionsError, match="leave"):
            Evaluate(model="nec-vit-ti", **other)  # type: ignore[arg-type]


def test_a_table_shows_mean_and_spread() -> None:
    assert report.spread([50.0, 54.0]) == "52.0 +- 2.8"
    assert report.spread([50.0]) == "50.0"


def test_a_cache_is_of_one_precision(smoke_mae: Path, smoke_nec: Path, tmp_path: Path) -> None:
    model = smoke_nec / "model.safetensors"
    other = tmp_path / "other.safetensors"
    nec_jax.save(with_coding(nec_jax.load(model), precision="tensorfloat32"), other)
    command = ["evaluate", "--base", str(smoke_mae), "--data", "blue-marble"]
    with pytest.raises(SystemExit, match="the models have float32, tensorfloat32"):
        main([*command, "--models", str(model), str(other), "--cache", str(tmp_path / "cache")])


def test_targets_that_are_none_are_not_scored() -> None:
    images, ids = np.zeros((3, 4, 4, 3), np.uint8), ["a.png", "b.png", "c.png"]
    masks = np.full((3, 4, 4), IGNORE, np.uint8)
    task = Evaluate(task="segmentation")

    def refuse(split: Split, options: Evaluate = task) -> None:
        evaluate.refuse_unlabelled(options, split, ("sea", "land"), "split 'test' of x")

    with pytest.raises(DataError, match=r"split 'test' of x .*: its masks ignore every pixel"):
        refuse(Split(images, None, masks, ids, []))
    masks[0] = 1
    refuse(Split(images, None, masks, ids, []))
    masks[1, 2, 3] = 2
    with pytest.raises(
        DataError, match=r"mask of b\.png has the value 2, but .* 2 classes sea, la"
    ):
        refuse(Split(images, None, masks, ids, []))
    with pytest.raises(DataError, match=r"segmentation: b\.png has no mask"):
        refuse(Split(images, None, None, ids, [], unmasked="b.png"))
    with pytest.raises(DataError, match=r"classification: c\.png has no label"):
        refuse(Split(images, None, masks, ids, [], unlabelled="c.png"), Evaluate())


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_heads_are_not_fitted_on_one_class(task: str, smoke_mae: Path, tmp_path: Path) -> None:
    rows = ["path,label,split" if task == "classification" else "image,mask,split"]
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        drawing = np.full((32, 32), 255, np.uint8)  # as a mask of one class is often written
        drawing[:9] = 0 if i < 4 else 1
        Image.fromarray(drawing).save(tmp_path / f"{i}_mask.png")
        target = f"{i}_mask.png" if task == "segmentation" else "ab"[i >= 4]
        rows.append(f"{i}.png,{target},{'train' if i < 4 else 'val'}")
    (tmp_path / "split.csv").write_text("\n".join(rows))
    options = Evaluate(data=str(tmp_path), task=task, chip=32)  # type: ignore[arg-type]
    first = "a" if task == "classification" else "0"
    with pytest.raises(DataError, match=rf"split 'train' .* classes ., . it has {first} alone"):
        evaluate.open_study(options, nec_jax.load(smoke_mae))


def test_a_cache_of_other_images_is_refused_though_as_many_can_be_read(
    smoke_mae: Path, tmp_path: Path
) -> None:
    base = nec_jax.load(smoke_mae)
    folder = tmp_path / "data"
    rows = ["path,label,split"]
    for i in range(8):
        for split in ("train", "val", "test"):
            name = f"{split}-{i}.png"
            folder.mkdir(exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            rows.append(f"{name},{'ab'[i % 2]},{split}")
    (folder / "split.csv").write_text("\n".join(rows))
    good, other = (folder / f"train-{i}.png" for i in (2, 5))
    kept = good.read_bytes()
    good.write_bytes(b"no image")
    options = Evaluate(data=str(folder), cache=tmp_path / "cache", split="test")
    study = evaluate.open_study(options, base, 1)
    assert study.fit.tokens is not None
    assert len(study.fit.tokens) == len(study.fit.ids) == 7
    # Another image now; the fingerprint sees it here, and does not in a set of many.
    good.write_bytes(kept)
    other.write_bytes(b"no image")
    stale = Prefix(1, 8, (tuple(np.where(np.arange(8) == 2, np.nan, 1)[:, None, None][None]),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "open_prefix", lambda *_: stale)
        with pytest.raises(
            DataError, match=r"than when the cache was made \(image 2 only now\): .* delete"
        ):
            evaluate.open_study(options, base, 1)
