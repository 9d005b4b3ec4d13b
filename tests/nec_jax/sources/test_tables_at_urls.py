"""A table at a URL is read as a local one is, and its relative paths lead to URLs."""

import numpy as np
import pyarrow
import pytest
from image_files import encoded, noise, put
from pyarrow import parquet
from web_server import web_server

from coder.errors import InputError, NoPermission, StoreError
from nec_jax.archiving import image_list
from nec_jax.images.record import DataError
from nec_jax.sources import open_inputs
from nec_jax.sources.image_table import ImageTable
from nec_jax.sources.remote_images import url_beside

NAMES = ("a.png", "tiles/b c.png", "tiles/50%.png", "tiles/%41.png", "tiles/d?e#f.png")


@pytest.fixture
def folder(tmp_path):
    """Images in a folder, and tables in a folder in it."""
    for name in ("tiles", "tables", "tables/tiles"):
        (tmp_path / name).mkdir()
    for i, name in enumerate(NAMES):
        put(tmp_path / name, encoded(noise(8, 9 + i, 3, seed=i), "png"))
    rows = [(f"../{name}", f"id {i}", "sea", i / 4) for i, name in enumerate(NAMES)]
    rows[0] = (".././tables//../a.png", *rows[0][1:])
    lines = ["path,id,label,cloud", *(",".join(map(str, row)) for row in rows)]
    put(tmp_path / "tables/images.csv", "\n".join(lines).encode())
    columns = {
        name: [row[i] for row in rows] for i, name in enumerate(("path", "id", "label", "cloud"))
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "tables/images.parquet")
    put(tmp_path / "tables/plain.csv", "\n".join(["path", *(row[0] for row in rows)]).encode())
    return tmp_path


def opened(name, **settings) -> ImageTable:
    table = open_inputs([str(name)], **settings)
    assert isinstance(table, ImageTable)
    return table


def same(table: ImageTable, local: ImageTable) -> None:
    assert (
        image_list.listed(table).digests["image_names"]
        == (image_list.listed(local).digests["image_names"])
    )
    assert (table.classes, table.labels) == (local.classes, local.labels)
    assert table.columns == local.columns
    for i in range(len(local)):
        assert table.about(i) == local.about(i)
        assert table[i]["id"] == local[i]["id"]
        np.testing.assert_array_equal(table[i]["image"], local[i]["image"])


@pytest.mark.parametrize("name", ["images.csv", "images.parquet", "plain.csv"])
def test_it_is_the_local_table(objects, folder, name):
    place = objects.folder()
    objects.upload(folder, place)
    local = opened(folder / "tables" / name)
    with objects.counted() as requests:
        table = opened(f"{place}/tables/{name}")
    assert requests == {("HEAD", "object"): 1, ("GET", "object"): 1}
    same(table, local)
    assert [url for _, url in table.files()] == [f"{place}/{name}" for name in NAMES]
    with web_server(folder) as (host, asked):
        same(opened(f"{host}/tables/{name}?signature=a/b%2B"), local)
    assert asked[:2] == [f"/tables/{name}?signature=a/b%2B"] * 2
    assert not any("signature" in path for path in asked[2:])


def test_a_url_that_is_signed_for_reading_alone(folder):
    with web_server(folder, is_signed=True) as (host, _):
        same(opened(f"{host}/tables/images.csv?sig=a"), opened(folder / "tables/images.csv"))


def test_splits_ids_and_urls_in_a_table_at_a_url(objects, folder):
    place = objects.folder()
    put(
        folder / "some.csv",
        f"path,split\na.png,train\n./tiles/b c.png,val\n{place}/tiles/50%.png,train\n".encode(),
    )
    objects.upload(folder, place)
    table = opened(f"{place}/some.csv", split="train")
    assert image_list.id_list(table) == ["a.png", f"{place}/tiles/50%.png"]
    assert [table[i]["image"].shape[1] for i in range(2)] == [9, 11]
    assert image_list.id_list(opened(f"{place}/some.csv"))[1] == "./tiles/b c.png"
    with pytest.raises(DataError, match=f"^{place}/some.csv has no split 'test'"):
        opened(f"{place}/some.csv", split="test")
    with pytest.raises(DataError, match="windows are cut from local images"):
        opened(f"{place}/some.csv", chip=8)
    with pytest.raises(DataError, match=r"some\.csv is a table of images, which is given alone"):
        open_inputs([f"{place}/a.png", f"{place}/some.csv"])


