"""`nec export` of scenes: what each option writes, and what does not go together."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from archive_cases import BAD
from archive_cases import written as archive
from export_cases import CHANNELS, CLASSES, head_of, written

from coder.cli import main
from coder.format import container

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("pyarrow")
BBOX = ("--bbox", "505030", "5792000", "512000", "5798100")
TIMES = ("2024-05-01T10:00", "2024-06-01T10:00")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scene, one with times, an archive of images and a head."""
    path = tmp_path_factory.mktemp("scenes")
    written(path / "a.zarr")
    written(path / "times.zarr", (20, 24), times=TIMES)
    archive(path / "images.zarr", BAD)
    head = head_of()
    container.write(
        path / "head.safetensors", "head", head._weights, {"config": asdict(head.settings)}
    )
    return path


@pytest.fixture
def export(folder, tmp_path, capsys):
    def export(name: str, out: str, *more: str) -> tuple[int, str, str]:
        status = main(["export", str(folder / name), "--out", str(tmp_path / out), *more])
        return (status, *capsys.readouterr())

    return export


def bands(path: Path) -> np.ndarray:
    with rasterio.open(path) as found:
        return found.read()


@pytest.mark.parametrize(
    ("options", "text", "shape"),
    [
        ((), "6 channels of 70 x 300 cells", (CHANNELS, 70, 300)),
        (("--channels", "3", "1"), "2 channels of 70 x 300 cells", (2, 70, 300)),
        (("--channels", "0", *BBOX), "1 channels of 39 x 44 cells", (1, 39, 44)),
        (("--components", "2"), "2 components of 70 x 300 cells", (2, 70, 300)),
        (("--preview", "--level", "2"), "a preview of 35 x 150 cells", (4, 35, 150)),
        (("--head", "HEAD", *BBOX), "classes of 39 x 44 cells", (1, 312, 352)),
    ],
)
def test_each_content_of_a_geotiff(export, folder, tmp_path, options, text, shape):
    options = [str(folder / "head.safetensors") if o == "HEAD" else o for o in options]
    status, out, error = export("a.zarr", "a.tif", *options)
    assert not status, error
    assert text in out
    assert bands(tmp_path / "a.tif").shape == shape
    assert error == ""


def test_a_map_has_the_classes_of_the_head(export, folder, tmp_path):
    export("a.zarr", "a.tif", "--head", str(folder / "head.safetensors"))
    with rasterio.open(tmp_path / "a.tif") as found:
        assert [found.tags()[f"class_{i}"] for i in range(3)] == list(CLASSES)


def test_a_table_has_all_times_or_one(export, tmp_path):
    from pyarrow import parquet

    assert "at 2 times" in export("times.zarr", "a.parquet")[1]
    both = parquet.read_table(tmp_path / "a.parquet")
    assert not export("times.zarr", "b.parquet", "--time", "2024-06-01T12:00+02:00")[0]
    one = parquet.read_table(tmp_path / "b.parquet")
    assert both["time"].unique().to_pylist()[1:] == one["time"].unique().to_pylist()
    assert len(both) == 2 * len(one)


def test_an_item_leads_to_the_scene(export, folder, tmp_path):
    assert not export("times.zarr", "a.json")[0]
    item = json.loads((tmp_path / "a.json").read_text())
    href = item["assets"]["embeddings"]["href"]
    assert not href.startswith("/")
    assert (tmp_path / href).resolve() == (folder / "times.zarr").resolve()
    assert not export("a.zarr", "b.json", "--time", "2024-05-01")[0]
    item = json.loads((tmp_path / "b.json").read_text())
    assert item["properties"]["datetime"] == "2024-05-01T00:00:00.000000Z"


def test_json_is_one_object(export, tmp_path):
    found = json.loads(export("a.zarr", "a.tif", "--preview", "--json")[1])
    assert found == {
        "out": str(tmp_path / "a.tif"),
        "bytes": (tmp_path / "a.tif").stat().st_size,
    }


