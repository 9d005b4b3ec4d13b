"""Refiners on the command line: trained, shown, verified, and used where somebody asks for them."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transform_cases
import zarr
from archive_cases import contents
from refiner_cases import random_refiner

import coder
from coder import archive
from coder.cli import fit_commands, main
from coder.codecs import MODEL
from coder.format import container

WHOLE = transform_cases.ladder(True)
REFINER = random_refiner(WHOLE)
REFINING = WHOLE.with_refiner(REFINER)
GRID, QUALITY, COUNT = transform_cases.GRID, 4, 6
Y = transform_cases.embeddings(True, COUNT)
BLOB = WHOLE.encode(Y[0], GRID, quality=QUALITY)
LINE = (
    f"refiner {REFINER.fingerprint[:4].hex()}, 9 hidden units, {WHOLE.num_qualities} qualities, "
    f"{REFINER.refiner_bytes:,} bytes"
)
FACTS = {
    "fingerprint": REFINER.fingerprint.hex(),
    "hidden_units": 9,
    "num_qualities": WHOLE.num_qualities,
    "refiner_bytes": REFINER.refiner_bytes,
}
CONFIG = {"image_size": 96, "bands": ["red"], "dtype": "uint8", "patch": 16}  # of a model's file


@pytest.fixture
def run(capsys: pytest.CaptureFixture, tmp_path: Path):
    def run(*words: Any, status: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert main([str(word) for word in words]) == status
        return capsys.readouterr()

    return run


@pytest.fixture
def facts(run):
    return lambda *words, status=0: json.loads(run(*words, "--json", status=status)[0])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A blob, a codec, a model and the refiner, and archives with and without it."""
    (tmp_path / "blob").write_bytes(BLOB)
    WHOLE.save(tmp_path / "codec")
    REFINER.save(tmp_path / "refiner")
    coder.Refiner.save(
        random_refiner(coder.fit(transform_cases.smooth_embeddings(5, 60))), tmp_path / "other"
    )
    tensors, content = WHOLE.to_parts()
    own, entry = REFINER.to_parts()
    tensors = {f"codec/{name}": values for name, values in tensors.items()}
    tensors |= {f"refiner/{name}": values for name, values in own.items()}
    whole = {"config": CONFIG, "provenance": "{}", "codec": content, "refiner": entry}
    container.write(tmp_path / "model", MODEL, tensors, whole)
    for name, codec in (("plain.zarr", WHOLE), ("refined.zarr", REFINING)):
        with archive.Writer(tmp_path / name, codec.at(QUALITY), COUNT, GRID, shard=4) as writer:
            for part in writer.missing():
                numbers = list(range(part.start, part.stop))
                errors = ["lost" if i == 1 else None for i in numbers]
                good = [i for i in numbers if i != 1]
                writer.write(part, Y[good], [f"image {i}" for i in numbers], errors=errors)
            writer.finish()
    return tmp_path


def test_a_refiner_file_is_shown_and_verified(files, run, facts):
    out, _ = run("info", files / "refiner")
    assert out.splitlines() == [
        f"{LINE}, checksum right",
        f"fingerprint {REFINER.fingerprint.hex()}",
        "12 channels",
        f"belongs to a codec of {WHOLE.num_qualities} qualities",
    ]
    found = {"kind": "refiner", "channels": 12} | FACTS
    assert facts("info", files / "refiner") == found | {"codecs": dict(REFINER.codecs)}
    assert run("verify", files / "refiner")[0] == f"good: {LINE}\n"
    assert facts("verify", files / "refiner") == found | {"good": True}
    data = bytearray((files / "refiner").read_bytes())
    data[-1] ^= 1
    (files / "damaged").write_bytes(data)
    for command in ("info", "verify"):
        assert "SHA-256" in run(command, files / "damaged", status=1)[1]
    _, err = run("decode", files / "refiner", "--out", files / "out", status=1)
    assert "a refiner, which holds no embeddings" in err
    _, err = run("info", files / "refiner", "--codec", files / "codec", status=1)
    assert "a codec, model or refiner file" in err


