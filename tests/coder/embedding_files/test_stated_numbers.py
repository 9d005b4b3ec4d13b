"""Missing data, scales and offsets that Zarr arrays and TIFFs state are heeded, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from product_files import D, put_tiff, smooth

from coder import InputError
from coder.cli import main
from coder.embedding_files import open_embeddings

Y = smooth((20, 24))
GONE = np.zeros(Y.shape[:2], bool)
GONE[3:5, 2:4] = GONE[17, 20] = True


def missing(path: Path, **options: Any) -> tuple[Any, tuple[str, ...]]:
    """Which tokens of a file are missing, by mask, mark or NaN; and what is said of the file."""
    opened = open_embeddings(path, **options)
    part = opened.y[:]
    gone = np.ma.getmaskarray(part).any(-1) | np.isnan(np.ma.getdata(part)).all(-1)
    if opened.nodata is not None:
        gone |= (np.ma.getdata(part) == opened.nodata).any(-1)
    return gone, opened.lines


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("encoding", "number"),
    [
        ({"_FillValue": 0.0}, 0),
        ({"_FillValue": -9999.0}, -9999),
        ({"_FillValue": np.nan}, None),
        ({"_FillValue": -32768, "dtype": "i2", "scale_factor": 1e-3}, -32768),
        ({"_FillValue": -1.5, "missing_value": -1.5}, -1.5),
    ],
)
def test_missing_data_of_xarray_are_missing(version, encoding, number, tmp_path):
    xr = pytest.importorskip("xarray")
    y = np.where(GONE[..., None], np.nan, Y)
    data: Any = xr.Dataset({"e": (("y", "x", "band"), y)})
    data.to_zarr(tmp_path / "y", encoding={"e": encoding}, zarr_format=version, consolidated=False)
    for path in (tmp_path / "y", tmp_path / "y/e"):
        gone, lines = missing(path)
        np.testing.assert_array_equal(gone, GONE)
        said = [line for line in lines if "is missing data" in line]
        assert len(said) == (number is not None)
        assert all(f"says that {number:g} is missing data" in line for line in said)
    read = xr.open_zarr(tmp_path / "y", consolidated=False).e.values
    found = open_embeddings(tmp_path / "y").y[:]
    np.testing.assert_allclose(np.ma.getdata(found)[~GONE], read[~GONE], rtol=1e-6)


def put_zarr(path: Path, version: Any, fill: Any, attributes: dict[str, Any]) -> Path:
    y = Y.copy()
    y[GONE] = -9999
    array = zarr.create_array(
        path,
        shape=y.shape,
        dtype="f4",
        fill_value=fill,
        zarr_format=version,
        attributes=attributes,
    )
    array[:] = y
    return path


XARRAY = {"_ARRAY_DIMENSIONS": ["y", "x", "band"]}


@pytest.mark.parametrize(
    ("version", "fill", "attributes", "number", "line"),
    [
        (2, 0, {}, None, ""),  # Zarr's default
        (2, 0, XARRAY, 0, "its fill_value says that 0 is missing data"),
        (2, -9999, {}, -9999, "its fill_value says that -9999"),
        (2, 0, {"_FillValue": -9999, **XARRAY}, -9999, "its attribute _FillValue says that -9999"),
        (2, np.nan, {"missing_value": [-9999.0]}, -9999, "its attribute missing_value"),
        (3, 0, {"_FillValue": "AAAAAICHw8A="}, -9999, "its attribute _FillValue says that -9999"),
        (3, 0, {"missing_value": -9999}, -9999, "its attribute missing_value says that -9999"),
        (3, 0, {}, None, ""),
        (3, -9999, {}, None, "in Zarr v3 marks nothing: if it is missing data, give --nodata"),
        (3, 0, {"_FillValue": "-9999"}, InputError, "its attribute _FillValue is '-9999'"),
        (3, 0, {"_FillValue": True}, InputError, "which is no number: give --nodata"),
        (3, 0, {"_FillValue": None}, InputError, "which is no number: give --nodata"),
        (3, 0, {"missing_value": [1, 2]}, InputError, r"missing_value is \[1, 2\]"),
        (3, 0, {"_FillValue": 1, "missing_value": 2}, InputError, "more than one number"),
        (2, 5, {"missing_value": 2}, InputError, "more than one number"),
        (3, 0, {"scale_factor": "0.1"}, InputError, "scale_factor is '0.1', which is no number"),
        (3, 0, {"scale_factor": 0}, InputError, "its scale_factor is 0"),
        (3, 0, {"add_offset": [1, 2]}, InputError, "add_offset is"),
    ],
)
def test_what_zarr_states_is_heeded_or_refused(version, fill, attributes, number, line, tmp_path):
    path = put_zarr(tmp_path / "y", version, fill, attributes)
    if number is InputError:
        with pytest.raises(InputError, match=line):
            open_embeddings(path)
    else:
        opened = open_embeddings(path)
        assert opened.nodata == number
        assert line in " ".join(opened.lines)
        assert bool(line) == bool([one for one in opened.lines if "missing" in one])
    if "scale_factor" not in attributes and "add_offset" not in attributes:
        np.testing.assert_array_equal(missing(path, nodata=-9999)[0], GONE)


def test_integers_of_another_sign_are_refused(tmp_path):
    for stated, dtype, is_refused in (
        ("true", "i1", True), ("false", "u1", True), ("true", "u1", False), ("false", "i1", False),
    ):  # fmt: skip
        array = zarr.create_array(tmp_path / f"{stated}{dtype}", shape=(9, D), dtype=dtype)
        array.attrs["_Unsigned"] = stated
        if is_refused:
            with pytest.raises(InputError, match="_Unsigned"):
                open_embeddings(tmp_path / f"{stated}{dtype}")
        else:
            open_embeddings(tmp_path / f"{stated}{dtype}")


def test_packed_coordinates_are_unpacked(tmp_path):
    xr = pytest.importorskip("xarray")
    place = {"y": 50 - 0.01 * np.arange(20), "x": 10 + 0.01 * np.arange(24)}
    data: Any = xr.Dataset({"e": (("lat", "lon", "band"), Y)}).assign_coords(
        lat=("lat", place["y"]), lon=("lon", place["x"])
    )
    packed = {"dtype": "i2", "scale_factor": 0.01, "add_offset": 30.0, "_FillValue": -1}
    data.to_zarr(
        tmp_path / "y", encoding={"lat": packed, "lon": packed}, zarr_format=2, consolidated=False
    )
    pytest.importorskip("rasterio")
    found = open_embeddings(tmp_path / "y").place
    assert found is not None
    expected = (0.01, 0, 9.995, 0, -0.01, 50.005)
    np.testing.assert_allclose(found.grid.transform, expected, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_scales_that_are_missing_or_scaled_themselves(tmp_path):
    q = np.rint(100 * Y).astype("i1")
    np.save(tmp_path / "q.npy", q)
    scales = np.where(GONE, -9999, 0.01).astype("f4")
    zarr.create_array(tmp_path / "s", data=scales, attributes={"_FillValue": -9999})
    pytest.importorskip("rasterio")
    put_tiff(tmp_path / "s.tif", scales[..., None], georeferenced=False, nodata=-9999)
    for name in ("s", "s.tif"):
        gone, _ = missing(tmp_path / "q.npy", scale=str(tmp_path / name))
        np.testing.assert_array_equal(gone, GONE)
    zarr.create_array(tmp_path / "t", data=scales, attributes={"scale_factor": 0.1})
    with pytest.raises(InputError, match="scales that have a scale or offset themselves"):
        open_embeddings(tmp_path / "q.npy", scale=str(tmp_path / "t"))


def test_the_command_says_what_is_missing(tmp_path, capsys):
    path = put_zarr(tmp_path / "y", 3, 0, {"_FillValue": "AAAAAICHw8A="})
    assert main(["encode", str(path), "--out", str(tmp_path / "o"), "--quality", "5"]) == 0
    text = capsys.readouterr().out
    assert "5 tokens are missing, and stay so" in text
    np.testing.assert_array_equal(np.isnan(zarr.open_array(tmp_path / "o")[:]).all(-1), GONE)
