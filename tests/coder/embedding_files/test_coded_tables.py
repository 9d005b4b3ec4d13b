"""Tables of vectors are coded with all of their columns, and decoded again."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from product_files import D, codec_of, put_table, vectors, with_scales

import coder
from coder import FileError
from coder.cli import main
from coder.embedding_files import BlobTable, blob_table, open_embeddings, parquet_columns

duckdb, gpd = (pytest.importorskip(name) for name in ("duckdb", "geopandas"))

GONE = np.isin(np.arange(700), [0, 5, 6, *range(256, 512), 699])


@pytest.fixture
def codec(tmp_path: Path) -> str:
    codec_of(spatial=False).save(tmp_path / "codec")
    return str(tmp_path / "codec")


def encoded(path: Path, codec: str, *options: str) -> Path:
    out = path.with_name("coded.parquet")
    assert main(["encode", str(path), "--codec", codec, "--out", str(out), *options]) == 0
    return out


def unchanged(before: pa.Table, after: pa.Table) -> None:
    """All columns but the vectors, their types, and their metadata, are as they were."""
    rest = [name for name in before.column_names if name != "embedding"]
    for name in rest:
        assert after.schema.field(name).equals(before.schema.field(name), check_metadata=True)
        assert after.column(name).combine_chunks().equals(before.column(name).combine_chunks())
    for key, value in before.schema.metadata.items():
        assert after.schema.metadata[key] == value
    assert [n for n in after.column_names if not n.startswith("embedding")] == rest


@pytest.mark.parametrize("rows_per_blob", [None, "1", "40"])
def test_a_table_is_coded_and_decoded_with_all_of_its_columns(
    rows_per_blob, codec, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(blob_table, "_AHEAD", 4 * D * 300)
    monkeypatch.setattr(parquet_columns, "_ROWS", 77)
    monkeypatch.setattr(blob_table, "_ROWS", 90)
    y = vectors()
    before = put_table(tmp_path / "t", y, missing=GONE)  # no suffix
    options = [] if rows_per_blob is None else ["--rows-per-blob", rows_per_blob]
    out = encoded(tmp_path / "t", codec, *options)
    assert "260 tokens are missing, and stay so" in capsys.readouterr().out
    coded = pq.read_table(out)
    unchanged(before, coded)
    assert coded.column_names.index("embedding") == before.column_names.index("embedding")
    np.testing.assert_array_equal(coded.column("embedding").is_null(), GONE)
    assert ("embedding_place" in coded.column_names) == (rows_per_blob != "1")
    assert pq.read_metadata(out).num_row_groups == 3
    # Each row can be decoded by itself.
    footer = pq.read_metadata(out).metadata
    assert footer is not None
    own = coder.from_bytes(base64.b64decode(footer[b"nec_codec"]))
    assert own == codec_of(spatial=False)
    assert json.loads(footer[b"nec"])["rows_per_blob"] == int(rows_per_blob or 256)
    places = np.zeros(700, int)
    if rows_per_blob != "1":
        places = coded.column("embedding_place").to_numpy()
    blobs = coded.column("embedding").to_pylist()
    whole = np.full(y.shape, np.nan, np.float32)
    for i in np.flatnonzero(~GONE):
        whole[i] = own.decode(blobs[i])[int(places[i])]
    assert np.square(whole - y)[~GONE].mean() < 0.005 * y.var()

    for command in ("info", "verify"):
        assert main([command, str(out)]) == 0
    assert "700 rows, 260 of them without a vector" in capsys.readouterr().out
    assert main(["decode", str(out), "--out", str(tmp_path / "back.parquet")]) == 0
    back = pq.read_table(tmp_path / "back.parquet")
    unchanged(before, back)
    assert back.column_names == before.column_names
    assert back.schema.field("embedding").type == pa.list_(pa.float32(), D)
    np.testing.assert_array_equal(back.column("embedding").is_null(), GONE)
    found = np.stack(back.column("embedding").drop_null().to_pylist())
    np.testing.assert_array_equal(found, whole[~GONE])
    assert b"nec_codec" not in back.schema.metadata


def test_geopandas_and_duckdb_read_it(codec, tmp_path):
    y = vectors()
    put_table(tmp_path / "t.parquet", y, missing=GONE)
    before = gpd.read_parquet(tmp_path / "t.parquet")
    out = encoded(tmp_path / "t.parquet", codec)
    frame = gpd.read_parquet(out)
    assert frame.crs == before.crs
    pd.testing.assert_frame_equal(
        frame.drop(columns=["embedding", "embedding_place"]), before.drop(columns="embedding")
    )
    box = gpd.read_parquet(out, bbox=(13.0, 51.5, 13.105, 52))
    assert len(box) == 11
    # Plain SQL, in any order: each row says its blob, and its place in it.
    with duckdb.connect() as base:
        sql = f"SELECT id, embedding, embedding_place FROM '{out}' WHERE label = 'water'"
        rows = base.execute(f"{sql} ORDER BY area DESC LIMIT 50").fetchall()
        found = base.execute(f"SELECT decode(value) FROM parquet_kv_metadata('{out}') WHERE "
                             "decode(key) = 'nec_codec'").fetchone()  # fmt: skip
        assert found is not None
        own = coder.from_bytes(base64.b64decode(found[0]))
        for one, blob, place in rows:
            number = int(one.removeprefix("tile-"))
            assert (blob is None) == GONE[number]
            if blob is not None:
                assert np.abs(own.decode(blob)[place] - y[number]).max() < 0.1
        # A table that DuckDB makes of it can be decoded with the two keys.
        record = json.dumps(BlobTable(out).record).replace("'", "''")
        part = tmp_path / "part.parquet"
        base.execute(
            f"COPY (SELECT * FROM '{out}' WHERE label = 'water' ORDER BY hash(id)) TO '{part}' "
            f"(KV_METADATA {{nec: '{record}', nec_codec: '{found[0]}'}})"
        )
    assert main(["decode", str(part), "--out", str(tmp_path / "back.parquet")]) == 0
    back = pq.read_table(tmp_path / "back.parquet").to_pylist()
    assert len(back) == 234
    for row in back:
        number = int(row["id"].removeprefix("tile-"))
        assert (row["embedding"] is None) == GONE[number]
        if not GONE[number]:
            assert np.abs(np.array(row["embedding"]) - y[number]).max() < 0.1


KINDS = {
    "list": pa.list_(pa.float32()),
    "large": pa.large_list(pa.float64()),
    "half": pa.list_(pa.float16(), D),
}


@pytest.mark.parametrize("kind", KINDS)
def test_null_rows_of_any_kind_of_list_are_kept(kind, codec, tmp_path):
    y = vectors(60).astype(np.float16)
    rows: list[Any] = [None if i in (3, 59) else one for i, one in enumerate(y)]
    column = pa.array(rows, KINDS[kind])
    pq.write_table(pa.table({"n": range(60), "e": column}), tmp_path / "y.gpq", row_group_size=25)
    found = open_embeddings(tmp_path / "y.gpq").y
    assert found.shape == (60, D)
    part = found[2:60]
    np.testing.assert_array_equal(np.ma.getmaskarray(part)[:, 0], np.isin(range(2, 60), [3, 59]))
    np.testing.assert_array_equal(part[0], y[2])
    np.testing.assert_array_equal(found[30:41], y[30:41])
    np.testing.assert_array_equal(found[4:7], y[4:7])  # back again
    out = encoded(tmp_path / "y.gpq", codec)
    assert main(["decode", str(out), "--out", str(tmp_path / "back.parquet")]) == 0
    back = pq.read_table(tmp_path / "back.parquet")
    assert back.column("n").to_pylist() == list(range(60))
    assert np.flatnonzero(back.column("e").is_null()).tolist() == [3, 59]


def test_only_vectors_and_nothing_else(codec, tmp_path):
    y = vectors(30)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(y.ravel()), D)
    pq.write_table(pa.table({"e.mb": lists}), tmp_path / "y.parquet")
    out = encoded(tmp_path / "y.parquet", codec)
    assert BlobTable(out).names == ["e.mb"]
    assert main(["decode", str(out), "--out", str(tmp_path / "back.parquet")]) == 0
    back = np.stack(pq.read_table(tmp_path / "back.parquet").column("e.mb").to_pylist())
    assert np.square(back - y).mean() < 0.005 * y.var()


def test_integers_with_a_column_of_scales(codec, tmp_path):
    y = vectors(100)
    q, scales = with_scales(y)
    held: list[Any] = scales.tolist()
    held[7] = None
    lists = pa.FixedSizeListArray.from_arrays(pa.array(q.ravel()), D)
    table = pa.table({"e": lists, "scale": pa.array(held, pa.float32())})
    pq.write_table(table, tmp_path / "y.parquet", row_group_size=60)
    found = open_embeddings(tmp_path / "y.parquet", scale="scale").y
    kept = np.arange(100) != 7
    np.testing.assert_allclose(found[:][kept], (q * scales[:, None])[kept], rtol=1e-6)
    out = encoded(tmp_path / "y.parquet", codec, "--scale", "scale")
    assert main(["decode", str(out), "--out", str(tmp_path / "back.parquet")]) == 0
    back = pq.read_table(tmp_path / "back.parquet")
    assert back.column("scale").equals(table.column("scale"))
    assert np.flatnonzero(back.column("e").is_null()).tolist() == [7]


def test_grids_of_a_table_have_a_blob_each(tmp_path, capsys):
    y = np.stack([vectors(36, seed).reshape(6, 6, D) for seed in range(9)])
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(y)
    pq.write_table(pa.table({"id": range(9), "e": tensors}), tmp_path / "y.parquet")
    coder.fit(y).save(tmp_path / "grids")
    out = encoded(tmp_path / "y.parquet", str(tmp_path / "grids"))
    assert main(["decode", str(out), "--out", str(tmp_path / "back.parquet")]) == 0
    back = pq.read_table(tmp_path / "back.parquet").column("e").combine_chunks()
    assert back.type == pa.fixed_shape_tensor(pa.float32(), [6, 6, D])
    assert np.square(back.to_numpy_ndarray() - y).mean() < 0.3 * y.var()
    capsys.readouterr()
    more = ["--codec", str(tmp_path / "grids"), "--out", str(tmp_path / "x.parquet")]
    assert main(["encode", str(tmp_path / "y.parquet"), *more, "--rows-per-blob", "9"]) == 1
    assert "each row has a grid of its own" in capsys.readouterr().err


def test_a_table_without_vectors_or_that_ends_halfway_leaves_nothing(codec, tmp_path, capsys):
    y = vectors()
    y[650, 3] = np.nan  # in the last row group
    put_table(tmp_path / "t.parquet", y)
    out = tmp_path / "coded.parquet"
    options = ["--codec", codec, "--out", str(out)]
    assert main(["encode", str(tmp_path / "t.parquet"), *options]) == 1
    error = capsys.readouterr().err
    assert "NaN in some of their channels, the first at (650,)" in error
    assert main(["encode", str(tmp_path / "t.parquet"), *options, "--nodata", "nan"]) == 0
    assert "1 tokens are missing" in capsys.readouterr().out
    out.unlink()
    put_table(tmp_path / "t.parquet", vectors(), missing=np.arange(700) >= 0)
    assert main(["encode", str(tmp_path / "t.parquet"), *options]) == 1
    assert "column embedding is null in all rows" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codec", "t.parquet"]


def test_zarr_of_a_table_says_what_it_leaves_out(codec, tmp_path, capsys):
    put_table(tmp_path / "t.parquet", vectors(), missing=GONE)
    out = str(tmp_path / "y.zarr")
    assert main(["encode", str(tmp_path / "t.parquet"), "--codec", codec, "--out", out]) == 0
    text = capsys.readouterr().out
    assert "without the columns id, label, when, area, geometry, bbox: --out y.parquet" in text


def test_a_column_of_places_that_is_there_is_not_written_over(codec, tmp_path, capsys):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors(9).ravel()), D)
    pq.write_table(pa.table({"e": lists, "e_place": range(9)}), tmp_path / "y.parquet")
    options = ["--codec", codec, "--out", str(tmp_path / "x.parquet")]
    assert main(["encode", str(tmp_path / "y.parquet"), *options]) == 1
    assert "there is a column e_place" in capsys.readouterr().err
    assert main(["encode", str(tmp_path / "y.parquet"), *options, "--rows-per-blob", "1"]) == 0


def rewritten(path: Path, change: Any) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def without(key: bytes, value: bytes | None = None) -> Any:
    def change(table: pa.Table) -> pa.Table:
        kept = {k: v for k, v in table.schema.metadata.items() if k != key}
        return table.replace_schema_metadata(kept | ({} if value is None else {key: value}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(b"nec_codec"), "a Parquet table without a codec: `nec encode TABLE"),
        (without(b"nec_codec", b"!"), "its record or codec is damaged"),
        (without(b"nec", b"{"), "its record or codec is damaged"),
        (without(b"nec", b'{"version": 2}'), "a table of version 2, this reads 1"),
        (lambda table: table.drop_columns("embedding"), "its column embedding is lost"),
        (lambda table: table.drop_columns("embedding_place"), "column embedding_place is lost"),
    ],
)
def test_a_table_that_lost_something_is_refused(change, message, codec, tmp_path, capsys):
    put_table(tmp_path / "t.parquet", vectors())
    out = encoded(tmp_path / "t.parquet", codec)
    rewritten(out, change)
    capsys.readouterr()
    for command in ("info", "verify", "decode"):
        more = ["--out", str(tmp_path / "x.parquet")] if command == "decode" else []
        assert main([command, str(out), *more]) == 1
        error = capsys.readouterr().err
        assert re.match(f"{re.escape(str(out))}: .*{re.escape(message)}", error)
    with pytest.raises(FileError):
        BlobTable(out)


def test_a_blob_that_is_damaged_or_a_place_that_is_wrong_is_named(codec, tmp_path, capsys):
    put_table(tmp_path / "t.parquet", vectors())
    out = encoded(tmp_path / "t.parquet", codec)
    whole = pq.read_table(out)

    def with_column(name: str, values: Any) -> pa.Table:
        number = whole.column_names.index(name)
        return whole.set_column(number, whole.schema.field(number), values)

    blobs = whole.column("embedding").to_pylist()
    broken = blobs[400][:-1] + bytes([blobs[400][-1] ^ 1])
    blobs = [broken if one == blobs[400] else one for one in blobs]
    wrong = whole.column("embedding_place").to_pylist()
    wrong[10] = 256
    for changed, message in (
        (with_column("embedding", pa.array(blobs, whole.schema.field("embedding").type)),
         "row 300: the blob's checksum is wrong"),
        (with_column("embedding_place", pa.array(wrong, pa.int32())), "the column of places"),
    ):  # fmt: skip
        pq.write_table(changed, out)
        for command in ("verify", "decode"):
            more = ["--out", str(tmp_path / "x.parquet")] if command == "decode" else []
            capsys.readouterr()
            assert main([command, str(out), *more]) == 1
            assert message in capsys.readouterr().err
        assert not (tmp_path / "x.parquet").exists()


def test_a_quality_is_chosen_by_vectors_that_are_there(codec, tmp_path, capsys):
    put_table(tmp_path / "t.parquet", vectors(), missing=GONE)
    whole = coder.fit(vectors(2000, 7))
    whole.save(tmp_path / "ladder")
    options = ["--codec", str(tmp_path / "ladder"), "--max-mse", "0.001"]
    out = tmp_path / "x.parquet"
    assert main(["encode", str(tmp_path / "t.parquet"), *options, "--out", str(out)]) == 0
    assert re.search(r"quality \d+ fits", capsys.readouterr().out)


def test_blobs_that_are_shared_take_fewer_bytes(codec, tmp_path):
    put_table(tmp_path / "t.parquet", vectors(3000), rows=3000)
    sizes = {
        rows: BlobTable(encoded(tmp_path / "t.parquet", codec, "--overwrite", *rows)).blob_bytes
        for rows in ((), ("--rows-per-blob", "1"))
    }
    assert sizes[("--rows-per-blob", "1")] - sizes[()] > 6 * 3000


@pytest.mark.parametrize("own", [pa.array([0] * 60), pa.array(["Rome"] * 60)])
def test_a_column_named_like_places_stays_that_of_the_table(own, codec, tmp_path):
    y = vectors(60)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(y.ravel()), D)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(y.reshape(60, 1, 1, D))
    coder.fit(y.reshape(60, 1, 1, D)).save(tmp_path / "grids")
    for held, name in ((lists, codec), (tensors, str(tmp_path / "grids"))):
        table = pa.table({"id": range(60), "e": held, "e_place": own})
        pq.write_table(table, tmp_path / "y.parquet")
        out = encoded(tmp_path / "y.parquet", name, "--rows-per-blob", "1", "--overwrite")
        assert BlobTable(out).names == ["id", "e", "e_place"]
        more = ["--out", str(tmp_path / "back.parquet"), "--overwrite"]
        assert main(["decode", str(out), *more]) == 0
        back = pq.read_table(tmp_path / "back.parquet")
        assert back.column_names == table.column_names
        assert back.column("e_place").equals(table.column("e_place"))


def as_type(kind: pa.DataType) -> Any:
    def change(table: pa.Table) -> pa.Table:
        number = table.column_names.index("embedding_place")
        return table.set_column(number, "embedding_place", table.column(number).cast(kind))

    return change


def of_pandas(table: pa.Table) -> pa.Table:
    frame = table.select(["id", "embedding", "embedding_place"]).to_pandas()
    assert frame.embedding_place.dtype == np.float64
    kept = {k: table.schema.metadata[k] for k in (b"nec", b"nec_codec")}
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(kept)


@pytest.mark.parametrize(
    "change", [of_pandas, *map(as_type, (pa.float64(), pa.string(), pa.int64(), pa.uint16()))]
)
def test_places_of_other_types_are_taken(change, codec, tmp_path):
    put_table(tmp_path / "t.parquet", vectors(), missing=GONE)
    out = encoded(tmp_path / "t.parquet", codec)
    before = np.concatenate([y for _, y, _ in BlobTable(out).batches()])
    rewritten(out, change)
    after = np.concatenate([y for _, y, _ in BlobTable(out).batches()])
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.0, 1.5], "1.5"),
        ([0.0, np.inf], "inf"),
        ([0, None], "None"),
        (["0", "x"], "'x'"),
        ([True, True], "True"),
    ],
)
def test_places_that_are_no_whole_numbers_are_named(values, shown, codec, tmp_path):
    put_table(tmp_path / "t.parquet", vectors())
    out = encoded(tmp_path / "t.parquet", codec)
    number = pq.read_schema(out).names.index("embedding_place")
    own = pa.array([values[0]] * 400 + [values[1]] * 300)
    rewritten(out, lambda table: table.set_column(number, "embedding_place", own))
    row = 0 if shown == "True" else 400
    message = f"{re.escape(str(out))}: column embedding_place: row {row} holds {shown}, not"
    with pytest.raises(FileError, match=message):
        list(BlobTable(out).batches())
    blobs = pa.array(["x"] * 700)
    rewritten(out, lambda table: table.set_column(number - 1, "embedding", blobs))
    with pytest.raises(FileError, match=r"its column embedding holds .*, not blobs"):
        BlobTable(out)


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("rows_per_blob", ["1", "20"])
def test_metadata_and_nullability_of_the_vectors_are_kept(gone, rows_per_blob, codec, tmp_path):
    y = vectors(60)
    y[7] = np.nan if gone else y[7]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(y.ravel()), D)
    field = pa.field("e", lists.type, nullable=False, metadata={"model": "M"})
    pq.write_table(pa.table([lists], schema=pa.schema([field])), tmp_path / "y.parquet")
    out = encoded(tmp_path / "y.parquet", codec, "--rows-per-blob", rows_per_blob)
    assert pq.read_schema(out).field("e").metadata == {b"model": b"M"}
    assert main(["decode", str(out), "--out", str(tmp_path / "back.parquet")]) == 0
    back = pq.read_table(tmp_path / "back.parquet")
    assert back.schema.field("e").metadata == {b"model": b"M"}
    assert back.schema.field("e").nullable == gone
    assert back.column("e").null_count == gone


def test_types_that_arrow_does_not_have_are_named(codec, tmp_path, capsys):
    path = tmp_path / "y.parquet"
    with duckdb.connect() as base:
        base.register("t", pa.table({"e": list(vectors(60))}))
        base.execute(
            "COPY (SELECT e, INTERVAL 1 day AS every, 1 AS n, uuid() AS u, 'x' AS s, 1.5 AS d, "
            f"DATE '2020-01-01' AS day, {{'a': 1}} AS st FROM t) TO '{path}'"
        )
    encoded(path, codec)
    text = capsys.readouterr().out
    assert "column every has a type that Arrow does not have (Interval): a coded table" in text
    assert text.count("Arrow does not have") == 1


def test_a_flip_of_any_bit_of_the_pages_is_found(codec, tmp_path):
    y = vectors(12)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(y.ravel()), D)
    pq.write_table(pa.table({"e": lists}), tmp_path / "y.parquet")
    out = encoded(tmp_path / "y.parquet", codec, "--rows-per-blob", "5")
    whole = out.read_bytes()
    before = np.concatenate([part for _, part, _ in BlobTable(out).batches()])
    end = 4 + BlobTable(out).blob_bytes
    found = 0
    for place in range(4, end):
        out.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            after = np.concatenate([part for _, part, _ in BlobTable(out).batches()])
        except coder.CodecError:
            found += 1
        else:
            np.testing.assert_array_equal(after, before)
    assert found > 0.8 * (end - 4)


def test_a_row_group_that_ends_early_is_damage(tmp_path, monkeypatch):
    put_table(tmp_path / "t.parquet", vectors())
    rows = parquet_columns.Rows(parquet_columns.open_parquet(tmp_path / "t.parquet"), ["id"], 50)
    rows.groups[1:] += 10
    with pytest.raises(FileError, match="row group 0 ends early"):
        list(rows.read(0, 310))


def test_one_vector_alone_is_too_few(tmp_path, capsys):
    np.save(tmp_path / "y.npy", vectors(1))
    assert main(["fit", str(tmp_path / "y.npy"), "--out", str(tmp_path / "o")]) == 1
    assert "one vector alone is too few" in capsys.readouterr().err
