"""`open_inputs`: what a command line names, each image once, by ids that say where it lies."""

from pathlib import Path

import pytest
from PIL import Image

from nec_jax.images.record import DataError
from nec_jax.sources import open_inputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/deep/3.png", "4.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (1, 2, 3)).save(path)
    (tmp_path / "images/b/notes.txt").write_text("no image")
    return tmp_path / "images"


def ids(*inputs: object, **settings) -> list[str]:
    source = open_inputs([str(one) for one in inputs], **settings)
    found = [name for name, _ in source.files()]
    assert [source[i]["id"] for i in range(len(source))] == [
        name.rsplit(",", 1)[0] if settings else name for name in found
    ]
    return found


def test_files_folders_and_patterns_go_together(folder: Path) -> None:
    assert ids(folder / "a/2.png") == ["2.png"]
    assert ids(folder / "a/2.png", folder / "4.jpg") == ["a/2.png", "4.jpg"]
    assert ids(folder / "a", folder / "b") == ["a/1.png", "a/2.png", "b/1.png", "b/deep/3.png"]
    assert ids(folder / "*/1.png") == ["a/1.png", "b/1.png"]
    assert ids(folder / "b/**/*.png") == ["1.png", "deep/3.png"]
    assert ids(folder / "b/*", folder / "a/1.png") == ["b/1.png", "a/1.png"]


def test_each_image_is_named_once(folder: Path) -> None:
    assert ids(folder / "a/1.png", folder / "a", folder / "a/1.png") == ["1.png", "2.png"]
    (folder / "link.jpg").symlink_to("4.jpg")
    names = [folder / "4.jpg", folder / "a/../4.jpg", folder / "link.jpg", folder / "b/1.png"]
    assert ids(*names) == ["4.jpg", "b/1.png"]


def test_a_folder_that_fits_a_pattern_is_no_image(folder: Path) -> None:
    (folder / "a/3.png").mkdir()
    assert ids(folder / "a/*.png") == ["1.png", "2.png"]


def test_one_folder_is_a_data_set_with_labels(folder: Path) -> None:
    source = open_inputs([str(folder / "a")])
    assert len(source) == 2
    (folder / "4.jpg").unlink()
    assert open_inputs([str(folder)]).classes == ("a", "b", "b/deep")


def test_images_are_cut(folder: Path) -> None:
    assert len(ids(folder / "a/1.png", chip=10)) == 4


def test_a_path_with_brackets_is_that_path(folder: Path) -> None:
    (folder / "a").rename(folder / "a[1]")
    assert ids(folder / "a[1]/2.png") == ["2.png"]
    assert ids(folder / "a[1]", folder / "b/1.png") == ["a[1]/1.png", "a[1]/2.png", "b/1.png"]


def test_what_names_no_image_is_refused(folder: Path) -> None:
    for inputs, message in (
        ([folder / "*.tif"], r"no image fits the pattern .*\*\.tif"),
        ([folder / "b/notes.txt"], "notes.txt is no image"),
        ([folder / "b/notes.txt", folder / "a"], "notes.txt is no image"),
    ):
        with pytest.raises(DataError, match=message):
            ids(*inputs)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        ids(folder / "a", folder / "c")
    with pytest.raises(DataError, match="files have no splits"):
        ids(folder / "a/1.png", split="train")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no images under"):
        ids(folder / "empty", folder / "a")
