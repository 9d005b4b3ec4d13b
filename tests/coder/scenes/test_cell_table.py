"""GeoParquet of scenes: geopandas reads each cell with its place and embedding."""

import json

import numpy as np
import pytest
from export_cases import TRANSFORM, grid_of, written

import coder
from coder import InputError, OutputError
from coder.scenes import cell_table
from coder.scenes.cell_table import write_table
from coder.scenes.scene_part import part_of

rasterio = pytest.importorskip("rasterio")
parquet = pytest.importorskip("pyarrow.parquet")
geopandas = pytest.importorskip("geopandas")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return coder.open_scene(written(tmp_path_factory.mktemp("scenes") / "a.zarr"))


@pytest.fixture(scope="module")
def path(scene, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "a.parquet"
    write_table([part_of(scene)], path)
    return path


def test_there_is_a_row_for_each_cell_with_an_embedding(scene, path):
    table = geopandas.read_parquet(path)
    valid = scene.valid()
    places = np.argwhere(valid)
    np.testing.assert_array_equal(table[["row", "column"]], places)
    np.testing.assert_array_equal(np.stack(table["embedding"]), scene.read()[valid])
    np.testing.assert_array_equal(table["coverage"], scene.coverage()[valid])
    assert table["embedding"].iloc[0].dtype == np.float32


def test_cells_lie_where_the_scene_has_them(scene, path):
    table = geopandas.read_parquet(path)
    assert table.crs.to_epsg() == 32633
    np.testing.assert_allclose(table.geometry.centroid.x, table["x"], atol=1e-6)
    np.testing.assert_allclose(table.geometry.centroid.y, table["y"], atol=1e-6)
    assert (table.geometry.area == 160.0**2).all()
    assert table.geometry.is_valid.all()
    assert all(one.exterior.is_ccw for one in table.geometry[:50])
    np.testing.assert_array_equal(table["x"], scene.grid.x[table["column"]])


def test_corners_are_where_rasterio_and_pyproj_put_them(scene, path):
    """In degrees, to half a pixel of the 16 of a cell: by rasterio of the grid, by pyproj here."""
    from rasterio.transform import Affine, xy
    from rasterio.warp import transform

    table = geopandas.read_parquet(path)
    half_pixel = 0.5 * 160 / 16 / 111_320  # degrees of latitude
    affine = Affine(*TRANSFORM)
    for i in np.linspace(0, len(table) - 1, 10).astype(int):
        row, column = table["row"].iloc[i], table["column"].iloc[i]
        own = table.iloc[[i]].to_crs("EPSG:4326").geometry.iloc[0].exterior.coords[:4]
        corners = [xy(affine, row, column, offset=one) for one in ("ll", "lr", "ur", "ul")]
        degrees = transform("EPSG:32633", "EPSG:4326", *zip(*corners, strict=True))
        np.testing.assert_allclose(own, np.transpose(degrees), atol=half_pixel)


def test_the_metadata_are_those_of_the_standard(scene, path):
    held = parquet.read_schema(path).metadata
    geo, column = json.loads(held[b"geo"]), json.loads(held[b"geo"])["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32633}
    assert column["covering"]["bbox"]["ymax"] == ["bbox", "ymax"]
    table = geopandas.read_parquet(path)
    np.testing.assert_allclose(column["bbox"], table.total_bounds)
    boxes = parquet.read_table(path, columns=["bbox"])["bbox"].to_pylist()
    np.testing.assert_array_equal([list(one.values()) for one in boxes], table.bounds)
    assert json.loads(held[b"nec"])["nec_scene"]["made"]["quality"] == 8
    assert json.loads(held[b"nec"])["refined"] is False


def test_bounds_select_rows_by_the_covering(scene, path):
    bounds = (510_000, 5_791_000, 511_000, 5_792_000)
    found = geopandas.read_parquet(path, bbox=bounds)
    assert 0 < len(found) < 100
    assert found.geometry.intersects(__import__("shapely").box(*bounds)).all()


def test_each_strip_is_a_row_group(scene, tmp_path, monkeypatch):
    monkeypatch.setattr("coder.scenes.scene_part._STRIP", 1)
    write_table([part_of(scene)], tmp_path / "a.parquet")
    assert parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 5


def test_a_window_keeps_the_rows_of_the_scene(scene, tmp_path):
    part = part_of(scene, (510_000, 5_791_000, 511_000, 5_792_000))
    write_table([part], tmp_path / "a.parquet")
    table = geopandas.read_parquet(tmp_path / "a.parquet")
    for i in range(0, len(table), 9):
        one = table.iloc[i]
        np.testing.assert_array_equal(one["embedding"], scene.at(one["x"], one["y"]))
        assert scene.grid.cell(one["x"], one["y"]) == (one["row"], one["column"])


def test_times_are_a_column(tmp_path):
    times = ("2024-05-01T10:00", "2024-06-01T10:00")
    scene = coder.open_scene(written(tmp_path / "a.zarr", (20, 24), times=times))
    write_table([part_of(scene, time=i) for i in range(2)], tmp_path / "a.parquet")
    table = geopandas.read_parquet(tmp_path / "a.parquet")
    counts = table.groupby("time").size()
    assert [str(time) for time in counts.index] == [
        "2024-05-01 10:00:00+00:00",
        "2024-06-01 10:00:00+00:00",
    ]
    second = table[table["time"] == counts.index[1]]
    np.testing.assert_array_equal(
        np.stack(second["embedding"]), scene.read(time=1)[scene.valid(time=1)]
    )


def test_what_cannot_be_written_is_refused(scene, tmp_path):
    empty = part_of(scene, (500_000, 5_799_000, 500_500, 5_800_000))
    with pytest.raises(InputError, match="no cell of the window"):
        write_table([empty], tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_table([part_of(scene)], tmp_path / "b.parquet")
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(InputError, match="has no PROJJSON"):
        cell_table._projjson("")
    assert not list(tmp_path.iterdir())


def test_a_system_without_a_code_has_projjson(tmp_path):
    code = "+proj=laea +lat_0=47 +lon_0=9 +datum=WGS84 +units=m"
    grid = grid_of((8, 8), code, (160.0, 0, 0.0, 0, -160.0, 0.0))
    scene = coder.open_scene(written(tmp_path / "a.zarr", (8, 8), grid=grid))
    write_table([part_of(scene)], tmp_path / "a.parquet")
    found = geopandas.read_parquet(tmp_path / "a.parquet").crs
    assert "Lambert Azimuthal" in str(found.to_wkt())


def test_a_polygon_is_wkb():
    shapely = pytest.importorskip("shapely")
    sides = tuple(np.array([side], float) for side in (1, 2, 3, 4))
    found = shapely.from_wkb(cell_table._polygons(sides).to_pylist()[0])
    assert found.equals(shapely.box(1, 2, 3, 4))
    assert found.exterior.is_ccw
