"""What is in a folder or a table: every file once, nothing left out in silence, scenes cut."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from image_files import encoded, noise, png, put, write_raster
from PIL import Image

from nec_jax.images.read import IMAGE_SUFFIXES, read_image, turned
from nec_jax.images.record import CorruptImageError, DataError
from nec_jax.images.windows import WindowSource
from nec_jax.sources import open_source
from nec_jax.sources.folder import find_images
from nec_jax.sources.image_table import ImageTable, open_image_table
from train.data import fingerprint, read_all

PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500000, 0, -10, 4100000)}


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(noise(6, 5, 3, seed=seed), "PNG"))
    return path


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


def test_what_is_no_image_is_counted(tmp_path: Path, notes: pytest.LogCaptureFixture):
    save(tmp_path / "a.png")
    write_raster(tmp_path / "b.jp2", noise(3, 32, 32))
    for name in ("a.xml", "b.XML", "c.xml", "notes.txt", "LICENCE", ".hidden.xml"):
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ["a.png", "b.jp2"]
    [note] = notes.messages
    assert note.startswith("left out by their suffix: 3 .xml, 1 .txt, 1 without suffix in ")
    assert note.endswith("images are " + " ".join(IMAGE_SUFFIXES))


def test_what_systems_put_beside_images_is_no_class_and_no_image(
    tmp_path: Path, notes: pytest.LogCaptureFixture
):
    for name in (
        "sea/a.png", "sea/._a.png", "sea/@eaDir/a.png/SYNOPHOTO_THUMB_M.png",
        "__MACOSX/sea/._a.png", "__MACOSX/sea/a.png",
        ".ipynb_checkpoints/a-checkpoint.png", "lost+found/b.png",
    ):  # fmt: skip
        save(tmp_path / name)
    (tmp_path / "sea" / "Thumbs.db").touch()
    source = open_source(tmp_path)
    assert (len(source), source.classes) == (1, ("sea",))
    hidden, others = notes.messages
    assert hidden == (
        "left out as hidden, or as a system's own: .ipynb_checkpoints, __MACOSX, lost+found and 2 "
        f"others in {tmp_path}"
    )
    assert others.startswith("left out by their suffix: 1 .db in ")


def drawn(path: Path, seed: int = 0) -> None:
    """A mask of three classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(noise(6, 5, high=3, seed=seed), "PNG"))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.png", "masks/{}.png"),
        ("images/{}.png", "masks/{}_m.png"),
        ("Images/{}.png", "Labels/{}.png"),
        ("train/images/{}.png", "train/gt/{}.png"),
        ("imgs/north/{}.png", "ground_truth/north/{}.png"),
        ("photos/{}.png", "labels/{}.png"),
        ("photos/{}.png", "drawings/{}.png"),  # by their pixels
        ("{}.png", "{}_mask.png"),
        ("{}_sat.png", "{}_mask.png"),
        ("{}.png", "{}.tif"),
    ],
)
@pytest.mark.parametrize("as_written", [True, False])
def test_masks_are_no_images_of_a_class(tmp_path: Path, image: str, mask: str, as_written: bool):
    for i in range(3):
        save(tmp_path / image.format(i))
        if mask.endswith(".tif"):
            write_raster(tmp_path / mask.format(i), noise(1, 6, 5, high=3))
        else:
            drawn(tmp_path / mask.format(i))
    # What the message says is what is to be written.
    line = f"{image.format(0)},{mask.format(0)},train"
    if as_written:
        source = open_source(table(tmp_path, line, header="image,mask,split"), "train", chip=4)
        assert source.mask_classes == ("0", "1", "2")
        return
    with pytest.raises(DataError, match=r"split\.csv: image,mask,split in its first line") as info:
        open_source(tmp_path)
    assert f"such as {line}" in str(info.value)