def test_the_refiner_of_a_model_file_is_shown(files, run, facts):
    assert LINE in run("info", files / "model")[0].splitlines()
    assert run("verify", files / "model")[0].endswith(f"good: {LINE}\n")
    for command in ("info", "verify"):
        assert facts(command, files / "model")["refiner"] == FACTS
        assert "refiner" not in facts(command, files / "codec")
        assert "refiner" not in run(command, files / "codec")[0]


def test_the_refiner_of_an_archive_is_shown(files, run, facts):
    path = files / "refined.zarr"
    out, err = run("info", path)
    assert err == ""
    assert LINE in out.splitlines()
    assert "\nrefiner:" not in out  # it is not one of the arrays of images
    shown = facts("info", path)
    assert shown["refiner"] == FACTS
    assert "refiner" not in shown["arrays"]
    stored = sum(array["stored_bytes"] for array in shown["arrays"].values())
    own = sum(part.stat().st_size for part in (path / "refiner/file").rglob("*") if part.is_file())
    assert shown["stored_bytes"] == stored + own == COUNT * shown["bytes_per_image"]
    assert f"{LINE}, read" in run("verify", path)[0].splitlines()
    assert facts("verify", path)["refiner"] == FACTS
    for command in ("info", "verify"):
        assert "refiner" not in run(command, files / "plain.zarr")[0]
        assert "refiner" not in facts(command, files / "plain.zarr")


def test_a_damaged_refiner_of_an_archive_is_a_problem_of_verify_alone(files, run, facts):
    path = files / "refined.zarr"
    (path / "refiner/file/c/0").unlink()
    for command in ("info", "verify"):
        out, err = run(command, path, status=1)
        assert err.startswith(f"{path}: refiner/file is lost or damaged (")
        assert err.count("\n") == 1
        assert "; not whole" in out
    assert "1 parts lost or unreadable" in out
    assert "refiner/file is lost" in facts("verify", path, status=1)["problems"][0]
    assert run("decode", path, "--out", files / "out")[1] == ""
    expected = run("decode", files / "plain.zarr", "--out", files / "plain")[1]
    assert expected == ""
    for name in ("embedding", "class_token"):
        one, two = (np.load(files / folder / f"{name}.npy") for folder in ("out", "plain"))
        np.testing.assert_array_equal(one, two)
    _, err = run("decode", path, "--refine", "--out", files / "no", status=1)
    assert "refiner/file is lost or damaged" in err
    assert not (files / "no").exists()
    (path / "embedding/zarr.json").unlink()
    assert run("verify", path, status=1)[1].count("\n") == 2


def test_archives_are_decoded_refined_where_somebody_asks(files, run, facts):
    path, codec = files / "refined.zarr", REFINING.at(QUALITY).split()[0]
    plain = archive.read_array(archive.open_archive(path), "embedding")
    expected = plain.copy()
    for i in set(range(COUNT)) - {1}:
        blob = codec.encode(Y[i, 1:], GRID)
        expected[i] = codec.decode(blob, refine=True).reshape(expected[i].shape)
    note = f", refined by {REFINER.fingerprint[:4].hex()}\n"
    calls = {
        "own": ("decode", path, "--refine"),
        "file": ("decode", path, "--refiner", files / "refiner"),
        "both": ("decode", path, "--refine", "--refiner", files / "refiner"),
        "other archive": ("decode", files / "plain.zarr", "--refiner", files / "refiner"),
    }
    for name, words in calls.items():
        out, _ = run(*words, "--out", files / name)
        assert out.count(note) == 1
        assert f"embedding.npy: float32 [6, 6, 6, 12]{note}" in out
        np.testing.assert_array_equal(np.load(files / name / "embedding.npy"), expected)
        assert not (files / name / "refiner.npy").exists()
    out, _ = run("decode", path, "--out", files / "plain")
    assert "refined" not in out.replace(str(path), "").replace("refined.zarr", "")
    np.testing.assert_array_equal(np.load(files / "plain/embedding.npy"), plain)
    assert not (files / "plain/refiner.npy").exists()
    decoded = facts("decode", path, "--refine", "--out", files / "json")["files"]
    assert decoded[str(files / "json/embedding.npy")]["refiner"] == REFINER.fingerprint.hex()
    assert "refiner" not in decoded[str(files / "json/class_token.npy")]


