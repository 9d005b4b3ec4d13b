"""Folders, tables, Potsdam: every record once, splits that partition, errors that name."""

import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine

from nec_jax.images.record import CorruptImageError, DataError
from nec_jax.sources import open_source
from nec_jax.sources.potsdam import MASK_CLASSES, TILES
from nec_jax.sources.splits import hash_split
from train.data import read_all


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    for i in range(60):
        save(tmp_path / ("forest" if i % 3 else "sea") / f"{i:02d}.png", noise(6, 5, 3, seed=i))
    return tmp_path


def test_a_folder_of_classes(scenes: Path):
    source = open_source(str(scenes))
    assert (len(source), source.classes, source.mask_classes) == (60, ("forest", "sea"), ())
    record = source[0]
    assert record["id"] == "forest/01.png"
    np.testing.assert_array_equal(record["image"], noise(6, 5, 3, seed=1))
    assert [source.classes[source[i].get("label", -1)] for i in range(60)] == [
        source[i]["id"].split("/")[0] for i in range(60)
    ]


def test_splits_of_a_folder_partition_it_and_stay_when_it_grows(scenes: Path):
    def ids(split: str) -> list[str]:
        return list(read_all(open_source(str(scenes), split), 4).ids)

    before = {split: set(ids(split)) for split in ("train", "val", "test")}
    assert sum(map(len, before.values())) == 60
    assert set().union(*before.values()) == set(ids("all"))
    assert len(before["train"]) > 36
    assert hash_split("forest/01.png") == "train"  # a literal: the rule must never change
    save(scenes / "city" / "0.png", noise(6, 5, 3))
    assert all(before[split] <= set(ids(split)) for split in before)
    assert open_source(str(scenes), "val").classes == ("city", "forest", "sea")


def test_a_flat_folder_has_no_labels_and_reads_every_format(tmp_path: Path):
    for suffix in ("jpg", "jpeg", "png", "webp", "tif", "tiff", "PNG"):
        save(tmp_path / f"image.{suffix}", noise(8, 8, 3))
    save(tmp_path / "grey.png", noise(8, 8))
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    assert len(source) == 8
    assert source.classes == ()
    for i in range(8):
        assert source[i]["image"].shape == (8, 8, 3)
        assert source[i]["image"].dtype == np.uint8
        assert "label" not in source[i]


def test_a_geotiff_keeps_its_bands_dtype_and_place(tmp_path: Path):
    bands = np.arange(12 * 7 * 9, dtype=np.uint16).reshape(12, 7, 9) * 80
    place = Affine(10, 0, 500000, 0, -10, 4100000)
    with rasterio.open(
        tmp_path / "s2.tif", "w", "GTiff", 9, 7, 12, "EPSG:32633", place, "uint16"
    ) as file:
        file.write(bands)
    record = open_source(str(tmp_path))[0]
    np.testing.assert_array_equal(record["image"], bands.transpose(1, 2, 0))
    assert record["image"].dtype == np.uint16
    assert record.get("crs") == "EPSG:32633"
    assert record.get("transform") == (10, 0, 500000, 0, -10, 4100000)


def test_sub_folders_that_are_splits_are_no_classes(tmp_path: Path):
    for split in ("train", "test"):
        save(tmp_path / split / "sea" / "0.png", noise(8, 8, 3))
    with pytest.raises(DataError, match=r"sub-folders test, train.*pass .*train, or write"):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path / "train"), "all").classes == ("sea",)


