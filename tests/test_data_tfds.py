"""TFDS data sets, written here in TFDS' own array-record format, without TensorFlow."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from train.data import CorruptImageError, open_source, read_all, train_iterator


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


def test_what_is_not_prepared_says_how_to(tmp_path: Path):
    with pytest.raises(ValueError, match=r"not on disk at .*tfds build tiny_scenes .*array_record"):
        open_source(f"tfds:tiny_scenes@{tmp_path}")
    with pytest.raises(ValueError, match="knows no data set 'no_such_name'"):
        open_source(f"tfds:no_such_name@{tmp_path}")