def test_blobs_are_decoded_refined_where_somebody_asks(files, run, facts):
    plain, refined = WHOLE.decode(BLOB), REFINING.decode(BLOB, refine=True)
    calls = {
        "model": (refined, "--codec", files / "model", "--refine"),
        "file": (refined, "--codec", files / "codec", "--refiner", files / "refiner"),
        "none": (plain, "--codec", files / "model"),
    }
    for name, (expected, *words) in calls.items():
        out, _ = run("decode", files / "blob", *words, "--out", files / f"{name}.npy")
        np.testing.assert_array_equal(np.load(files / f"{name}.npy"), expected)
        assert (", refined by" in out) == (expected is refined)
    found = facts("decode", files / "blob", *calls["file"][1:], "--out", files / "json.npy")
    assert found["files"][str(files / "json.npy")]["refiner"] == REFINER.fingerprint.hex()


@pytest.mark.parametrize("kind", ["raster", "grids", "vectors"])
def test_arrays_of_encode_are_refined_blob_by_blob(kind, tmp_path, run):
    """A raster has chunks of 64 x 64 tokens, and smaller ones at its edges."""
    y = {
        "raster": transform_cases.smooth_tiles(70, 65)[0],
        "grids": transform_cases.smooth_embeddings(3, 5),
        "vectors": transform_cases.smooth_embeddings(3, 5).reshape(-1, 12)[:, :],
    }[kind]
    np.save(tmp_path / "y.npy", y)
    codec = transform_cases.ladder()
    refiner = random_refiner(codec)
    codec.save(tmp_path / "codec")
    refiner.save(tmp_path / "refiner")
    store = tmp_path / "y.zarr"
    options = ("--quality", "5", "--codec", tmp_path / "codec")
    run("encode", tmp_path / "y.npy", "--out", store, *options)
    run("decode", store, "--refiner", tmp_path / "refiner", "--out", tmp_path / "out")
    array: Any = zarr.open_array(store, mode="r")
    plain, one = array[:], codec.with_refiner(refiner).at(5)
    sides = array.chunks[-3:-1] if kind != "vectors" else (1, array.chunks[0])
    found = np.load(tmp_path / "out/y.npy")
    grids = plain if kind == "grids" else plain.reshape(1, *((1,) * (3 - y.ndim)), *plain.shape)
    refined = np.empty_like(grids)
    for i, grid in enumerate(grids):
        for top in range(0, grid.shape[0], sides[0]):
            for left in range(0, grid.shape[1], sides[1]):
                place = (i, slice(top, top + sides[0]), slice(left, left + sides[1]))
                part = grids[place]
                blob = one.encode(part.reshape(-1, 12), part.shape[:2])  # rewriting is lossless
                refined[place] = one.decode(blob, refine=True).reshape(part.shape)
    np.testing.assert_allclose(found, refined.reshape(found.shape), rtol=1e-4, atol=1e-4)
    assert np.abs(found - plain).max() > 0.1
    _, err = run("decode", store, "--refine", "--out", tmp_path / "no", status=1)
    assert err == f"{store}: holds no refiner: give one with --refiner\n"


def test_what_is_not_there_is_named(files, run):
    blob = ("decode", files / "blob", "--codec", files / "codec", "--out", files / "out")
    cases = [
        ((*blob, "--refine"), "codec: holds no refiner: give one with --refiner"),
        ((*blob, "--refiner", files / "other"), "other: the refiner belongs to another codec"),
        ((*blob, "--refiner", files / "codec"), "codec: a codec file where a refiner file is"),
        ((*blob, "--refiner", files / "none"), "none: no such refiner"),
    ]
    for name in ("plain.zarr", "refined.zarr"):
        path = ("decode", files / name, "--out", files / "out")
        cases += [
            ((*path, "--refiner", files / "other"), "other: the refiner belongs to another codec"),
            ((*path, "--refiner", files / "none"), "none: no such refiner"),
        ]
    plain = ("decode", files / "plain.zarr", "--refine", "--out", files / "out")
    cases.append((plain, "plain.zarr: holds no refiner: give one with --refiner"))
    for words, message in cases:
        out, err = run(*words, status=1)
        assert (out, err.count("\n")) == ("", 1), words
        assert message in err
        assert not (files / "out").exists()
    shutil.copy(files / "refiner", files / "r.npy")
    for out in (files / "r.npy", files / "refiner"):
        words = (*blob[:-1], out, "--refiner", files / "r.npy", "--overwrite")
        if out.name == "r.npy":
            assert "is the input" in run(*words, status=1)[1]
    assert (files / "r.npy").read_bytes() == REFINER.to_bytes()


