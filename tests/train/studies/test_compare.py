"""Bjontegaard's deltas: laws, and what the command prints."""

import json
from pathlib import Path

import numpy as np
import pytest

from coder import FileError
from train.configs.options import OptionsError
from train.configs.study_options import Compare
from train.main import main
from train.studies import compare, curves, report
from train.studies.scores import Scores

IMAGES = 60


def curve(method: str, bytes_: list[int], part: float = 1.0) -> list[dict]:
    """Points of a method: of more bytes, more images are right, and the error is smaller."""
    generator = np.random.default_rng(1)
    ease = generator.random(IMAGES)
    points = []
    for size in bytes_:
        right = (ease < size / 1000).astype(np.int64)[None, :, None]
        sizes = size * part * (0.5 + ease)
        errors = (1 + ease) / size
        point = {
            "method": method, "setting": f"{size}", "task": "classification", "head": "linear",
            "with_decoder": False, "bytes_per_image": float(sizes.mean()), "codec_bytes": 6000,
            "metric": "top1", "mean": float(100 * right.mean()), "std": 0.0, "seeds": 1,
            "mse": float(errors.mean()),
            "images": {
                "bytes": sizes, "hits": right, "totals": np.ones_like(right), "errors": errors
            },
        }  # fmt: skip
        points.append(point)
    return points


def written(folder: Path, points: list[dict], **more: object) -> Path:
    facts = {"dataset": "d", "model": "m", "images": IMAGES, "split": "val"} | more
    report.write({**facts, "roundtrip_exact": True, "points": points}, folder)
    return folder


Rated = compare.Rated