def test_a_relative_path_stays_in_its_bucket():
    for path, url in {
        "a.png": "s3://bucket/x/a.png",
        "./y/../a.png": "s3://bucket/x/a.png",
        "../a%20?#.png": "s3://bucket/a%20?#.png",
    }.items():
        assert url_beside("s3://bucket/x/images.csv", path) == url
    signed = "https://host/x%20y/images.csv?signature=a/b"
    assert url_beside(signed, "a%20?#.png") == "https://host/x%20y/a%2520%3F%23.png"
    for url in ("s3://bucket/images.csv", "https://host/images.csv", "memory://images.csv"):
        with pytest.raises(DataError, match=r"\.\./a.png leads above "):
            url_beside(url, "../a.png")


@pytest.mark.parametrize("path", ["/data/a.png", "~/a.png", "file:///data/a.png", "../../../a.png"])
def test_paths_that_lead_out_are_refused_by_row(objects, path):
    place = objects.folder()
    objects.put(f"{place}/images.csv", f"path\nb.png\n{path}\n".encode())
    with pytest.raises(DataError, match=rf"^{place}/images.csv, row 2: {path} (is a local|leads)"):
        opened(f"{place}/images.csv")


def test_what_is_no_table_is_named_by_its_url(objects):
    place = objects.folder()
    for name, content, text in [
        ("a.csv", b"", "cannot be read as a table"),
        ("b.parquet", b"PAR1", "cannot be read as a table"),
        ("c.csv", b"name\na.png\n", "has no column `path`"),
        ("d.csv", b"path\na.png\na.png\n", "has the path a.png in rows 1 and 2"),
    ]:
        objects.put(f"{place}/{name}", content)
        with pytest.raises(DataError, match=rf"^{place}/{name} {text}"):
            opened(f"{place}/{name}")
    with pytest.raises(FileNotFoundError, match="no such object") as missing:
        opened(f"{place}/none.csv")
    assert missing.value.filename == f"{place}/none.csv"


def test_a_failing_network_is_tried_again(objects, folder):
    place = objects.folder()
    objects.upload(folder, place)
    url = f"{place}/tables/images.csv"
    for kind in ("503", "closed", "short"):
        asked: set[str] = set()

        def once(method, key, number, kind=kind, asked=asked):
            return None if method in asked else asked.add(method) or kind

        with objects.failing(once):
            same(opened(url), opened(folder / "tables/images.csv"))
    with objects.failing(lambda *_: "short"), pytest.raises(StoreError, match="bytes came of"):
        opened(url)  # a table that is cut between two rows looks whole
    with objects.failing(lambda *_: "503"), pytest.raises(StoreError, match="5 tries") as caught:
        opened(url)
    assert caught.value.filename == url
    with objects.failing(lambda *_: "403"), pytest.raises(NoPermission, match=f"^{url}: "):
        opened(url)


@pytest.mark.parametrize("status", [403, 404, 500])
def test_no_error_shows_a_signature(folder, status, monkeypatch):
    monkeypatch.setattr("coder.archive.remote_store.WAIT", 0)
    query = "?sig=SECRET%2Fx/y+z&se=SECRET"
    with web_server(folder, status) as (host, _):
        for name in ("images.csv", "a b.csv"):
            with pytest.raises((NoPermission, StoreError, FileNotFoundError)) as caught:
                opened(f"{host}/tables/{name}{query}")
            assert "SECRET" not in str(caught.value)
            assert f"{host}/tables/{name}" in str(caught.value)
        for images in ([f"{host}/a.png{query}"], [f"{host}/tiles{query}"]):
            with pytest.raises((DataError, NoPermission, OSError)) as caught:
                open_inputs(images)
            assert "SECRET" not in str(caught.value)
    with web_server(folder) as (host, _):
        put(folder / "bad.csv", b"x\n1\n")
        with pytest.raises(DataError, match=f"^{host}/bad.csv has no column") as caught:
            opened(f"{host}/bad.csv{query}")


def test_schemes_in_capitals_are_refused(folder):
    for url in ("S3://bucket/images.csv", "Https://host/a.png?sig=SECRET", "FILE:///x.png"):
        with pytest.raises(InputError, match=r"in lower case, (s3|https|file)://") as caught:
            open_inputs([url])
        assert "SECRET" not in str(caught.value)
        put(folder / "images.csv", f"path\na.png\n{url}\n".encode())
        with pytest.raises(DataError, match=r"images.csv, row 2: .*in lower case"):
            opened(folder / "images.csv")