def test_classes_whose_files_are_numbered_alike_are_classes(tmp_path: Path):
    for i in range(3):
        save(tmp_path / "photos" / f"{i}.png")
        save(tmp_path / "drawings" / f"{i}.png")
        drawn(tmp_path / "x" / "forest" / f"{i}.png")
        drawn(tmp_path / "x" / "sea" / f"{i}.png")
        save(tmp_path / "y" / f"{i}.png")
        save(tmp_path / "y" / f"{i}.jpg")
        save(tmp_path / "z" / "gt" / f"{i}.png")  # one folder alone is no pair
    for name, classes in (("x", ("forest", "sea")), ("y", ()), ("z", ("gt",))):
        assert open_source(tmp_path / name).classes == classes
    assert open_source(table(tmp_path, "photos/0.png,a,train")).classes == ("a",)


def test_folders_that_are_linked_to_each_other_are_listed_once(
    tmp_path: Path, notes: pytest.LogCaptureFixture
):
    root = tmp_path / "root"
    save(root / "forest" / "0.png")
    save(root / "sea" / "1.png")
    (root / "forest" / "see").symlink_to(root / "sea")
    (root / "sea" / "see").symlink_to(root / "forest")
    (root / "all").symlink_to(root)
    (root / "above").symlink_to(tmp_path)
    assert find_images(root) == ["forest/0.png", "sea/1.png"]
    assert [note.split("listed already, ")[1] for note in notes.messages] == [
        str(root / "sea"),
        str(root / "forest"),
    ]


def test_a_folder_outside_is_listed_under_the_first_link_to_it(tmp_path: Path):
    save(tmp_path / "outside" / "inner" / "0.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "b").symlink_to(tmp_path / "outside")
    (root / "a").symlink_to(tmp_path / "outside" / "inner")
    assert find_images(root) == ["a/0.png"]


def test_a_file_that_links_lead_to_is_listed_once(tmp_path: Path, notes: pytest.LogCaptureFixture):
    root = tmp_path / "root"
    real = save(root / "sea" / "5.png")
    other = save(tmp_path / "store" / "x.png")
    (root / "sea" / "0.png").symlink_to(real)
    (root / "sea" / "1.png").symlink_to(other)
    (root / "sea" / "2.png").symlink_to(other)
    (root / "sea" / "3.png").symlink_to(tmp_path / "nowhere.png")
    assert find_images(root) == ["sea/1.png", "sea/3.png", "sea/5.png"]
    assert [note.split("/root/")[1].split(" ")[0] for note in notes.messages] == [
        "sea/0.png",
        "sea/2.png",
    ]
    with pytest.raises(CorruptImageError, match=r"sea/3\.png"):
        open_source(root)[1]


def test_a_name_that_is_no_text_is_left_out_by_name(
    tmp_path: Path, notes: pytest.LogCaptureFixture
):
    save(tmp_path / "a.png")
    folder = os.fsencode(tmp_path)
    try:
        Path(os.fsdecode(folder + b"/caf\xe9.png")).write_bytes(b"")
        Path(os.fsdecode(folder + b"/\xff")).mkdir()
    except OSError:
        pytest.skip("this file system takes no such name")
    assert find_images(tmp_path) == ["a.png"]
    assert "'caf\\udce9.png'" in notes.text
    assert "'\\udcff'" in notes.text
    assert "rename it" in notes.text


def test_a_folder_that_may_not_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path / "sea" / "0.png")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refusing(path: Path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="locked"):
        open_source(tmp_path)


def test_a_pipe_among_images_blocks_nothing(tmp_path: Path):
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    source = open_source(str(tmp_path))
    assert len(source) == 2
    assert fingerprint(source)["images"] == 2
    split = read_all(source, 4)
    assert split.ids == ["a.png"]
    assert "b.png: it is no regular file" in split.skipped[0]


