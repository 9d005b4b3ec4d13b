"""Whatever reads a file or a folder: given what it cannot use, it says so in one line, at once.

Each command and each public function that reads is called with nothing, an empty file, half of a
right file, a file of another kind, a folder, a pipe, and a name that is not UTF-8. It must end with
an error that names the file, and change nothing. A pipe that is opened waits for ever: an alarm
ends such a call.
"""

import os
import re
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import export_cases
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from folders import EXAMPLES, GOLDEN, TESTS
from folders import KEPT as ALL_KEPT
from PIL import Image

import coder
import nec_jax
from coder import CodecError, archive
from coder.cli import _OWN, OTHERS
from coder.cli import main as coder_main
from coder.embedding_files import open_embeddings
from nec_jax import heads
from nec_jax.images.read import read_image, read_mask
from nec_jax.images.record import DataError
from nec_jax.sources import open_source
from train import configs
from train.configs.options import OptionsError
from train.data import read_all
from train.main import main as train_main
from train.studies import results

KEPT = ALL_KEPT / "2026-11"
CODEC, MODEL = KEPT / "codec.safetensors", KEPT / "model.safetensors"
LONGEST = 60  # seconds

Reader = Callable[[Path, Path], Any]  # what is read, and a folder for what is written


def right_file(kind: str, folder: Path) -> Path:
    """A file, or a folder, that readers of this kind can use."""
    path = folder / f"right{SUFFIXES[kind]}"
    if kind in ("model", "codec", "head"):
        shutil.copy(KEPT / f"{kind}.safetensors", path)
    elif kind == "refiner":
        shutil.copy(GOLDEN / "ladder.refiner.safetensors", path)
    elif kind == "blob":
        shutil.copy(KEPT / "image.blob", path)
    elif kind == "archive":
        shutil.copytree(KEPT / "archive.zarr", path)
    elif kind == "scene":
        export_cases.written(path, (20, 24))
    elif kind == "embeddings":
        np.save(path, np.random.default_rng(0).normal(size=(40, 2, 2, 24)).astype(np.float32))
    elif kind == "vectors":
        y = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)
        pq.write_table(pa.table({"id": range(40), "e": [*y]}), path)
    elif kind == "table of blobs":
        right_file("vectors", folder)
        vectors = folder / f"right{SUFFIXES['vectors']}"
        assert not coder_main(["encode", str(vectors), "--out", str(path)])
    elif kind == "GeoTIFF":
        y = export_cases.cells((20, 24), holes=False)
        options: Any = {"count": y.shape[2], "dtype": "float32", "crs": "EPSG:32633"}
        transform = rasterio.Affine(*export_cases.TRANSFORM)
        with rasterio.open(
            path, "w", driver="GTiff", height=20, width=24, transform=transform, **options
        ) as file:
            file.write(y.transpose(2, 0, 1))
    elif kind == "checkpoint":
        shutil.copy(TESTS / "parity/golden/timm-no-class-token/model.safetensors", path)
    elif kind == "torch":
        shutil.copy(TESTS / "parity/golden/openai-clip/checkpoint.pt", path)
    elif kind == "transformers":
        shutil.copytree(TESTS / "parity/golden/transformers-vit", path)
    elif kind == "image":
        Image.effect_noise((60, 60), 50).save(path)
    elif kind == "study":
        path.write_text(f'[compress]\ninit = "{200 * "x"}"\n[axes]\nlambda = [1, 2]\n')
    elif kind == "table":
        columns = "method,head,lambda,bytes_per_image,mean,with_decoder,seeds,codec_bytes,setting"
        row = "nec,linear,1,9,50,False,1,5,lambda 1,top1,classification"
        path.write_text(f"{columns},metric,task\n{row}\n")
    elif kind == "report":
        path.mkdir()
        (path / "report.json").write_text("{}")
        np.savez(path / "images.npz", a=np.ones(3))
    elif kind == "labelled":
        for name in "ab":
            (path / name).mkdir(parents=True)
            for i in range(12):
                Image.new("RGB", (20, 20), (i, 2, 3)).save(path / name / f"{i}.png")
    elif kind == "image table":
        Image.new("RGB", (20, 20)).save(folder / "a.png")
        path.write_text("path,place\na.png,here\n")
    elif kind == "images":
        path.mkdir()
        for i in range(3):
            Image.new("RGB", (20, 20), (i, 2, 3)).save(path / f"{i}.png")
    return path