def curves_of(options: Compare) -> dict[compare.Key, tuple[Rated, Rated | None]]:
    return compare.as_curves(options, compare.read_reports(options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes = [100, 200, 400, 800]
    return written(tmp_path / "report", curve("nec", sizes) + curve("transform", sizes, part=0.5))


def test_half_the_bytes_are_minus_fifty_percent_in_every_resample(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    main(["compare", str(folder), "--resamples", "50", "--edge", "300"])
    out = capsys.readouterr().out
    # 0.5 times the bytes of every image: nothing varies, in what is below the edge and above.
    cells = " | ".join(["-50 % (-50 to -50)"] * 3)
    lines = out.splitlines()
    assert lines.count(f"| transform, untrained | {cells} |") == 2  # by score, and by error
    assert "| bytes (mse) of NEC |" in out


def test_a_curve_has_its_own_bytes_in_every_resample(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sizes = [100, 200, 400, 800]
    written(tmp_path, curve("nec", sizes) + curve("transform", sizes))
    main(["compare", str(tmp_path), "--resamples", "60", "--edge", "300"])
    lines = capsys.readouterr().out.splitlines()
    cells = ["+0 % (+0 to +0)"] * 4
    # Also at each point: images that are hard are so for both.
    assert lines.count(f"| transform, untrained | {' | '.join(cells)} |") == 2
    assert lines.count(f"| transform, untrained | {' | '.join(cells[:3])} |") == 2


def test_deltas_are_antisymmetric_and_none_of_a_curve_with_itself() -> None:
    times = np.ones(IMAGES, np.int64)
    one, other = (
        compare._rated(Compare(), [(p, p["images"]) for p in curve("nec", sizes)])[0].front(times)
        for sizes in ([100, 300, 900], [200, 500, 700])
    )
    everything = (-np.inf, np.inf)
    assert compare.delta(one, one, *everything) == 0
    there, back = compare.delta(one, other, *everything), compare.delta(other, one, *everything)
    assert there == pytest.approx(-back)
    assert abs(there) > 0.01


def test_points_that_a_cheaper_one_equals_do_not_count() -> None:
    hits = [np.array([[[k]]]) for k in (50, 40, 60, 60)]
    rated = compare.Rated(
        np.array([[10.0], [20.0], [30.0], [40.0]]), [Scores(h, np.array([[[100]]])) for h in hits]
    )
    rates, values = rated.front(np.ones(1, np.int64))
    assert np.exp(rates) == pytest.approx([10, 30])
    assert values == pytest.approx([50, 60])


def test_intervals_widen_with_what_varies_between_images(folder: Path) -> None:
    options = Compare(reports=(folder,), resamples=200)
    found = curves_of(options)
    rated = found["transform", False][0]
    noisy = compare.Rated(
        rated.sizes * np.random.default_rng(2).lognormal(0, 1, IMAGES), rated.scores
    )
    lines = compare.tables(options, "score", "NEC", found["nec", False][0], {("uqe", False): noisy})
    low, high = lines[2].split("(")[1].split(")")[0].split(" to ")
    assert float(high) - float(low) > 10


def test_the_codec_is_spread_over_an_archive(folder: Path) -> None:
    alone = curves_of(Compare(reports=(folder,)))["nec", False][0]
    spread = curves_of(Compare(reports=(folder,), archive=100))["nec", False][0]
    assert np.allclose(spread.sizes - alone.sizes, 60)


def test_one_figure_has_the_curves_of_all_reports(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = written(tmp_path / "other", curve("nec", [100, 1600]) + curve("uqe", [300, 900]))
    path = tmp_path / "plots/both.png"
    draw, panels = curves.draw, {}
    monkeypatch.setattr(
        curves, "draw", lambda given, *rest: (panels.update(given), draw(given, *rest))
    )
    main(["compare", str(folder), str(other), "--archive", "100", "--plot", str(path)])
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit, match=r"both.png: exists: .* --overwrite"):
        main(["compare", str(folder), str(other), "--plot", str(path)])
    nec, uqe, transform = sorted(panels["linear"], key=lambda one: one.label)
    assert [len(one.points) for one in (nec, uqe, transform)] == [5, 2, 4]  # 100 bytes only once
    [first] = curve("nec", [100])
    assert nec.points[0][0] == pytest.approx(first["bytes_per_image"] + 60)
    with pytest.raises(OptionsError, match=r"both.bmp: name a .png, .pdf or .svg file"):
        Compare(plot=path.with_suffix(".bmp"))


def test_tables_have_deltas_without_intervals(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    points = json.loads((folder / "report.json").read_text())["points"]
    columns = [*points[0], "lambda"]
    lines = [",".join(columns)]
    lines += [",".join(str(p.get(c, "")) for c in columns) for p in points]
    (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
    main(["compare", str(tmp_path / "results.csv")])
    assert capsys.readouterr().out.count("| transform, untrained | -50 % | -50 % | - |") == 2


def test_what_cannot_be_compared_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="give folders that"):
        compare.run(Compare())
    with pytest.raises(OptionsError, match=r"no report.json and images.npz: `evaluate` writes"):
        compare.run(Compare(reports=(tmp_path,)))
    with pytest.raises(OptionsError, match=r"no curve of UQE, as published: there are NEC, trans"):
        compare.run(Compare(reports=(folder,), against="uqe"))
    with pytest.raises(OptionsError, match="--head conv: choose from linear"):
        compare.run(Compare(reports=(folder,), head="conv"))
    several = curve("nec", [100, 200]) + [point | {"head": "conv"} for point in curve("uqe", [9])]
    with pytest.raises(OptionsError, match="several heads: pass --head, one of conv, linear"):
        compare.run(Compare(reports=(written(tmp_path / "heads", several),)))
    with pytest.raises(OptionsError, match="only NEC is there: nothing to compare it with"):
        compare.run(Compare(reports=(written(tmp_path / "alone", curve("nec", [100, 200])),)))
    axes = ["method", "head", "with_decoder", "bytes_per_image", "mean", "lambda", "codec"]
    rows = ["nec,linear,False,9,50,1,per-channel", "nec,linear,False,5,60,1,transform"]
    (tmp_path / "mixed.csv").write_text("\n".join([",".join(axes), *rows]) + "\n")
    with pytest.raises(OptionsError, match="points of NEC differ in codec"):
        compare.run(Compare(reports=(tmp_path / "mixed.csv",)))
    fewer = curve("uqe", [100, 900])
    for point in fewer:
        held = point["images"]
        point["images"] = {k: v[:9] if k in ("bytes", "errors") else v for k, v in held.items()}
        point["bytes_per_image"] = held["bytes"][:9].mean()
        point["mse"] = held["errors"][:9].mean()
    elsewhere = written(tmp_path / "elsewhere", curve("uqe", [100, 900]), split="test")
    with pytest.raises(OptionsError, match=r"the reports are of different images \(.*; .*\): give"):
        compare.run(Compare(reports=(folder, elsewhere)))
    other = written(tmp_path / "other", fewer)
    with pytest.raises(
        OptionsError, match=r"UQE, as published was measured on 9 images, .* on 60: give"
    ):
        compare.run(Compare(reports=(folder, other)))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"points": 3}', "point", "key"])
def test_a_damaged_report_is_named(text: str, folder: Path) -> None:
    path = folder / "report.json"
    whole = json.loads(path.read_text())
    if text in ("point", "key"):
        whole["points"][1] = 3 if text == "point" else {"method": "nec"}
        text = json.dumps(whole)
    path.write_text(text)
    with pytest.raises((OptionsError, FileError), match=str(folder)):
        compare.read_reports(Compare(reports=(folder,)))


@pytest.mark.parametrize("edit", ["fewer points", "more points", "order", "bytes", "score", "mse"])
def test_a_report_whose_images_are_of_another_run_is_refused(edit: str, folder: Path) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text())
    points = report["points"]
    compare.read_points(folder)
    if edit == "fewer points":
        points.pop()
    elif edit == "more points":
        points.append(points[-1])
    elif edit == "order":
        points.reverse()
    else:
        name = {"bytes": "bytes_per_image", "score": "mean", "mse": "mse"}[edit]
        points[1][name] *= 1.01
    path.write_text(json.dumps(report))
    with pytest.raises(OptionsError, match=f"{folder}: .*report.json.* evaluate again"):
        compare.read_points(folder)


def test_figures_that_a_report_rounds_are_those_of_its_images(tmp_path: Path) -> None:
    points = curve("nec", [100, 333])
    for point in points:
        point["bytes_per_image"] = round(point["bytes_per_image"], 2)
        point["mean"] = round(point["mean"], 3)
        point["mse"] = float(f"{point['mse']:.4g}")
    assert len(compare.read_points(written(tmp_path, points))) == 2
