"""`python -m coder fit` and `encode`: embeddings of files, without a model and without JAX."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from transform_cases import CHANNELS, smooth_embeddings

import coder
from coder.__main__ import main

Y = smooth_embeddings(1, 60)
SHAPES = {"grids": Y, "raster": Y.reshape(-1, 90, CHANNELS), "vectors": Y.reshape(-1, CHANNELS)}


def written(y: np.ndarray, path: Path) -> Path:
    np.save(path / "y.npy", y)
    return path / "y.npy"


@pytest.mark.parametrize("name", SHAPES)
def test_embeddings_become_an_array_that_holds_its_codec(name, tmp_path, capsys):
    y = SHAPES[name]
    file = written(y, tmp_path)
    assert main(["fit", str(file), "--out", str(tmp_path / "codec")]) == 0
    codec = coder.EmbeddingCodec.load(tmp_path / "codec")
    for rate in (2, codec.rates - 1):
        out = tmp_path / f"{rate}.zarr"
        options = ["--codec", str(tmp_path / "codec"), "--rate", str(rate)]
        assert main(["encode", str(file), "--out", str(out), *options]) == 0
        read = np.asarray(zarr.open_array(out))
        assert read.shape == y.shape
        error = ((read - y) ** 2).mean() / y.reshape(-1, CHANNELS).var(0).mean()
        assert error < (0.01 if rate > 2 else 1)
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
    pq.write_table(pa.table({"embedding": column}), tmp_path / "y.parquet")
    out = ["--out", str(tmp_path / "out")]
    for name, options, message in (
        ("text.npy", [], "not a .npy file"),
        ("none.npy", [], "No such file"),
        ("folder", [], "without a Zarr array"),
        ("empty.npy", [], "not a .npy file"),
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


def test_no_jax_is_needed(tmp_path):
    file = written(SHAPES["vectors"], tmp_path)
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "from coder.__main__ import main\n"
        f"sys.exit(main(['encode', {str(file)!r}, '--out', {str(tmp_path / 'a.zarr')!r}]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
