"""Studies: every point once, whatever happens, in one table that says what is done."""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from folders import TESTS
from sweep_case import STUDY

from coder import FileError
from nec_jax import NecParams, load
from nec_jax.api import with_coding
from nec_jax.sources import open_source
from train import configs
from train.configs.options import Compress, OptionsError
from train.configs.study_options import AXES, Evaluate, Sweep
from train.engine.loop import NonFiniteLoss
from train.main import main
from train.studies import evaluate, results, sweep
from train.studies.study import Study
from train.tasks import compress


@pytest.fixture(scope="module")
def swept(smoke_mae: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a sweep, `a`, and one that was cut off in its second point, `b`."""
    # In a process on one core: on several, XLA's own results differ in the last place now and then.
    folder = tmp_path_factory.mktemp("sweep")
    program = TESTS / "sweep_case.py"
    command = [sys.executable, program, smoke_mae, folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return folder, done.stdout


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def again(folder: Path, model: Path, *more: str, study: str = STUDY) -> None:
    path = folder.parent / f"{folder.name}-study.toml"
    path.write_text(study)
    main(["sweep", str(path), "--workdir", str(folder), "--compress.init", str(model), *more])


def never(options: Compress) -> None:
    raise AssertionError("a point that is done was trained again")


@pytest.mark.slow
def test_a_sweep_that_is_cut_off_ends_like_one_that_was_not(swept: tuple[Path, str]) -> None:
    folder, said = swept
    # A header and the first point were there; the second went on, and nothing else was trained.
    assert said == "2 [100.0]\n"
    assert (folder / "a" / "results.csv").read_bytes() == (
        folder / "b" / "results.csv"
    ).read_bytes()
    assert [row["lambda"] for row in rows(folder / "a")] == ["1", "100", "", "", "", ""]
    methods = ["nec", "nec", "uqe", "uqe-channel", "float16", "raw-zstd"]
    assert [row["method"] for row in rows(folder / "a")] == methods
    models = sorted(path.parent.name for path in folder.glob("a/points/*/model.safetensors"))
    assert [name.split(",")[0] for name in models] == ["lambda-1", "lambda-100.0"]
    assert not list(folder.glob("?/points/*/checkpoints"))  # bounded: only models stay


@pytest.mark.slow
def test_the_table_alone_says_what_is_done_and_takes_new_axes(
    swept: tuple[Path, str], smoke_mae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "carried"
    folder.mkdir()
    shutil.copy(swept[0] / "a" / "results.csv", folder)
    with monkeypatch.context() as patch:
        patch.setattr(compress, "run", never)
        again(folder, smoke_mae)

    # Another axis: the rows so far are those of the value that they had in common.
    made = []

    def measured(options: Evaluate, study: Study, model: Path, base: NecParams) -> sweep.Points:
        made.append(model.parent.name.rsplit(",", 1)[0])
        return [{"method": "nec", "head": "linear", "mean": 50.0}]

    monkeypatch.setattr(compress, "run", lambda options: None)
    monkeypatch.setattr(sweep, "measure_point", measured)
    again(folder, smoke_mae, study=STUDY.replace("100.0]", "100.0]\nseed = [0, 1]"))

    assert made == ["lambda-1,seed-1", "lambda-100.0,seed-1"]
    got = [(r["lambda"], r["seed"]) for r in rows(folder) if r["method"] == "nec"]
    assert got == [("1", "0"), ("100", "0"), ("1", "1"), ("100", "1")]
    # And a seed that is no axis any more is still one of the table's.
    made.clear()
    again(folder, smoke_mae, "--compress.seed", "1")
    assert made == []


@pytest.mark.slow
def test_one_study_can_vary_the_codec(encoder_only: Path, tmp_path: Path) -> None:
    study = STUDY.replace("lambda = [1, 100.0]", 'codec = ["per-channel", "transform"]')
    study = study.replace('gain = "identity"', 'gain = 0.5\nproxy = "features"')
    study += 'refine = "fit"\nrefiner_steps = 3\n'
    again(tmp_path / "s", encoder_only, "--evaluate.no-baselines", study=study)
    found = rows(tmp_path / "s")
    assert [(row["codec"], row["method"]) for row in found] == [
        ("per-channel", "nec"), ("transform", "nec-transform"),
        ("transform", "nec-transform-refined"),
    ]  # fmt: skip
    assert all(float(row["bytes_per_image"]) > 0 and float(row["mse"]) > 0 for row in found)


@pytest.mark.slow
def test_changed_common_options_are_refused_by_name(
    swept: tuple[Path, str], smoke_mae: Path
) -> None:
    with pytest.raises(
        SystemExit, match=r"compress.steps: 4 -> 5, evaluate.limit: 40 -> 41\): cho"
    ):
        again(swept[0] / "a", smoke_mae, "--compress.steps", "5", "--evaluate.limit", "41")
    # Not those that change no result.
    free = ["--compress.checkpoint-every", "9", "--compress.microbatch", "4"]
    again(swept[0] / "a", smoke_mae, *free)


def test_refining_is_shared_by_all_points_of_a_table(tmp_path: Path) -> None:
    plain = Sweep(workdir=tmp_path, axes={"lambda": [1]})
    table = sweep.open_table(plain)
    table.add(table.values(vars(plain.compress)), [{"method": "nec", "head": "linear"}])
    record = json.loads((tmp_path / "sweep.json").read_text())
    del record["evaluate"]["refine"]  # as an earlier version wrote it
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    refining = dataclasses.replace(plain, evaluate=Evaluate(refine="fit"))
    with pytest.raises(OptionsError, match=r"evaluate\.refine: 'no' -> 'fit'"):
        sweep.open_table(refining)
    with pytest.raises(OptionsError, match="a sweep makes models without refiners, give fit"):
        Sweep(evaluate=Evaluate(refine="own"))


def test_a_point_that_fails_is_named_and_the_others_go_on(
    smoke_mae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(options: Compress) -> None:
        if options.lam == 1:
            raise NonFiniteLoss("no longer finite at step 3")

    monkeypatch.setattr(compress, "run", run)
    monkeypatch.setattr(evaluate, "open_study", lambda *_: None)
    point = {"method": "nec", "head": "linear", "mean": 50.0}
    monkeypatch.setattr(sweep, "measure_point", lambda *_: [point])
    for _ in range(2):  # and it is tried again
        with pytest.raises(SystemExit, match=r"1 of 2 failed.*lambda-1,"):
            again(tmp_path / "s", smoke_mae, "--evaluate.no-baselines")
        assert [row["lambda"] for row in rows(tmp_path / "s")] == ["100"]


def test_a_folder_with_no_images_costs_its_point_and_no_other(
    smoke_mae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(options: Compress) -> None:
        if options.data != "blue-marble":
            open_source(options.data)

    monkeypatch.setattr(compress, "run", run)
    monkeypatch.setattr(evaluate, "open_study", lambda *_: None)
    point = {"method": "nec", "head": "linear", "mean": 50.0}
    monkeypatch.setattr(sweep, "measure_point", lambda *_: [point])
    study = STUDY.replace("lambda = [1, 100.0]", 'data = ["no-such-folder", "blue-marble"]')
    with pytest.raises(SystemExit, match=r"1 of 2 failed.*data-no-such-folder,"):
        again(tmp_path / "s", smoke_mae, "--evaluate.no-baselines", study=study)
    assert [row["data"] for row in rows(tmp_path / "s")] == ["blue-marble"]


def test_points_that_a_shared_cache_cannot_serve_go_without_it(smoke_mae: Path) -> None:
    base = load(str(smoke_mae))
    kept = "decoder/.*,bottleneck/.*"  # the only block of the encoder stays as it is
    served = Compress(cache=Path("c"), cache_gb=3, views=2, trainable=kept, proxy="features")
    assert sweep.without_useless_cache(served, base) is served
    for change in ({"trainable": "paper"}, {"proxy": "pixels"}, {"mask_ratio": 0.5}):
        point = dataclasses.replace(served, **change)
        without = sweep.without_useless_cache(point, base)
        assert without == dataclasses.replace(point, cache=None, cache_gb=None, views=1)
    uncached = Compress(trainable="paper")
    assert sweep.without_useless_cache(uncached, base) is uncached


def test_a_point_of_another_precision_is_measured_from_a_cache_at_that(
    smoke_mae: Path, tmp_path: Path
) -> None:
    studies = sweep.Studies(Evaluate(data="blue-marble", chip=32, limit=8, cache=tmp_path))
    kept = "decoder/.*,bottleneck/.*"
    point = Compress(init=str(smoke_mae), cache=tmp_path, trainable=kept, proxy="features")
    _, usual = studies.of(point)
    _, study = studies.of(dataclasses.replace(point, precision="tensorfloat32"))
    trained = with_coding(load(str(smoke_mae)), precision="tensorfloat32")
    assert study.latents(trained, study.score).shape[0] == 8
    with pytest.raises(OptionsError, match="precision"):
        usual.latents(trained, usual.score)


def test_a_folder_is_named_by_what_is_set() -> None:
    chosen = {"lambda": 3, "init": "runs/a b/model.safetensors"}
    name = sweep.folder_name(chosen, Compress(lam=3.0))
    assert re.fullmatch(r"lambda-3,init-runs-a-b-model\.safetensors,[0-9a-f]{8}", name)
    assert name == sweep.folder_name(chosen, Compress(lam=3.0, seed=0))
    assert name != sweep.folder_name(chosen, Compress(lam=3.0, seed=1))
    # A point that was cut off is found again whatever changes no result.
    assert name == sweep.folder_name(chosen, Compress(lam=3.0, checkpoint_every=9))
    cached = Compress(lam=3.0, cache=Path("a"))
    elsewhere = dataclasses.replace(cached, cache=Path("b"), cache_gb=40)
    assert sweep.folder_name(chosen, cached) == sweep.folder_name(chosen, elsewhere)


def test_points_are_combined_with_axes() -> None:
    options = Sweep(
        axes={"lambda": [1, 10]},
        points=[{"trainable": "late", "lr": 1e-4}, {"trainable": "density"}],
    )
    chosen = [(p.trainable, p.lr, p.lam) for p in sweep.plan(options).values()]
    late, density = ("late", 1e-4), ("density", 1.5e-4)
    assert chosen == [(*late, 1.0), (*late, 10.0), (*density, 1.0), (*density, 10.0)]


def test_a_value_is_one_cell_however_it_is_written() -> None:
    assert results.cell(10) == results.cell(10.0) == "10"
    assert [results.cell(v) for v in (1.02, 1e-5, None, True, ("red", "nir"), "late")] == [
        "1.02", "1e-05", "", "True", "red nir", "late",
    ]  # fmt: skip


def test_half_a_row_costs_its_point_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "results.csv"
    points = [{"method": "nec", "head": head, "mean": 1.5} for head in ("linear", "attention")]
    table = results.Results(path, ["seed"], {})
    for lam in (1, 10):
        table.add({"lambda": str(lam), "seed": "0"}, points)
    whole = path.read_text()
    assert results.read(path) == table.rows
    path.write_text(whole[:-3])
    assert results.read(path) == table.rows[:2]
    said = f"{path}: line 5 is cut short: the last point is left out"
    assert caplog.messages == [said]
    again = results.Results(path, ["seed"], {})
    assert again.has({"lambda": "1", "seed": "0"})
    assert not again.has({"lambda": "10", "seed": "0"})
    again.add({"lambda": "10", "seed": "0"}, points)
    assert path.read_text() == whole


@pytest.mark.parametrize("name", configs.names())
def test_every_config_can_be_read(name: str) -> None:
    found = []
    for command in ("pretrain", "distil", "compress", "evaluate"):
        try:
            found.append(configs.load(name, command))
        except OptionsError:
            continue
    assert found
    assert configs.headline(name).endswith(".")


@pytest.mark.parametrize("name", [n for n in configs.names() if n.startswith(("first", "paper"))])
def test_every_study_can_be_planned(name: str) -> None:
    assert sweep.plan(configs.load(name, "sweep"))


def test_the_papers_two_studies_share_their_training() -> None:
    ucmerced, potsdam = (configs.load(f"paper-{n}", "sweep") for n in ("ucmerced", "potsdam"))
    assert ucmerced.compress == potsdam.compress
    assert ucmerced.axes == potsdam.axes == {"lambda": [1.02, 10.2, 102, 1017]}
    # Their quality is a sum over 256 images of 50 tokens of 768 channels, per pass.
    summed = [lam * 256 * 50 * 768 for lam in ucmerced.axes["lambda"]]
    assert summed == pytest.approx([1e7, 1e8, 1e9, 1e10], rel=0.01)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ("[axis]\nlambda = [1]", r"has a table \[axis\]: it takes .*, axes, points"),
        ("lambda = [", "is not TOML"),
        ("[axes]\nworkdir = ['a']", "workdir cannot be an axis: choose from"),
        ("[axes]\nlambda = 3", "axis lambda: give a list"),
        ("[axes]\nlr = [1e-3]\n[[points]]\nlr = 1e-4", "not in both"),
        ("[compress]\nsteps = 3", "not a study"),
        ("[compress]\nworkdir = 'x'\n[axes]\nlambda = [1]", "compress.workdir: a sweep sets it"),
        ("[axes]\nlambda = [1]", "no init: pass --compress.init"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(study: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(study)
    with pytest.raises(SystemExit, match=message):
        main(["sweep", str(path)])


def test_a_wrong_value_is_refused_before_anything_runs(
    smoke_mae: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        again(tmp_path / "s", smoke_mae, study=STUDY + "\n[[points]]\nrounding = 'up'\n")
    assert "straight-through" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_every_option_is_an_axis_but_those_of_fresh_models() -> None:
    fields = set(Compress.__dataclass_fields__)
    fresh = {"arch", "image_size", "patch", "depth"}
    assert fields - set(AXES.values()) == {"workdir"} | fresh


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"compress": [], "evaluate": {}}', None])
def test_a_damaged_record_of_a_study_is_named(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    if text is None:
        os.mkfifo(path)  # which it would take for ever to read
    else:
        path.write_text(text)
    with pytest.raises(FileError, match=r"sweep\.json: "):
        sweep.open_table(Sweep(workdir=tmp_path, axes={"lambda": [1]}))


@pytest.mark.parametrize("part", ["compress", "evaluate"])
def test_a_study_does_not_write_into_its_images(part: str, smoke_mae: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for place in (folder, folder / "study"):
        with pytest.raises(SystemExit, match=f"lies inside the input {folder}"):
            again(place, smoke_mae, f"--{part}.data", str(folder), "--evaluate.chip", "None")
    assert {path.suffix for path in folder.iterdir()} == {".toml"}  # of `again`