@pytest.mark.parametrize(
    ("name", "out", "options", "message"),
    [
        ("a.zarr", "a.tif", ("--channels", "1", "--preview"), "one of --channels, --preview"),
        ("a.zarr", "a.tif", ("--components", "2", "--head", "HEAD"), "--components, --head"),
        ("a.zarr", "a.tif", ("--components", "0"), "--components is 0"),
        ("a.zarr", "a.tif", ("--components", "7"), "7 components of 6 channels"),
        ("a.zarr", "a.tif", ("--channels", "6"), "the scene has channels 0 to 5"),
        ("a.zarr", "a.tif", ("--level", "4"), "no overview of factor 4: there are 1, 2"),
        ("a.zarr", "a.tif", ("--head", "HEAD", "--level", "2"), "leave --level out"),
        ("a.zarr", "a.tif", ("--head", "HEAD", "--refine"), "leave --refine out"),
        ("a.zarr", "a.tif", ("--refine",), "refiner"),
        ("a.zarr", "a.tif", ("--pool", "mean"), "--pool is for archives"),
        ("a.zarr", "a.tif", ("--bbox", "-9", "0", "-8", "1"), "lie outside the scene"),
        ("a.zarr", "a.tif", ("--time", "2024-05-01"), "the scene has no times"),
        ("times.zarr", "a.tif", (), "has 2 times: give one of 2024-05-01T10:00:00.000000Z"),
        (
            "times.zarr",
            "a.tif",
            ("--time", "2024-05-01"),
            "no time 2024-05-01T00:00:00.000000Z: it has 2024-05-01T10",
        ),
        ("times.zarr", "a.tif", ("--time", "May"), "give a time such as 2026-05-01T10:30"),
        ("times.zarr", "a.json", ("--time", "2024-05-01"), "has no time 2024-05-01T00:00:00"),
        ("a.zarr", "a.json", (), "does not record when its pictures were taken"),
        ("a.zarr", "a.json", BBOX, "describes the whole scene: leave --bbox out"),
        ("a.zarr", "a.json", ("--refine",), "leave --refine out"),
        ("a.zarr", "a.parquet", ("--preview",), "--preview makes a GeoTIFF: name it NAME.tif"),
        ("a.zarr", "b.zarr", (), "is exported to NAME.tif, NAME.parquet or NAME.json"),
        ("a.zarr", "a.png", (), "name it NAME.parquet, NAME.zarr or NAME.csv; or, for a"),
        ("images.zarr", "a.tif", (), "an archive of images has no map"),
        ("images.zarr", "a.json", (), "an archive of images has no map"),
        ("images.zarr", "a.parquet", BBOX, "--bbox is for scenes"),
        ("images.zarr", "a.parquet", ("--time", "2024-05-01"), "--time is for scenes"),
    ],
)
def test_what_makes_no_sense_is_refused(export, folder, tmp_path, name, out, options, message):
    options = [str(folder / "head.safetensors") if o == "HEAD" else o for o in options]
    status, _, error = export(name, out, *options)
    assert status == 1
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_inputs_and_what_exists_are_not_replaced(export, folder, tmp_path, capsys):
    (tmp_path / "a.tif").write_text("mine")
    assert "exists" in export("a.zarr", "a.tif", "--preview")[2]
    assert (tmp_path / "a.tif").read_text() == "mine"
    assert not export("a.zarr", "a.tif", "--preview", "--overwrite")[0]
    head = tmp_path / "head.tif"
    head.write_bytes((folder / "head.safetensors").read_bytes())
    error = export("a.zarr", "head.tif", "--head", str(head), "--overwrite")[2]
    assert "is the input" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--bbox 1 2", "Missing value for argument '--bbox'. Expected 4 values."),
        ("--bbox 1 2 3 x", "Error parsing --bbox: could not convert string to float: 'x'"),
    ],
)
def test_a_wrong_number_of_bounds_is_said_plainly(words, message, capsys):
    with pytest.raises(SystemExit):
        main(["export", "a.zarr", "--out", "a.tif", *words.split()])
    said = capsys.readouterr()
    assert message in " ".join((said.out + said.err).replace("│", "").split())
    assert "NoneType" not in said.out + said.err
