"""A table of images: what it lists is read, and what it says of them is kept as it is."""

import datetime

import numpy as np
import pyarrow
import pytest
from image_files import encoded, noise, put
from pyarrow import parquet

from coder.archive.image_columns import TEXT, TIME
from nec_jax.archiving.image_list import listed
from nec_jax.images.record import DataError
from nec_jax.sources import open_inputs
from nec_jax.sources.image_table import ImageTable, open_image_table

NAMES = ("a.png", "b.png", "below/c.png")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    for i, name in enumerate(NAMES):
        put(tmp_path / name, encoded(noise(40, 30 + i, 3, seed=i), "png"))
    return tmp_path


def csv(folder, *lines):
    return put(folder / "images.csv", "\n".join(lines).encode())


def stored(folder, columns):
    parquet.write_table(pyarrow.table(columns), folder / "images.parquet")
    return folder / "images.parquet"


def said(table):
    """The values of each column of a table."""
    rows = [table.about(i) for i in range(len(table))]
    return {name: [row[name] for row in rows] for name in table.columns}


def test_images_are_read_by_path_with_labels_and_ids(folder):
    path = csv(
        folder, "label,path,id", f"sea,{folder / 'a.png'},one", "land,below/c.png,two", ",b.png,3"
    )  # fmt: skip
    table = open_inputs([str(path)])
    assert table.classes == ("land", "sea")
    assert [record["id"] for record in table] == ["one", "two", "3"]
    assert [record.get("label") for record in table] == [1, 0, None]
    assert [record["image"].shape[1] for record in table] == [30, 32, 31]
    assert said(table) == {"path": [str(folder / "a.png"), "below/c.png", "b.png"]}
    assert [name for name, _ in table.files()] == ["one", "two", "3"]


def test_without_ids_the_path_is_the_id(folder):
    table = open_inputs([str(csv(folder, "path", *NAMES))])
    assert isinstance(table, ImageTable)
    assert [record["id"] for record in table] == list(NAMES)
    assert not table.columns
    assert not any("label" in record for record in table)


def test_cells_are_numbers_times_or_bools_if_all_are(folder):
    path = csv(
        folder,
        "path,whole,number,time,zoned,day,code,text,flag,big,empty",
        "a.png,1,0.5,2020-01-02T03:04:05.25,2020-01-02T03:04:05Z,2020-01-02,007,x,true,12345678901234567890123,",
        "b.png,-2,,2020-01-02,2020-01-02T03:04:05+02:00,,10,,False,1,",
    )  # fmt: skip
    table = open_image_table(path)
    time = np.datetime64
    assert said(table) == {
        "whole": [1, -2],
        "number": [0.5, None],
        "time": [time("2020-01-02T03:04:05.25"), time("2020-01-02")],
        "zoned": [time("2020-01-02T03:04:05"), time("2020-01-02T01:04:05")],
        "day": [time("2020-01-02"), None],
        "code": ["007", "10"],
        "text": ["x", None],
        "flag": [True, False],
        "big": ["12345678901234567890123", "1"],
        "empty": [None, None],
    }
    kinds = [dtype.kind for dtype in table.columns.values()]
    assert "".join(kinds) == "ifMMMOObOO"


def test_parquet_says_the_types_itself(folder):
    zone = datetime.timezone(datetime.timedelta(hours=2))
    path = stored(
        folder,
        {
            "path": list(NAMES),
            "number": pyarrow.array([1, 2, None], pyarrow.int16()),
            "whole": pyarrow.array([1, 2, 3], pyarrow.uint8()),
            "category": pyarrow.array(["x", "y", None]).dictionary_encode(),
            "time": [datetime.datetime(2020, 1, 1, 12, tzinfo=zone), None, None],
            "nanoseconds": pyarrow.array([1_500, None, 3], pyarrow.timestamp("ns")),
            "day": [datetime.date(2020, 1, 1), None, None],
            "flag": [True, None, False],
            "code": ["007", "1", "2"],
        },
    )
    table = open_image_table(path)
    assert said(table) == {
        "number": [1.0, 2.0, None],
        "whole": [1, 2, 3],
        "category": ["x", "y", None],
        "time": [np.datetime64("2020-01-01T10:00"), None, None],
        "nanoseconds": [np.datetime64(1, "us"), None, np.datetime64(0, "us")],
        "day": [np.datetime64("2020-01-01"), None, None],
        "flag": ["true", None, "false"],
        "code": ["007", "1", "2"],
    }
    assert table.columns["time"] == TIME
    assert table.columns["flag"] == TEXT


def test_other_types_are_left_out_with_a_warning(folder, caplog):
    path = stored(folder, {"path": ["a.png"], "box": [[1.0, 2.0]], "geometry": [b"\1"]})
    assert not open_image_table(path).columns
    assert "left out columns that are no text, bools, numbers or times: box (list" in caplog.text
    assert "geometry (binary)" in caplog.text


def test_numbers_that_a_float_does_not_hold_are_refused(folder):
    path = stored(folder, {"path": ["a.png", "b.png"], "serial": [2**53 + 1, None]})
    with pytest.raises(DataError, match=r"images.parquet, column serial: .* write it as text"):
        open_image_table(path)


def test_labels_that_are_numbers_are_sorted_as_numbers(folder):
    table = open_image_table(stored(folder, {"path": list(NAMES), "label": [10, 9, None]}))
    assert table.classes == ("9", "10")
    assert [record.get("label") for record in table] == [1, 0, None]