def test_fit_trains_a_refiner_where_it_is_told_to(tmp_path, run, facts, monkeypatch):
    quick = functools.partial(coder.fit_refiner, hidden=8, steps=5)
    monkeypatch.setattr(fit_commands, "fit_refiner", quick)
    y = transform_cases.smooth_embeddings(1, 60)
    y[3, 1] = -9999
    np.save(tmp_path / "y.npy", y)
    words = ("fit", tmp_path / "y.npy", "--nodata", "-9999")
    out, _ = run(*words, "--out", tmp_path / "codec", "--refiner", tmp_path / "refiner")
    codec, refiner = coder.load(tmp_path / "codec"), coder.load_refiner(tmp_path / "refiner")
    helps = np.count_nonzero(refiner.gains)
    assert f"the refiner helps at {helps} of {codec.num_qualities} qualities\n" in out
    assert refiner == quick(codec, y, nodata=-9999)
    assert "takes minutes" in out
    assert f"{tmp_path / 'refiner'}: refiner {refiner.fingerprint[:4].hex()}, 8 hidden" in out
    codec.with_refiner(refiner)
    run(*words, "--out", tmp_path / "codec2")
    assert (tmp_path / "codec2").read_bytes() == (tmp_path / "codec").read_bytes()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for more, message in (
        (("--out", tmp_path / "new", "--refiner", tmp_path / "new"), "name one file"),
        (("--out", tmp_path / "new", "--refiner", tmp_path / "refiner"), "refiner: exists"),
        (("--out", tmp_path / "new", "--refiner", tmp_path / "y.npy", "--overwrite"), "the input"),
        (("--out", tmp_path / "new", "--refiner", tmp_path / "no/r"), "there is no folder"),
    ):
        assert message in run(*words, *more, status=1)[1]
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    np.save(tmp_path / "few.npy", y[10:17])
    few = ("fit", tmp_path / "few.npy", "--out", tmp_path / "c", "--refiner", tmp_path / "r")
    assert "at least 8" in run(*few, status=1)[1]
    assert not (tmp_path / "c").exists()
    names = {"out": tmp_path / "codec", "refiner": tmp_path / "refiner"}
    found = facts(*words, *(x for k, v in names.items() for x in (f"--{k}", v)), "--overwrite")
    assert found["refiner"]["fingerprint"] == refiner.fingerprint.hex()
    assert found["refiner"]["out"] == str(tmp_path / "refiner")
    assert found["codec_bytes"] == (tmp_path / "codec").stat().st_size
    # The same refiner, for the codec that exists.
    there = ("--codec", tmp_path / "codec", "--refiner", tmp_path / "again")
    found = facts(*words, *there)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "refiner").read_bytes()
    assert "out" not in found
    assert found["fingerprint"] == codec.fingerprint.hex()
    for more, message in (
        (("--codec", tmp_path / "codec"), "name the file to write, --refiner"),
        ((*there, "--out", tmp_path / "new"), "give one of --out"),
        ((), "give one of --out"),
        ((*there, "--max-tokens", 99), "leave it, or --codec, out"),
        ((*there[:2], "--refiner", tmp_path / "codec", "--overwrite"), "the input"),
    ):
        assert message in run(*words, *more, status=1)[1]