def table(root: Path, *rows: str, header: str = "path,label,split") -> Path:
    (root / "split.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


@pytest.mark.parametrize(
    "again", ["a.png", "./a.png", "sub/../a.png", "link.png", "loop/a.png", "{root}/a.png"]
)
def test_a_file_has_one_line_in_a_table(tmp_path: Path, again: str):
    save(tmp_path / "a.png")
    save(tmp_path / "sub" / "b.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    again = again.format(root=tmp_path)
    table(tmp_path, "a.png,x,train", "", "sub/b.png,x,train", f"{again},x,test")
    with pytest.raises(DataError, match=r"split\.csv lists .*more than once, in lines 2 and 5"):
        open_source(tmp_path)
    mask = table(tmp_path, "a.png,m,train", f"{again},n,test", header="image,mask,split")
    with pytest.raises(DataError, match=r"a\.png.* in lines 2 and 3"):
        open_source(mask)


def test_paths_outside_of_a_table_s_folder_are_read(tmp_path: Path):
    outside = save(tmp_path / "store" / "a.png")
    root = tmp_path / "root"
    root.mkdir()
    source = open_source(table(root, "../store/a.png,x,train"))
    assert source[0]["id"] == "../store/a.png"
    source = open_source(table(root, f"{outside},x,train"))
    assert source[0]["image"].shape == (6, 5, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label,split\nä.png,x,train\n".encode("latin-1"), r"line 2: byte 17 \(0xe4\).*UTF-8"),
        ("path,label,split\na.png,x,train\n".encode("utf-16"), r"line 1: byte 0 .*save .* UTF-8"),
        ("path,label,split\na.png,x,train\n".encode("utf-16-le"), "begins with"),
        (b"path,label,split\na.png,x,train\n\n\nb\0.png,x,train\n", "line 5: .*NUL"),
        (b'path,label,split\n"a.png,x,train\nb.png,x,train\n', "line 3: .*quote"),
        (b'path,label,split\na.png,x,"train\nb.png,x,val"\n', "line 3: .*line break"),
        (b"path,label,split\na.png,x,train\nb.png, x,train\n", "line 3: .*spaces around"),
        (b"path,label,split\n\na.png,x\n", "line 3: expected path,label,split"),
        (b'path,label,split\n"' + b"a" * 200_000 + b'",x,train\n', "line 2: field larger"),
    ],
)
def test_a_table_that_cannot_be_read_names_the_line(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "split.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"split\.csv.*{message}"):
        open_source(tmp_path, "nowhere")


def test_a_table_with_a_byte_order_mark_is_read(tmp_path: Path):
    save(tmp_path / "ä.png")
    text = "path,label,split\r\nä.png,x,train\r\n"
    (tmp_path / "split.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert open_source(tmp_path)[0]["id"] == "ä.png"


@pytest.mark.parametrize(
    "rows",
    [
        ("a.png,x,train", "b.png,x,Train"),
        ("a.png,caf\u00e9,train", "b.png,cafe\u0301,train"),
        ("a.png,Sea,train", "b.png,sea,train"),
    ],
)
def test_names_that_look_alike_are_refused(tmp_path: Path, rows: tuple[str, ...]):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / "split.csv").write_text("\n".join(["path,label,split", *rows]), "utf-8")
    with pytest.raises(DataError, match="which look alike: if they are one, write them"):
        open_source(tmp_path, "train")


def test_an_empty_name_is_not_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="an empty name of a data set"):
        open_source("")


def test_a_table_that_is_no_file_is_not_passed_over(tmp_path: Path):
    save(tmp_path / "a.png")
    (tmp_path / "split.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"split\.csv is not a file, or is a broken link"):
        open_source(tmp_path)
    (tmp_path / "split.csv").unlink()
    (tmp_path / "split.csv").mkdir()
    with pytest.raises(DataError, match=r"split\.csv is not a file"):
        open_source(tmp_path)


def scene(path: Path, side: int, **options) -> Path:
    return write_raster(path, noise(3, side, 40), **options)


def test_files_that_no_window_is_cut_from_are_listed(tmp_path: Path):
    """Of the split alone, in the order of the source, with the reason."""
    (tmp_path / "tiles").mkdir()
    for name, size in (("good.png", 8), ("small.png", 3), ("masked.png", 8), ("other.png", 8)):
        put(tmp_path / "tiles" / name, encoded(noise(size, 8, 3), "PNG"))
        put(tmp_path / "tiles" / f"mask of {name}", encoded(noise(size, 8), "PNG"))
    put(tmp_path / "tiles/bad.png", b"no image")
    put(tmp_path / "tiles/mask of masked.png", b"no mask")
    names = ["bad.png", "good.png", "masked.png", "missing.png", "small.png"]
    rows = [f"tiles/{name},tiles/mask of {name},train" for name in names]
    pairs = open_source(
        table(tmp_path, *rows, "tiles/other.png,tiles/none.png,val", header="image,mask,split"),
        "train", chip=4,
    )  # fmt: skip
    listed = put(
        tmp_path / "images.csv", "\n".join(["path", *(f"tiles/{n}" for n in names)]).encode()
    )
    for source, unreadable in (
        (pairs, ["bad.png", "masked.png", "missing.png"]),
        (open_image_table(listed, chip=4), ["bad.png", "missing.png"]),
    ):
        assert isinstance(source, WindowSource | ImageTable)
        found = list(source.files_left_out)
        assert [one.path for one in found] == [
            f"tiles/{name}" for name in names if name in (*unreadable, "small.png")
        ]
        assert [one.path for one in found if one.is_unreadable] == [
            f"tiles/{name}" for name in unreadable
        ]
        for one in found:
            about = f"mask of {one.path[6:]}" if one.path == "tiles/masked.png" else one.path[6:]
            assert str(tmp_path / "tiles" / about) in one.reason
    (tmp_path / "tiles/good.png").unlink()
    put(tmp_path / "some.csv", b"path\ntiles/bad.png\ntiles/good.png\ntiles/small.png\n")
    with pytest.raises(
        DataError, match=r"has no window of 4 x 4 px: 2 of 3 files cannot be read, .*bad"
    ):
        open_image_table(tmp_path / "some.csv", chip=4)
    assert open_image_table(listed).files_left_out == ()  # whole images are marked as not valid


@pytest.mark.parametrize("listed", [False, True])
def test_a_scene_among_images_is_refused_until_a_chip_cuts_it(tmp_path: Path, listed: bool):
    scene(tmp_path / "sea" / "chip.tif", 1024, **PLACE)
    save(tmp_path / "sea" / "photo.png")
    scene(tmp_path / "sea" / "scene.tif", 1025, **PLACE)
    scene(tmp_path / "sea" / "unplaced.tif", 1025)
    names = ["chip.tif", "photo.png", "scene.tif", "unplaced.tif"]
    if listed:
        table(tmp_path, *(f"sea/{name},sea,train" for name in names))
    source = open_source(tmp_path)
    assert [source[i]["image"].shape[0] for i in (0, 1, 3)] == [1024, 6, 1025]
    with pytest.raises(DataError, match=r"scene\.tif is a scene of 1025 x 40 px.*--chip N") as info:
        read_all(source, 8)
    assert not isinstance(info.value, CorruptImageError)  # which would only be skipped


@pytest.mark.parametrize("listed", [False, True])
def test_a_chip_cuts_every_image_of_a_folder(
    tmp_path: Path, listed: bool, notes: pytest.LogCaptureFixture
):
    scene(tmp_path / "sea" / "scene.tif", 1030, **PLACE)
    picture = noise(45, 30, 3)
    (tmp_path / "city").mkdir()
    (tmp_path / "city" / "a.png").write_bytes(encoded(picture, "PNG"))
    save(tmp_path / "city" / "small.png")
    if listed:
        rows = ("sea/scene.tif,sea,train", "city/a.png,city,train", "city/small.png,city,train")
        table(tmp_path, *rows)
    source = open_source(tmp_path, chip=20)
    assert "small.png (6 x 5 px) is smaller than the chip of 20 px" in notes.text
    assert source.classes == ("city", "sea")
    assert source.mask_classes == ()
    records = {record["id"]: record for record in (source[i] for i in range(len(source)))}
    assert len(records) == 2 * 51 + 2
    window = records["city/a.png@20,0"]
    np.testing.assert_array_equal(window["image"], picture[20:40, :20])
    assert window.get("label") == 0
    assert "mask" not in window
    window = records["sea/scene.tif@1000,20"]
    assert window.get("label") == 1
    assert window.get("transform") == (10, 0, 500200, 0, -10, 4090000)
    image = read_image(tmp_path / "sea" / "scene.tif", "")["image"]
    np.testing.assert_array_equal(window["image"], image[1000:1020, 20:40])
    with pytest.raises(DataError, match="has no window of 2000 x 2000 px"):
        open_source(tmp_path, chip=2000)


def test_the_windows_of_an_image_that_are_whole_are_read(tmp_path: Path):
    picture = noise(20, 40, 4)
    picture[..., 3] = 255
    picture[15, 25, 3] = 0
    (tmp_path / "a.png").write_bytes(encoded(picture, "PNG"))
    deep = noise(20, 40, 1, dtype=np.uint16)
    source = open_source(tmp_path, chip=10)
    split = read_all(source, 10)
    assert len(split.ids) == 7
    assert (
        "a.png: 1 of 100 pixels are missing in at least one band (transparent)" in split.skipped[0]
    )
    assert "row 15, column 25" in split.skipped[0]
    (tmp_path / "a.png").write_bytes(png(deep))
    np.testing.assert_array_equal(open_source(tmp_path, chip=10)[5]["image"], deep[10:20, 10:20])


def test_masked_data_are_cut_at_256_px_if_nothing_is_said(tmp_path: Path):
    write_raster(tmp_path / "a.tif", noise(3, 300, 600), **PLACE)
    write_raster(tmp_path / "m.tif", noise(1, 300, 600, high=3), **PLACE)
    source = open_source(table(tmp_path, "a.tif,m.tif,train", header="image,mask,split"))
    assert isinstance(source, WindowSource)
    assert (source.chip, len(source)) == (256, 2)


def test_a_mask_that_cannot_be_counted_is_said(tmp_path: Path, notes: pytest.LogCaptureFixture):
    save(tmp_path / "a.png")
    (tmp_path / "m.png").write_bytes(encoded(noise(6, 5, high=3), "PNG"))
    save(tmp_path / "b.png")
    save(tmp_path / "n.png")  # RGB
    rows = ("a.png,m.png,train", "b.png,n.png,val")
    source = open_source(table(tmp_path, *rows, header="image,mask,split"), "train", chip=4)
    assert source.mask_classes == ("0", "1", "2")
    assert "not counted for the classes: cannot read the mask" in notes.text
    assert "n.png" in notes.text


def test_a_hard_link_is_no_second_file_of_a_table(tmp_path: Path):
    save(tmp_path / "a.png")
    (tmp_path / "b").mkdir()
    for name in ("b/c.png", "d.png"):
        os.link(tmp_path / "a.png", tmp_path / name)
    (tmp_path / "e.png").symlink_to(tmp_path / "d.png")
    for other in ("b/c.png", "d.png", "e.png"):
        for rows in (("a.png,x,train", f"{other},x,test"), (f"{other},x,train", "a.png,x,test")):
            with pytest.raises(DataError, match=r"one file, .*more than once, in lines 2 and 3"):
                open_source(table(tmp_path, *rows))
    # Other names outside of the table are none of its business.
    save(tmp_path / "f.png")
    assert len(open_source(table(tmp_path, "d.png,x,train", "f.png,x,test"))) == 2


def test_hard_links_are_listed_once_under_the_first_path(
    tmp_path: Path, notes: pytest.LogCaptureFixture
):
    root = tmp_path / "root"
    save(root / "sea" / "b.png")
    save(root / "sea" / "c.png", seed=1)
    for path in (root / "land" / "z.png", root / "sea" / "a.png", tmp_path / "outside.png"):
        path.parent.mkdir(exist_ok=True)
        os.link(root / "sea" / "b.png", path)
    (root / "sea" / "d.png").symlink_to(tmp_path / "outside.png")
    assert find_images(root) == ["land/z.png", "sea/c.png"]
    listed = f"leads to what is listed already, {root}/land/z.png"
    assert notes.messages == [f"left out: {root}/sea/{name}.png {listed}" for name in "abd"]


def pair_of(root: Path, image: dict, mask: dict) -> Path:
    write_raster(root / "a.tif", noise(3, 8, 8), **image)
    write_raster(root / "m.tif", noise(1, 8, 8, high=3), **mask)
    return table(root, "a.tif,m.tif,train", header="image,mask,split")


MOVED = rasterio.Affine(10, 0, 500010, 0, -10, 4100000)  # by a pixel
NEARLY = rasterio.Affine(10.05, 0, 500000.1, 0, -10, 4100000.1)  # by 0.05 px, at the far corner


@pytest.mark.parametrize("mask", [{"transform": MOVED}, {"crs": "EPSG:32634"}])
def test_a_mask_that_lies_elsewhere_than_its_image_is_refused(tmp_path: Path, mask: dict):
    root = pair_of(tmp_path, PLACE, PLACE | mask)
    with pytest.raises(
        DataError, match=r"/a\.tif and its mask .*/m\.tif are georeferenced in diff"
    ):
        open_source(root, chip=4)


@pytest.mark.parametrize("mask", [PLACE, {}, PLACE | {"transform": NEARLY}, {**PLACE, "crs": None}])
def test_a_mask_that_lies_on_its_image_or_says_nothing_is_taken(tmp_path: Path, mask: dict):
    assert len(open_source(pair_of(tmp_path, PLACE, mask), chip=4)) == 4
    assert len(open_source(pair_of(tmp_path, mask, PLACE), chip=4)) == 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("width", [8, 12])
def test_whether_exif_turns_a_mask_too_is_known_or_asked(
    tmp_path: Path, orientation: int, width: int
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture, drawing = noise(8, width, 3), noise(8, width, high=3)
    (tmp_path / "a.png").write_bytes(encoded(picture, "PNG", exif=exif))
    root = table(tmp_path, "a.png,m.png,train", header="image,mask,split")

    def put_mask(array: np.ndarray, **options) -> None:
        (tmp_path / "m.png").write_bytes(encoded(array, "PNG", **options))

    put_mask(drawing, exif=exif)  # both are turned
    mask = open_source(root, chip=8)[0].get("mask")
    np.testing.assert_array_equal(mask, turned(drawing, orientation)[:8, :8])
    put_mask(turned(drawing, orientation))  # of the image as shown, if that can be known
    if orientation == 1 or (orientation >= 5 and width != 8):
        np.testing.assert_array_equal(open_source(root, chip=8)[0].get("mask"), mask)
        return
    with pytest.raises(
        DataError, match=rf"EXIF turns .*/a\.png \(orientation {orientation}\) and not .*/m\.png"
    ):
        open_source(root, chip=8)


def test_masks_of_0_and_255_are_not_one_class(tmp_path: Path, notes: pytest.LogCaptureFixture):
    save(tmp_path / "a.png")
    root = table(tmp_path, "a.png,m.png,train", header="image,mask,split")

    def classes(*values: int) -> tuple[str, ...]:
        mask = np.resize(np.array(values, np.uint8), (6, 5))
        (tmp_path / "m.png").write_bytes(encoded(mask, "PNG"))
        return open_source(root, chip=4).mask_classes

    with pytest.raises(DataError, match=r"the masks of .* hold 0 and 255 alone.*write 1"):
        classes(0, 255)
    assert classes(0, 1, 255) == ("0", "1")
    assert "classes" not in notes.text
    assert len(classes(0, 128)) == 129
    assert "127 of the 129 classes of " in notes.text
    assert "are in no mask: the masks hold 0, 128" in notes.text
