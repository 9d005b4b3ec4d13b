"""What is no scene, or must be said: each error names its remedy; options that it names work."""

import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from folders import ROOT
from image_files import PLACE, put, write_raster
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from scene_rasters import RGB, SIDE, UTM, earth, model, model_of, put_scene, whole

from nec_jax.images.record import DataError
from nec_jax.scene_encoding.raster_scene import RasterScene

SMALL = np.ones((3, 40, 40), np.uint8)


def refusal(*names: Any, config=RGB, **options: Any) -> str:
    """What is said when a scene is refused; it begins with the file's name or an option."""
    with pytest.raises(DataError) as error:
        RasterScene(names, config, **options)
    return str(error.value)


def options_in(text: str, option: str) -> list[list[str]]:
    """The words after each place where an option stands with values."""
    found = re.findall(rf"{option} ([-\w.]+(?: [-\w.]+)*?)(?= \(|[;,:]|\)|$)", text)
    return [words.split() for words in found]


def marked(path: Path, marks: str = "", descriptions: tuple[str, ...] = ()) -> Path:
    """Mark and describe the bands of a file."""
    with rasterio.open(path, "r+") as file:
        if marks:
            file.colorinterp = [ColorInterp[mark] for mark in marks.split()]
        if descriptions:
            file.descriptions = descriptions
    return path


def test_what_is_no_raster(tmp_path: Path):
    assert "no such raster" in refusal(tmp_path / "none.tif")
    assert "is a folder" in refusal(tmp_path)
    assert "is an empty file" in refusal(put(tmp_path / "empty.tif", b""))
    assert refusal(put(tmp_path / "text.tif", b"some text")).startswith(
        f"cannot read {tmp_path / 'text.tif'}: "
    )
    assert "give at least one file" in refusal()
    assert "lower case, s3://" in refusal("S3://bucket/a.tif")
    content = put_scene(tmp_path / "a.tif", earth()).read_bytes()
    cut = put(tmp_path / "cut.tif", content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cannot read .*cut\.tif: "):
        whole(RasterScene([cut], RGB))


def test_pixels_without_a_place(tmp_path: Path):
    name = tmp_path / "a b.tif"
    put_scene(name, SMALL, crs=None)
    assert f"gdal_edit.py -a_srs EPSG:N '{name}')" in refusal(name)
    write_raster(name, SMALL, crs=UTM)
    assert f"gdal_edit.py -a_srs EPSG:N -a_ullr W N E S '{name}')" in refusal(name)
    write_raster(name, SMALL, gcps=[GroundControlPoint(r, c, c, r) for r, c in
                                    ((0, 0), (0, 9), (9, 0))], crs=UTM)  # fmt: skip
    assert f"gdalwarp -order 1 -t_srs EPSG:N '{name}' OUT.tif)" in refusal(name)
    ones = [1.0] * 20
    numbers = ("height", "lat", "line", "long", "samp")
    scales = {f"{one}_{what}": 1.0 for one in numbers for what in ("off", "scale")}
    terms = {f"{one}_{what}_coeff": ones for one in ("line", "samp") for what in ("num", "den")}
    write_raster(name, SMALL, rpcs=RPC(**scales, **terms))
    assert f"gdalwarp -rpc -t_srs EPSG:N '{name}' OUT.tif)" in refusal(name)


@pytest.mark.parametrize(
    "place", [(7, 7, 0, 7, -7, 0), (10, 1, 0, 0, -10, 0), (0, 10, 0, 10, 0, 0)]
)
def test_rotated_and_sheared_rasters(tmp_path: Path, place: tuple[float, ...]):
    name = put_scene(tmp_path / "a.tif", SMALL, transform=rasterio.Affine(*place))
    assert f"(rotated or sheared): bring it to a north-up grid (gdalwarp {name} OUT.tif)" in (
        refusal(name)
    )


def test_a_degenerate_transform(tmp_path: Path):
    name = put_scene(tmp_path / "a.tif", SMALL, transform=rasterio.Affine(10, 0, 0, 0, 0, 5))
    assert "-a_ullr W N E S" in refusal(name)


def test_files_of_other_systems_and_grids(tmp_path: Path):
    first = put_scene(tmp_path / "first.tif", SMALL)
    other = put_scene(tmp_path / "other.tif", SMALL, column=40, crs="EPSG:32634")
    text = refusal(first, other)
    assert text.startswith(f"{other}: ")
    assert "(EPSG:32634), and that of" in text
    assert f"{first} is WGS 84 / UTM zone 33N (EPSG:32633)" in text
    assert f"(gdalwarp -t_srs EPSG:32633 {other} OUT.tif)" in text
    place: dict[str, Any] = {"column": 40}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"side": 20}, "its pixels are 20 x 20"),
        ({"column": 40.3}, "0.30 pixels beside"),
    ]
    for options, said in cases:
        other = put_scene(tmp_path / "other.tif", SMALL, **place | options)
        text = refusal(first, other)
        assert said in text
        assert f"(gdalwarp -tr 10 10 -tap {other} OUT.tif)" in text
        found = re.search(r"pass --resolution (\S+), to resample", text)
        assert found is not None
        scene = RasterScene([first, other], RGB, resolution=float(found[1]))
        assert whole(scene)[1].any(axis=0).all()
    drifting = put_scene(tmp_path / "drift.tif", SMALL, column=40, side=10.01)
    assert "its pixels are 10.01 x 10.01" in refusal(first, drifting)
    near = put_scene(tmp_path / "near.tif", SMALL, column=40.005)
    assert RasterScene([first, near], RGB).shape == (40, 80)


