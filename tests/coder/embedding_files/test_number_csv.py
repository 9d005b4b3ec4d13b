"""The CSV of NeuCo-Bench: what its reader reads is what was decoded, or it is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import KEPT
from product_files import D, codec_of, put_table, vectors

from coder import InputError, archive
from coder.cli import main
from coder.embedding_files import write_csv

pytest.importorskip("geopandas")  # of `put_table`

GONE = np.isin(np.arange(700), [3, 300])


def as_neuco_bench_reads(path: Path) -> tuple[list[str], np.ndarray]:
    """Ids and numbers, by the steps of its documentation: pandas, `.zarr` cut from ids."""
    frame = pd.read_csv(path)
    ids = frame["id"].astype(str).str.replace(".zarr.zip", "", regex=False)
    numbers = [name for name in frame.columns if name.isdigit()]
    assert numbers == [str(i) for i in range(len(frame.columns) - 1)]
    return ids.str.replace(".zarr", "", regex=False).tolist(), frame[numbers].to_numpy(np.float32)


def test_a_table_becomes_a_csv_with_its_bytes_beside_it(tmp_path, capsys):
    codec_of(spatial=False).save(tmp_path / "codec")
    put_table(tmp_path / "t.parquet", vectors(), missing=GONE)
    coded, out = tmp_path / "coded.parquet", tmp_path / "x.csv"
    options = ["--codec", str(tmp_path / "codec"), "--out", str(coded)]
    assert main(["encode", str(tmp_path / "t.parquet"), *options]) == 0
    assert main(["decode", str(coded), "--out", str(tmp_path / "back.parquet")]) == 0
    capsys.readouterr()
    assert main(["decode", str(coded), "--out", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ids"], facts["numbers"], facts["missing"]) == (698, D, 2)
    assert facts["bytes_per_embedding"] == facts["coded_bytes"] / 698
    ids, numbers = as_neuco_bench_reads(out)
    back = pq.read_table(tmp_path / "back.parquet").filter(pa.array(~GONE))
    assert ids == back.column("id").to_pylist()
    np.testing.assert_array_equal(numbers, np.stack(back.column("embedding").to_pylist()))
    # Another column of ids; one that does not hold them.
    again = ["decode", str(coded), "--out", str(out), "--overwrite", "--id"]
    assert main([*again, "when"]) == 0
    assert main([*again, "area"]) == 1
    assert "pandas would change '0.0'" in capsys.readouterr().err
    assert main([*again, "label"]) == 1
    assert "the id 'forest' is there twice: each row needs" in capsys.readouterr().err
    assert main([*again, "embedding"]) == 1
    assert "name the column of ids, --id, one of id, label, when" in capsys.readouterr().err


def test_an_archive_becomes_a_csv(tmp_path, capsys):
    path = KEPT / "2026-11-valid/archive.zarr"
    out = tmp_path / "x.csv"
    assert main(["export", str(path), "--pool", "mean", "--out", str(out)]) == 0
    assert "as NeuCo-Bench reads them" in capsys.readouterr().out
    ids, numbers = as_neuco_bench_reads(out)
    group = archive.open_archive(path)
    valid = np.asarray(group["valid"])
    expected = archive.read_array(group, "embedding").mean((1, 2), dtype=np.float64)
    np.testing.assert_array_equal(numbers, expected[valid].astype(np.float32))
    assert ids == archive.read_array(group, "id")[valid].tolist()
    assert main(["export", str(path), "--out", str(tmp_path / "y.csv")]) == 1
    assert "give --pool mean, or class-token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ids", "width", "message"),
    [
        (["a", "b"], 1025, "embeddings of 1025 numbers, and NeuCo-Bench takes 1024"),
        (["a", "a"], 2, "the id 'a' is there twice"),
        (["a.zarr", "a.zarr.zip"], 2, "the id 'a.zarr.zip' is that of 'a.zarr' for NeuCo-Bench"),
        (["a", ""], 2, "the id '' is empty"),
        (["a", " b"], 2, "begins or ends with a space"),
        (["a", "NA"], 2, "pandas reads the id 'NA' as a missing value"),
        (["007", "8"], 2, "pandas would change '007'"),
        (["1.50", "2"], 2, "pandas would change '1.50'"),
        (["1e3", "5"], 2, "pandas would change '1e3'"),
        (["True", "false"], 2, "all ids are true or false"),
        ([], 2, "no row has an embedding"),
    ],
)
def test_what_neuco_bench_would_not_find_again_is_refused(ids, width, message, tmp_path):
    y = np.ones((len(ids), width), np.float32)
    with pytest.raises(InputError) as caught:
        write_csv([(ids, y)], width, tmp_path / "x.csv")
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ids", [["7", "-12", "0"], ["a,b", 'c"d', "e\nf"], ["007", "x"]])
def test_other_ids_are_read_as_they_were_written(ids, tmp_path):
    rng = np.random.default_rng(0)
    y = (10.0 ** rng.uniform(-30, 30, (len(ids), 1024))).astype(np.float32)
    assert write_csv([(ids[:1], y[:1]), (ids[1:], y[1:])], 1024, tmp_path / "x.csv") == len(ids)
    found, numbers = as_neuco_bench_reads(tmp_path / "x.csv")
    assert found == ids
    np.testing.assert_array_equal(numbers, y)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    y = np.array([[1, np.nan]], np.float32)
    with pytest.raises(InputError, match="not finite"):
        write_csv([(["a"], y)], 2, tmp_path / "x.csv")
