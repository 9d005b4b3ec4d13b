"""What earlier versions wrote (tests/kept, by its make.py) is read for ever."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from folders import TESTS

import coder
import nec_jax
from coder.cli import main
from nec_jax import heads

VERSIONS = sorted(p for p in (TESTS / "kept").iterdir() if p.is_dir())
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}  # of decoded floats, between machines


@pytest.fixture(params=VERSIONS, ids=lambda folder: folder.name)
def kept(request):
    return request.param, np.load(request.param / "expected.npz")


def test_there_is_something_to_read():
    assert VERSIONS


def test_a_model_and_a_head_give_the_same(kept):
    folder, expected = kept
    params = nec_jax.load(folder / "model.safetensors")
    blob = expected["model_blob"].tobytes()
    np.testing.assert_allclose(nec_jax.decode(params, [blob])[0], expected["y_hat"][0], **CLOSE)
    head = heads.load(folder / "head.safetensors")
    np.testing.assert_array_equal(heads.predict(head, expected["y_hat"]), expected["classes"])


def test_a_codec_decodes_its_blob(kept):
    folder, expected = kept
    blob = (folder / "image.blob").read_bytes()
    codec = coder.load(folder / "codec.safetensors")
    symbols, grid = codec.decode_symbols(blob)
    np.testing.assert_array_equal(symbols, expected["blob_symbols"])
    assert grid == (2, 2)
    np.testing.assert_allclose(codec.decode(blob), expected["blob_y_hat"], **CLOSE)
    assert codec.at(codec.num_qualities - 1).encode_symbols(symbols, grid) == blob


def test_an_archive_opens_in_zarr_and_xarray(kept):
    folder, expected = kept
    group: Any = zarr.open_group(folder / "archive.zarr", mode="r")
    data = xr.open_zarr(folder / "archive.zarr", consolidated=False)
    for name in ("embedding", "class_token"):
        np.testing.assert_allclose(group[name][:], expected[name], **CLOSE)
        np.testing.assert_allclose(data[name].values, expected[name], **CLOSE)
    np.testing.assert_array_equal(data.label.values, expected["label"])
    assert list(map(str, data.id.values)) == list(expected["id"])


def test_the_command_line_reads_all_of_it(kept, tmp_path, capsys):
    folder, expected = kept
    codec = str(folder / "codec.safetensors")
    for command in ("info", "verify"):
        for file in ("model.safetensors", "codec.safetensors", "archive.zarr"):
            assert main([command, str(folder / file)]) == 0
        assert main([command, str(folder / "image.blob"), "--codec", codec]) == 0
    out = str(tmp_path / "decoded")
    assert main(["decode", str(folder / "archive.zarr"), "--out", out]) == 0
    decoded = np.load(tmp_path / "decoded" / "embedding.npy")
    np.testing.assert_allclose(decoded, expected["embedding"], **CLOSE)
    capsys.readouterr()
