"""What CF says of a scene's place is that place, or is not said."""

import warnings

import numpy as np
import pytest
from scene_cases import written

from coder.scenes import scene_layout
from coder.scenes.cf_attributes import cf_attributes
from coder.scenes.scene_grid import SceneGrid

pytest.importorskip("rasterio")
pyproj = pytest.importorskip("pyproj")

NAMED = {  # the CF name of the projection of a code
    "EPSG:32633": "transverse_mercator",
    "EPSG:3035": "lambert_azimuthal_equal_area",
    "EPSG:3413": "polar_stereographic",
    "EPSG:2154": "lambert_conformal_conic",
    "EPSG:5070": "albers_conical_equal_area",
    "EPSG:3395": "mercator",
    "EPSG:6933": "lambert_cylindrical_equal_area",
    "EPSG:4326": "latitude_longitude",
    "EPSG:4258": "latitude_longitude",
}


def of(code: str):
    """What CF says of 20 x 10 cells in the middle of the area of a code."""
    crs = pyproj.CRS(code)
    west, south, east, north = crs.area_of_use.bounds
    centre = (west + east) / 2, (south + north) / 2
    to_map = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
    x, y = to_map.transform(*centre, errcheck=True)
    side = 0.01 if crs.is_geographic else 1000.0
    return cf_attributes(SceneGrid(crs.to_wkt(), code, (side, 0, x, 0, -side, y), (20, 10)))


@pytest.mark.parametrize("code", NAMED)
def test_the_parameters_alone_give_the_same_map(code):
    crs, found = pyproj.CRS(code), of(code)
    assert found["spatial_ref"]["grid_mapping_name"] == NAMED[code]
    other = pyproj.CRS.from_cf(found["spatial_ref"])
    west, south, east, north = crs.area_of_use.bounds
    longitude, latitude = np.linspace(west, east, 7)[1:-1], np.linspace(south, north, 7)[1:-1]
    places = [
        pyproj.Transformer.from_crs(crs.geodetic_crs, one, always_xy=True).transform(
            longitude, latitude
        )
        for one in (crs, other)
    ]
    np.testing.assert_allclose(*places, rtol=0, atol=1e-3)  # map units


@pytest.mark.parametrize(
    ("code", "x", "y", "unit"),
    [
        ("EPSG:32633", "projection_x_coordinate", "projection_y_coordinate", ("metre", "metre")),
        ("EPSG:3857", "projection_x_coordinate", "projection_y_coordinate", ("metre", "metre")),
        ("EPSG:4326", "longitude", "latitude", ("degrees_east", "degrees_north")),
        ("EPSG:3031", "projection_x_coordinate", "projection_y_coordinate", ("metre", "metre")),
    ],
)
def test_coordinates_have_names_and_units(code, x, y, unit):
    found = of(code)
    assert (found["x"]["standard_name"], found["y"]["standard_name"]) == (x, y)
    assert (found["x"]["units"], found["y"]["units"]) == unit


def test_feet_are_not_metres():
    found = of("EPSG:2263")
    assert float(found["x"]["units"].removesuffix(" metre")) == pytest.approx(1200 / 3937)
    assert found["spatial_ref"] == {}  # pyproj would take the false easting for metres


@pytest.mark.parametrize(
    "text",
    [
        pyproj.CRS("EPSG:4807").to_wkt(),  # in grads
        pyproj.CRS("EPSG:27572").to_wkt(),  # whose prime meridian is, and parameters are
        pyproj.CRS("EPSG:5513").to_wkt(),  # whose axes go south and west
        'LOCAL_CS["mine",UNIT["metre",1]]',
        "no CRS",
    ],
)
def test_what_cf_cannot_say_is_left_out(text):
    grid = SceneGrid(text, None, (1.0, 0, 0.0, 0, -1.0, 1.0), (1, 1))
    assert cf_attributes(grid) == {"x": {}, "y": {}, "spatial_ref": {}}


@pytest.mark.parametrize("code", ["EPSG:3857", "EPSG:2056", "ESRI:54009", "EPSG:5457"])
def test_a_projection_that_cf_does_not_have_has_no_name(code):
    found = of(code)
    assert found["spatial_ref"] == {}
    assert found["x"]["units"] == "metre"


def test_a_shift_of_the_datum_is_no_angle_of_the_map():
    text = "+proj=tmerc +lon_0=9 +x_0=3500000 +ellps=bessel +towgs84=598,73,418,0.2,0.04,-2.4,6.7"
    crs = pyproj.CRS(text)
    assert crs.is_bound
    grid = SceneGrid(crs.to_wkt(), None, (160.0, 0, 3.5e6, 0, -160.0, 5.5e6), (20, 10))
    assert cf_attributes(grid)["x"]["standard_name"] == "projection_x_coordinate"


def test_xarray_finds_them_and_writes_them_again(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("rioxarray")
    data = xarray.open_zarr(written(tmp_path / "a.zarr", time=np.datetime64("2026-05-01")))
    assert data.time.attrs["standard_name"] == "time"
    assert data.x.attrs["units"] == "metre"
    assert data.spatial_ref.attrs["grid_mapping_name"] == "transverse_mercator"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use `@` matmul")  # affine's own
        assert np.isnan(data.embedding.rio.nodata)
        assert data.embedding.dtype == np.float32
        bands = data.embedding[0, 20:40, 110:140, :3].transpose("channel", "y", "x")
        bands.rio.to_raster(tmp_path / "a.tif")
    import rasterio

    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert np.isnan(dataset.nodata)
        assert dataset.crs.to_epsg() == 32633
    data[["embedding"]].isel(y=slice(0, 256)).drop_encoding().to_zarr(
        tmp_path / "b.zarr", consolidated=False
    )
    again = xarray.open_zarr(tmp_path / "b.zarr", consolidated=False)
    np.testing.assert_array_equal(again.embedding, data.embedding[:, :256])


def test_the_fill_value_is_written_as_xarray_reads_it():
    zarr_backend = pytest.importorskip("xarray.backends.zarr")
    assert np.isnan(zarr_backend.FillValueCoder.decode(scene_layout.NAN, np.dtype("float32")))
