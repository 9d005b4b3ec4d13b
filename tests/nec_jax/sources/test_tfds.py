"""TFDS data sets, written here in TFDS' own array-record format, without TensorFlow."""

import io
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from image_files import encoded, noise
from image_files import png as deep_png
from PIL import Image

from nec_jax import NecParams
from nec_jax.images.record import CorruptImageError, DataError, Record
from nec_jax.sources import open_source
from train.configs.study_options import Evaluate
from train.data import read_all, train_iterator
from train.studies import evaluate


def png(array: np.ndarray) -> io.BytesIO:
    """Encode: TFDS needs TensorFlow to encode arrays, but takes files as they are."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    file.seek(0)
    return file


class TinyScenes(tfds.core.GeneratorBasedBuilder):
    """30 training images as UC Merced has them (one split, labels) with masks."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": 30}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["sea", "forest"]),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in self.SPLITS.items()}

    def _generate_examples(self, count: int) -> Iterator[tuple[int, dict]]:
        for i in range(count):
            yield (
                i,
                {
                    "image": png(np.full((8, 9, 3), i, np.uint8)),
                    "label": i % 2,
                    "segmentation_mask": png(np.full((8, 9), 255 if i == 0 else i % 3, np.uint8)),
                },
            )


class TinySplits(TinyScenes):
    """The same with splits of its own, but no test."""

    SPLITS = {"train": 30, "validation": 5}  # noqa: RUF012


def prepare(builder: type[TinyScenes], folder: Path, file_format: str = "array_record") -> None:
    made = builder(data_dir=str(folder), file_format=file_format)
    made.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    prepare(TinyScenes, path)
    prepare(TinySplits, path)
    return path


def test_records_of_a_tfds_data_set(folder: Path):
    source = open_source(f"tfds:tiny_scenes@{folder}")
    assert "tensorflow" not in sys.modules
    assert (source.name, len(source)) == ("tiny_scenes", 30)
    assert source.classes == ("sea", "forest")
    assert source.mask_classes == ("0", "1", "2")
    values = []
    for i in range(30):
        record = source[i]
        value = int(record["image"][0, 0, 0])
        values.append(value)
        assert record["image"].shape == (8, 9, 3)
        assert record.get("label") == value % 2
        expected = 255 if value == 0 else value % 3
        np.testing.assert_array_equal(record.get("mask"), np.full((8, 9), expected))
    assert sorted(values) == list(range(30))
    split = read_all(source, 8)
    names, files = zip(*source.files(), strict=True)
    assert list(names) == split.ids
    assert all(file.is_file() for file in files)
    assert split.masks is not None
    assert split.masks.shape == (30, 8, 8)
    batches = train_iterator(source, batch=4, size=8, seed=0)
    assert next(batches)["image"].shape == (4, 8, 8, 3)


def test_missing_splits_are_taken_out_of_train(folder: Path):
    def ids(name: str, split: str) -> set[str]:
        return set(read_all(open_source(f"tfds:{name}@{folder}", split), 8).ids)

    parts = [ids("tiny_scenes", split) for split in ("train", "val", "test")]
    assert all(parts)
    assert sum(map(len, parts)) == 30
    assert set().union(*parts) == ids("tiny_scenes", "all")
    assert ids("tiny_splits", "val") == {f"validation/{i:06d}" for i in range(5)}
    assert ids("tiny_splits", "test") == parts[2]
    assert len(ids("tiny_splits", "train")) == 30 - len(parts[2])
    with pytest.raises(ValueError, match="no split 'dev'; it has: train, val, test, all"):
        open_source(f"tfds:tiny_scenes@{folder}", "dev")


def test_a_corrupt_record_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "png", lambda array: io.BytesIO(b"not a png"))
    prepare(TinyScenes, tmp_path)
    with pytest.raises(CorruptImageError, match="train/000003 of tfds:tiny_scenes"):
        open_source(f"tfds:tiny_scenes@{tmp_path}")[3]


