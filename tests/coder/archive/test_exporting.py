"""`nec export`: what other formats hold is what the archive holds."""

import json

import numpy as np
import pytest
import transform_cases
import xarray
import zarr
from pyarrow import parquet
from refiner_cases import random_refiner

from coder import archive
from coder.cli import main

WHOLE = transform_cases.ladder(True)
GRID, COUNT, SHARD = transform_cases.GRID, 11, 4
Y = transform_cases.embeddings(True, COUNT)
BAD = {2, 9}
TIME = np.datetime64("2020-01-02T03:04:05", "us")
COLUMNS = {"time": "datetime64[us]", "note": str, "cloud cover": float, "orbit": int, "day": bool}


@pytest.fixture
def path(tmp_path):
    codec = WHOLE.with_refiner(random_refiner(WHOLE)).at(6)
    attributes = {"classes": ["sea", "land"], "model_name": "a model"}
    settings = {"shard": SHARD, "attributes": attributes, "columns": COLUMNS}
    with archive.Writer(tmp_path / "a.zarr", codec, COUNT, GRID, **settings) as writer:
        for part in writer.missing():
            numbers = range(part.start, part.stop)
            writer.write(
                part,
                Y[[i for i in numbers if i not in BAD]],
                [f"image {i}" for i in numbers],
                [-1 if i == 5 else i % 2 for i in numbers],
                ["no image" if i in BAD else None for i in numbers],
                {
                    "time": [None if i == 4 else TIME + i for i in numbers],
                    "note": [f"ü {i}" for i in numbers],
                    "cloud cover": [None if i == 3 else i / 8 for i in numbers],
                    "orbit": list(numbers),
                    "day": [i % 2 == 0 for i in numbers],
                },
            )
        writer.finish()
    return tmp_path / "a.zarr"


def export(path, out, *more, status=0):
    assert main(["export", str(path), "--out", str(out), *more]) == status
    return out


def read(path, name, **how):
    return archive.read_array(archive.open_archive(path), name, **how)


def test_a_table_has_all_embeddings_and_what_is_known_of_them(path, tmp_path):
    table = parquet.read_table(export(path, tmp_path / "a.parquet"))
    valid = [i not in BAD for i in range(COUNT)]
    for name in ("embedding", "class_token"):
        rows, expected = table[name], read(path, name)
        assert [one.is_valid for one in rows] == valid
        found = np.array([one.as_py() for one in rows.filter(table["valid"])], np.float32)
        np.testing.assert_array_equal(found, expected[valid].reshape(len(found), -1))
    shape = [*GRID, WHOLE.channels]
    assert table["embedding"].type.shape == shape
    labels = [None if i in (5, *BAD) else i % 2 for i in range(COUNT)]
    assert table["label"].to_pylist() == labels
    names = [None if label is None else ("sea", "land")[label] for label in labels]
    assert table["label_name"].to_pylist() == names
    assert table["id"].to_pylist() == [f"image {i}" for i in range(COUNT)]
    times = [None if i == 4 else TIME + i for i in range(COUNT)]
    assert table["time"].cast("int64").to_pylist() == [
        None if time is None else time.astype(int) for time in times
    ]
    assert table["time"].type.tz == "UTC"
    assert table["note"].to_pylist() == [f"ü {i}" for i in range(COUNT)]
    assert table["orbit"].to_pylist() == list(range(COUNT))
    assert json.loads(table.schema.metadata[b"nec"])["model_name"] == "a model"


def test_a_table_is_written_shard_by_shard(path, tmp_path):
    file = parquet.ParquetFile(export(path, tmp_path / "a.parquet"))
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [4, 4, 3]


def test_a_plain_group_reads_without_the_codec(path, tmp_path):
    out = export(path, tmp_path / "b.zarr")
    assert "nec" not in (out / "embedding/zarr.json").read_text()
    data = xarray.open_zarr(out)
    for name in ("embedding", "class_token", "label", "valid", "time", "cloud cover", "orbit"):
        np.testing.assert_array_equal(data[name].values, read(path, name))
    for name in ("id", "note", "error"):
        assert [str(one) for one in data[name].values] == [str(one) for one in read(path, name)]
    assert {"id", "label", "valid", "time", "orbit"} <= set(data.coords)
    assert data.attrs["classes"] == ["sea", "land"]


def test_tokens_are_pooled(path, tmp_path):
    mean = parquet.read_table(export(path, tmp_path / "mean.parquet", "--pool", "mean"))
    good = mean.filter(mean["valid"])
    expected = read(path, "embedding").mean((1, 2), dtype=np.float64).astype(np.float32)
    valid = np.array([i not in BAD for i in range(COUNT)])
    np.testing.assert_array_equal(good["embedding"].to_pylist(), expected[valid])
    assert "class_token" not in mean.column_names
    token = export(path, tmp_path / "token.zarr", "--pool", "class-token")
    found = xarray.open_zarr(token, consolidated=False)["embedding"]
    assert found.dims == ("image", "channel")
    np.testing.assert_array_equal(found.values, read(path, "class_token"))


def test_embeddings_are_refined_on_request(path, tmp_path):
    plain, refined = (
        zarr.open_group(export(path, tmp_path / f"{name}.zarr", *more), mode="r")
        for name, more in (("plain", ()), ("refined", ("--refine",)))
    )
    expected = read(path, "embedding", refine=True)
    np.testing.assert_array_equal(np.asarray(refined["embedding"]), expected)
    np.testing.assert_array_equal(np.asarray(plain["embedding"]), read(path, "embedding"))
    assert (refined.attrs["refined"], plain.attrs["refined"]) == (True, False)


def test_a_damaged_archive_gives_no_file(path, tmp_path, capsys):
    shard = path / "embedding/c/1/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-40] + bytes(40))
    for name in ("a.parquet", "b.zarr"):
        export(path, tmp_path / name, status=1)
        assert "embedding is damaged" in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    assert {p.name for p in tmp_path.iterdir()} == {"a.zarr"}


def test_wrong_requests(path, tmp_path, capsys):
    for out, more, message in (
        ("a.txt", (), "name it NAME.parquet, NAME.zarr or NAME.csv"),
        ("a.zarr", (), "is the input, which would be lost"),
        ("no/a.parquet", (), "there is no folder"),
        ("b.zarr", ("--pool", "class-token", "--refine"), "class tokens are not refined"),
    ):
        export(path, tmp_path / out, *more, status=1)
        assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    export(tmp_path / "empty", tmp_path / "b.parquet", status=1)
    assert "without a Zarr array or group" in capsys.readouterr().err
    export(path, tmp_path / "a.parquet")
    export(path, tmp_path / "a.parquet", status=1)
    assert "--overwrite" in capsys.readouterr().err
    export(path, tmp_path / "a.parquet", "--overwrite")


def test_without_class_tokens_none_are_pooled(tmp_path, capsys):
    codec = transform_cases.ladder().at(6)
    with archive.Writer(tmp_path / "a.zarr", codec, 2, GRID) as writer:
        writer.write(slice(0, 2), transform_cases.embeddings(False, 2), ["a", "b"])
        writer.finish()
    export(tmp_path / "a.zarr", tmp_path / "b.zarr", "--pool", "class-token", status=1)
    assert "has no class tokens: pool by the mean" in capsys.readouterr().err
    export(tmp_path / "a.zarr", tmp_path / "b.zarr", "--refine", status=1)
    assert "refiner" in capsys.readouterr().err
