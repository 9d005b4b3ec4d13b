"""Times of Zarr coordinates are those that xarray decodes, to the microsecond."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from coder import InputError
from coder.embedding_files import georeference

DATES = ["2017-01-01T00:00:00.123", "2018-03-04T05:06:07.891", "2024-12-31T23:59:59.999"]


def times(path: Path, values: Any, **attributes: Any) -> np.ndarray:
    array = zarr.create_array(path, data=np.array(values), attributes=attributes, overwrite=True)
    return georeference._times(array)


@pytest.mark.filterwarnings("ignore:Can't decode floating point datetimes")
@pytest.mark.parametrize("dtype", ["i8", "f8"])
@pytest.mark.parametrize("unit", ["days", "hours", "minutes", "seconds", "milliseconds"])
@pytest.mark.parametrize(
    "since", ["1970-01-01", "1858-11-17", "1600-01-01", "1900-1-1 0:0:0.0", "2000-01-01 12:30:15.5"]
)
@pytest.mark.parametrize("calendar", ["standard", "proleptic_gregorian"])
def test_times_are_those_of_xarray(dtype, unit, since, calendar, tmp_path):
    xr = pytest.importorskip("xarray")
    factor = {"days": 86_400_000, "hours": 3_600_000, "minutes": 60_000, "seconds": 1000}
    first = np.datetime64("2000-01-01T12:30:15.500")
    ms = (np.array(DATES, "datetime64[ms]") - first).astype(np.int64)
    values = ms / factor.get(unit, 1)
    values = np.rint(values).astype(dtype) if dtype == "i8" else values
    units = f"{unit} since {since}"
    found = times(tmp_path / "t", values, units=units, calendar=calendar)
    raw: Any = xr.Dataset({"t": ("t", values, {"units": units, "calendar": calendar})})
    if dtype == "f8" and unit in ("days", "hours") and since < "1677":
        pytest.skip("xarray needs cftime: beyond int64 of nanoseconds")
    coder = xr.coders.CFDatetimeCoder(time_unit="us")
    expected = xr.decode_cf(raw, decode_times=coder).t.values.astype("datetime64[us]")
    # xarray computes floats in steps of 64 ns.
    slack = 0 if dtype == "i8" else 1
    assert np.abs((found - expected).astype(np.int64)).max() <= slack


@pytest.mark.parametrize("dtype", ["i8", "f8"])
@pytest.mark.parametrize(
    ("units", "calendar", "values", "expected"),
    [
        ("milliseconds since 1858-11-17", "standard", [5238691200123], "2024-11-19T00:00:00.123"),
        ("days since 0001-01-01", "proleptic_gregorian", [738000], "2021-07-30"),
        ("days since 0001-01-01", "standard", [738000], "2021-07-28"),  # Julian, as cftime has it
        ("days since 1582-10-04", "gregorian", [1], "1582-10-15"),
        ("days since 1600-01-01", "standard", [155000], "2024-05-17"),
        ("microseconds since 2017-01-01", "standard", [2**50 + 1], "2052-09-05T05:58:26.842625"),
        ("nanoseconds since 2017-01-01", "standard", [1024], "2017-01-01T00:00:00.000001"),
        ("hours since 2000-01-01 00:00:00 +02:00", "standard", [3], "2000-01-01T01"),
        ("hours since 2000-01-01T00:00:00Z", "standard", [3], "2000-01-01T03"),
    ],
)  # fmt: skip
def test_times_are_exact(dtype, units, calendar, values, expected, tmp_path):
    given = np.array(values, dtype)
    (found,) = times(tmp_path / "t", given, units=units, calendar=calendar)
    assert found == np.datetime64(expected, "us")


def test_times_that_are_missing_or_no_dates(tmp_path):
    units = "days since 2000-01-01"
    found = times(tmp_path / "t", [1.0, np.nan], units=units)
    assert np.isnat(found).tolist() == [False, True]
    found = times(tmp_path / "t", [1, -1], units=units, _FillValue=-1)
    assert np.isnat(found).tolist() == [False, True]
    found = times(tmp_path / "t", [1, 3], units=units, scale_factor=0.5)
    assert found.tolist() == np.array(["2000-01-01T12", "2000-01-02T12"], "M8[us]").tolist()
    for message, more in (
        ("which is no date", {"units": "days since 2000-02-30"}),
        ("which is no date", {"units": "days since yesterday"}),
        ("no year 0", {"units": "days since 0000-01-01"}),
        ("write them as xarray does", {"units": units, "calendar": "360_day"}),
        ("too far away", {"units": "days since 2000-01-01"}),
    ):
        with pytest.raises(InputError, match=message):
            times(tmp_path / "t", [1, 1 << 62], **more)
