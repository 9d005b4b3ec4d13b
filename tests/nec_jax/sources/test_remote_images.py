"""Images at URLs are read as local ones; what fails in between is no bad image."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import encoded, noise, put, write_raster
from web_server import web_server

from coder.errors import NoPermission, StoreError
from nec_jax.archiving import image_list
from nec_jax.images.record import CorruptImageError, DataError
from nec_jax.sources import open_inputs
from nec_jax.sources.remote_images import images_at


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for name in ("a/1.png", "a/2.png", "b/3.png", ".hidden/4.png"):
        (root / name).parent.mkdir(exist_ok=True)
        put(root / name, encoded(noise(8, 9, 3, seed=ord(name[2])), "PNG"))
    write_raster(root / "b/5.tif", noise(2, 8, 9, dtype=np.uint16))
    put(root / "b/6.jpg", encoded(noise(8, 9, 3), "JPEG"))
    put(root / "text.txt", b"text")
    return root


@pytest.fixture(scope="module")
def url(folder, server) -> str:
    place = server.folder()
    server.upload(folder, place)
    return place


IDS = ["a/1.png", "a/2.png", "b/3.png", "b/5.tif", "b/6.jpg"]


def ids(*inputs: str) -> list[str]:
    return image_list.id_list(open_inputs(inputs))


def test_they_are_read_as_local_ones(objects, url, folder):
    with objects.counted() as requests:
        source = open_inputs([url])
        listed = image_list.listed(source)
    assert requests == {("GET", "list"): 1}
    local = open_inputs([str(folder / "a"), str(folder / "b")])
    assert image_list.listed(local)[:2] == listed[:2]
    assert image_list.listed(local).bytes_of.tolist() == listed.bytes_of.tolist()
    assert len(source) == len(local) == 5
    with objects.counted() as requests:
        for i, name in enumerate(IDS):
            assert source[i]["id"] == name
            np.testing.assert_array_equal(source[i]["image"], local[i]["image"])
    assert requests == {("GET", "object"): 10}


def test_folders_patterns_and_files_go_together(objects, url):
    assert ids(url) == IDS
    assert ids(f"{url}/b/") == ["3.png", "5.tif", "6.jpg"]
    assert ids(f"{url}/*/*.png") == IDS[:3]
    assert ids(f"{url}/**/*.png") == IDS[:3]
    assert ids(f"{url}/a/[2].png", f"{url}/b/?.tif", url) == [IDS[1], IDS[3], *IDS[:1], *IDS[2::2]]
    assert ids(f"{url}/.hidden") == ["4.png"]
    with objects.counted() as requests:
        assert ids(f"{url}/a/1.png", f"{url}/b/6.jpg") == ["a/1.png", "b/6.jpg"]
    assert requests == {("HEAD", "object"): 2}


def test_what_names_no_image_is_refused(objects, url, folder):
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        ([f"{url}/none"], {}, "no images at"),
        ([f"{url}/*.gif"], {}, "no images at"),
        ([url, str(folder)], {}, "is a local path"),
        ([url], {"split": "train"}, "have no splits"),
        ([url], {"chip": 8}, "windows are cut from local images"),
    ]
    for inputs, settings, text in cases:
        with pytest.raises(DataError, match=text):
            open_inputs(inputs, **settings)
    with pytest.raises(FileNotFoundError, match="no such object"):
        open_inputs([f"{url}/a/9.png"])


def test_a_failing_network_is_no_bad_image(objects, url, folder):
    source = open_inputs([url])
    for kind in ("503", "closed", "short"):
        seen = set()

        def once(method, key, number, kind=kind, seen=seen):
            return None if key in seen else seen.add(key) or kind

        with objects.failing(once):
            np.testing.assert_array_equal(
                source[0]["image"], open_inputs([str(folder / "a")])[0]["image"]
            )
        with objects.failing(lambda *_, kind=kind: kind):
            with pytest.raises(StoreError, match="5 tries") as caught:
                source[0]
            assert caught.value.filename == f"{url}/a/1.png"
            if kind == "503":
                with pytest.raises(StoreError, match="cannot be listed"):
                    open_inputs([url])
    with objects.failing(lambda *_: "403"):
        with pytest.raises(NoPermission, match="give credentials"):
            source[0]
        with pytest.raises(NoPermission):
            open_inputs([url])


def test_a_bad_image_is_named_by_its_url(objects):
    place = objects.folder()
    objects.put(f"{place}/a.png", b"no image")
    objects.put(f"{place}/b.png", encoded(noise(8, 9, 3), "PNG"))
    source = open_inputs([place])
    with pytest.raises(CorruptImageError, match=f"cannot read {place}/a.png: ") as caught:
        source[0]
    assert "/tmp" not in str(caught.value)
    source = images_at("listed", [f"{place}/b.png", f"{place}/c.png"], ["b", "c"], labels=[3, 4])
    assert (source[0]["id"], source[0].get("label")) == ("b", 3)
    with pytest.raises(CorruptImageError, match=r"c\.png: there is no such object"):
        source[1]


def test_what_gdal_writes_beside_an_image_is_heeded(objects, tmp_path):
    bands = noise(1, 8, 9)
    put(tmp_path / "1.png", encoded(noise(8, 9, 3), "PNG"))
    write_raster(tmp_path / "2.tif", bands)
    for name in ("1.png", "2.tif"):
        put(
            tmp_path / f"{name}.aux.xml",
            b'<PAMDataset><PAMRasterBand band="1"><NoDataValue>%d</NoDataValue>'
            b"</PAMRasterBand></PAMDataset>" % bands[0, 0, 0],
        )
    place = objects.folder()
    objects.upload(tmp_path, place)
    for inputs in ([place], [f"{place}/*.png", f"{place}/*.tif"]):
        source = open_inputs(inputs)
        assert len(source) == 2
        with pytest.raises(CorruptImageError, match=r"beside it has a NoDataValue"):
            source[0]
        with pytest.raises(CorruptImageError, match=rf"{place}/2\.tif: .* pixels are missing"):
            source[1]


def test_a_list_of_urls_is_checked():
    with pytest.raises(DataError, match="1 ids for 2 images"):
        images_at("a", ["s3://b/1.png", "s3://b/2.png"], ["1"])
    with pytest.raises(DataError, match="two images have the id 1"):
        images_at("a", ["s3://b/1.png", "s3://b/2.png"], ["1", "1"])
    with pytest.raises(DataError, match=r"a\.png is no URL"):
        images_at("a", ["a.png"], ["1"])


def test_images_of_a_web_server(folder, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("coder.archive.remote_store.WAIT", 0)
    shutil.copytree(folder / "a", tmp_path / "a")

    with web_server(tmp_path) as (host, _):
        source = open_inputs([f"{host}/a/1.png?signature=a/b", f"{host}/a/2.png"])
        assert image_list.id_list(source) == ["1.png", "2.png"]
        local = open_inputs([str(folder / "a")])
        assert image_list.listed(source).file_bytes == image_list.listed(local).file_bytes
        np.testing.assert_array_equal(source[0]["image"], local[0]["image"])
        assert ids(f"{host}/a") == ["1.png", "2.png"]
        np.testing.assert_array_equal(open_inputs([f"{host}/a"])[1]["image"], local[1]["image"])
        with pytest.raises(FileNotFoundError):
            open_inputs([f"{host}/a/3.png"])


def test_labels_that_are_not_read_are_named(objects, server, folder, tmp_path, caplog):
    place = server.folder()
    shutil.copy(folder / "a" / "1.png", tmp_path)
    (tmp_path / "split.csv").write_text("path,label,split\n1.png,sea,train\n")
    server.upload(tmp_path, place)
    assert ids(place) == ["1.png"]
    assert "its split.csv is not read" in caplog.text