def test_files_with_other_bands_or_numbers(tmp_path: Path):
    first = put_scene(tmp_path / "first.tif", SMALL)
    place: dict[str, Any] = {"column": 40}
    other = put_scene(tmp_path / "other.tif", SMALL[[0, 1, 2, 0, 1]], **place)
    text = refusal(first, other, bands=("1", "2", "3"))
    assert "it has 5 bands, and" in text
    assert f"{first} has 3" in text
    put_scene(other, SMALL.astype(np.uint16), **place)
    text = refusal(first, other)
    assert "it has pixels of uint16 (16 bits), and" in text
    assert f"gdal_translate -ot Float32 {other} OUT.tif" in text
    put_scene(other, SMALL, **place)
    with rasterio.open(other, "r+") as file:
        file.offsets = (0, 1, 0)
    assert f"gdal_translate -unscale -ot Float32 {other} OUT.tif" in refusal(first, other)
    marked(put_scene(other, SMALL, **place), "blue green red")
    assert f"{other}: its band 1 is blue, and in {first} it is red: store" in refusal(
        first, other, bands=("1", "2", "3")
    )
    described = [
        marked(put_scene(tmp_path / f"{i}.tif", SMALL, column=40 * i), descriptions=texts)
        for i, texts in enumerate((("a", "b", "c"), ("c", "b", "a")))
    ]
    assert "are in another order than those of" in refusal(*described, bands=("a", "b", "c"))


def test_bands_in_another_order(tmp_path: Path):
    bands = earth()
    expected = bands.transpose(1, 2, 0)
    name = tmp_path / "a.tif"
    cases = [
        ([2, 1, 0], "blue green red", ()),
        ([2, 1, 0], "", ("B02", "B03", "B04")),
        ([2, 1, 0], "red green blue", ("blue", "green", "red")),
        ([1, 2, 0], "", ("Green", "Blue", "Red")),
        ([0, 2, 1, 0, 1, 0], "", ("B1", "B2", "B3", "B4", "B8", "B8A")),
        ([0, 0, 1, 2], "undefined red green blue", ()),
    ]
    for order, marks, texts in cases:
        marked(put_scene(name, bands[order], photometric="minisblack"), marks, texts)
        [words] = options_in(refusal(name), "--bands")
        assert [order[int(word) - 1] for word in words] == [0, 1, 2], (order, marks)
        scene = RasterScene([name], RGB, bands=words)
        np.testing.assert_array_equal(whole(scene)[0], expected)
    # The bands that a model names in another order than red, green, blue.
    marked(put_scene(name, bands, photometric="minisblack"), "blue green red")
    config = model_of("B02", "B03", "B04")
    np.testing.assert_array_equal(whole(RasterScene([name], config))[0], expected)
    assert options_in(refusal(name), "--bands") == [["3", "2", "1"]]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 12])
def test_other_numbers_of_bands(tmp_path: Path, count: int):
    name = put_scene(tmp_path / "a.tif", np.ones((count, 40, 40), np.uint8) * 7,
                     photometric="minisblack")  # fmt: skip
    marked(name, descriptions=("first", *("",) * (count - 1)))
    text = refusal(name)
    plural = "s" if count > 1 else ""
    assert f"it has {count} band{plural}, and the model takes 3 (red, green, blue)" in text
    assert f"band{plural} 1 (first)" in text
    [words] = options_in(text, "--bands")
    assert len(words) == 3
    assert count < 4 or words == ["4", "3", "2"]
    assert whole(RasterScene([name], RGB, bands=words))[1].all()


