"""Errors of the system are told from damaged images."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from image_files import encoded, noise, put, write_raster
from rasterio.errors import RasterioIOError

from nec_jax.images import rasters
from nec_jax.images import read as module
from nec_jax.images.read import is_raster, read_header, read_image, read_mask
from nec_jax.images.record import DataError
from nec_jax.sources import open_source
from train.data import fingerprint, read_all

PASSING = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOMEM)


@pytest.mark.parametrize("number", [*PASSING, errno.EACCES, errno.ENOENT])
@pytest.mark.parametrize("place", ["opened", "cause", "read again"])
def test_an_error_of_the_system_is_none_of_the_image(
    number: int, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_raster(tmp_path / "a.tif", noise(1, 6, 5))
    source = open_source(tmp_path)
    failure = OSError(number, os.strerror(number))
    kept = module.open_regular

    def fail(*_: object) -> None:
        raise failure

    def fail_as_gdal(*_: object) -> None:
        if place == "cause":
            raise RasterioIOError("see the cause") from failure
        monkeypatch.setattr(module, "open_regular", fail)  # it said no number; Python will
        raise RasterioIOError("read failed")

    readers: list[Callable[[], object]] = [
        lambda: read_image(path, "a.tif"),
        lambda: read_mask(path),
        lambda: read_header(path),
        lambda: read_all(source, 4),
    ]
    for reader in readers:
        monkeypatch.setattr(module, "open_regular", fail if place == "opened" else kept)
        monkeypatch.setattr(rasters, "open_raster", fail_as_gdal)
        error = OSError if number in PASSING else DataError
        with pytest.raises(error, match=r"a\.tif") as caught:
            reader()
        if number in PASSING:
            assert isinstance(caught.value, OSError)
            assert caught.value.errno == number
            assert "give the same command again" in str(caught.value)


@pytest.mark.parametrize("number", [*PASSING, errno.EACCES])
def test_neither_a_fingerprint_nor_a_kind_of_file_comes_from_a_failing_disk(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = put(tmp_path / "a.png", encoded(noise(6, 5, 3), "PNG"))
    source = open_source(tmp_path)

    def fail(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    for name in ("open", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, fail)
            if number in PASSING:
                for look in (lambda: fingerprint(source), lambda: is_raster(path)):
                    with pytest.raises(OSError, match=str(path)) as caught:
                        look()
                    assert caught.value.errno == number
            else:
                assert fingerprint(source)["images"] == 1
                assert not is_raster(path)
