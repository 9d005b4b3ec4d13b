"""`python -m coder fit` and `encode`: embeddings of files, without a model and without JAX."""

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from folders import TESTS
from transform_cases import CHANNELS, smooth_embeddings

import coder
from coder import CodecError, InputError, UnusualEmbedding
from coder.cli import main
from coder.cli.arguments import Encode
from coder.cli.fit_commands import run
from coder.embedding_files import open_embeddings
from coder.fitting import HeldOut, MaxError, StatedError, measure
from coder.format import blob as framing

Y = smooth_embeddings(1, 60)
SHAPES = {"grids": Y, "raster": Y.reshape(-1, 90, CHANNELS), "vectors": Y.reshape(-1, CHANNELS)}


def read(path: Path, column: str | None = None) -> np.ndarray:
    return open_embeddings(path, column).y[:]


def written(y: np.ndarray, path: Path) -> Path:
    np.save(path / "y.npy", y)
    return path / "y.npy"


@pytest.mark.parametrize("name", SHAPES)
def test_embeddings_become_an_array_that_holds_its_codec(name, tmp_path, capsys):
    y = SHAPES[name]
    file = written(y, tmp_path)
    assert main(["fit", str(file), "--out", str(tmp_path / "codec")]) == 0
    codec = coder.load(tmp_path / "codec")
    for quality in (2, codec.num_qualities - 1):
        out = tmp_path / f"{quality}.zarr"
        options = ["--codec", str(tmp_path / "codec"), "--quality", str(quality)]
        assert main(["encode", str(file), "--out", str(out), *options]) == 0
        read = np.asarray(zarr.open_array(out))
        assert read.shape == y.shape
        error = ((read - y) ** 2).mean() / y.reshape(-1, CHANNELS).var(0).mean()
        assert error < (0.01 if quality > 2 else 1)
    assert "times smaller" in capsys.readouterr().out
    assert main(["verify", str(out)]) == 0
    # Without a codec, one is fitted.
    assert main(["encode", str(file), "--out", str(tmp_path / "own.zarr")]) == 0
    assert np.asarray(zarr.open_array(tmp_path / "own.zarr")).shape == y.shape


def test_columns_of_parquet_and_arrays_of_zarr(tmp_path):
    y = SHAPES["vectors"]
    column = pa.FixedSizeListArray.from_arrays(pa.array(y.ravel()), CHANNELS)
    pq.write_table(pa.table({"id": range(len(y)), "embedding": column}), tmp_path / "y.parquet")
    zarr.create_array(tmp_path / "y.zarr", data=y)
    codecs = []
    for name, options in (("y.parquet", ["--column", "embedding"]), ("y.zarr", [])):
        out = tmp_path / f"{name}.codec"
        assert main(["fit", str(tmp_path / name), "--out", str(out), *options]) == 0
        codecs.append(out.read_bytes())
    assert codecs[0] == codecs[1]


