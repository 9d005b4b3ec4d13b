"""`nec encode` of images at URLs, and to a URL: the archive that local paths give."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from web_server import web_server

import coder
import nec_jax
from coder.cli import main
from nec_jax.cli.encode_command import NOT_ALL

COUNT = 9


@pytest.fixture
def folder(model, tmp_path: Path) -> Path:
    nec_jax.save(model, tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in "ab":  # of which neither is a class, if both are given
        (tmp_path / "images" / name).mkdir(parents=True)
    for i in range(COUNT):
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        image = small.resize((50, 40), Image.Resampling.BICUBIC)
        image.save(tmp_path / "images" / "ab"[i % 2] / f"{i}.png")
    return tmp_path


def encode(folder: Path, inputs: list[str], out: str) -> int:
    model = str(folder / "model.safetensors")
    return main(["encode", *inputs, "--model", model, "--out", out, "--shard", "4"])


def without_origin(files: dict[Path, bytes]) -> dict[Path, object]:
    """The files of an archive, but for the names of its inputs."""
    record = json.loads(files[Path("zarr.json")])
    record["attributes"].pop("inputs")
    record["attributes"].pop("data")
    return {**files, Path("zarr.json"): record}


def test_it_is_the_archive_of_local_paths(folder, objects, capsys):
    local = [str(folder / "images/a"), str(folder / "images/b")]
    assert encode(folder, local, str(folder / "a.zarr")) == 0
    found = (folder / "a.zarr").rglob("*")
    here = {p.relative_to(folder / "a.zarr"): p.read_bytes() for p in found if p.is_file()}
    place = objects.folder()
    objects.upload(folder / "images", f"{place}/images")
    out = f"{place}/out.zarr"
    capsys.readouterr()

    # The network fails for one image, which is not marked as bad.
    def failing(method: str, key: str, number: int) -> str | None:
        return "503" if key.endswith("8.png") else None

    with objects.failing(failing):
        assert encode(folder, [f"{place}/images"], out) == 1
    assert f"{place}/images/a/8.png: cannot be read (5 tries" in capsys.readouterr().err
    assert Path("valid/c/0") in objects.objects(out)
    assert main(["verify", out]) == 1
    assert encode(folder, [f"{place}/images"], out) == 0
    assert without_origin(objects.objects(out)) == without_origin(here)
    printed = capsys.readouterr().out
    assert f"{out}: {COUNT} images in {sum(map(len, objects.objects(out).values())):,} bytes" in (
        printed
    )
    assert encode(folder, [f"{place}/images"], out) == 0
    assert "it was complete, and nothing was written" in capsys.readouterr().out
    objects.put(f"{place}/images/a/8.png", b"another size")
    assert encode(folder, [f"{place}/images"], out) == 1
    assert "the size of a file differs" in capsys.readouterr().err
    assert encode(folder, [*local, f"{place}/images"], str(folder / "b.zarr")) == 1
    assert "is a local path: give URLs, or local paths, but not both" in capsys.readouterr().err
    assert sorted(p.name for p in folder.iterdir()) == ["a.zarr", "images", "model.safetensors"]


def test_a_table_of_urls_gives_labels_and_columns(folder, objects):
    place = objects.folder()
    objects.upload(folder / "images", place)
    lines = [f"{place}/{'ab'[i % 2]}/{i}.png,tile {i},kind {i % 2},{i / 4}" for i in range(COUNT)]
    (folder / "images.csv").write_text("\n".join(["path,id,label,cloud", *lines]))
    assert encode(folder, [str(folder / "images.csv")], str(folder / "a.zarr")) == 0
    embeddings = coder.open(folder / "a.zarr")
    assert embeddings.valid.all()
    assert [str(one) for one in embeddings.ids] == [f"tile {i}" for i in range(COUNT)]
    assert embeddings.labels.tolist() == [i % 2 for i in range(COUNT)]
    assert embeddings.column("cloud").tolist() == [i / 4 for i in range(COUNT)]
    assert str(embeddings.column("path")[1]) == f"{place}/b/1.png"


def test_a_table_at_a_signed_url_is_the_local_table(folder, capsys):
    lines = [f"{'ab'[i % 2]}/{i}.png,kind {i % 2},{i / 4}" for i in range(COUNT)]
    lines.append("a/none.png,kind 0,")
    (folder / "images/images.csv").write_text("\n".join(["path,label,cloud", *lines]))
    assert encode(folder, [str(folder / "images/images.csv")], str(folder / "a.zarr")) == NOT_ALL
    out = folder / "b.zarr"
    with web_server(folder) as (host, _):
        url = f"{host}/images/images.csv"
        assert encode(folder, [f"{url}?sig=SECRET"], str(out)) == NOT_ALL
        assert encode(folder, [f"{url}?sig=ANOTHER"], str(out)) == NOT_ALL  # of a later day
        (folder / "images/images.csv").write_text("\n".join(["path,label,cloud", *lines[1:]]))
        assert encode(folder, [f"{url}?sig=SECRET"], str(out)) == 1
        assert encode(folder, [f"{host}/none.csv?sig=SECRET"], str(folder / "c.zarr")) == 1
    shown = capsys.readouterr()
    assert "SECRET" not in shown.out + shown.err
    assert "it was complete, and nothing was written" in shown.out
    assert "was begun with other images" in shown.err
    assert f"{host}/none.csv: " in shown.err
    assert coder.open(out).valid.sum() == COUNT
    for name in ("embedding", "valid", "id", "label", "cloud"):
        for path in (folder / "a.zarr" / name).rglob("*"):
            if path.is_file():
                assert (out / path.relative_to(folder / "a.zarr")).read_bytes() == path.read_bytes()
    assert not any(b"SECRET" in path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert json.loads((out / "zarr.json").read_text())["attributes"]["inputs"] == [url]
