"""Where a URL may stand in a command line, and where not."""

from pathlib import Path

import numpy as np
import pytest
from archive_cases import CODEC, contents, written

import coder
from coder import InputError, archive
from coder.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    written("a.zarr")
    return tmp_path


def test_an_address_of_a_local_file_is_its_path(here, capsys):
    shown = []
    for place in ("a.zarr", f"file://{here}/a.zarr"):
        assert main(["info", place]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert main(["copy", f"file://{here}/a.zarr", "--out", f"file://{here}/b.zarr"]) == 0
    assert contents(here / "a.zarr") == contents(here / "b.zarr")
    assert main(["decode", f"file://{here}/a.zarr", "--out", f"file://{here}/out"]) == 0
    assert (here / "out/label.npy").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["decode", "a.zarr", "--out", "s3://bucket/out"],
        ["fit", "e.npy", "--out", "s3://bucket/codec.safetensors"],
        ["copy", "a.zarr", "--out", "b.zarr", "--codec", "s3://bucket/codec.safetensors"],
    ],
)
def test_a_local_path_is_no_url(arguments, here, capsys):
    before = set(here.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "is a URL, and this must be a local path" in shown
    assert set(here.iterdir()) == before


def test_embeddings_are_coded_to_a_local_folder(here, capsys):
    np.save("e.npy", np.zeros((4, 3), np.float32))
    before = set(here.iterdir())
    assert main(["encode", "e.npy", "--out", "s3://bucket/a.zarr"]) == 1
    assert "s3://bucket/a.zarr: embeddings are coded to a local folder" in capsys.readouterr().err
    assert set(here.iterdir()) == before


def test_a_copy_without_a_codec_is_exact(here, capsys):
    for more in (["--quality", "0"], ["--keep", "ids.txt"], ["--drop", "ids"], ["--shard", "4"]):
        assert main(["copy", "a.zarr", "--out", "b.zarr", *more]) == 1
        assert f"{more[0]} makes another archive: give --codec, too" in capsys.readouterr().err
    assert main(["copy", "a.zarr", "a.zarr", "--out", "b.zarr"]) == 1
    assert "joined with the codec: give --codec, too" in capsys.readouterr().err
    assert not Path("b.zarr").exists()


def test_what_is_not_installed_or_unknown_is_named(here, capsys, monkeypatch):
    pytest.importorskip("fsspec")
    assert main(["info", "nothing://a"]) == 1
    assert "nothing://a: cannot be opened: Protocol not known: nothing" in capsys.readouterr().err
    assert main(["copy", "a.zarr", "--out", "gs://bucket/a"]) == 1
    shown = capsys.readouterr().err
    assert "install nec-jax[remote], or the package of fsspec for this protocol" in shown
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    assert main(["info", "s3://bucket/a"]) == 1
    assert "s3://bucket/a: " in (shown := capsys.readouterr().err)
    assert "install nec-jax[remote]" in shown


def test_embeddings_are_read_at_a_url(here, capsys):
    pytest.importorskip("fsspec")
    import zarr

    y = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    array = zarr.create_array("memory://embeddings.zarr", shape=y.shape, dtype=y.dtype)
    array[:] = y
    np.save("y.npy", y)
    for name in ("y.npy", "memory://embeddings.zarr"):
        assert main(["fit", name, "--out", f"{name[:1]}.codec"]) == 0
    assert Path("y.codec").read_bytes() == Path("m.codec").read_bytes()
    assert main(["encode", "memory://embeddings.zarr", "--out", "e.zarr"]) == 0


def test_schemes_in_capitals_are_refused_wherever_a_url_may_stand(here, capsys):
    before = contents(here / "a.zarr")
    for url in ("S3://bucket/a.zarr", f"FILE://{here}/a.zarr", "Https://host/a.zarr?sig=SECRET"):
        for arguments in (
            ["info", url], ["verify", url], ["decode", url, "--out", "out"],
            ["copy", url, "--out", "b.zarr"], ["copy", "a.zarr", "--out", url],
            ["encode", url, "--model", "nec-vit-ti", "--out", "b.zarr"],
            ["encode", "images", "--model", "nec-vit-ti", "--out", url],
        ):  # fmt: skip
            with pytest.raises(SystemExit) as stopped:
                main(arguments)
            assert stopped.value.code == 2
            shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
            assert f"in lower case, {url.partition('://')[0].lower()}://" in shown
            assert "SECRET" not in shown
    for url in (f"FILE://{here}/a.zarr", "S3://bucket/a.zarr"):
        with pytest.raises(InputError, match="in lower case"):
            coder.open(url)
        with pytest.raises(InputError, match="in lower case"):
            archive.Writer(url, CODEC, 1, (1, 1))
    assert [path.name for path in here.iterdir()] == ["a.zarr"]
    assert contents(here / "a.zarr") == before