def test_what_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "several.npz", a=Y, b=Y)
    np.save(tmp_path / "flat.npy", np.ones(7, np.float32))
    np.save(tmp_path / "none-of-8.npy", np.ones((0, 8), np.float32))
    column = pa.array([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]])
    pq.write_table(pa.table({"embedding": column, "other": column}), tmp_path / "y.parquet")
    out = ["--out", str(tmp_path / "out")]
    for name, options, message in (
        ("text.npy", [], "not a .npy file"),
        ("none.npy", [], "no such file of embeddings"),
        ("folder", [], "without a Zarr array"),
        ("empty.npy", [], "an empty file"),
        ("several.npz", [], "several arrays"),
        ("flat.npy", [], "shape [7]"),
        ("none-of-8.npy", [], "shape [0, 8]"),
        ("y.parquet", [], "which column"),
        ("y.parquet", ["--column", "embedding"], "of one length"),
    ):
        assert main(["fit", str(tmp_path / name), *out, *options]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over_and_nothing_half_written_is_left(tmp_path, capsys):
    codec = str(tmp_path / "codec")
    assert main(["fit", str(written(Y, tmp_path)), "--out", codec]) == 0
    (tmp_path / "there").mkdir()
    file = str(tmp_path / "y.npy")
    assert main(["encode", file, "--out", str(tmp_path / "there"), "--codec", codec]) == 1
    assert (
        "there: exists: choose another output, or replace it with --overwrite"
        in capsys.readouterr().err
    )
    damaged = Y.copy()
    damaged[-1, 0, 0, 0] = np.nan
    written(damaged, tmp_path)
    assert main(["encode", file, "--out", str(tmp_path / "a.zarr"), "--codec", codec]) == 1
    assert "NaN" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codec", "there", "y.npy"]


FLAT = SHAPES["vectors"]
FIXED = pa.FixedSizeListArray.from_arrays(pa.array(FLAT.ravel()), CHANNELS)
TENSORS = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(Y))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (FIXED, FLAT),
        (pa.array(FLAT.tolist(), pa.list_(pa.float32())), FLAT),
        (pa.array(FLAT.tolist(), pa.large_list(pa.float64())), FLAT.astype(np.float64)),
        (pa.array(FLAT[:9].tolist(), pa.list_view(pa.float32())), FLAT[:9]),
        (FIXED.slice(7), FLAT[7:]),
        (pa.chunked_array([FIXED[:5], FIXED[5:5], FIXED[5:]]), FLAT),
        (TENSORS, Y),
        (TENSORS.slice(3), Y[3:]),
        (pa.array(Y[:4].tolist()), Y[:4].astype(np.float64)),
    ],
)
@pytest.mark.parametrize("name", ["y.parquet", "y.gpq", "y", "y.npy"])
def test_lists_and_tensors_of_parquet_under_any_name(column, expected, name, tmp_path):
    pq.write_table(pa.table({"id": range(len(expected)), "e.mb": column}), tmp_path / name)
    found = read(tmp_path / name)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(read(tmp_path / name, "e.mb"), expected)


def test_a_name_in_bytes_that_are_no_text(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    with (folder / "y").open("wb") as file:
        pq.write_table(pa.table({"e": FIXED}), file)
    np.save(folder / "y.npy", FLAT)
    for name in ("y", "y.npy"):
        options = [sys.executable, "-m", "coder", "encode", folder / name, "--out"]
        done = subprocess.run([*options, folder / f"{name}.zarr"], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"/\xff/" in done.stdout  # as the file system has it


def structured(path: Path) -> None:
    np.save(path, np.zeros(5, [("a", "f4"), ("b", "f4")]))


def objects(path: Path) -> None:
    np.save(path, np.array([FLAT[0], FLAT[1][:3]], object), allow_pickle=True)


def cut_short(path: Path) -> None:
    np.save(path, FLAT)
    path.write_bytes(path.read_bytes()[:-1])


def table(path: Path, **columns) -> None:
    pq.write_table(pa.table(columns), path)


def short_parquet(path: Path) -> None:
    table(path, e=FIXED)
    path.write_bytes(path.read_bytes()[:-9])


def flipped_parquet(path: Path) -> None:
    """Values that only the checksum of their page tells from those that were written."""
    options: Any = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(pa.table({"e": FIXED}), path, **options)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(FLAT[:2]))


def zipped(path: Path, name: str = "data.pkl") -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"x/{name}", b"")


def brace_blob(path: Path) -> None:
    """Whose ninth byte is a brace, as that of a safetensors file."""
    header, words = framing.unpack((TESTS / "golden/woken.blob").read_bytes())
    payload = words.copy()
    payload.view(np.uint8)[0] = ord("{")
    path.write_bytes(framing.pack(header, payload))
    assert path.read_bytes()[8:9] == b"{"


def fifo_zarr(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "zarr.json")


def group(path: Path) -> None:
    made = zarr.create_group(path)
    for name in ("inner", "other"):
        made.create_array(name, data=FLAT)


def damaged_zarr(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "array"}')