def test_windows_have_what_the_table_says_of_their_image(folder):
    path = csv(folder, "path,id,cloud", "a.png,one,1", "below/c.png,two,2")
    table = open_image_table(path, chip=15)
    assert [record["id"] for record in table] == [
        f"{name}@{row},{col}" for name in ("one", "two") for row in (0, 15) for col in (0, 15)
    ]
    assert said(table)["cloud"] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert [name for name, _ in table.files()][-1] == "two@15,15,15"
    assert table.chip == 15


def test_rows_of_a_split(folder):
    path = csv(folder, "path,split,n", "a.png,train,1", "b.png,test,2", "below/c.png,train,3")
    table = open_inputs([str(path)], "train")
    assert said(table) == {"split": ["train", "train"], "n": [1, 3]}
    assert [record["id"] for record in table] == ["a.png", "below/c.png"]
    with pytest.raises(DataError, match="has no split 'val'; it has: test, train, all"):
        open_inputs([str(path)], "val")


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["file,label", "a.png,x"], "has no column `path`.* it has file, label"),
        (["path,path", "a.png,a.png"], "more than one column 'path'"),
        (["path", "a.png", "a.png"], "has the path a.png in rows 1 and 2"),
        (["path,id", "a.png,x", "b.png,x"], "has the id x in rows 1 and 2"),
        (["path,id", "a.png,", "b.png,x"], "row 1: its id is empty"),
        (["path,n", ",1", "b.png,2"], "row 1: its path is empty"),
        (["path,n", "a.png,1,2"], "cannot be read as a table"),
        (["path,time", "a.png,noon"], "the column time is no time"),
        (["path,footprint", "a.png,3"], "the column footprint is no text"),
        (["path,valid", "a.png,3"], "the column valid has a name that an archive uses"),
        (["path,a/b", "a.png,3"], "without a slash"),
        (["path"], "cannot be read as a table"),
    ],
)
def test_tables_that_cannot_be_used(lines, match, folder):
    with pytest.raises(DataError, match=match):
        open_image_table(csv(folder, *lines))


def test_tables_that_are_damaged(folder):
    for name, content in (
        ("a.csv", b""), ("b.csv", b"path,x\n\xff\xfe,\xff"), ("c.parquet", b"PAR1 and no more"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=rf"{name} cannot be read as a table"):
            open_image_table(put(folder / name, content))
    with pytest.raises(FileNotFoundError):
        open_image_table(folder / "none.csv")


def test_a_table_goes_alone(folder):
    path = csv(folder, "path", *NAMES)
    with pytest.raises(DataError, match="is a table of images, which is given alone"):
        open_inputs([str(path), str(folder / "a.png")])


def test_a_byte_order_mark_is_no_part_of_a_name(folder):
    table = open_image_table(put(folder / "images.csv", b"\xef\xbb\xbfpath,n\r\na.png,1\r\n"))
    assert said(table) == {"n": [1]}


def test_paths_may_be_urls_which_nobody_asks_for_yet(folder):
    urls = ["s3://bucket/a.png", "https://host/b.png"]
    table = open_image_table(
        csv(folder, "path,id,label,n", f"{urls[0]},x,sea,1", f"{urls[1]},y,,2")
    )
    assert list(table.files()) == [("x", urls[0]), ("y", urls[1])]
    assert table.labels == (0, -1)
    assert said(table) == {"path": urls, "n": [1, 2]}
    with pytest.raises(
        DataError, match=r"a.png is no URL: give URLs, or local paths, but not both"
    ):
        open_image_table(csv(folder, "path", urls[0], "a.png"))
    with pytest.raises(DataError, match="windows are cut from local images"):
        open_image_table(csv(folder, "path", *urls), chip=8)


def test_codes_are_not_taken_for_numbers(folder):
    for code in ("0x1F", "20240506102030123450", "1e400", "1_000"):
        table = open_image_table(csv(folder, "path,code", f"a.png,{code}", "b.png,12"))
        assert said(table) == {"code": [code, "12"]}


def test_times_beyond_those_of_python_are_kept(folder):
    late = pyarrow.array([253_402_300_800_000_000, -1], pyarrow.timestamp("us"))
    table = open_image_table(stored(folder, {"path": ["a.png", "b.png"], "taken": late}))
    assert [one.astype(int) for one in said(table)["taken"]] == [253_402_300_800_000_000, -1]


def test_a_nul_is_found_before_anything_is_written(folder):
    with pytest.raises(DataError, match="column note: a text has a NUL"):
        open_image_table(stored(folder, {"path": ["a.png"], "note": ["x\0y"]}))


def test_empty_columns_of_files_are_as_if_they_were_not_there(folder):
    table = open_image_table(csv(folder, "path,time,footprint", "a.png,,", "b.png,,"))
    assert not table.columns


def test_the_query_of_a_url_is_kept_nowhere(folder):
    urls = ["https://host/a.png?sig=secret", "https://host/b.png?sig=secret"]
    table = open_image_table(csv(folder, "path,id", f"{urls[0]},x", f"{urls[1]},y"))
    assert "secret" not in str(said(table))
    plain = open_image_table(csv(folder, "path", *urls))
    assert [name for name, _ in plain.files()] == ["https://host/a.png", "https://host/b.png"]
    assert [url for _, url in plain.files()] == urls
    assert listed(plain).file_bytes == 0  # nobody asks for sizes


def test_home_folders_and_local_urls(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    table = open_image_table(csv(folder, "path", "~/a.png", f"file://{folder}/b.png"))
    assert [record["image"].shape[1] for record in table] == [30, 31]


def test_other_separators_and_unnamed_columns_are_named(folder):
    with pytest.raises(DataError, match="Cells end with a comma"):
        open_image_table(csv(folder, "path;n", "a.png;1"))
    with pytest.raises(DataError, match="a column without a name, as pandas"):
        open_image_table(csv(folder, ",path", "0,a.png"))