def test_linked_folders_are_entered_once(scenes: Path, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("links")
    (root / "forest").symlink_to(scenes / "forest")
    save(root / "sea" / "0.png", noise(8, 8, 3))
    (root / "sea" / "loop").symlink_to(root)
    assert open_source(str(root), "all").classes == ("forest", "sea")


def test_a_corrupt_image_is_named(scenes: Path):
    good = (scenes / "sea" / "00.png").read_bytes()
    (scenes / "sea" / "00.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(CorruptImageError, match=r"sea.00\.png"):
        open_source(str(scenes))[40]


def test_a_table_of_labels(tmp_path: Path):
    rows = ["path,label,split"]
    for i in range(6):
        save(tmp_path / f"x/{i}.png", noise(4, 4, 3, seed=i))
        rows.append(f"x/{i}.png,{'ab'[i % 2]},{'train' if i < 4 else 'special'}")
    (tmp_path / "split.csv").write_text("\n".join(rows) + "\n")
    source = open_source(str(tmp_path), "special")
    assert source.classes == ("a", "b")
    assert [(source[i]["id"], source[i].get("label")) for i in range(2)] == [
        ("x/4.png", 0),
        ("x/5.png", 1),
    ]
    assert [len(open_source(str(tmp_path), s)) for s in ("train", "all")] == [4, 6]
    with pytest.raises(ValueError, match=r"no split 'val'; it has: train, special, all"):
        open_source(str(tmp_path), "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\na,b\n", "expected path,label,split or image,mask,split"),
        ("path,label,split\n", "lists nothing"),
        ("path,label,split\na.png,x\n", "line 2"),
        ("path,label,split\na.png,x,train\na.png,x,val\n", "a.png more than once"),
    ],
)
def test_a_wrong_table_is_explained(tmp_path: Path, text: str, message: str):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Masks equal the red channel, so that a wrong cut shows."""
    sizes = {"big.png": (20, 27), "small.png": (7, 30), "other.png": (8, 8)}
    rows = ["image,mask,split"]
    for name, (height, width) in sizes.items():
        image = noise(height, width, 3) % 5
        save(tmp_path / name, image)
        save(tmp_path / f"mask_{name}", image[..., 0])
        rows.append(f"{name},mask_{name},{'val' if name == 'other.png' else 'train'}")
    (tmp_path / "split.csv").write_text("\n".join(rows))
    return tmp_path


def test_windows_are_whole_disjoint_and_masked_alike(pairs: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        source = open_source(str(pairs), "train", chip=8)
    assert "small.png (7 x 30 px) is smaller than the chip of 8 px" in caplog.text
    # 20 x 27 and 7 x 30 px, of which six windows are left.
    assert caplog.text.count("train: 366 of 750 pixels (49 %) lie in no window of 8 px") == 1
    ids = [source[i]["id"] for i in range(len(source))]
    assert ids == [f"big.png@{row},{col}" for row in (0, 8) for col in (0, 8, 16)]
    assert list(source.files()) == [(f"{name},8", pairs / "big.png") for name in ids]
    whole = noise(20, 27, 3) % 5
    np.testing.assert_array_equal(source[5]["image"], whole[8:16, 16:24])
    for i in range(len(source)):
        np.testing.assert_array_equal(source[i].get("mask"), source[i]["image"][..., 0])


def test_images_that_windows_cover_are_not_logged(pairs: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert len(open_source(pairs, "val", chip=8)) == 1
        assert len(open_source(pairs, "val", chip=4)) == 4
    assert not caplog.text


def test_mask_classes_are_equal_for_every_split(pairs: Path):
    assert open_source(str(pairs), "val", chip=8).mask_classes == ("0", "1", "2", "3", "4")
    (pairs / "classes.csv").write_text("index,name\n1,road\n0,water\n")
    assert open_source(str(pairs), "val", chip=8).mask_classes == ("water", "road")
    (pairs / "classes.csv").write_text("index,name\n1,road\n2,water\n")
    with pytest.raises(ValueError, match="must be 0 to 1, each once"):
        _ = open_source(str(pairs), "val", chip=8).mask_classes
    (pairs / "classes.csv").write_text("index,name\n0,road\n1,water\n2,road\n")
    with pytest.raises(DataError, match=r"classes\.csv: the index 2 has the name of .* 'road'"):
        _ = open_source(str(pairs), "val", chip=8).mask_classes


def test_a_mask_of_another_size_or_kind_is_named(pairs: Path):
    save(pairs / "mask_other.png", noise(8, 9))
    with pytest.raises(ValueError, match=r"other\.png has 8 x 8 px but its mask .* 8 x 9"):
        open_source(str(pairs), "val", chip=8)
    save(pairs / "mask_other.png", noise(8, 8, 3))
    with pytest.raises(CorruptImageError, match=r"mask_other\.png.*one band"):
        open_source(str(pairs), "val", chip=8)[0]


def potsdam_tile(root: Path, tile: str, colours: np.ndarray) -> None:
    for folder, kind, bands in (
        ("2_Ortho_RGB", "RGB", colours // 2),
        ("5_Labels_all", "label", colours),
    ):
        (root / folder).mkdir(exist_ok=True)
        with rasterio.open(
            root / folder / f"top_potsdam_{tile}_{kind}.tif",
            "w", "GTiff", colours.shape[1], colours.shape[0], 3, "EPSG:32633",
            Affine(0.05, 0, 0, 0, -0.05, 100), "uint8",
        ) as file:  # fmt: skip
            file.write(np.moveaxis(bands, -1, 0))


def test_potsdam(tmp_path: Path):
    table = np.array(
        [
            [255, 255, 255],
            [0, 0, 255],
            [0, 255, 255],
            [0, 255, 0],
            [255, 255, 0],
            [255, 0, 0],
            [0, 0, 0],  # the boundary in the eroded labels: no class
        ],
        np.uint8,
    )
    index = np.random.default_rng(0).integers(0, 7, (12, 20))
    potsdam_tile(tmp_path, "2_10", table[index])
    potsdam_tile(tmp_path, "2_13", table[index])
    potsdam_tile(tmp_path, "6_8", table[index])
    source = open_source(str(tmp_path), "test", chip=6)
    assert source.mask_classes == MASK_CLASSES
    ids = [source[i]["id"] for i in range(len(source))]
    assert ids[1] == "2_Ortho_RGB/top_potsdam_2_13_RGB.tif@0,6"
    assert len(ids) == 2 * 3
    record = source[4]  # the window at row 6, column 6
    expected = np.where(index == 6, 255, index)[6:12, 6:12]
    np.testing.assert_array_equal(record.get("mask"), expected)
    np.testing.assert_array_equal(record["image"], table[index][6:12, 6:12] // 2)
    assert record.get("transform") == pytest.approx((0.05, 0, 0.3, 0, -0.05, 99.7))
    assert [len(open_source(str(tmp_path), s, chip=6)) for s in ("train", "val", "all")] == [
        6, 6, 18,
    ]  # fmt: skip
    for name in ("2_Ortho_RGB/top_potsdam_2_13_RGB.tif", "5_Labels_all/top_potsdam_2_13_label.tif"):
        (tmp_path / name).rename(tmp_path / "away.tif")
    with pytest.raises(DataError, match=r"holds no tile of split 'test', only 2 of train, val: "):
        open_source(str(tmp_path), "test", chip=6)
    potsdam_tile(tmp_path, "2_13", table[index])
    again = tmp_path / "copy" / "top_potsdam_2_13_RGB.tif"
    again.parent.mkdir()
    again.write_bytes((tmp_path / "2_Ortho_RGB" / again.name).read_bytes())
    with pytest.raises(DataError, match=r"2_Ortho_RGB/.*2_13_RGB.tif and .*copy/.* are one tile"):
        open_source(str(tmp_path), "train", chip=6)
    again.unlink()
    (tmp_path / "5_Labels_all" / "top_potsdam_6_8_label.tif").unlink()
    with pytest.raises(ValueError, match=r"6_8_RGB\.tif has no .*5_Labels_all\.zip"):
        open_source(str(tmp_path), "val", chip=6)


def test_potsdam_has_38_tiles_each_in_one_split():
    tiles = [tile for names in TILES.values() for tile in names.split()]
    assert len(tiles) == len(set(tiles)) == 38
    assert len(TILES["test"].split()) == 14


def test_what_cannot_be_opened_says_why(tmp_path: Path, scenes: Path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no split 'dev'; it has: train, val, test, all"):
        open_source(str(scenes), "dev")
    with pytest.raises(ValueError, match="chip is 0"):
        open_source(str(scenes), chip=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images under .*expected a split\.csv"):
        open_source(str(tmp_path / "empty"))
    save(tmp_path / "empty" / "one.png", noise(4, 4, 3))
    with pytest.raises(ValueError, match=r"split 'test' of .* is empty \(1 images in all\)"):
        open_source(str(tmp_path / "empty"), "test")
    save(scenes / "stray.png", noise(4, 4, 3))
    with pytest.raises(ValueError, match=r"beside sub-folders \(stray\.png\)"):
        open_source(str(scenes))
