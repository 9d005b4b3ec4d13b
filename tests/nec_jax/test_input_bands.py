"""Models taken to other bands."""

import json
import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from image_files import write_raster
from model_cases import FLOAT32, random_images, random_weights, tiny_config
from train_cases import SMALL, TINY

import nec_jax
from coder import InputError
from nec_jax import NecParams, latents
from nec_jax.images.record import DataError
from nec_jax.input_bands import with_bands
from nec_jax.models import nec
from nec_jax.sources import open_source
from train.data import read_all
from train.engine.initial_model import measure_bands
from train.main import main

RGB = NecParams(random_weights(tiny_config()), tiny_config())
SENTINEL = ("B01", "B02=blue", "B03=green", "B04=red", "B05", "B06", "B07", "B08")


def taken_to(params: NecParams, bands: tuple[str, ...]) -> NecParams:
    """With the normalisation of each band that is mapped, and 100 +- 50 for the others."""
    c = params.config
    names = [word.split("=")[-1] for word in bands]
    places = [c.bands.index(name) if name in c.bands else None for name in names]
    mean = [100.0 if i is None else c.mean[i] for i in places]
    std = [50.0 if i is None else c.std[i] for i in places]
    return with_bands(params, bands, mean=mean, std=std, dtype="uint8", value_range=(0.0, 255.0))


def test_the_same_bands_are_the_same_model() -> None:
    images = random_images(0, 3)
    same = taken_to(RGB, ("red", "green", "blue"))
    np.testing.assert_array_equal(latents(same, images), latents(RGB, images))


def test_bands_that_change_places_change_nothing() -> None:
    images = random_images(0, 3)
    bgr = taken_to(RGB, ("blue", "green", "red"))
    assert bgr.config.bands == ("blue", "green", "red")
    found = latents(bgr, images[..., ::-1].copy())
    np.testing.assert_allclose(found, latents(RGB, images), **FLOAT32)


def test_new_bands_at_their_mean_change_nothing() -> None:
    images = random_images(0, 3)
    eight = taken_to(RGB, SENTINEL)
    assert eight.config.bands == ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08")
    wide = np.full((3, 64, 64, 8), 100, np.uint8)
    wide[..., [3, 2, 1]] = images
    np.testing.assert_allclose(latents(eight, wide), latents(RGB, images), **FLOAT32)
    # And back: the three that are wanted are those that were there.
    back = taken_to(eight, ("red=B04", "green=B03", "blue=B02"))
    old = RGB.config
    back = with_bands(
        back, ("red", "green", "blue"), mean=old.mean, std=old.std, dtype="uint8",
        value_range=(0.0, 255.0),
    )  # fmt: skip
    np.testing.assert_array_equal(latents(back, images), latents(RGB, images))


def test_new_bands_start_from_the_mean_of_the_others_in_encoder_and_decoder() -> None:
    four = taken_to(RGB, ("nir", "red", "green", "extra"))  # blue is not used

    def of_bands(params: NecParams) -> tuple[np.ndarray, np.ndarray]:
        kernel = np.asarray(params.weights["encoder"]["patch_embed"]["kernel"])
        pred = np.asarray(params.weights["decoder"]["pred"]["kernel"])
        count = params.config.channels
        return kernel.reshape(256, count, -1), pred.reshape(-1, 256, count)

    (old, old_pred), (new, new_pred) = of_bands(RGB), of_bands(four)
    np.testing.assert_array_equal(new[:, 1:3], old[:, :2])
    np.testing.assert_array_equal(new_pred[..., 1:3], old_pred[..., :2])
    for i in (0, 3):
        np.testing.assert_allclose(new[:, i], old[:, :2].mean(1), **FLOAT32)
        np.testing.assert_allclose(new_pred[..., i], old_pred[..., :2].mean(-1), **FLOAT32)
    tokens = jnp.asarray(latents(four, random_images(0, 1, channels=4)))
    pixels = nec.reconstruct(four.config, four.weights, tokens, (4, 4))
    assert pixels.shape == (1, 16, 256 * 4)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (("B04=rot",), "the model has no band 'rot'; it has red, green, blue"),
        (("red", "red"), "every band needs a name of its own"),
        (("", "red"), "every band needs a name of its own"),
        (("B01", "B02"), r"none is a band of the model \(red, green, blue\): map at"),
    ],
)
def test_bands_that_cannot_be_are_refused(bands: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        taken_to(RGB, bands)


def test_bands_without_an_order_are_refused() -> None:
    contract: Any = {
        "mean": (1.0,) * 3,
        "std": (1.0,) * 3,
        "dtype": "uint8",
        "value_range": (0.0, 255.0),
    }
    bands: Any = {"red", "green", "blue"}
    with pytest.raises(InputError, match="bands are a set, which has no order"):
        with_bands(RGB, bands, **contract)


@pytest.fixture(scope="module")
def reflectances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """uint16 chips of five bands, scaled as Sentinel-2's are, from the Blue Marble's pixels."""
    folder = tmp_path_factory.mktemp("sentinel")
    pixels = read_all(open_source("blue-marble", "train", chip=40), 40, limit=24).images
    rows = ["path,label,split"]
    for i, rgb in enumerate(pixels.astype(np.uint16)):
        path = folder / f"{i:02d}.tif"
        bands = [rgb[..., 2], rgb[..., 1], rgb[..., 0], rgb.max(-1), rgb.min(-1)]
        with rasterio.open(
            path, "w", driver="GTiff", width=40, height=40, count=5, dtype="uint16",
            crs="EPSG:32632", transform=rasterio.Affine(10.0, 0.0, 5e5, 0.0, -10.0, 5e6),
        ) as file:  # fmt: skip
            file.write(np.stack(bands) * 30 + 1000)
        rows.append(f"{path.name},earth,{('train', 'train', 'val')[i % 3]}")
    (folder / "split.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.slow
def test_sentinel_2_reflectances_go_in_as_they_are(
    smoke_mae: Path, reflectances: Path, tmp_path: Path
) -> None:
    bands = ["B02=blue", "B03=green", "B04=red", "B08", "B11"]
    main([
        "compress", *SMALL, "--data", str(reflectances), "--init", str(smoke_mae), "--steps", "2",
        "--bands", *bands, "--workdir", str(tmp_path), "--calibration-images", "16",
        "--gain", "identity",
    ])  # fmt: skip
    params = nec_jax.load(tmp_path / "model.safetensors")
    config = params.config
    assert (config.bands, config.dtype) == (("B02", "B03", "B04", "B08", "B11"), "uint16")
    assert config.value_range == (0.0, 65535.0)
    assert all(1000 < mean < 10000 for mean in config.mean)
    assert json.loads(params.provenance)["compress"]["data"]
    images = read_all(open_source(str(reflectances), "val"), config.image_size).images
    assert images.dtype == np.uint16
    blobs = nec_jax.encode(params, images)
    np.testing.assert_array_equal(nec_jax.decode(params, blobs), nec_jax.embed(params, images))


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (["B02=blue", "B03=green"], "--bands has 2 names, and the images of .* have 5 bands"),
        (["a", "b", "c", "d", "e"], "none is a band of the model"),
    ],
)
def test_bands_that_do_not_fit_the_data_are_refused(
    smoke_mae: Path, reflectances: Path, tmp_path: Path, bands: list[str], message: str
) -> None:
    common = ["--data", str(reflectances), "--init", str(smoke_mae), "--workdir", str(tmp_path)]
    with pytest.raises(SystemExit, match=message):
        main(["compress", *common, "--bands", *bands])