@pytest.mark.parametrize("kind", ["grids", "raster", "vectors"])
def test_encode_chooses_symbols_for_a_refiner_chunk_by_chunk(
    kind: str, tmp_path: Path, run, facts
) -> None:
    y = transform_cases.smooth_embeddings(1, 120)
    y = {"grids": y[:5], "raster": y.reshape(72, 60, -1), "vectors": y.reshape(-1, 12)[:700]}[kind]
    codec = coder.fit(y)
    refining = codec.with_refiner(random_refiner(codec))
    one = refining.at(QUALITY)
    np.save(tmp_path / "y.npy", y)
    codec.save(tmp_path / "codec")
    assert refining.refiner is not None
    refining.refiner.save(tmp_path / "refiner")
    words = ("encode", tmp_path / "y.npy", "--quality", QUALITY, "--out", tmp_path / "z.zarr")
    assert "give its file, --codec" in run(*words, "--refiner", tmp_path / "refiner", status=1)[1]
    given = (*words, "--codec", tmp_path / "codec", "--refiner")
    other = tmp_path / "other"
    random_refiner(WHOLE).save(other)
    assert f"{other}: the refiner belongs to another" in run(*given, other, status=1)[1]
    found = facts(*given, tmp_path / "refiner")
    assert found["refiner"] == refining.refiner.fingerprint.hex()
    array = zarr.open_array(tmp_path / "z.zarr", mode="r")
    chunk = {
        "grids": (slice(2, 3),),
        "raster": (slice(64, 72), slice(0, 60)),
        "vectors": (slice(512, 700),),
    }[kind]
    part = y[chunk]
    grid = {"grids": part.shape[1:3], "raster": part.shape[:2], "vectors": (1, 188)}[kind]
    blob = one.encode(part.reshape(-1, 12), grid, for_refiner=True)
    np.testing.assert_array_equal(array[chunk], one.decode(blob).reshape(part.shape))
    assert "symbols were chosen for readers with refiner" in run(
        *given, tmp_path / "refiner", "--overwrite"
    )[0]  # fmt: skip


def test_encode_does_not_choose_symbols_for_a_refiner_unasked(tmp_path: Path, run) -> None:
    """Also if the codec is that of a model, whose file has a refiner too."""
    y = transform_cases.smooth_embeddings(1, 20)
    codec = coder.fit(y)
    codec.save(tmp_path / "codec")
    tensors, content = codec.to_parts()
    own, entry = random_refiner(codec).to_parts()
    held = {f"codec/{name}": values for name, values in tensors.items()}
    held |= {f"refiner/{name}": values for name, values in own.items()}
    whole = {"config": CONFIG, "provenance": "{}", "codec": content, "refiner": entry}
    container.write(tmp_path / "model", MODEL, held, whole)
    np.save(tmp_path / "y.npy", y)
    for name in ("codec", "model"):
        out = tmp_path / f"{name}.zarr"
        run("encode", tmp_path / "y.npy", "--codec", tmp_path / name, "--out", out)
    one, two = (contents(tmp_path / f"{name}.zarr") for name in ("codec", "model"))
    assert one == two


def test_a_refiner_is_added_to_an_archive(files: Path, run, facts) -> None:
    path = files / "plain.zarr"
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and "c/" in str(p)}
    out, _ = run("add-refiner", path, "--refiner", files / "refiner")
    assert out == f"{path}: {LINE}\n"
    assert {p: p.read_bytes() for p in before} == before
    assert facts("info", path)["refiner"] == FACTS
    assert facts("add-refiner", path, "--refiner", files / "model") == {"file": str(path)} | FACTS
    shutil.rmtree(path / "refiner")
    group = zarr.open_group(path, mode="r+")
    del group.attrs["nec_refiner"]
    with pytest.warns(UserWarning, match="onsolidated"):
        zarr.consolidate_metadata(group.store)
    run("add-refiner", path, "--refiner", files / "refiner")
    assert archive.read_refiner(zarr.open_group(path, mode="r", use_consolidated=True)) == REFINER
    for place, refiner, message in (
        (files / "blob", files / "refiner", "blob: is a file, and an archive is a folder"),
        (path, files / "codec", "codec: a codec file where a refiner file"),
        (path / "embedding", files / "refiner", "only archives hold refiners"),
        (path, files / "other", "belongs to another codec"),
    ):
        assert message in run("add-refiner", place, "--refiner", refiner, status=1)[1]
