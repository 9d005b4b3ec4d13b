"""Columns of archives: what is written is what is read, and nothing is lost or made up."""

import datetime
from typing import Any

import numpy as np
import pytest
import xarray
from archive_cases import CODEC, COUNT, GRID, SHARD, Y, contents
from hypothesis import given
from hypothesis import strategies as some

import coder
from coder import InputError, OutputError, archive
from coder.archive import image_columns
from coder.archive.copying import copy
from coder.cli import main as command

KINDS: dict[str, Any] = {
    "time": "datetime64[ns]", "note": str, "cloud cover": "float32", "orbit": "int32", "day": bool,
}  # fmt: skip
START = np.datetime64("2021-03-04T05:06:07.891234", "ns")
VALUES: dict[str, list[Any]] = {
    "time": [None if i % 5 == 0 else START + np.timedelta64(i, "h") for i in range(COUNT)],
    "note": [None if i % 3 == 0 else f"note {i} ü" for i in range(COUNT)],
    "cloud cover": [None if i % 7 == 0 else i / 8 for i in range(COUNT)],
    "orbit": [i - 5 for i in range(COUNT)],
    "day": [i % 2 == 0 for i in range(COUNT)],
}
READ = {
    "time": np.array(VALUES["time"], "datetime64[us]"),
    "note": np.array([note or "" for note in VALUES["note"]]),
    "cloud cover": np.array([np.nan if v is None else v for v in VALUES["cloud cover"]]),
    "orbit": np.array(VALUES["orbit"], np.int64),
    "day": np.array(VALUES["day"]),
}
BAD = {3, 10}


def written(path, *, stop=None, kinds=KINDS, values=VALUES, named="image {}"):
    with archive.Writer(path, CODEC, COUNT, GRID, shard=SHARD, columns=kinds) as writer:
        for part in writer.missing()[:stop]:
            numbers = range(part.start, part.stop)
            writer.write(
                part,
                Y[[i for i in numbers if i not in BAD]],
                [named.format(i) for i in numbers],
                errors=["no image" if i in BAD else None for i in numbers],
                columns={name: own[part] for name, own in values.items()},
            )
        if stop is None:
            writer.finish()
    return path


def is_read(path, expected=READ):
    embeddings = coder.open(path)
    assert set(embeddings.columns) == set(expected)
    for name, values in expected.items():
        found = embeddings.column(name)
        assert found.dtype.kind in (values.dtype.kind, "T", "O")
        np.testing.assert_array_equal(found.astype(values.dtype), values)


def test_what_is_written_is_read_for_images_without_an_embedding_too(tmp_path):
    is_read(written(tmp_path / "a.zarr"))


def test_the_bytes_do_not_depend_on_an_interruption(tmp_path):
    written(tmp_path / "a.zarr")
    written(tmp_path / "b.zarr", stop=2)
    assert contents(written(tmp_path / "b.zarr")) == contents(tmp_path / "a.zarr")


def test_an_archive_is_not_gone_on_with_other_columns(tmp_path):
    written(tmp_path / "a.zarr", stop=2)
    for kinds in ({}, {**KINDS, "more": str}, {**KINDS, "orbit": float}):
        with pytest.raises(OutputError, match="was begun with another columns"):
            written(tmp_path / "a.zarr", kinds=kinds, values={})


def test_a_column_that_nobody_gives_is_missing(tmp_path):
    path = written(tmp_path / "a.zarr", kinds={"time": KINDS["time"], "note": str}, values={})
    embeddings = coder.open(path)
    assert np.isnat(embeddings.column("time")).all()
    assert not any(embeddings.column("note"))


def test_xarray_reads_times_and_coordinates(tmp_path):
    data = xarray.open_zarr(written(tmp_path / "a.zarr"), consolidated=False)
    assert {"time", "note", "orbit", "day", "id", "valid"} <= set(data.coords)
    assert "cloud cover" in data  # a name with a space cannot be listed as a coordinate
    for name in ("time", "orbit", "cloud cover"):
        np.testing.assert_array_equal(data[name].values, READ[name])


def test_decode_writes_times_as_times(tmp_path):
    path = written(tmp_path / "a.zarr")
    assert command(["decode", str(path), "--out", str(tmp_path / "out")]) == 0
    for name, values in READ.items():
        np.testing.assert_array_equal(np.load(tmp_path / "out" / f"{name}.npy"), values)


def test_a_lost_shard_of_a_column_is_named(tmp_path, capsys):
    path = written(tmp_path / "a.zarr")
    (path / "note" / "c" / "1").unlink()
    assert command(["verify", str(path)]) == 1
    assert "note/c/1 is lost: images 8 to 15" in capsys.readouterr().err