def test_bands_that_are_none(tmp_path: Path):
    name = put_scene(tmp_path / "a.tif", np.full((4, 40, 40), 255, np.uint8), alpha=4)
    marked(name, descriptions=("a", "a", "b", ""))
    assert "names 2 bands, and the model takes 3 (red, green, blue)" in refusal(
        name, bands=("1", "2")
    )
    listed = "choose from bands 1 (a), 2 (a), 3 (b), 4 (alpha)"
    for word in ("0", "5"):
        assert f"it has no band {word}: {listed}" in refusal(name, bands=("1", "2", word))
    assert f"described as 'c': {listed}" in refusal(name, bands=("1", "2", "c"))
    assert "the bands 1, 2 are all described as 'a'" in refusal(name, bands=("a", "2", "b"))
    assert "-colorinterp_4 undefined" in refusal(name, bands=("1", "2", "4"))
    write_raster(name, SMALL[:1], alpha=1, **PLACE)
    assert "no band but alpha" in refusal(name)


def test_pixels_of_another_dtype(tmp_path: Path):
    pixels = earth().astype(np.uint16) * 12 + 100
    pixels[:, :9] = 60_000
    name = put_scene(tmp_path / "a.tif", pixels, nodata=60_000)
    text = refusal(name)
    assert text.startswith(
        f"{name}: pixels are uint16 and the model takes uint8 from 0 to 255: pass --value-range "
        "LOW HIGH, the values that become 0 and 255; 98 % of "
    )
    low, high = map(int, text.rsplit(" ", 2)[1:])
    inside = (pixels[:, 9:] >= low) & (pixels[:, 9:] <= high)
    assert 0.95 < inside.mean() < 0.999
    assert f"lie between {low} and {high}: --value-range {low} {high}" in text
    values, valid = whole(RasterScene([name], RGB, value_range=(low, high)))
    assert valid.sum() == 91 * 130
    assert (values[valid].min(), values[valid].max()) == (0, 255)
    nothing = put_scene(tmp_path / "b.tif", np.zeros((3, 40, 40), np.uint16), nodata=0)
    assert refusal(nothing).endswith("the values that become 0 and 255")
    with rasterio.open(name, "r+") as file:
        file.scales = (1e-4, 1e-4, 1e-4)
    text = refusal(name)
    assert "pixels are uint16, scaled to float and the model" in text
    assert 0 < float(text.rsplit(" ", 1)[1]) < 1
    few = write_raster(tmp_path / "c.tif", SMALL, nbits=4, **PLACE)
    assert "pixels are uint8 of 4 bits and the model takes uint8" in refusal(few)


def test_missing_pixels_that_the_file_does_not_mark(tmp_path: Path):
    """The range that is named is without them, and so is the option for them."""
    pixels = earth().astype(np.float32)
    pixels[:, :9] = -9999
    name = put_scene(tmp_path / "a.tif", pixels)
    text = refusal(name)
    assert "-9999, far from all others: if these are missing, pass --nodata -9999; 98 %" in text
    [[low, high]] = options_in(text, "--value-range")[1:]
    assert 0 <= float(low) < float(high) <= 255
    assert options_in(text, "--nodata") == [["-9999"]]
    assert "--nodata" not in refusal(name, nodata=-9999)
    _, valid = whole(RasterScene([name], RGB, nodata=-9999, value_range=(float(low), float(high))))
    assert valid.sum() == 91 * 130


def test_values_beyond_those_of_the_model(tmp_path: Path):
    pixels = earth().astype(np.float32) / 255
    pixels[1, 50, 70], pixels[0, 60, 3] = 1.5, np.nan
    config = model(dtype="float32", value_range=(0.0, 1.0))
    name = put_scene(tmp_path / "a.tif", pixels, south_up=True)
    scene = RasterScene([name], config)
    assert scene.read(0, 0, 50, 130)[1].all()
    for resolution in (None, 20):
        scene = RasterScene([name], config, resolution=resolution)
        with pytest.raises(DataError) as error:
            whole(scene)
        text = str(error.value)
        assert text.startswith(f"{name}: a pixel is 1.5, at row 50, column 70 from the upper left")
        assert "the model takes 0 to 1: pass --value-range LOW HIGH" in text
    values, valid = whole(RasterScene([name], config, value_range=(0, 1)))
    assert np.argwhere(~valid).tolist() == [[60, 3]]
    assert values[50, 70, 1] == 1