SUFFIXES = {
    "model": ".safetensors",
    "codec": ".safetensors",
    "head": ".safetensors",
    "refiner": ".safetensors",
    "blob": ".blob",
    "archive": ".zarr",
    "scene": ".zarr",
    "embeddings": ".npy",
    "vectors": ".gpq",
    "table of blobs": ".parquet",
    "GeoTIFF": ".tif",
    "checkpoint": ".safetensors",
    "torch": ".pt",
    "transformers": "",
    "image": ".png",
    "study": ".toml",
    "table": ".csv",
    "report": "",
    "image table": ".csv",
    "images": "",
    "labelled": "",
}


def coder_command(*words: str) -> Reader:
    """`python -m coder`, with FILE for what is read and OUT for what is written."""

    def call(path: Path, out: Path) -> None:
        there = {"FILE": str(path), "OUT": str(out / "written"), "BLOB": str(KEPT / "image.blob")}
        there |= {"NPY": str(out.parent / "right.npy"), "CODEC": str(CODEC), "MODEL": str(MODEL)}
        there |= {
            f"OUT{end}": str(out / f"written{end}") for end in (".parquet", ".zarr", ".tif", ".csv")
        }
        there |= {"SCENE": str(out.parent / "right.zarr")}
        there |= {"INTEGERS": str(out.parent / "integers.npy")}
        there |= {"ARCHIVE": str(KEPT / "archive.zarr")}
        there |= {"REFINER": str(GOLDEN / "ladder.refiner.safetensors")}
        status = coder_main([there.get(word, word) for word in words])
        if status:
            raise SystemExit(status)

    return call


def train_command(*words: str) -> Reader:
    def call(path: Path, out: Path) -> None:
        there = {"FILE": str(path), "OUT": str(out / "written")}
        there["MODEL"] = str(MODEL)
        train_main([there.get(word, word) for word in words])

    return call


def example(name: str, *words: str) -> Reader:
    def call(path: Path, out: Path) -> None:
        there = {"FILE": str(path), "OUT": str(out / "written.zarr")}
        program = sys.argv
        sys.argv = [name, *(there.get(word, word) for word in words)]
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        finally:
            sys.argv = program

    return call


def convert(path: Path, out: Path) -> None:
    coder_main(["convert", str(path), "--out", str(out / "written.safetensors")])


