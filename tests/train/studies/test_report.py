"""A sweep's table as means over seeds, as markdown, and as curves."""

from pathlib import Path

import pytest

from train.configs.options import OptionsError
from train.configs.study_options import Report
from train.main import main
from train.studies import curves as curve_drawing
from train.studies import report, results

TABLE = """\
method,setting,task,head,with_decoder,bytes_per_image,codec_bytes,metric,mean,std,seeds,lambda,estimated_bytes_per_image,trainable,seed
nec,lambda 1,classification,attention,False,100.0,5000,top1,80.0,0.5,3,1,99.0,paper,0
nec,lambda 1,classification,attention,False,102.0,5010,top1,82.0,0.5,3,1,101.0,paper,1
nec,lambda 10,classification,attention,False,400.0,5000,top1,90.0,0.5,3,10,399.0,paper,0
nec,lambda 10,classification,attention,False,410.0,5000,top1,91.0,0.5,3,10,409.0,paper,1
nec,lambda 1,classification,attention,False,110.0,5000,top1,70.0,0.5,3,1,109.0,density,0
nec,lambda 1,classification,attention,False,110.0,5000,top1,74.0,0.5,3,1,109.0,density,1
nec,lambda 10,classification,attention,False,500.0,5000,top1,85.0,0.5,3,10,499.0,density,0
uqe,3 bit,classification,attention,False,900.0,0,top1,79.0,1.5,3,,,,
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "results.csv").write_text(TABLE)
    return folder / "results.csv"


def test_points_are_means_over_the_seeds_of_training(table: Path) -> None:
    points = report.average(results.read(table))
    assert len(points) == 5
    first, alone, baseline = points[0], points[3], points[4]
    assert (first["mean"], first["bytes_per_image"], first["runs"]) == (81.0, 101.0, 2)
    assert first["std"] == pytest.approx(2**0.5)
    # With one seed the deviation is that of the heads.
    assert (alone["mean"], alone["std"], alone["runs"]) == (85.0, 0.5, 1)
    assert baseline["std"] == 1.5


def curves(table: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> dict[str, list]:
    """What is drawn: the points of each curve, and under what label."""
    drawn: dict[str, list[curve_drawing.Curve]] = {}
    monkeypatch.setattr(curve_drawing, "draw", lambda panels, *_: drawn.update(panels))
    options["overwrite"] = True
    report.run(Report(results=table, out=table.parent, **options))  # type: ignore[arg-type]
    [panel] = drawn.values()
    found: dict[str, list] = {}
    for curve in panel:
        found.setdefault(curve.label, []).append([(x, y) for x, y, _ in curve.points])
    return found


def test_a_curve_for_each_value_of_an_axis(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        "trainable paper": [[(101.0, 81.0), (405.0, 90.5)]],
        "trainable density": [[(110.0, 72.0), (500.0, 85.0)]],
        "UQE, as published": [[(900.0, 79.0)]],
    }
    assert curves(table, monkeypatch) == expected
    assert curves(table, monkeypatch, by=("trainable",)) == expected
    # Against lambda there is no place for what has none, and a curve needs no bytes.
    del expected["UQE, as published"]
    against = curves(table, monkeypatch, x="lambda")
    assert against["trainable paper"] == [[(1.0, 81.0), (10.0, 90.5)]]
    assert against.keys() == expected.keys()
    # What varies and is not named keeps curves apart.
    by_lambda = curves(table, monkeypatch, by=("lambda",))
    assert by_lambda["lambda 1"] == [[(101.0, 81.0)], [(110.0, 72.0)]]


def test_refined_embeddings_have_curves_of_their_own(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = TABLE.splitlines(keepends=True)
    more = [row.replace("nec,", "nec-refined,").replace(",5000,", ",9000,") for row in rows[1:5]]
    table.write_text("".join(rows + more))
    found = curves(table, monkeypatch)
    assert found["trainable paper, refined"] == found["trainable paper"]
    assert len(found["trainable density"]) == 1
    kinds = [("nec", ""), ("nec-refined", ""), ("uqe", "")]
    plain, refined, other = curve_drawing._looks(kinds).values()
    assert plain["color"] == refined["color"] != other["color"]
    assert (plain["linestyle"], refined["linestyle"], other["linestyle"]) == ("-", ":", "-")


def test_the_command_writes_a_table_and_figures(table: Path, tmp_path: Path) -> None:
    main(["report", str(table), "--out", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    assert lines[0] == "# sets"
    assert "| nec | lambda 1 | paper | 101.0 | 100.0 | 5,005 | 81.0 ± 1.4 |" in lines
    assert "| uqe | 3 bit |  | 900.0 |  | 0 | 79.0 ± 1.5 |" in lines
    assert (tmp_path / "out" / "rate_distortion.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "out" / "rate_distortion.pdf").read_bytes()[:4] == b"%PDF"
    (tmp_path / "out" / "report.md").write_text("with my remarks")
    with pytest.raises(SystemExit, match=r"out/report.md: exists: .* --overwrite"):
        main(["report", str(table), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "report.md").read_text() == "with my remarks"
    main(["report", str(table), "--out", str(tmp_path / "out"), "--overwrite"])
    assert (tmp_path / "out" / "report.md").read_text().splitlines() == lines


def test_a_report_lies_beside_its_table_and_says_how_many_trainings_there_are(
    table: Path, tmp_path: Path
) -> None:
    other = tmp_path / "yardstick.csv"
    other.write_text(table.read_text())  # one of its points has one seed alone
    main(["report", str(other)])
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# yardstick\n")
    assert "over up to 2 trainings (baselines: " in text
    assert (tmp_path / "rate_distortion.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ("steps",)}, "--by steps: the axes of this table are lambda, trainable, seed"),
        ({"x": "bytes"}, "--x bytes: the table has no such column"),
        ({"x": "trainable"}, "--x trainable: the table has no such column of numbers"),
    ],
)
def test_columns_that_are_not_there_are_refused(table: Path, options: dict, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        report.run(Report(results=table, out=table.parent, **options))
    assert [path.name for path in table.parent.iterdir()] == ["results.csv"]


def test_another_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("path,label\na.png,sea\n")
    with pytest.raises(SystemExit, match="is not a table of"):
        main(["report", str(tmp_path / "results.csv")])