def test_options_that_are_no_numbers(tmp_path: Path):
    name = put_scene(tmp_path / "a.tif", SMALL)
    for pair in ((2, 1), (1, 1), (np.nan, 1), (0, np.inf)):
        assert "give two numbers, the lower one first" in refusal(name, value_range=pair)
    for value in (0, -1, np.inf, np.nan):
        assert "above 0" in refusal(name, resolution=value)
    assert "is 400 x 400 map units, less than one pixel" in refusal(name, resolution=401)
    for value in (-1, 256, 0.5, np.nan, np.inf):
        text = refusal(name, nodata=value)
        assert text.startswith(f"--nodata {value:g} is no value of uint8 (0 to 255), the dtype of")


def test_a_scene_smaller_than_a_patch(tmp_path: Path):
    for shape, side in (((15, 40), "height"), ((40, 15), "width")):
        name = put_scene(tmp_path / "a.tif", np.ones((3, *shape), np.uint8))
        text = refusal(name)
        assert f"{shape[0]} x {shape[1]} px, and its {side} is less than a patch" in text
        scene = RasterScene([name], RGB, resolution=SIDE / 2)
        assert min(scene.shape) == 30


def test_kinds_of_pixels(tmp_path: Path):
    name = write_raster(tmp_path / "palette.tif", SMALL[:1], photometric="palette", **PLACE)
    with rasterio.open(name, "r+") as file:
        file.write_colormap(1, {0: (0, 0, 0, 255), 1: (9, 9, 9, 255)})
    assert f"(gdal_translate -expand rgb {name} OUT.tif)" in refusal(name)
    complexes = write_raster(tmp_path / "c.tif", SMALL.astype(np.complex64), **PLACE)
    assert "pixels are complex64: save magnitude and phase as bands" in refusal(complexes)
    name = write_raster(tmp_path / "white.tif", SMALL[:1], photometric="miniswhite", **PLACE)
    assert "save it as MINISBLACK" in refusal(name)
    name = write_raster(tmp_path / "cmyk.tif", SMALL[[0, 1, 2, 0]], photometric="cmyk", **PLACE)
    assert "CMYK" in refusal(name)
    name = write_raster(tmp_path / "pages.tif", SMALL, **PLACE)
    write_raster(name, SMALL, append_subdataset="yes", **PLACE)
    text = refusal(name)
    assert "it has 2 subdatasets or pages" in text
    assert f"(gdal_translate GTIFF_DIR:1:{name} OUT.tif)" in text
    picture = tmp_path / "a.png"
    with rasterio.open(put_scene(tmp_path / "a.tif", SMALL)) as file:
        rasterio.shutil.copy(file, picture, driver="PNG")
    text = refusal(picture)
    assert f"convert it (gdal_translate {shlex.quote(str(picture))} OUT.tif)" in text


def test_a_vrt_whose_source_is_gone(tmp_path: Path):
    source, name = put_scene(tmp_path / "a.tif", SMALL), tmp_path / "a.vrt"
    with rasterio.open(source) as file:
        rasterio.shutil.copy(file, name, driver="VRT")
    scene = RasterScene([name], RGB)
    source.unlink()
    with pytest.raises(DataError, match=r"a\.vrt: .*a\.tif"):
        whole(scene)


@contextmanager
def served(folder: Path, is_signed: bool = False) -> Iterator[str]:
    """The address of a web server of a folder, in a process of its own: GDAL holds the GIL."""
    code = (
        "import sys; from pathlib import Path; from web_server import web_server\n"
        f"with web_server(Path({str(folder)!r}), is_signed={is_signed}) as (address, _):\n"
        "    print(address, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT / "tests",
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate()


def test_scenes_at_urls_never_show_a_signature(tmp_path: Path):
    bands = earth()
    put_scene(tmp_path / "a.tif", bands, tiled=True, blockxsize=32, blockysize=32)
    with served(tmp_path, is_signed=True) as address:
        url, secret = f"{address}/a.tif", "signature=12345"
        scene = RasterScene([f"{url}?{secret}"], RGB)
        np.testing.assert_array_equal(whole(scene)[0], bands.transpose(1, 2, 0))
        assert scene.preparation["files"] == [url]
        again = RasterScene([f"{url}?signature=NEWER"], RGB)
        assert again.digests == scene.digests
        with pytest.raises(DataError, match=r"cannot read .*none\.tif: .*404") as error:
            RasterScene([url.replace("a.tif", "none.tif") + f"?{secret}"], RGB)
    assert secret not in "".join(traceback.format_exception(error.value))