@pytest.mark.slow
def test_without_a_model_bands_are_names(reflectances: Path, tmp_path: Path) -> None:
    common = ["pretrain", *SMALL, "--data", str(reflectances), "--workdir", str(tmp_path)]
    size = [*TINY, "--steps", "1"]
    with pytest.raises(SystemExit, match="without --init give 5 names, none with ="):
        main([*common, *size, "--bands", "B02=blue", "B03", "B04", "B08", "B11"])
    main([*common, *size, "--bands", "B02", "B03", "B04", "B08", "B11"])
    assert nec_jax.load(tmp_path / "model.safetensors").config.bands[3] == "B08"


@pytest.mark.parametrize("dtype", ["float64", "uint32", "int64"])
def test_images_of_a_dtype_that_no_model_takes_are_named(dtype: str, tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", np.ones((1, 8, 8), dtype))
    message = rf"a\.tif of {tmp_path.name} is {dtype}, a model takes uint8, .*: convert"
    with pytest.raises(DataError, match=message):
        measure_bands(open_source(tmp_path), 8)


def said_of(bands: np.ndarray, folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged of files of these bands [N, bands, H, W]."""
    for i, one in enumerate(bands):
        write_raster(folder / f"{i}.tif", one)
    caplog.set_level(logging.WARNING)
    caplog.clear()
    measure_bands(open_source(folder), 4)
    return caplog.messages


@pytest.mark.parametrize(
    ("dtype", "mark"),
    [
        ("int16", -9999),
        ("int16", -32768),
        ("float32", -9999),
        ("float32", -32768),
        ("float32", float(np.finfo(np.float32).min)),
        ("float32", -3.4e38),
    ],
)
def test_numbers_that_may_mark_missing_pixels_are_said(
    dtype: str, mark: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bands = np.linspace(-100, 5000, 2 * 2 * 64).reshape(2, 2, 8, 8).astype(dtype)
    assert said_of(bands, tmp_path, caplog) == []
    bands[1, 1, 2, 3:5] = mark  # 2 of 128 pixels, which resizing would blend with others
    [message] = said_of(bands, tmp_path, caplog)
    value = float(np.dtype(dtype).type(mark))
    assert message.startswith(f"band 2 of {tmp_path.name} has the value {value:g} in 1.6 % of the")
    assert f"(gdal_edit.py -a_nodata {value:.9g} FILE)" in message


def test_values_that_go_on_down_to_a_mark_are_no_marks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for low, high in ((-9999, 9000), (-32768, 32767), (-20000, 9000)):
        bands = np.linspace(low, high, 2 * 2 * 64).astype(np.int16).reshape(2, 2, 8, 8)
        bands[0, 0, 0, :2] = low, -9999
        assert said_of(bands, tmp_path / f"{low}", caplog) == []
    bands = np.zeros((1, 1, 8, 8), np.uint16)
    bands[0, 0, 0, 0] = 55537  # the bits of -9999
    assert said_of(bands, tmp_path / "unsigned", caplog) == []