BLUE = ("--data", "blue-marble", "--chip", "32")
READERS: dict[str, tuple[str, Reader]] = {
    "coder info blob": ("blob", coder_command("info", "FILE")),
    "coder info codec": ("codec", coder_command("info", "FILE")),
    "coder info model": ("model", coder_command("info", "FILE")),
    "coder info refiner": ("refiner", coder_command("info", "FILE")),
    "coder info archive": ("archive", coder_command("info", "FILE")),
    "coder verify archive": ("archive", coder_command("verify", "FILE")),
    "coder decode archive": ("archive", coder_command("decode", "FILE", "--out", "OUT")),
    "coder verify --codec": ("codec", coder_command("verify", "BLOB", "--codec", "FILE")),
    "coder verify blob": ("blob", coder_command("verify", "FILE", "--codec", "CODEC")),
    "coder decode blob": (
        "blob",
        coder_command("decode", "FILE", "--codec", "CODEC", "--out", "OUT"),
    ),
    "coder decode blobs": (
        "blob",
        coder_command("decode", "BLOB", "FILE", "--codec", "CODEC", "--out", "OUT"),
    ),
    "coder decode --codec": (
        "codec",
        coder_command("decode", "BLOB", "--codec", "FILE", "--out", "OUT"),
    ),
    "coder decode --refiner": (
        "refiner",
        coder_command("decode", "BLOB", "--codec", "CODEC", "--refiner", "FILE", "--out", "OUT"),
    ),
    "coder decode archive --refiner": (
        "refiner",
        coder_command("decode", str(KEPT / "archive.zarr"), "--refiner", "FILE", "--out", "OUT"),
    ),
    "coder decode archive --refine": (
        "archive",
        coder_command("decode", "FILE", "--refine", "--out", "OUT"),
    ),
    "coder export": ("archive", coder_command("export", "FILE", "--out", "OUT.parquet")),
    "coder export to Zarr": ("archive", coder_command("export", "FILE", "--out", "OUT.zarr")),
    "coder export of a scene": (
        "scene",
        coder_command("export", "FILE", "--preview", "--out", "OUT.tif"),
    ),
    "coder export --head": (
        "head",
        coder_command("export", "SCENE", "--head", "FILE", "--out", "OUT.tif"),
    ),
    "coder copy": ("archive", coder_command("copy", "FILE", "--out", "OUT")),
    "coder copy of several": (
        "archive",
        coder_command("copy", "ARCHIVE", "FILE", "--codec", "MODEL", "--out", "OUT"),
    ),
    "coder copy --codec": (
        "model",
        coder_command("copy", "ARCHIVE", "--codec", "FILE", "--out", "OUT"),
    ),
    "coder append": ("archive", coder_command("append", "FILE", "ARCHIVE")),
    "coder append of others": ("archive", coder_command("append", "ARCHIVE", "FILE")),
    "coder add-refiner": ("archive", coder_command("add-refiner", "FILE", "--refiner", "REFINER")),
    "coder add-refiner --refiner": (
        "refiner",
        coder_command("add-refiner", "ARCHIVE", "--refiner", "FILE"),
    ),
    "coder fit": ("embeddings", coder_command("fit", "FILE", "--out", "OUT")),
    "coder fit --max-error": (
        "embeddings",
        coder_command(
            *("fit", "FILE", "--metric", "standardised", "--max-error", "40%", "--out", "OUT")
        ),
    ),
    "coder encode": ("embeddings", coder_command("encode", "FILE", "--out", "OUT")),
    "coder encode of a table": ("vectors", coder_command("encode", "FILE", "--out", "OUT.parquet")),
    "coder encode of a GeoTIFF": ("GeoTIFF", coder_command("encode", "FILE", "--out", "OUT.zarr")),
    "coder encode --scale": (
        "embeddings",
        coder_command("encode", "INTEGERS", "--scale", "FILE", "--out", "OUT"),
    ),
    "coder info of a table": ("table of blobs", coder_command("info", "FILE")),
    "coder decode of a table": (
        "table of blobs",
        coder_command("decode", "FILE", "--out", "OUT.parquet"),
    ),
    "coder decode of a table to CSV": (
        "table of blobs",
        coder_command("decode", "FILE", "--out", "OUT.csv"),
    ),
    "coder export to CSV": (
        "archive",
        coder_command("export", "FILE", "--pool", "mean", "--out", "OUT.csv"),
    ),
    "coder encode --codec": (
        "codec",
        coder_command("encode", "NPY", "--codec", "FILE", "--out", "OUT"),
    ),
    "nec convert": ("checkpoint", convert),
    "nec convert of PyTorch": ("torch", convert),
    "nec convert of a folder": ("transformers", convert),
    "train compress --init": (
        "model",
        train_command("compress", "--init", "FILE", *BLUE, "--workdir", "OUT"),
    ),
    "train distil --teacher": (
        "model",
        train_command("distil", "--teacher", "FILE", *BLUE, "--workdir", "OUT"),
    ),
    "train evaluate --model": (
        "model",
        train_command("evaluate", "--model", "FILE", *BLUE, "--out", "OUT"),
    ),
    "train evaluate --base": (
        "model",
        train_command("evaluate", "--base", "FILE", *BLUE, "--out", "OUT"),
    ),
    "train evaluate --models": (
        "model",
        train_command("evaluate", "--base", "MODEL", "--models", "FILE", *BLUE, "--out", "OUT"),
    ),
    "train evaluate --data": (
        "images",
        train_command("evaluate", "--base", "MODEL", "--data", "FILE", "--out", "OUT"),
    ),
    "train pretrain --data": (
        "images",
        train_command("pretrain", "--data", "FILE", "--workdir", "OUT"),
    ),
    "train sweep": ("study", train_command("sweep", "FILE", "--workdir", "OUT")),
    "train compress --config": (
        "study",
        train_command("compress", "--config", "FILE", "--workdir", "OUT"),
    ),
    "train report": ("table", train_command("report", "FILE", "--out", "OUT")),
    "train compare": ("report", train_command("compare", "FILE")),
    "train compare of a table": ("table", train_command("compare", "FILE")),
    "nec encode --model": (
        "model",
        coder_command("encode", "blue-marble", "--model", "FILE", "--out", "OUT"),
    ),
    "nec encode images": (
        "images",
        coder_command("encode", "FILE", "--model", "nec-vit-ti", "--out", "OUT"),
    ),
    "nec encode table": (
        "image table",
        coder_command("encode", "FILE", "--model", "nec-vit-ti", "--out", "OUT"),
    ),
    "examples/probe.py": ("archive", example("probe.py", "FILE")),
    "coder.load": ("codec", lambda path, _: coder.load(path)),
    "coder.load_refiner": ("refiner", lambda path, _: coder.load_refiner(path)),
    "nec_jax.load": ("model", lambda path, _: nec_jax.load(path)),
    "heads.load": ("head", lambda path, _: heads.load(path)),
    "coder.load_head": ("head", lambda path, _: coder.load_head(path)),
    "convert_checkpoint": ("checkpoint", lambda path, _: nec_jax.convert_checkpoint(path)),
    "open_embeddings": ("embeddings", lambda path, _: open_embeddings(path).y[:]),
    "coder.open": ("archive", lambda path, _: coder.open(path)[:]),
    "archive.open_archive": ("archive", lambda path, _: archive.open_archive(path)),
    "read_image": ("image", lambda path, _: read_image(path, "an image")),
    "read_mask": ("image", lambda path, _: read_mask(path)),
    "open_source": ("images", lambda path, _: read_all(open_source(path), 16)),
    "configs.load": ("study", lambda path, _: configs.load(str(path), "sweep")),
    "results.read": ("table", lambda path, _: results.read(path)),
}


