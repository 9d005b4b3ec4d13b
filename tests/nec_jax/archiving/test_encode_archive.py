"""`nec encode` of images: interrupted at any shard and run again, it ends with the same archive."""

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import rasterio
import zarr
from PIL import Image
from rich import filesize

import coder
import nec_jax
from coder import archive
from coder.cli import main as command
from nec_jax.archiving import encode_archive, image_archive
from nec_jax.cli.encode_command import NOT_ALL
from nec_jax.images import read
from nec_jax.images.size_rule import fit_to
from nec_jax.sources import open_source

COUNT, SHARD = 11, 4


@pytest.fixture
def inputs(model, tmp_path):
    nec_jax.save(model, tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        folder = tmp_path / "images" / ("field", "water")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        # Smooth, as an image is.
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize((50, 40), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return tmp_path


def arguments(folder, out, *more, model="model.safetensors"):
    given = ["encode", str(folder / "images"), "--model", str(folder / model)]
    return [*given, "--out", str(folder / out), "--shard", str(SHARD), *more]


def run(*args, **settings):
    """Returns the exit status."""
    return command(arguments(*args, **settings))


@pytest.fixture
def refused(capsys):
    """Run with these arguments, which is an error with a message that has this text."""

    def check(text, *args, **settings):
        capsys.readouterr()
        assert run(*args, **settings) == 1
        assert re.search(text, capsys.readouterr().err)

    return check


def files(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


class Interrupted(Exception):
    pass


def test_an_interrupted_archive_goes_on_to_the_same_end(inputs, monkeypatch, capsys):
    assert run(inputs, "whole.zarr") == 0
    write, parts = archive.Writer.write, []

    def write_or_die(self, part, *args):
        parts.append(part.start)
        if len(parts) in (2, 4):
            raise Interrupted
        return write(self, part, *args)

    monkeypatch.setattr(archive.Writer, "write", write_or_die)
    with pytest.raises(Interrupted):
        run(inputs, "part.zarr")
    # Killed after the class tokens of a shard were written, before its embeddings were.
    (inputs / "part.zarr/embedding/c/0/0/0/0").unlink()
    with pytest.raises(Interrupted):
        run(inputs, "part.zarr")
    capsys.readouterr()
    run(inputs, "part.zarr")
    assert parts == [0, 4, 0, 4, 4, 8]
    assert "4 of 11 images are there" in capsys.readouterr().err
    assert files(inputs / "part.zarr") == files(inputs / "whole.zarr")
    assert not list(inputs.glob(".*"))


@pytest.mark.parametrize("chip", [None, 20])
def test_progress_says_how_much_was_read_and_written(inputs, model, chip, capsys):
    told = []
    source = open_source(inputs / "images", chip=chip)
    done = encode_archive(
        model,
        source,
        inputs / "out.zarr",
        shard=SHARD,
        progress=lambda done, total, written: told.append((done, total, written)),
    )
    count = COUNT if chip is None else COUNT * 4
    assert [one[0] for one in told][:3] == [0, 4, 8]
    assert told[-1][:2] == (count, count)
    amount = told[-1][2]
    assert amount.images == count
    # In one shard after another, windows of a file share its bytes: a part of a byte is dropped.
    assert 0 <= done.image_bytes - amount.read <= count / SHARD
    assert done.image_bytes == sum(p.stat().st_size for p in inputs.rglob("*.png"))
    stored = sum(
        p.stat().st_size
        for name in ("embedding", "class_token")
        for p in (inputs / "out.zarr" / name / "c").rglob("*")
        if p.is_file()
    )
    assert amount.stored == stored
    if chip is None:
        assert run(inputs, "by-command.zarr") == 0
        last = capsys.readouterr().err.splitlines()[-1]
        ratio = amount.read / amount.stored
        assert re.fullmatch(
            rf"11 of 11 images, [\d.]+ per second, {filesize.decimal(stored)} written, "
            rf"{filesize.decimal(amount.read)} of images, {ratio:.1f} times as much, 0 s left",
            last,
        )


def test_images_are_appended_and_the_first_ones_are_not_encoded_again(inputs, refused, capsys):
    assert run(inputs, "archive.zarr") == 0
    more = inputs / "more"
    (inputs / "images" / "water").rename(more)
    words = ["encode", str(more), "--model", str(inputs / "model.safetensors"), "--out"]
    # Ids of these images are other ones: 1.png, and not water/1.png.
    assert command([*words, str(inputs / "more.zarr"), "--shard", "2"]) == 0
    assert command(["append", str(inputs / "archive.zarr"), str(inputs / "more.zarr")]) == 0
    capsys.readouterr()
    assert command(["info", str(inputs / "archive.zarr")]) == 0
    assert f"images that were added: 5 of {inputs}/more.zarr" in capsys.readouterr().out
    more.rename(inputs / "images" / "water")
    refused("images were appended to it: encode further ones to a second", inputs, "archive.zarr")


KILLED = """
import os, pathlib, signal, sys

from coder.cli import main

replace = pathlib.Path.replace

def replace_or_die(self, target):
    if "embedding/c/1/" in pathlib.Path(target).as_posix():
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

pathlib.Path.replace = replace_or_die
main(sys.argv[1:])
"""


def test_a_run_killed_within_a_write_goes_on_to_the_same_end(inputs, capsys):
    """The file of the second shard is written, but does not have its name yet."""
    program = [sys.executable, "-c", KILLED, *arguments(inputs, "part.zarr")]
    killed = subprocess.run(program, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((inputs / "part.zarr/embedding").rglob("*.partial"))
    run(inputs, "part.zarr")
    assert "4 of 11 images are there" in capsys.readouterr().err
    run(inputs, "whole.zarr")
    assert files(inputs / "part.zarr") == files(inputs / "whole.zarr")
    assert not list(inputs.glob(".*"))


def test_two_processes_share_an_archive(inputs, capsys):
    """Also where one of them is killed within a write: the other writes its shard."""
    dies = [sys.executable, "-c", KILLED, *arguments(inputs, "shared.zarr")]
    lives = [sys.executable, "-m", "coder", *arguments(inputs, "shared.zarr", "--json")]
    first = subprocess.Popen(dies, stderr=subprocess.PIPE)
    second = subprocess.run(lives, capture_output=True, text=True)
    first.communicate()
    assert second.returncode == 0, second.stderr
    run(inputs, "shared.zarr")  # if the first process had all shards but the last
    run(inputs, "whole.zarr")
    assert files(inputs / "shared.zarr") == files(inputs / "whole.zarr")
    assert command(["verify", str(inputs / "shared.zarr")]) == 0
    assert not list(inputs.glob(".*"))


def test_unreadable_images_are_left_out_and_named(inputs, model, capsys):
    bad = inputs / "images/water/3.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:100])
    (inputs / "images/field/4.png").write_text("no image")
    assert run(inputs, "strict.zarr", "--strict") == 1
    assert "field/4.png: cannot read" in capsys.readouterr().err
    assert run(inputs, "a.zarr") == NOT_ALL
    out = capsys.readouterr().out
    assert "2 images cannot be used, and are marked as not valid:" in out
    assert "  field/4.png: cannot read " in out
    group: Any = zarr.open_group(inputs / "a.zarr", mode="r")
    ids = [str(name) for name in group["id"][:]]
    assert len(set(ids)) == COUNT
    valid = group["valid"][:]
    assert [ids[i] for i in np.flatnonzero(~valid)] == ["field/4.png", "water/3.png"]
    for i in np.flatnonzero(valid):
        image = np.asarray(Image.open(inputs / "images" / ids[i]))
        y_hat = nec_jax.embed(model, fit_to(image, model.config.image_size)[None])[0]
        np.testing.assert_array_equal(group["embedding"][i].reshape(y_hat[1:].shape), y_hat[1:])
    assert command(["verify", str(inputs / "a.zarr")]) == 0
    assert "archive: 11 images, 9 valid, 9 labelled; complete" in capsys.readouterr().out
    # Run again, it goes on; asked to, it reads them once more.
    assert run(inputs, "a.zarr") == NOT_ALL
    assert "11 of 11 images are there" in capsys.readouterr().err
    bad.write_bytes(good)
    assert run(inputs, "a.zarr", "--retry") == NOT_ALL
    assert "1 images cannot be used" in capsys.readouterr().out
    group = zarr.open_group(inputs / "a.zarr", mode="r")
    assert group["valid"][ids.index("water/3.png")]


def test_an_image_with_other_bands_costs_its_row(inputs):
    Image.new("L", (40, 40)).save(inputs / "images/field/grey.tif")
    run(inputs, "a.zarr")
    group: Any = zarr.open_group(inputs / "a.zarr", mode="r")
    [bad] = np.flatnonzero(~group["valid"][:])
    assert group["id"][bad] == "field/grey.tif"
    assert "1 channels, the model takes 3" in group["error"][bad]
    assert np.isnan(group["embedding"][bad]).all()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("bands", [1, 4])
def test_images_of_another_kind_begin_no_archive(inputs, bands, refused):
    for path in list((inputs / "images").rglob("*.png")):
        with rasterio.open(
            path.with_suffix(".tif"), "w", driver="GTiff", width=40, height=40, count=bands,
            dtype="uint16",
        ) as file:  # fmt: skip
            file.write(np.ones((bands, 40, 40), np.uint16))
        path.unlink()
    refused(rf"\.tif: images have {bands} channels, the model takes 3", inputs, "a.zarr")
    assert not (inputs / "a.zarr").exists()


def test_a_scene_among_images_costs_its_row_and_chip_cuts_it(inputs, capsys):
    place = rasterio.Affine(10, 0, 500000, 0, -10, 4100000)
    with rasterio.open(
        inputs / "images/field/scene.tif", "w", driver="GTiff", width=1500, height=40, count=3,
        dtype="uint8", transform=place, crs="EPSG:32633",
    ) as file:  # fmt: skip
        file.write(np.full((3, 40, 1500), 90, np.uint8))
    run(inputs, "a.zarr")
    group: Any = zarr.open_group(inputs / "a.zarr", mode="r")
    [bad] = np.flatnonzero(~group["valid"][:])
    assert group["id"][bad] == "field/scene.tif"
    assert "--chip" in group["error"][bad]
    assert "field/scene.tif" in capsys.readouterr().out
    run(inputs, "cut.zarr", "--chip", "40")
    cut: Any = zarr.open_group(inputs / "cut.zarr", mode="r")
    assert cut["id"].shape == (COUNT + 1500 // 40,)
    assert cut["valid"][:].all()
    # Of each other image, 50 x 40 px, a window has 40 x 40.
    pixels = COUNT * 50 * 40 + 1500 * 40
    assert cut.attrs["pixels_in_no_window"] == COUNT * 10 * 40 + 20 * 40
    assert cut.attrs["pixels"] == pixels
    before = files(inputs / "cut.zarr")
    run(inputs, "cut.zarr", "--chip", "40")
    assert files(inputs / "cut.zarr") == before


def left_out(out):
    return json.loads((out / "zarr.json").read_text())["attributes"]["files_left_out"]


def test_files_that_no_window_is_cut_from_are_named(inputs, capsys):
    """One cannot be read, and one is too small; they are no images of the archive."""
    bad, small = inputs / "images/field/4.png", inputs / "images/field/small.png"
    good, out, given = bad.read_bytes(), inputs / "a.zarr", ["--chip", "40"]
    Image.new("RGB", (50, 30)).save(small)
    # Those that are too small are no error.
    assert run(inputs, "small.zarr", *given, "--strict") == 0
    assert "images that are smaller than a window, and are left out: 1" in capsys.readouterr().out
    found = left_out(inputs / "small.zarr")
    assert (found["unreadable"], found["too_small"]) == (0, 1)
    reason = f"{small} (30 x 50 px) is smaller than the chip of 40 px"
    assert found["first"] == [{"path": "field/small.png", "reason": reason}]
    bad.write_text("no image")
    assert run(inputs, "strict.zarr", *given, "--strict") == 1
    assert "field/4.png: cannot read " in capsys.readouterr().err
    assert not (inputs / "strict.zarr").exists()
    assert run(inputs, "a.zarr", *given) == NOT_ALL
    shown = capsys.readouterr().out
    assert "files that cannot be read, and of which the archive has no windows: 1" in shown
    assert f"  field/4.png: cannot read {bad}: " in shown
    assert run(inputs, "a.zarr", *given, "--json") == NOT_ALL  # it was complete
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["written"], facts["not_valid"]) == (COUNT - 1, 0, 0)
    assert facts["files_left_out"] == left_out(out)
    found = left_out(out)
    assert (found["unreadable"], found["too_small"]) == (1, 1)
    assert [one["path"] for one in found["first"]] == ["field/4.png", "field/small.png"]
    assert command(["info", str(out)]) == 0
    told = "image files that could not be read, and have no windows in it: 1"
    assert told in capsys.readouterr().out
    assert command(["verify", str(out)]) == 0
    # A part of an archive says nothing of files.
    copied = ["copy", str(out), "--codec", str(inputs / "model.safetensors"), "--out"]
    assert command([*copied, str(inputs / "copy.zarr")]) == 0
    assert (
        "files_left_out"
        not in json.loads((inputs / "copy.zarr/zarr.json").read_text())["attributes"]
    )
    # Mended, it has a window more, which this archive has no place for.
    before = files(out)
    bad.write_bytes(good)
    for more in ([], ["--retry"]):
        capsys.readouterr()
        assert run(inputs, "a.zarr", *given, *more) == 1
        shown = capsys.readouterr().err
        assert f"other images ({COUNT - 1} then, {COUNT} now): field/4.png was left" in shown
        assert "is not now: put them back as they were, or write a second archive" in shown
    assert files(out) == before


def test_another_file_that_cannot_be_read_is_refused(inputs, monkeypatch, refused):
    """The windows are the same: only the record says which files have none."""
    monkeypatch.setattr(image_archive.image_list, "_NAMED", 3)
    folder = inputs / "images/field"
    bad = [folder / f"bad {i}.png" for i in range(5)]
    given = ["a.zarr", "--chip", "40"]
    assert run(inputs, *given) == 0
    assert left_out(inputs / "a.zarr") == {
        "unreadable": 0, "too_small": 0, "first": [], "sha256": "",
    }  # fmt: skip
    bad[0].write_text("no image")
    refused(r"field/bad 0.png was not left out then, and is now \(cannot read ", inputs, *given)
    for path in bad:
        path.write_text("no image")
    assert run(inputs, "many.zarr", *given[1:]) == NOT_ALL
    found = left_out(inputs / "many.zarr")
    assert (found["unreadable"], len(found["first"])) == (5, 3)
    bad[4].unlink()  # which is not among those that are named
    refused("other files were left out then", inputs, "many.zarr", *given[1:])
    bad[4].write_text("still no image")
    assert run(inputs, "many.zarr", *given[1:]) == NOT_ALL


def test_an_archive_does_not_lie_among_its_images(inputs, refused):
    before = files(inputs)
    for out in ("images", "images/a.zarr", "images/field/a.zarr"):
        refused("lies in the folder of images", inputs, out)
    assert files(inputs) == before


def test_the_archive_holds_what_the_model_embeds(inputs, model, capsys):
    run(inputs, "a.zarr")
    group: Any = zarr.open_group(inputs / "a.zarr", mode="r")
    assert group.attrs["classes"] == ["field", "water"]
    ids = [str(name) for name in group["id"][:]]
    assert len(set(ids)) == COUNT
    size = model.config.image_size
    source = open_source(str(inputs / "images"))
    for i in (0, 5, 10):
        assert source[i]["id"] == ids[i]
        y_hat = nec_jax.embed(model, fit_to(source[i]["image"], size)[None])[0]
        np.testing.assert_array_equal(group["class_token"][i], y_hat[0])
        np.testing.assert_array_equal(group["embedding"][i].reshape(y_hat[1:].shape), y_hat[1:])
        assert ids[i].startswith(("field", "water")[group["label"][i]])
    capsys.readouterr()
    assert command(["verify", str(inputs / "a.zarr")]) == 0
    assert "embedding: 11 chunks read" in capsys.readouterr().out


def test_another_encoder_with_the_same_codec_is_refused(inputs, model, refused):
    run(inputs, "a.zarr")
    encoder = jax.tree.map(lambda leaf: leaf * 1.5, model.weights["encoder"])
    other = dataclasses.replace(model, weights={**model.weights, "encoder": encoder})
    nec_jax.save(other, inputs / "other.safetensors")
    refused("another model", inputs, "a.zarr", model="other.safetensors")


def test_as_many_other_images_are_refused(inputs, refused):
    run(inputs, "a.zarr")
    before = files(inputs / "a.zarr")
    image = inputs / "images" / "field" / "0.png"
    image.rename(image.with_name("renamed.png"))
    message = (
        "was begun with other images .11 then, 11 now.: image 0 was field/0.png, and is "
        "field/10.png: put them back as they were"
    )
    refused(message, inputs, "a.zarr")
    assert files(inputs / "a.zarr") == before


def test_other_images_or_another_split_are_refused(inputs, refused):
    run(inputs, "a.zarr")
    refused(
        r"another split, images, .*\(split: all, now train; im",
        inputs,
        "a.zarr",
        "--split",
        "train",
    )
    refused(
        r"another chip, .*\(chip: None, now 20; images: 11, now", inputs, "a.zarr", "--chip", "20"
    )
    Image.new("RGB", (40, 40)).save(inputs / "images" / "field" / "new.png")
    message = "11 then, 12 now.: image 6 was water/1.png, and is field/new.png"
    refused(message, inputs, "a.zarr")


def test_an_image_that_changed_since_is_refused_unless_it_could_not_be_read(
    inputs, capsys, refused
):
    bad, good = inputs / "images/field/4.png", inputs / "images/water/3.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:100])
    run(inputs, "a.zarr")
    other = good.read_bytes()
    good.write_bytes(other + b"\0" * 9)
    os.utime(good, (2e9, 2e9))
    before = files(inputs / "a.zarr")
    message = rf"size of a file differs among images 0 to 10, field/0\.png to .*; of these, {good}"
    refused(message, inputs, "a.zarr")
    assert files(inputs / "a.zarr") == before
    good.write_bytes(other)
    # An image that could not be read may be whole now; from then on it is what is compared.
    bad.write_bytes(content)
    refused("give --retry if only unreadable images changed", inputs, "a.zarr")
    run(inputs, "a.zarr", "--retry")
    run(inputs, "a.zarr")
    run(inputs, "whole.zarr")
    assert files(inputs / "a.zarr") == files(inputs / "whole.zarr")
    bad.write_bytes(content + b"\0")
    refused("the size of a file differs", inputs, "a.zarr", "--retry")


def test_an_archive_that_noted_no_sizes_is_not_gone_on_with(inputs, refused):
    run(inputs, "a.zarr")
    group = zarr.open_group(inputs / "a.zarr", mode="r+")
    group.attrs.put(
        {k: v for k, v in group.attrs.items() if k not in ("image_names", "image_sizes")}
    )
    message = "another image_names, image_sizes .image_names: None, now [0-9a-f]{8}; image_sizes"
    refused(message, inputs, "a.zarr")


def test_a_failing_disk_stops_the_run_and_marks_no_image(inputs, monkeypatch, capsys, refused):
    """An image on it is not damaged: its row would stay without an embedding."""
    run(inputs, "whole.zarr")
    opened, failing = read.open_regular, "6.png"

    def open_or_fail(path):
        if path.name == failing:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path)

    monkeypatch.setattr(read, "open_regular", open_or_fail)
    # The first look must not meet it: only some of many images are looked at.
    monkeypatch.setattr(image_archive, "spread", lambda total, most: [0])
    refused(r"Input/output error: the file may be sound", inputs, "part.zarr")
    group: Any = zarr.open_group(inputs / "part.zarr", mode="r")
    assert group.attrs["nec_archive"]["state"] == "writing"
    done = group["valid"][:]
    assert done.any()
    assert not any(group["error"][:])
    failing = ""
    run(inputs, "part.zarr")
    assert files(inputs / "part.zarr") == files(inputs / "whole.zarr")


def test_files_and_a_quality_that_fits(inputs, model, capsys):
    """Images without labels; the archive says what made it."""
    images = inputs / "images"
    given = ["encode", str(images / "field"), str(images / "water/1.png")]
    given += ["--model", str(inputs / "model.safetensors"), "--out", str(inputs / "a.zarr")]
    assert command([*given, "--json", "--image-size", "64"]) == 0
    facts = json.loads(capsys.readouterr().out)
    embeddings = coder.open(inputs / "a.zarr")
    assert facts["images"] == len(embeddings) == 7
    assert facts["archive_bytes"] == sum(map(len, files(inputs / "a.zarr").values()))
    assert embeddings.ids[-1] == "water/1.png"
    assert (embeddings.labels == -1).all()
    assert embeddings.shape[1:3] == model.config.grid(64, 64)
    assert command(["info", str(inputs / "a.zarr")]) == 0
    assert "made by model (SHA-256 " in capsys.readouterr().out
    assert command([*given[:-1], str(inputs / "b.zarr"), "--max-bytes", "100"]) == 1
    assert "no codec of many qualities" in capsys.readouterr().err


def test_a_model_of_many_qualities(tmp_path, capsys):
    """The quality that fits 64 images of all; for readers that refine, and without refiner."""
    for i in range(8):
        Image.effect_noise((64, 64), 40 + i).convert("RGB").save(tmp_path / f"{i:02}.png")
    given = ["encode", str(tmp_path / "*.png"), "--model", "nec-vit-ti", "--out"]
    assert command([*given, str(tmp_path / "a.zarr"), "--max-bytes", "150", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    group: Any = archive.open_archive(tmp_path / "a.zarr")
    params = nec_jax.load("nec-vit-ti")
    images = [np.asarray(Image.open(tmp_path / f"{i:02}.png")) for i in range(8)]
    images = np.stack([fit_to(image, 128) for image in images])

    def size(quality: int) -> float:
        return float(np.mean([len(b) for b in nec_jax.encode(params, images, quality=quality)]))

    quality = group.attrs["quality"]
    assert size(quality) <= 150 < size(quality + 1)
    y_hat = nec_jax.embed(params, images, quality=quality)
    found = coder.open(tmp_path / "a.zarr")[:].reshape(8, 64, 192)
    np.testing.assert_array_equal(found, y_hat[:, 1:])
    assert "nec_refiner" in group.attrs
    words = [*given, str(tmp_path / "b.zarr"), "--no-refiner", "--quality", str(quality), "--json"]
    assert command(words) == 0
    less = json.loads(capsys.readouterr().out)
    assert facts["fixed_bytes"] - less["fixed_bytes"] > 600_000
    assert command([*given, str(tmp_path / "c.zarr"), "--for-refiner", "--quality", "3"]) == 0
    refined = coder.open(tmp_path / "c.zarr", refine=True)[:].reshape(8, 64, 192)
    expected = nec_jax.embed(params, images, quality=3, for_refiner=True, refine=True)
    np.testing.assert_array_equal(refined, expected[:, 1:])


def test_a_table_gives_ids_labels_and_columns(inputs, capsys):
    lines = ["path,id,label,cloud,code,time"]
    for i in range(COUNT):
        path = f"images/{('field', 'water')[i % 2]}/{i}.png"
        cloud = "" if i == 3 else i / 4
        lines.append(
            f"{path},tile {i},kind {i % 3},{cloud},00{i},2020-01-{i + 1:02}T12:00:00+02:00"
        )
    (inputs / "images.csv").write_text("\n".join(lines))
    (inputs / "images/field/4.png").write_bytes(b"no image")

    def encode(*more):
        given = ["encode", str(inputs / "images.csv"), "--model", str(inputs / "model.safetensors")]
        return command([*given, "--out", str(inputs / "a.zarr"), "--shard", "4", *more])

    assert encode() == NOT_ALL
    embeddings = coder.open(inputs / "a.zarr")
    assert [str(one) for one in embeddings.ids] == [f"tile {i}" for i in range(COUNT)]
    labels = [-1 if i == 4 else i % 3 for i in range(COUNT)]
    assert embeddings.labels.tolist() == labels
    assert embeddings.classes == ("kind 0", "kind 1", "kind 2")
    days = np.datetime64("2020-01-01T10:00") + np.arange(COUNT) * np.timedelta64(1, "D")
    assert embeddings.column("time").tolist() == days.astype("datetime64[us]").tolist()
    cloud = np.where(np.arange(COUNT) == 3, np.nan, np.arange(COUNT) / 4)
    np.testing.assert_array_equal(embeddings.column("cloud"), cloud)
    assert [str(code) for code in embeddings.column("code")] == [f"00{i}" for i in range(COUNT)]
    assert str(embeddings.column("path")[1]) == "images/water/1.png"
    assert not any(map(str, embeddings.column("footprint")))
    # What the table says is compared too.
    text = (inputs / "images.csv").read_text()
    (inputs / "images.csv").write_text(text.replace("002", "0022"))
    capsys.readouterr()
    assert encode() == 1
    assert "a name, a label or a column differs from image 0 on" in capsys.readouterr().err


def test_times_and_footprints_of_files_become_columns(inputs):
    with rasterio.open(
        inputs / "images/field/12.tif", "w", "GTiff", 40, 40, 3, "EPSG:32633",
        rasterio.Affine(10, 0, 500000, 0, -10, 4100000), "uint8",
    ) as file:  # fmt: skip
        file.write(np.full((3, 40, 40), 7, np.uint8))
        file.update_tags(ns="IMAGERY", ACQUISITIONDATETIME="2020-01-02 03:04:05")
    assert run(inputs, "a.zarr") == 0
    embeddings = coder.open(inputs / "a.zarr")
    has = [str(one).endswith(".tif") for one in embeddings.ids]
    assert sum(has) == 1
    times, places = embeddings.column("time"), [str(p) for p in embeddings.column("footprint")]
    assert np.isnat(times).tolist() == [not one for one in has]
    assert times[has.index(True)] == np.datetime64("2020-01-02T03:04:05")
    assert [bool(place) for place in places] == has
    assert places[has.index(True)].startswith("POLYGON ((15 37.04")