NULL_INSIDE = pa.array([[1.0, 2.0], None, [5.0, 6.0], [3.0, None]])
TIFF = pytest.mark.skipif(find_spec("rasterio") is None, reason="no rasterio")
ALL_NULL = pa.array([None, None], pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("y.npy", structured, "an array of [('a', '<f4'), ('b', '<f4')]: give floats"),
        ("y.npy", objects, "objects instead of numbers (Array can't be memory-mapped: Python obj"),
        ("y.npy", cut_short, "a damaged .npy file, or one of objects instead of numbers (mmap len"),
        ("y.npy", lambda p: p.write_bytes(b"\x93NUMPY\1\0\x99"), "a damaged .npy file"),
        ("y.npy", lambda p: p.mkdir(), "a folder without a Zarr array"),
        ("y.npy", lambda p: np.save(p, FLAT > 0), "an array of bool: give floats"),
        ("y.npy", lambda p: np.save(p, FLAT * 1j), "an array of complex64: give floats"),
        ("y.npy", os.mkfifo, "is a pipe or a device"),
        ("y.parquet", short_parquet, "a damaged Parquet file"),
        ("y.parquet", flipped_parquet, "a damaged Parquet file (could not verify page integrity"),
        ("y.parquet", lambda p: p.write_text("a,b"), "not a .npy file, a Zarr array, a GeoTIF"),
        (
            "y.parquet",
            lambda p: table(p, e=NULL_INSIDE),
            "has 1 nulls within vectors, the first in row 3: make those vectors null as a whole",
        ),
        ("y.parquet", lambda p: table(p, e=ALL_NULL), "column e is null in all rows"),
        ("y.parquet", lambda p: table(p, e=FIXED, f=FIXED), "which column? --column, one of e, f"),
        (
            "y.parquet",
            lambda p: table(p, A0=[0.5], A1=[0.5], t=["x"]),
            "but A0 (double), A1 (double), t (string): if each column is a dimension, make one "
            "array [N, D] of them (to_numpy in pandas); save",
        ),
        ("y.parquet", lambda p: table(p, e=[["a"]]), "lists of string, not of numbers"),
        (
            "y.parquet",
            lambda p: table(p, e=[b"a"], s=[{"x": 1}], t=["x"]),
            "no column holds lists of numbers, but e (binary), s (struct<x: int64>), t (string)",
        ),
        ("y.parquet", lambda p: table(p, e=FIXED.slice(0, 0)), "shape [0, 0]"),
        ("y.parquet", lambda p: table(p, e=pa.array(Y[0].tolist())), "rows of 6 x 12"),
        ("y.parquet", lambda p: table(p, e=pa.array([[[1.0]], [[1.0], [2.0]]])), "rows of 1 x 1"),
        ("y.h5", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n..."), "an HDF5 or NetCDF file: save"),
        pytest.param(
            "y.tif", lambda p: p.write_bytes(b"II*\0...."), "a damaged TIFF (", marks=TIFF
        ),
        pytest.param(
            "y.npy", lambda p: p.write_bytes(b"MM\0+...."), "a damaged TIFF (", marks=TIFF
        ),
        ("y.png", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n..."), "a PNG picture: a model makes"),
        ("y.blob", brace_blob, "a blob, which is coded: decode it"),
        ("y.bin", lambda p: p.write_bytes(b"\x10234567\x08{"), "not a .npy file, a Zarr array, "),
        ("y.pkl", pickled, "a pickle: it may run code, so it is not opened"),
        ("y.pt", zipped, "a checkpoint of PyTorch"),
        ("y.zip", lambda p: zipped(p, "zarr.json"), "a zipped Zarr store: unpack it"),
        ("y.npz", lambda p: np.savez(p, a=FLAT), "a .npz (or other zip) file"),
        ("y.npy", lambda p: zipped(p, "a.npy"), "a .npz (or other zip) file"),
        ("y", lambda p: coder.fit(FLAT).save(p), "a safetensors file"),
        ("y.zarr", group, "a Zarr group: give the folder of one of its arrays (inner, other)"),
        ("y.zarr", fifo_zarr, "zarr.json: is a pipe or a device"),
        ("y.zarr", damaged_zarr, "its Zarr metadata are damaged"),
    ],
)
def test_what_a_file_is_its_bytes_say_and_the_error_names_it(name, make, message, tmp_path):
    make(tmp_path / name)
    with pytest.raises(CodecError, match=re.escape(message)) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith((f"{tmp_path / name}: ", f"{tmp_path / name}/zarr.json: "))
    assert "unsafe" not in str(caught.value)


@pytest.mark.parametrize("columns", [{"e": FIXED, "t": range(2160)}, {"t": range(2160)}])
def test_a_column_that_holds_no_lists_is_named(columns, tmp_path):
    table(tmp_path / "y", **columns)
    with pytest.raises(InputError, match="column t holds int64, not lists of numbers"):
        read(tmp_path / "y", "t")
    with pytest.raises(InputError, match="0 columns are called x"):
        read(tmp_path / "y", "x")
    with pytest.raises(InputError, match="not a Parquet file, so it has no column"):
        read(written(FLAT, tmp_path), "x")


@pytest.mark.parametrize("y", [np.asfortranarray(Y), Y.astype(">f8"), Y.astype(np.longdouble)])
def test_arrays_of_other_orders_and_dtypes_are_read(y, tmp_path):
    np.testing.assert_array_equal(read(written(y, tmp_path)), y)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("encode", ["--quality", "-1"], "--quality is -1"),
        ("encode", ["--quality", "40"], "--quality is 40: give a whole number, 0 to 39"),
        ("encode", ["--out", "-"], "-: standard output cannot"),
        ("fit", ["--out", "-"], "-: standard output cannot"),
        ("encode", ["--max-tokens", "0"], "--max-tokens is 0"),
        ("encode", ["--codec", "other", "--max-tokens", "9"], "--max-tokens is for a codec that"),
        ("encode", ["--max-tokens", "35"], "chunks of 36 tokens, and the codec takes 35"),
        ("fit", ["--max-tokens", "35"], "grids of 36 tokens, and max_tokens is 35"),
        ("fit", ["--max-tokens", str(2**31)], "--max-tokens is 2147483648"),
        ("fit", ["--max-error", "5"], "--max-error is 5: give a part above 0 and below 1"),
        ("encode", ["--max-error", "mse=1%"], "--max-error is 'mse=1%': give a percentage"),
        ("encode", ["--max-error", "5%", "--quality", "3"], "give one of --quality, --max-bytes,"),
        ("encode", ["--codec", "other", "--metric", "euclidean"], "--metric is for a codec that"),
        ("fit", ["--count", "0"], "--count is 0"),
        ("fit", ["--out", "nowhere/codec"], "there is no folder"),
        ("encode", ["--out", "nowhere/y.zarr"], "there is no folder"),
        ("encode", ["--out", "y.parquet"], "name the output y.zarr"),
        ("encode", ["--rows-per-blob", "1"], "blob is for a table"),
        ("encode", ["--scale", "s.npy", "--companded"], "have a scale or are companded"),
        ("encode", ["--scale", "s.npy"], "s.npy: --scale: there is no such file"),
        ("encode", ["--companded"], "companded is for int8, and these are float32"),
        ("encode", ["--out", "y.TIF"], "name it y.zarr"),
        ("encode", ["--codec", "nec-vit-ti"], "leave --codec out"),
        ("encode", ["--codec", "other"], "embeddings of 12 channels, and the codec other is for 4"),
        (
            "encode",
            ["--codec", "other", "--quality", "99"],
            "other: quality 99: this codec has qualities 0",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_fitted(
    command, options, message, tmp_path, capsys, monkeypatch
):
    written(Y, tmp_path)
    coder.fit(FLAT[:, :4]).save(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("coder.fitting.fit_codec._transforms", None)
    assert main([command, "y.npy", "--out", "out", *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    # What is wrong with an option is not the file's fault.
    assert error.startswith("--") == message.startswith("--")
    assert "split" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "y.npy"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("as_zarr", [False, True])
def test_what_cannot_be_coded_is_refused_with_its_file_and_place(value, as_zarr, tmp_path):
    y = Y.copy()
    y[41, 2, 3, 4] = value
    path = written(y, tmp_path)
    if as_zarr:
        path = tmp_path / "y.zarr"
        zarr.create_array(path, data=y)
    rest = {"out": tmp_path / "out", "nodata": -9999.0}
    codec = tmp_path / "codec"
    coder.fit(Y).save(codec)
    with pytest.raises(InputError, match=r"the first at \(41, 2, 3") as caught:
        run(Encode(inputs=(str(path),), codec=codec, quality=3, **rest))
    assert str(caught.value).startswith(f"{path}: ")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_cannot_be_coded_is_found_before_anything_is_fitted(
    value, tmp_path, capsys, monkeypatch
):
    y = Y.copy()
    y[41, 2, 3, 4] = value
    zarr.create_array(tmp_path / "y.zarr", data=y, chunks=(7, 3, 6, 12))
    monkeypatch.setattr("coder.fitting.fit_codec._transforms", None)
    monkeypatch.setattr("coder.cli.fit_commands._PART", Y[:10].size)
    out = ["--out", str(tmp_path / "out"), "--nodata", "-9999"]
    assert main(["encode", str(tmp_path / "y.zarr"), *out]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{tmp_path}/y.zarr: 1 of ")
    assert "the first at (41, 2, 3" in error


MARKS = {"nodata": -9999.0, "one NaN": np.nan, "all NaN": np.nan}


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("name", SHAPES)
def test_missing_tokens_stay_missing_and_a_chunk_of_them_is_not_lost(
    name, mark, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("coder.embedding_files.array_writer.SHARD", 8)
    monkeypatch.setattr("coder.embedding_files.chunk_parts.TILE", 16)
    monkeypatch.setattr("coder.embedding_files.chunk_parts.VECTORS", 64)
    y = SHAPES[name].copy()
    gone = np.zeros(y.shape[:-1], bool)
    gone[5], gone[8:24] = True, True
    if name == "vectors":
        gone[128:256] = True
    if name == "grids":
        gone[30, 2, 1:3] = True
    y[(*np.nonzero(gone), slice(None) if mark == "all NaN" else 3)] = MARKS[mark]
    path, out = written(y, tmp_path), tmp_path / "y.zarr"
    coder.fit(SHAPES[name]).save(tmp_path / "codec")
    nodata = [] if mark == "all NaN" else ["--nodata", str(MARKS[mark])]
    options = ["--codec", str(tmp_path / "codec"), "--out", str(out)]
    assert main(["encode", str(path), *options, *nodata]) == 0
    assert f"{gone.sum():,} tokens are missing, and stay so" in capsys.readouterr().out
    read = np.asarray(zarr.open_array(out, mode="r"))
    np.testing.assert_array_equal(np.isnan(read).all(-1), gone)
    np.testing.assert_array_equal(np.isnan(read).any(-1), gone)
    assert np.square(read - y)[~gone].mean() < 0.5 * SHAPES[name].var()
    assert zarr.open_array(out).attrs["nec_empty"]
    # What was not stored is not lost; what is lost is not taken for it.
    assert main(["verify", str(out)]) == 0
    chunk = next(p for p in sorted((out / "c").rglob("*")) if p.is_file())
    chunk.unlink()
    assert main(["verify", str(out)]) == 1
    assert "is lost: copy the array again" in capsys.readouterr().err


def test_nothing_but_missing_tokens_is_nothing_to_code(tmp_path, capsys):
    path = written(np.full((300, CHANNELS), np.nan, np.float32), tmp_path)
    coder.fit(FLAT).save(tmp_path / "codec")
    options = ["--codec", str(tmp_path / "codec"), "--out", str(tmp_path / "out")]
    assert main(["encode", str(path), *options]) == 1
    assert "all tokens are missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_rate_that_a_fit_has_not_says_how_to_fit_once(tmp_path, capsys):
    path = written(Y, tmp_path)
    assert main(["encode", str(path), "--out", str(tmp_path / "out"), "--quality", "39"]) == 1
    out, error = capsys.readouterr()
    qualities = int(re.findall(r"fitted (\d+) qualities", out)[0])
    assert (
        f"has qualities 0 to {qualities - 1}: give one of those. To fit only once, write" in error
    )
    assert "fit EMBEDDINGS --out CODEC" in error
    assert not (tmp_path / "out").exists()


def test_integers_are_warned_of_once(tmp_path):
    path = written((10 * Y).astype(np.int16), tmp_path)
    for command in ("fit", "encode"):
        with pytest.warns(UnusualEmbedding, match="--scale or --companded") as caught:
            main([command, str(path), "--out", str(tmp_path / command)])
        assert len(caught) == 1


def test_no_jax_is_needed(tmp_path):
    file = written(SHAPES["vectors"], tmp_path)
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "from coder.cli import main\n"
        f"sys.exit(main(['encode', {str(file)!r}, '--out', {str(tmp_path / 'a.zarr')!r}]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_npy_that_is_longer_than_it_says_is_named(tmp_path, capsys):
    """Two files in one, or one that was copied as text: bytes that are not the array's."""
    path = written(SHAPES["vectors"], tmp_path)
    data = path.read_bytes()
    for more in (data + data, data.replace(b"\n", b"\r\n")):
        path.write_bytes(more)
        assert main(["encode", str(path), "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "longer than its array" in error or "damaged .npy" in error
    assert not (tmp_path / "out").exists()


def test_a_zarr_array_with_marks_scales_or_damage(tmp_path, capsys):
    y = SHAPES["vectors"].copy()
    y[100:120] = -9999
    attributes: dict[str, Any] = {"_FillValue": -9999.0}
    zarr.create_array(tmp_path / "marked", data=y, chunks=(500, CHANNELS), attributes=attributes)
    assert main(["fit", str(tmp_path / "marked"), "--out", str(tmp_path / "codec")]) == 0
    assert "_FillValue says that -9999 is missing data" in capsys.readouterr().out
    assert coder.load(tmp_path / "codec") == coder.fit(y, nodata=-9999)
    zarr.create_array(tmp_path / "cut", data=y, chunks=(500, CHANNELS))
    chunk = tmp_path / "cut" / "c" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    for command in ("fit", "encode"):
        assert main([command, str(tmp_path / "cut"), "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"{tmp_path / 'cut'}: damaged (")
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.*tokens have one number:coder.UnusualEmbedding")
@pytest.mark.parametrize("shape", ["grids", "raster", "vectors"])
@pytest.mark.parametrize("lost", ["one", "all"])
def test_a_chunk_that_an_encoded_array_lost_is_named_and_never_read(
    shape, lost, tmp_path, monkeypatch, capsys
):
    """Nothing else may be missing: a grid of zeros is stored as well."""
    monkeypatch.setattr("coder.embedding_files.array_writer.SHARD", 64)
    monkeypatch.setattr("coder.embedding_files.chunk_parts.TILE", 32)
    monkeypatch.setattr("coder.embedding_files.chunk_parts.VECTORS", 512)
    y = np.concatenate([Y, np.zeros_like(Y[:70])])
    y = {"grids": y, "raster": y.reshape(-1, 36, CHANNELS), "vectors": y.reshape(-1, CHANNELS)}[
        shape
    ]
    np.save(tmp_path / "y.npy", y)
    path = tmp_path / "y.zarr"
    assert main(["encode", str(tmp_path / "y.npy"), "--out", str(path)]) == 0
    capsys.readouterr()
    for command in ("verify", "info"):
        assert main([command, str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "not stored" not in out
    assert ("per image" in out) == (shape == "grids")
    chunks = sorted(p for p in (path / "c").rglob("*") if p.is_file())
    gone = chunks if lost == "all" else chunks[1:2]
    for chunk in gone:
        chunk.unlink()
    for command in ("verify", "info", "decode"):
        more = ["--out", str(tmp_path / "out")] if command == "decode" else []
        assert main([command, str(path), *more]) == 1
        out, err = capsys.readouterr()
        assert err.splitlines() == [
            f"{path}: {chunk.relative_to(path)} is lost: copy the array again" for chunk in gone
        ]
        assert "good" not in out
    assert not (tmp_path / "out").exists()
    assert np.isnan(zarr.open_array(path, mode="r")[:]).any()


@pytest.mark.parametrize("shape", ["grids", "raster", "vectors"])
def test_an_array_that_is_read_as_a_raster_is_said_to_be_one(shape, tmp_path, capsys):
    np.save(tmp_path / "y.npy", SHAPES[shape])
    main(["fit", str(tmp_path / "y.npy"), "--out", str(tmp_path / "codec")])
    height, width = SHAPES[shape].shape[:2]
    said = (
        f"read as one raster of {height} x {width} tokens; for {height} images of {width} tokens,"
    )
    assert (said in capsys.readouterr().out) == (shape == "raster")


def facts_of(capsys, *words: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("name", SHAPES)
def test_the_error_is_printed_and_stored(name, tmp_path, capsys):
    file, codec, out = (str(written(SHAPES[name], tmp_path)), str(tmp_path / "c"), tmp_path / "o")
    assert main(["fit", file, "--out", codec]) == 0
    text = capsys.readouterr().out
    assert re.search(r"quality \d+: relative rms error .* %, .* recall@10 .*; .* held-out", text)
    fitted = facts_of(capsys, "fit", file, "--out", codec, "--overwrite")
    whole, held_out = coder.fit_measured(SHAPES[name])
    assert fitted["error"] == held_out.error(whole.at()).to_json()
    assert fitted["one_quality_codec_bytes"] == whole.at().codec_bytes
    encoded = facts_of(capsys, "encode", file, "--out", str(out))
    assert encoded["error"] == fitted["error"]
    assert zarr.open_array(out, mode="r").attrs["nec_error"] == encoded["error"]
    assert encoded["payload_bytes"] + encoded["codec_bytes"] == encoded["bytes"]
    assert fitted["payload_bytes"] == pytest.approx(encoded["payload_bytes"], rel=0.15)
    assert facts_of(capsys, "info", str(out))["error"] == encoded["error"]
    array = zarr.open_array(out)
    for wrong in (None, [], {"relative_rms": "x"}, {**encoded["error"], "worst": "x"}):
        array.attrs["nec_error"] = wrong
        assert "error" not in facts_of(capsys, "info", str(out))


def test_sizes_compare_with_the_source_and_with_int8(tmp_path, capsys):
    file = str(written(FLAT[:40], tmp_path))
    (whole := coder.fit(FLAT)).save(tmp_path / "c")
    for quality in (0, whole.num_qualities - 1):
        out = str(tmp_path / str(quality))
        words = ["encode", file, "--codec", str(tmp_path / "c"), "--quality", str(quality)]
        assert main([*words, "--out", out]) == 0
        text = capsys.readouterr().out
        size = sum(one.stat().st_size for one in Path(out).rglob("*") if one.is_file())
        plain = FLAT[:40].size + 4 * FLAT.shape[1]
        note = f"int8, with a scale for each channel, would take {plain:,} bytes"
        assert (note in text) == (size > plain)
        ratio = FLAT[:40].nbytes / size
        said = f"{ratio:.1f} times smaller" if ratio >= 1 else f"{1 / ratio:.1f} times larger"
        assert f"{said} than float32" in text
    again = ["encode", out, "--codec", str(tmp_path / "c"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    assert "coded by nec already" in capsys.readouterr().out


@pytest.mark.parametrize("bound", ["12%", "variance=2%", "worst=50%", "cosine=0.995", "recall=0.8"])
def test_a_bound_on_the_error_picks_the_quality(bound, tmp_path, capsys):
    file, codec = str(written(FLAT, tmp_path)), str(tmp_path / "codec")
    limit = MaxError.of(bound)
    fitted = facts_of(capsys, "fit", file, "--max-error", bound, "--out", codec)
    own = facts_of(capsys, "encode", file, "--max-error", bound, "--out", str(tmp_path / "a"))
    options = ["--codec", codec, "--max-error", bound]
    given = facts_of(capsys, "encode", file, *options, "--out", str(tmp_path / "b"))
    assert own["quality"] == fitted["quality"]
    for facts in (fitted, own, given):
        assert limit.is_kept_by(StatedError(**facts["error"]))
    # With a codec that exists, the error is that of what is encoded.
    assert given["error"]["measured_on"] == "encoded"
    decoded = np.asarray(zarr.open_array(tmp_path / "b", mode="r"))
    true = measure(FLAT, decoded)
    assert given["error"]["relative_rms"] == pytest.approx(true.relative_rms, rel=1e-5)
    lower = coder.load(codec).at(given["quality"] - 1)
    assert not limit.is_kept_by(HeldOut.of(FLAT).error(lower))


def test_a_bound_that_no_quality_keeps_is_named_and_nothing_is_written(tmp_path, capsys):
    file = str(written(FLAT, tmp_path))
    coder.fit(FLAT).save(tmp_path / "codec")
    for more in ([], ["--codec", str(tmp_path / "codec")]):
        words = ["encode", file, "--max-error", "0.01%", "--out", str(tmp_path / "out"), *more]
        assert main(words) == 1
        error = capsys.readouterr().err
        assert "the relative rms error is 0.0" in error
        assert "the highest, and at most 0.0001 is asked for" in error
    assert not (tmp_path / "out").exists()


def test_the_metric_is_that_of_the_option(tmp_path, capsys):
    file = str(written(FLAT, tmp_path))
    for metric in ("euclidean", "standardised"):
        out = tmp_path / metric
        assert main(["fit", file, "--metric", metric, "--out", str(out)]) == 0
        assert ("(per channel)" in capsys.readouterr().out) == (metric == "standardised")
        assert coder.load(out) == coder.fit(FLAT, metric=metric)
    few = facts_of(capsys, "fit", file, "--count", "20", "--out", str(tmp_path / "few"))
    many = facts_of(capsys, "fit", file, "--count", "99999999", "--out", str(tmp_path / "many"))
    assert few["codec_bytes"] < many["codec_bytes"]