class TinyTest(TinyScenes):
    """A test split without labels: -1, as TFDS has it."""

    SPLITS = {"train": 30, "validation": 5, "test": 4}  # noqa: RUF012

    def _split_generators(self, dl_manager):
        return {split: self._without(split, count) for split, count in self.SPLITS.items()}

    def _without(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
        for i, example in self._generate_examples(count):
            yield i, example | ({"label": -1} if split == "test" or i == 7 else {})


def test_a_label_below_zero_is_no_label(tmp_path: Path, bare_model: NecParams):
    prepare(TinyTest, tmp_path)
    name = f"tfds:tiny_test@{tmp_path}"
    test = open_source(name, "test")
    assert test.classes == ("sea", "forest")
    assert all("label" not in test[i] for i in range(4))
    assert read_all(test, 8).labels is None
    train = open_source(name, "train")
    numbers = [int(train[i]["image"][0, 0, 0]) for i in range(30)]
    assert [i for i in range(30) if "label" not in train[i]] == [numbers.index(7)]
    val = read_all(open_source(name, "val"), 8)
    assert val.labels is not None
    assert len(val.labels) == 5
    options = Evaluate(data=name, split="test")
    with pytest.raises(DataError, match=r"split 'train' of tiny_test .*train/\d+ has no label"):
        evaluate.open_study(options, bare_model)
    split = read_all(test, 8)
    with pytest.raises(DataError, match=r"it cannot be used for classification: test/000000 has"):
        evaluate.refuse_unlabelled(options, split, test.classes, "it")


KINDS = ("RGB", "L", "P", "LA", "turned", "deep", "clear", "frames")


class Kinds(TinyScenes):
    """Images in every form that a file of three bands may have."""

    FEATURE = tfds.features.Image(shape=(None, None, 3))

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": self.FEATURE, "kind": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, count: int) -> Iterator[tuple[int, dict]]:
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.fromarray(noise(8, 9, 3))
        palette = Image.fromarray(np.full((8, 9), 1, np.uint8)).convert("P")
        palette.putpalette([0, 0, 0, 10, 20, 30])
        files = {
            "RGB": encoded(image, "PNG"),
            "L": encoded(image.convert("L"), "PNG"),
            "P": encoded(palette, "PNG"),
            "LA": encoded(image.convert("LA"), "PNG"),
            "turned": encoded(image, "PNG", exif=exif),
            "deep": deep_png(noise(8, 9, 3, high=4096, dtype=np.uint16)),
            "clear": encoded(Image.new("RGBA", (9, 8)), "PNG"),
            "frames": encoded(image, "PNG", save_all=True, append_images=[palette]),
        }
        for i, kind in enumerate(KINDS):
            yield i, {"image": io.BytesIO(files[kind]), "kind": kind}


class DeepKinds(Kinds):
    """The same, said to be of 16 bits."""

    FEATURE = tfds.features.Image(shape=(None, None, 3), dtype=np.uint16)


def image_or_reason(read: Callable[[], Record]) -> np.ndarray | str:
    try:
        return read()["image"]
    except CorruptImageError as error:
        return str(error)


@pytest.mark.parametrize("builder", [Kinds, DeepKinds])
def test_images_are_read_as_files_are(tmp_path: Path, builder: type[Kinds]):
    prepare(builder, tmp_path)
    name = {Kinds: "kinds", DeepKinds: "deep_kinds"}[builder]
    source = open_source(f"tfds:{name}@{tmp_path}")
    reads = [partial(source.__getitem__, i) for i in range(len(source))]
    found = [image_or_reason(read) for read in reads]
    rgb = noise(8, 9, 3)
    expected = [
        rgb,
        np.asarray(Image.fromarray(rgb).convert("L").convert("RGB")),
        np.full((8, 9, 3), (10, 20, 30), np.uint8),
        np.asarray(Image.fromarray(rgb).convert("L").convert("RGB")),
        np.rot90(rgb, -1),
        noise(8, 9, 3, high=4096, dtype=np.uint16),
    ]
    arrays = [image for image in found if isinstance(image, np.ndarray)]
    assert {(a.dtype, a.tobytes()) for a in arrays} == {(a.dtype, a.tobytes()) for a in expected}
    texts = [image for image in found if isinstance(image, str)]
    frames, missing = sorted(texts, key=lambda text: "missing" in text)
    for text, reason in (
        (missing, "72 of 72 pixels are missing in at least one band (trans"),
        (frames, "has 2 frames"),
    ):
        assert f"of tfds:{name}: " in text
        assert reason in text


class Masked(TinyScenes):
    """Masks of three bands."""

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3))
        features = tfds.features.FeaturesDict({"image": image, "mask": image})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self, count: int) -> Iterator[tuple[int, dict]]:
        for i in range(count):
            image = png(noise(8, 9, 3))
            yield i, {"image": image, "mask": io.BytesIO(image.getvalue())}


def test_a_mask_of_three_bands_is_named(tmp_path: Path):
    prepare(Masked, tmp_path)
    source = open_source(f"tfds:masked@{tmp_path}")
    with pytest.raises(CorruptImageError, match=r"mask of train/\d+ of tfds:masked: .* one band"):
        source[0]


def test_what_is_not_prepared_says_how_to(tmp_path: Path):
    with pytest.raises(ValueError, match=r"not on disk at .*tfds build tiny_scenes .*array_record"):
        open_source(f"tfds:tiny_scenes@{tmp_path}")
    with pytest.raises(ValueError, match="knows no data set 'no_such_name'"):
        open_source(f"tfds:no_such_name@{tmp_path}")
