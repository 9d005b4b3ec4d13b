"""Rasters of embeddings: TIFFs, NumPy and Zarr, quantised or not, become scenes where they lie."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from export_cases import TRANSFORM, grid_of
from product_files import (
    CRS,
    D,
    as_companded,
    codec_of,
    expanded,
    put_tiff,
    smooth,
    with_scales,
)

import coder
from coder import InputError, UnusualEmbedding
from coder.cli import main
from coder.embedding_files import open_embeddings
from coder.fitting import measure
from coder.scenes.scene_reader import Scene

rasterio, xr = (pytest.importorskip(name) for name in ("rasterio", "xarray"))
for name in ("rioxarray", "zarr_cm"):
    pytest.importorskip(name)

Y = smooth((40, 50))
GONE = np.zeros(Y.shape[:2], bool)
GONE[:20, :18] = GONE[25, 30] = True


@pytest.fixture
def codec(tmp_path: Path) -> str:
    codec_of().save(tmp_path / "codec")
    return str(tmp_path / "codec")


def encoded(path: Path, codec: str, *options: str) -> Path:
    out = path.with_name("out.zarr")
    assert main(["encode", str(path), "--codec", codec, "--out", str(out), *options]) == 0
    return out


def holds(scene: Scene, y: Any, gone: Any = None, *, error: float = 0.005) -> None:
    """The scene has these embeddings, at the place of Y."""
    grid = grid_of(y.shape[:2])
    assert (scene.grid.transform, scene.grid.shape) == (grid.transform, grid.shape)
    assert scene.grid.code == CRS
    found = scene.read()
    gone = np.zeros(y.shape[:2], bool) if gone is None else gone
    np.testing.assert_array_equal(np.isnan(found).all(-1), gone)
    np.testing.assert_array_equal(scene.valid(), ~gone)
    np.testing.assert_array_equal(scene.coverage(), np.where(gone, 0, 100))
    assert np.square(found - y)[~gone].mean() < error * y[~gone].var()


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of affine, in rioxarray
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"south_up": True},
        {"tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "band"},
        {"compress": "deflate", "predictor": 3, "interleave": "pixel"},
        {"driver": "COG"},
    ],
)
def test_a_tiff_becomes_a_scene_at_its_place(options, codec, tmp_path, capsys):
    path = tmp_path / "y"  # no suffix
    if options.get("driver"):
        from rasterio.shutil import copy

        copy(put_tiff(tmp_path / "plain.tif", Y, names=True), path, driver="COG")
    else:
        put_tiff(path, Y, names=True, **options)
    out = encoded(path, codec)
    assert "a scene of 40 x 50 cells" in capsys.readouterr().out
    scene = coder.open_scene(out)
    holds(scene, Y)
    assert scene.levels == (1,)
    source = scene.facts["nec_source"]
    assert source["bands"] == [f"A{i:02}" for i in range(D)]
    assert source["tags"]["YEAR"] == "2024"
    # Any reader of georeferenced Zarr puts it there, too.
    dataset: Any = xr.open_zarr(out)
    assert dataset.rio.crs == CRS
    assert tuple(dataset.rio.transform())[:6] == TRANSFORM
    np.testing.assert_array_equal(dataset.embedding, scene.read())
    for command in ("info", "verify"):
        assert main([command, str(out)]) == 0
    back = tmp_path / "back.tif"
    assert main(["export", str(out), "--out", str(back)]) == 0
    with rasterio.open(back) as file:
        assert file.crs == CRS
        np.testing.assert_array_equal(file.read().transpose(1, 2, 0), scene.read())
    assert main(["export", str(out), "--preview", "--out", str(tmp_path / "p.tif")]) == 0
    more = ["--time", "2024-05-01", "--out", str(tmp_path / "item.json")]
    assert main(["export", str(out), *more]) == 0


def test_a_large_scene_without_overviews_is_whole(codec, tmp_path):
    y = smooth((300, 40), 3)
    out = encoded(put_tiff(tmp_path / "y.tif", y), codec)
    scene = coder.open_scene(out)
    assert scene.levels == (1,)
    holds(scene, y)
    assert not (out / "overviews").exists()
    assert main(["verify", str(out)]) == 0
    assert main(["export", str(out), "--preview", "--out", str(tmp_path / "p.tif")]) == 0
    assert main(["copy", str(out), "--out", str(tmp_path / "copy.zarr")]) == 0
    holds(coder.open_scene(tmp_path / "copy.zarr"), y)


@pytest.mark.parametrize("kind", ["nodata", "option", "mask", "alpha", "NaN"])
def test_missing_pixels_of_a_tiff(kind, codec, tmp_path, capsys):
    y, more = Y.copy(), []
    options: dict[str, Any] = {}
    if kind in ("nodata", "option"):
        y[GONE] = -9999
        options = {"nodata": -9999} if kind == "nodata" else {"nodata": -1}
        more = ["--nodata", "-9999"] if kind == "option" else []
    elif kind == "NaN":
        y[GONE] = np.nan
    elif kind == "mask":
        y[GONE] = 7
        options = {"mask": ~GONE}
    else:
        y = np.concatenate([y, ~GONE[..., None]], -1).astype(np.float32)
        y[GONE, :D] = 7
    path = put_tiff(tmp_path / "y.tif", y, **options)
    if kind == "alpha":
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [
                *[rasterio.enums.ColorInterp.undefined] * D,
                rasterio.enums.ColorInterp.alpha,
            ]
    out = encoded(path, codec, *more)
    text = capsys.readouterr().out
    assert "361 tokens are missing, and stay so" in text
    assert ("its nodata value says that -9999 is missing data" in text) == (kind == "nodata")
    assert ("band 9 is an alpha band" in text) == (kind == "alpha")
    holds(coder.open_scene(out), Y, GONE)
    # A fit leaves them out.
    more = ["--nodata", "nan"] if kind == "NaN" else more
    assert main(["fit", str(path), "--out", str(tmp_path / "own"), *more]) == 0


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float64"])
def test_tiffs_of_other_dtypes_with_scale_and_offset(dtype, codec, tmp_path, capsys):
    if dtype == "float64":
        path = put_tiff(tmp_path / "y.tif", Y.astype(dtype))
    else:
        q = np.rint((Y + (1 if dtype[0] == "u" else 0)) * 100).astype(dtype)
        path = put_tiff(tmp_path / "y.tif", q)
        with rasterio.open(path, "r+") as file:
            file.scales = (0.01,) * D
            file.offsets = (-1.0 if dtype[0] == "u" else 0.0,) * D
    out = encoded(path, codec)
    assert ("scales and offsets, which are applied" in capsys.readouterr().out) == (
        dtype != "float64"
    )
    holds(coder.open_scene(out), Y)


@pytest.mark.parametrize("south_up", [False, True])
def test_companded_integers_as_alphaearth_has_them(south_up, codec, tmp_path, capsys):
    q = as_companded(Y)
    q[GONE] = -128
    # As it is published: rows from south to north, and -128 as nodata.
    path = put_tiff(tmp_path / "y.tif", q, south_up=south_up, nodata=-128)
    found = open_embeddings(path, is_companded=True).y
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:][~GONE], expanded(q)[~GONE], rtol=1e-6)
    np.testing.assert_array_equal(np.ma.getmaskarray(found[3:30, 5:40]).all(-1), GONE[3:30, 5:40])
    out = encoded(path, codec, "--companded")
    assert "float32 [40, 50, 8] of int8, dequantised (companded)" in capsys.readouterr().out
    holds(coder.open_scene(out), Y, GONE)
    with pytest.warns(UnusualEmbedding, match="--scale or --companded"):
        assert main(["fit", str(path), "--out", str(tmp_path / "own")]) == 0


def test_companded_integers_with_another_mark_have_two(tmp_path):
    q = as_companded(Y)
    q[GONE], q[30, 30, 2], q[q == -127] = -127, -128, -126
    q[GONE] = -127
    path = put_tiff(tmp_path / "y.tif", q, nodata=-127)
    both = GONE.copy()
    both[30, 30] = True
    for nodata in (None, -127):
        found = open_embeddings(path, is_companded=True, nodata=nodata).y[:]
        np.testing.assert_array_equal(np.ma.getmaskarray(found).all(-1), both)


def test_names_and_tags_of_some_bands_are_kept(tmp_path):
    path = put_tiff(tmp_path / "y.tif", Y)
    with rasterio.open(path, "r+") as file:
        file.set_band_description(2, "second")
        file.update_tags(3, WAVELENGTH="0.6")
    facts = open_embeddings(path).facts
    assert facts["bands"] == ["", "second", *[""] * (D - 2)]
    assert facts["band_tags"] == [{}, {}, {"WAVELENGTH": "0.6"}, *[{}] * (D - 3)]


def test_scales_of_pixels_as_tessera_has_them(codec, tmp_path):
    q, scales = with_scales(Y)
    scales[GONE] = np.nan
    np.save(tmp_path / "q.npy", q)
    np.save(tmp_path / "scales.npy", scales)
    found = open_embeddings(tmp_path / "q.npy", scale=str(tmp_path / "scales.npy")).y
    part = found[5:30, 10:33]
    hidden = np.ma.getmaskarray(part).all(-1)
    np.testing.assert_array_equal(hidden, GONE[5:30, 10:33])
    expected = (q * scales[..., None])[5:30, 10:33]
    np.testing.assert_allclose(part[~hidden], expected[~hidden], rtol=1e-6)
    out = encoded(tmp_path / "q.npy", codec, "--scale", str(tmp_path / "scales.npy"))
    read = np.asarray(zarr.open_array(out, mode="r"))
    np.testing.assert_array_equal(np.isnan(read).all(-1), GONE)
    assert np.square(read - Y)[~GONE].mean() < 0.005 * Y.var()
    # The same as two TIFFs.
    put_tiff(tmp_path / "q.tif", q)
    put_tiff(tmp_path / "scales.tif", scales[..., None])
    options = ["--scale", str(tmp_path / "scales.tif"), "--overwrite"]
    holds(coder.open_scene(encoded(tmp_path / "q.tif", codec, *options)), Y, GONE)


@pytest.mark.parametrize(
    ("shape", "scale", "message"),
    [
        ((9, 8), (9,), ""),
        ((9, 8), (9, 1), ""),
        ((9, 8), (8,), ""),
        ((9, 8), (1, 8), ""),
        ((8, 8), (8, 1), ""),
        ((8, 8), (1, 8), ""),
        ((8, 8), (8,), r"give \[8, 1\] for rows, or \[1, 8\] for channels"),
        ((9, 8), (7,), r"one for each token, \[9\], or one for each channel, \[8\]"),
        ((5, 6, 8), (5, 6), ""),
        ((5, 6, 8), (8,), ""),
        ((5, 6, 8), (6, 5), "scales of shape"),
        ((3, 5, 6, 8), (3, 5, 6), ""),
    ],
)
def test_the_shape_of_scales_says_what_they_are_for(shape, scale, message, tmp_path):
    rng = np.random.default_rng(0)
    q = rng.integers(-127, 128, shape).astype(np.int8)
    s = rng.uniform(0.1, 2, scale).astype(np.float32)
    np.save(tmp_path / "q.npy", q)
    np.save(tmp_path / "s.npy", s)
    if message:
        with pytest.raises(InputError, match=message):
            open_embeddings(tmp_path / "q.npy", scale=str(tmp_path / "s.npy"))
        return
    found = open_embeddings(tmp_path / "q.npy", scale=str(tmp_path / "s.npy")).y
    whole = s[..., None] if scale in (shape[:-1],) else s
    np.testing.assert_allclose(found[1:3], (q * whole)[1:3], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodata": 0.5}, "int8 cannot hold"),
        ({"scale": np.full(D, np.nan)}, "scales of channels are NaN"),
        ({"y": Y.reshape(-1, D)}, "--scale is for integers, and these are float32"),
        ({"scale": np.array(["x"] * D)}, "scales of <U1: give floats"),
    ],
)
def test_scales_that_cannot_be_used(change, message, codec, tmp_path, capsys):
    q, _ = with_scales(Y)
    np.save(tmp_path / "q.npy", change.get("y", q.reshape(-1, D)))
    np.save(tmp_path / "s.npy", change.get("scale", np.ones(D, np.float32)))
    options = ["--scale", str(tmp_path / "s.npy"), "--codec", codec]
    if "nodata" in change:
        options += ["--nodata", str(change["nodata"])]
    out = ["--out", str(tmp_path / "out.zarr")]
    assert main(["encode", str(tmp_path / "q.npy"), *out, *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("stack", [False, True])
def test_channels_that_come_first(stack, codec, tmp_path, capsys):
    y = np.stack([Y, Y[::-1]]) if stack else Y
    np.save(tmp_path / "y.npy", np.moveaxis(y, -1, -3))
    found = open_embeddings(tmp_path / "y.npy", channel_first=True).y
    np.testing.assert_array_equal(found[:], y)
    np.testing.assert_array_equal(found[1:2, 3:30], y[1:2, 3:30])
    out = encoded(tmp_path / "y.npy", codec, "--channel-first")
    read = np.asarray(zarr.open_array(out, mode="r"))
    assert np.square(read - y).mean() < 0.005 * y.var()
    assert (
        main(["fit", str(tmp_path / "y.npy"), "--out", str(tmp_path / "o"), "--channel-first"]) == 0
    )
    np.save(tmp_path / "v.npy", Y.reshape(-1, D))
    capsys.readouterr()
    for name, message in (("v.npy", "is for [D, H, W]"), ("y.tif", "bands of a TIFF are its")):
        if name == "y.tif":
            put_tiff(tmp_path / name, Y)
        more = ["--out", str(tmp_path / "p"), "--channel-first"]
        assert main(["fit", str(tmp_path / name), *more]) == 1
        assert message in capsys.readouterr().err


def dataset_of(y: np.ndarray, **more: Any) -> Any:
    """A dataset of xarray and rioxarray."""
    grid = grid_of(Y.shape[:2])
    found: Any = xr.Dataset(
        {"embeddings": (("y", "x", "band"), y)},
        {
            "y": grid.y,
            "x": grid.x,
            "band": np.array([f"A{i:02}" for i in range(D)], object),
            **more,
        },
    )
    return found.rio.write_crs(CRS)


@pytest.mark.parametrize("holes", ["some", "many", "clouds"])
def test_the_stated_error_is_that_of_the_whole_where_pixels_are_missing(holes, tmp_path, capsys):
    y = smooth((150, 140), 3)
    row, column = np.mgrid[:150, :140]
    random = np.random.default_rng(0).random(y.shape[:2])
    clouds = np.cos(row / 7) * np.cos(column / 9) > 0.2
    gone = {"some": random < 0.05, "many": random < 0.6, "clouds": clouds}[holes]
    np.save(tmp_path / "y.npy", np.where(gone[..., None], np.nan, y))
    coder.fit(y[:64]).save(tmp_path / "c")
    for options in ([], ["--codec", str(tmp_path / "c"), "--max-error", "10%"]):
        if holes == "many" and not options:
            continue  # no block has enough tokens to fit to
        words = ["encode", str(tmp_path / "y.npy"), "--out", str(tmp_path / f"o{len(options)}")]
        assert main([*words, *options, "--json"]) == 0
        stated = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
        decoded = np.asarray(zarr.open_array(words[-1], mode="r"))
        true = measure(y[~gone], decoded[~gone])
        assert true.relative_rms == pytest.approx(stated["relative_rms"], rel=0.25)
        assert true.relative_rms is not None
        assert true.relative_rms < 0.12
        assert true.mean_cosine == pytest.approx(stated["mean_cosine"], abs=0.002)


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
@pytest.mark.parametrize("kind", ["v3", "v2", "ascending", "other", "channel first", "scaled"])
def test_zarr_of_xarray_keeps_its_place(kind, codec, tmp_path, capsys):
    dataset, options = dataset_of(Y), []
    if kind == "ascending":
        dataset = dataset.isel(y=slice(None, None, -1), x=slice(None, None, -1))
    if kind == "other":
        dataset = dataset.assign(landmask=(("y", "x"), GONE.astype(np.uint8)))
    if kind == "channel first":
        dataset, options = dataset.transpose("band", "y", "x"), ["--channel-first"]
    encoding: Any = {}
    if kind == "scaled":
        encoding = {"embeddings": {"dtype": "i2", "scale_factor": 0.0001, "_FillValue": -32768}}
        dataset = dataset.where(xr.DataArray(~GONE, dims=("y", "x")))
    path = tmp_path / "y.zarr"
    dataset.to_zarr(path, encoding=encoding, zarr_format=2 if kind == "v2" else 3)
    out = encoded(path, codec, *options)
    text = capsys.readouterr().out
    assert ("only embeddings is encoded, without landmask" in text) == (kind == "other")
    scene = coder.open_scene(out)
    holds(scene, Y, GONE if kind == "scaled" else None)
    assert scene.facts["nec_source"]["bands"][3] == "A03"
    assert main(["export", str(out), "--out", str(tmp_path / "back.tif")]) == 0
    with rasterio.open(tmp_path / "back.tif") as file:
        assert file.descriptions == tuple(f"A{i:02}" for i in range(D))
    capsys.readouterr()
    assert main(["decode", str(out), "--out", str(tmp_path / "other.tif")]) == 1
    assert "`nec export` makes a GeoTIFF" in capsys.readouterr().err
    if kind == "channel first":
        assert main(["fit", str(path), "--out", str(tmp_path / "o")]) == 1
        assert "its dimensions are (band, y, x): the channels come first" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
def test_times_of_zarr_are_kept(codec, tmp_path):
    several = np.stack([Y, 0.5 * Y, Y[::-1]])
    grid = grid_of(Y.shape[:2])
    times = np.array(["2024-01-01", "2023-01-01", "2024-07-01T12"], "datetime64[ns]")
    dataset: Any = xr.Dataset(
        {"e": (("time", "y", "x", "band"), several)}, {"time": times, "y": grid.y, "x": grid.x}
    )
    dataset.rio.write_crs(CRS).to_zarr(tmp_path / "y.zarr", zarr_format=3)
    scene = coder.open_scene(encoded(tmp_path / "y.zarr", codec))
    assert scene.times is not None
    np.testing.assert_array_equal(scene.times, times.astype("datetime64[us]"))
    for number, y in enumerate(several):
        assert np.square(scene.read(time=number) - y).mean() < 0.03 * y.var()
    dataset = dataset.assign_coords(time=times[[0, 0, 1]]).rio.write_crs(CRS)
    dataset.to_zarr(tmp_path / "twice.zarr", zarr_format=3)
    more = ["--codec", codec, "--out", str(tmp_path / "x.zarr")]
    assert main(["encode", str(tmp_path / "twice.zarr"), *more]) == 1
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
def test_a_place_that_is_not_certain_is_said_or_refused(codec, tmp_path, capsys):
    grid = grid_of(Y.shape[:2])

    def put(name: str, dataset: Any) -> Path:
        dataset.to_zarr(tmp_path / name, zarr_format=3)
        return tmp_path / name

    moved = dataset_of(Y)
    moved.spatial_ref.attrs["GeoTransform"] = "0 160 0 5800000 0 -160"
    bent = grid.x.copy()
    bent[20] += 100
    no_crs = dataset_of(Y).drop_vars("spatial_ref")
    no_crs.embeddings.encoding.clear()
    degrees = xr.Dataset(
        {"e": (("lat", "lon", "band"), Y)},
        {"lat": 50 - 0.1 * np.arange(40), "lon": 10 + 0.1 * np.arange(50)},
    )
    for name, dataset, message in (
        ("moved", moved, "its GeoTransform is another than that of y and x, which are taken"),
        ("none", no_crs, "no coordinate reference system: its place on the map is not kept"),
        ("degrees", degrees, "latitude and longitude are taken as EPSG:4326"),
    ):
        path = put(name, dataset)
        assert main(["fit", str(path), "--out", str(tmp_path / "o"), "--overwrite"]) == 0
        assert message in capsys.readouterr().out
    found = open_embeddings(tmp_path / "degrees").place
    assert found is not None
    assert found.grid.code == "EPSG:4326"
    assert open_embeddings(tmp_path / "none").place is None
    path = put("bent", dataset_of(Y).assign_coords(x=bent).rio.write_crs(CRS))
    assert main(["fit", str(path), "--out", str(tmp_path / "p")]) == 1
    assert "its coordinate x is not even" in capsys.readouterr().err
    # An array alone has no place, and says so.
    assert open_embeddings(tmp_path / "moved" / "embeddings").place is None
    assert "give the folder of its group" in open_embeddings(tmp_path / "moved/embeddings").lines[0]


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_a_tiff_without_a_place_becomes_a_plain_array(codec, tmp_path, capsys):
    y = Y.copy()
    y[GONE] = np.nan
    path = put_tiff(tmp_path / "y.tif", y, georeferenced=False)
    out = encoded(path, codec)
    text = capsys.readouterr().out
    assert "it has no georeference: a plain array is made of it" in text
    read = np.asarray(zarr.open_array(out, mode="r"))
    np.testing.assert_array_equal(np.isnan(read).all(-1), GONE)
    source: Any = zarr.open_array(out).attrs["nec_source"]
    assert source["tags"]["YEAR"] == "2024"


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_rasters_that_cannot_be_kept_are_refused(codec, tmp_path, capsys):
    rotated = rasterio.Affine(10, 3, 0, 3, -10, 0)
    put_tiff(tmp_path / "rotated.tif", Y, georeferenced=False, crs=CRS, transform=rotated)
    points = [rasterio.control.GroundControlPoint(i, j, i, j) for i, j in ((0, 0), (9, 0), (0, 9))]
    with rasterio.open(put_tiff(tmp_path / "gcps.tif", Y, georeferenced=False), "r+") as file:
        file.gcps = points, rasterio.crs.CRS.from_user_input(CRS)
    put_tiff(tmp_path / "empty.tif", np.full_like(Y, np.nan))
    put_tiff(tmp_path / "cut.tif", np.random.default_rng(0).random(Y.shape), compress="deflate")
    data = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    options = ["--codec", codec, "--out", str(tmp_path / "x.zarr")]
    for name, message in (
        ("rotated.tif", "a rotated raster: make it north-up"),
        ("gcps.tif", "georeferenced by control points alone"),
        ("empty.tif", "all tokens are missing"),
        ("cut.tif", "damaged"),
    ):
        assert main(["encode", str(tmp_path / name), *options]) == 1
        error = capsys.readouterr().err
        assert re.match(f"{re.escape(str(tmp_path / name))}: .*{message}", error), error
        assert error.count("\n") == 1
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".zarr", ".part", ".lock")]


def test_an_archive_is_not_taken_for_an_array(tmp_path, capsys):
    from folders import KEPT

    path = KEPT / "2026-11/archive.zarr"
    assert main(["fit", str(path), "--out", str(tmp_path / "o")]) == 1
    assert "`nec copy --codec`" in capsys.readouterr().err