def test_copies_keep_columns_and_joined_archives_lack_what_one_lacks(tmp_path):
    path = written(tmp_path / "a.zarr")
    copy([path], tmp_path / "b.zarr", CODEC, shard=5)
    is_read(tmp_path / "b.zarr")
    floats = {"time": KINDS["time"], "note": str, "cloud cover": float}
    values = {name: VALUES[name] for name in floats}
    one = written(tmp_path / "c.zarr", kinds=floats, values=values)
    notes = {"note": VALUES["note"]}
    two = written(tmp_path / "d.zarr", kinds={"note": str}, values=notes, named="other {}")
    copy([one, two], tmp_path / "e.zarr", CODEC)
    missing = {"time": np.datetime64("NaT"), "cloud cover": np.nan}
    expected = {
        name: np.append(READ[name], np.full(COUNT, missing[name], READ[name].dtype))
        for name in missing
    }
    is_read(tmp_path / "e.zarr", expected | {"note": np.append(READ["note"], READ["note"])})


def test_archives_whose_columns_do_not_agree_are_not_joined(tmp_path):
    one = written(tmp_path / "a.zarr")
    two = written(tmp_path / "b.zarr", kinds={}, values={}, named="other {}")
    with pytest.raises(InputError, match=r"has no column orbit, and no value of its type"):
        copy([one, two], tmp_path / "c.zarr", CODEC)
    texts = {"orbit": str, "day": str}
    three = written(tmp_path / "d.zarr", kinds=texts, values={}, named="other {}")
    with pytest.raises(InputError, match=r"the column orbit has another type in .*d\.zarr"):
        copy([one, three], tmp_path / "e.zarr", CODEC)


@pytest.mark.parametrize(
    ("name", "kind", "match"),
    [
        ("id", str, "an archive uses"),
        ("Label", int, "an archive uses"),
        ("a/b", str, "without a slash"),
        ("", str, "without a slash"),
        (".hidden", str, "does not begin with a dot"),
        ("__x", str, "two underscores"),
        ("a\\b", str, "a backslash"),
        ("\udcff", str, "a name is text"),
        ("zarr.json", str, "an archive uses"),
        (" x", str, "without a slash"),
        ("kind", complex, "has the type"),
        ("kind", "V3", "has the type"),
        ("kind", list, "has the type"),
    ],
)
def test_columns_that_cannot_be(name, kind, match):
    with pytest.raises(InputError, match=match):
        image_columns.checked({name: kind})


def test_names_that_a_disk_may_not_tell_apart_are_refused():
    with pytest.raises(InputError, match="differ in case alone"):
        image_columns.checked({"time": str, "Time": str})


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("orbit", None, "image 10: its orbit is missing"),
        ("orbit", 1.5, "give a whole number"),
        ("orbit", True, "give a whole number"),
        ("orbit", 2**63, "64 bits do not hold"),
        ("day", 1, "give a bool"),
        ("day", None, "is missing"),
        ("note", 3, "give text"),
        ("note", "a\0", "NUL"),
        ("cloud cover", "0.5", "give a number"),
        ("cloud cover", 2**53 + 1, "does not hold exactly"),
        ("time", "2020-01-01", "give a time"),
        ("time", 3, "give a time"),
        ("time", np.datetime64("600000-01-01", "D"), "out of range"),
    ],
)
def test_values_that_a_column_cannot_hold(name, value, match):
    dtype = image_columns.checked(KINDS)[name]
    with pytest.raises(InputError, match=match):
        image_columns.as_stored(name, dtype, [value], slice(10, 11))


def test_masked_values_are_missing():
    time = np.ma.MaskedArray([START, START], [True, False])
    found = image_columns.as_stored("time", image_columns.TIME, time, slice(0, 2))
    assert np.isnat(found.view(image_columns.TIME)).tolist() == [True, False]


def test_too_few_values_are_refused():
    wrong: list[Any] = [[1.0], "ab", 3]
    for values in wrong:
        with pytest.raises(InputError):
            image_columns.as_stored("x", np.dtype(float), values, slice(0, 2))


@given(some.lists(some.floats() | some.none(), max_size=9))
def test_floats_are_stored_unchanged(values):
    found = image_columns.as_stored("x", np.dtype(float), values, slice(0, len(values)))
    np.testing.assert_array_equal(found, [np.nan if v is None else v for v in values])


@given(some.integers(-(2**63) + 1, 2**63 - 1), some.sampled_from(["us", "ms", "s", "m", "D"]))
def test_times_are_exact_or_refused(number, unit):
    time = np.datetime64(number, unit)
    try:
        [found] = image_columns.as_stored("t", image_columns.TIME, [time], slice(0, 1))
    except InputError:
        exact = number * {"us": 1, "ms": 1000, "s": 10**6, "m": 6 * 10**7, "D": 864 * 10**8}[unit]
        assert not -(2**63) < exact < 2**63
    else:
        assert np.int64(found).view(image_columns.TIME) == time


def test_times_of_python_are_taken_in_utc():
    zone = datetime.timezone(datetime.timedelta(hours=2))
    given = [datetime.datetime(2020, 1, 1, 12, tzinfo=zone), datetime.datetime(2020, 1, 1, 10)]
    found = image_columns.as_stored("t", image_columns.TIME, given, slice(0, 2))
    assert (found.view(image_columns.TIME) == np.datetime64("2020-01-01T10:00")).all()