@pytest.fixture
def alarm() -> Iterator[None]:
    """What waits for ever on a pipe ends as an error."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"nothing happened for {LONGEST} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def missing(path: Path, right: Path) -> None:
    pass


def empty(path: Path, right: Path) -> None:
    path.touch()


def truncated(path: Path, right: Path) -> None:
    """Half of the file; of a folder, half of its largest file."""
    if right.is_file():
        path.write_bytes(right.read_bytes()[: right.stat().st_size // 2])
        return
    shutil.copytree(right, path)
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def another_type(path: Path, right: Path) -> None:
    np.savez(path.with_name("other.npz"), a=np.arange(30), b=np.ones(3))
    path.with_name("other.npz").rename(path)


def a_folder(path: Path, right: Path) -> None:
    path.mkdir()
    (path / "readme.txt").write_text("nothing of use")


def a_pipe(path: Path, right: Path) -> None:
    os.mkfifo(path)


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_no_command_is_left_out():
    commands = {*_OWN, *OTHERS} - {"models"}
    named = {name.split()[1] for name in READERS if name.split()[0] in ("coder", "nec", "train")}
    # Options of all training commands are read alike; `describe` reads a study as they do.
    assert commands - named == {"refine", "describe"}


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("name", ["plain", "not UTF-8"])
@pytest.mark.parametrize(
    "make", [missing, empty, truncated, another_type, a_folder, a_pipe], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("reader", READERS)
def test_what_cannot_be_read_is_one_line(
    reader: str,
    make: Callable[[Path, Path], None],
    name: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, call = READERS[reader]
    right_file("embeddings", tmp_path)
    if "--scale" in reader:
        np.save(tmp_path / "integers.npy", np.ones((40, 2, 2, 24), np.int8))
    if "--head" in reader:
        right_file("scene", tmp_path)
    right = right_file(kind, tmp_path)
    stem = "bad" if name == "plain" else os.fsdecode(b"b\xff\xe4d")
    path, out = tmp_path / f"{stem}{SUFFIXES[kind]}", tmp_path / "out"
    out.mkdir()
    make(path, right)
    before = content(tmp_path)
    with pytest.raises((SystemExit, CodecError, DataError, OptionsError, OSError)) as caught:
        call(path, out)
    error = capfd.readouterr().err
    assert not isinstance(caught.value, TimeoutError)
    if isinstance(caught.value, SystemExit):
        assert caught.value.code not in (0, None)
        if isinstance(caught.value.code, str):
            error += f"{caught.value.code}\n"
    else:
        error += f"{caught.value}\n"
    assert "Traceback" not in error
    # Of archives each damaged part has a line.
    lines = [
        line for line in error.splitlines() if not re.match(r"on \d+ |skipped: |left out", line)
    ]
    assert len(lines) == 1 or (kind == "archive" and make is truncated), error
    shown = error.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    assert ("bad" if name == "plain" else r"\xff") in shown, error
    written = {k: v for k, v in content(tmp_path).items() if not k.startswith("out/")}
    assert written == {k: v for k, v in before.items() if not k.startswith("out/")}
    left = [file for file in out.rglob("*") if file.is_file() and file.name != ".lock"]
    assert not left


WRITERS: dict[str, tuple[str, Callable[[Path, Path, list[str]], Any]]] = {
    "coder decode blob": (
        "blob",
        lambda path, out, more: coder_main(
            ["decode", str(path), "--codec", str(CODEC), "--out", str(out), *more]
        ),
    ),
    "coder decode --refiner": (
        "refiner",
        lambda path, out, more: coder_main(
            [
                *("decode", str(KEPT / "image.blob"), "--codec", str(CODEC)),
                *("--refiner", str(path), "--out", str(out), *more),
            ]
        ),
    ),
    "coder fit --refiner": (
        "embeddings",
        lambda path, out, more: coder_main(
            ["fit", str(path), "--out", str(path.with_name("codec")), "--refiner", str(out), *more]
        ),
    ),
    "coder decode archive": (
        "archive",
        lambda path, out, more: coder_main(["decode", str(path), "--out", str(out), *more]),
    ),
    "coder fit": (
        "embeddings",
        lambda path, out, more: coder_main(["fit", str(path), "--out", str(out), *more]),
    ),
    "coder encode": (
        "embeddings",
        lambda path, out, more: coder_main(["encode", str(path), "--out", str(out), *more]),
    ),
    "coder encode of a table": (
        "vectors",
        lambda path, out, more: coder_main(["encode", str(path), "--out", str(out), *more]),
    ),
    "coder decode of a table": (
        "table of blobs",
        lambda path, out, more: coder_main(["decode", str(path), "--out", str(out), *more]),
    ),
    "nec convert": (
        "checkpoint",
        lambda path, out, more: coder_main(["convert", str(path), "--out", str(out), *more]),
    ),
    "train evaluate": (
        "model",
        lambda path, out, more: train_main(
            ["evaluate", "--base", str(path), *BLUE, "--out", str(out), *more]
        ),
    ),
    "train compress": (
        "model",
        lambda path, out, more: train_main(
            ["compress", "--init", str(path), *BLUE, "--workdir", str(out)]
        ),
    ),
    "train pretrain": (
        "images",
        lambda path, out, _: train_main(
            ["pretrain", "--data", str(path), "--workdir", str(out), "--steps", "1"]
        ),
    ),
    "train evaluate of images": (
        "labelled",
        lambda path, out, more: train_main(
            ["evaluate", "--base", str(MODEL), "--data", str(path), "--out", str(out), *more]
        ),
    ),
    "train report": (
        "table",
        lambda path, out, more: train_main(["report", str(path), "--out", str(out), *more]),
    ),
}


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_the_input_is_no_output(
    writer: str, overwrite: bool, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    kind, call = WRITERS[writer]
    path = right_file(kind, tmp_path)
    (tmp_path / f"link{SUFFIXES[kind]}").symlink_to(path)
    before = content(tmp_path)
    for out in (path, tmp_path / f"link{SUFFIXES[kind]}"):
        try:
            status = call(path, out, ["--overwrite"] * overwrite)
        except SystemExit as ended:
            status = ended.code
        error = capfd.readouterr().err + (status if isinstance(status, str) else "")
        assert status not in (0, None), error
        assert "Traceback" not in error
        assert content(tmp_path) == before
