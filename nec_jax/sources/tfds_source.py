"""Data sets of TensorFlow Datasets, read without TensorFlow."""

import bisect
import functools
import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from nec_jax.images.read import not_finite, read_picture, reason_of, whole
from nec_jax.images.record import CorruptImageError, DataError, Record, raise_passing
from nec_jax.images.windows import names_of
from nec_jax.sources.splits import check_filled, check_split, hash_split

_MASK_FEATURES = ("segmentation_mask", "mask")


class TfdsSource:
    """Images, labels and masks of a prepared TFDS data set; ids are "split/index".

    Splits are those of TFDS; its `validation` is called `val` here. If `val` or `test` is missing,
    it is taken out of `train` by the hash of the id.
    """

    def __init__(self, name: str, split: str = "all", data_dir: str | None = None):
        """Open a data set that is on disk; nothing is downloaded.

        Args:
            name: the name in TFDS: "uc_merced", "eurosat/rgb", "uc_merced:2.0.0".
            split: a split of TFDS, "train", "val", "test" or "all".
            data_dir: the folder of TFDS' data sets; None for TFDS' default.

        Raises:
            DataError: unknown name or split, no images, or not prepared for random access.
        """
        self.name = name
        builder = _prepared_builder(name, data_dir)
        self._features = builder.info.features
        if "image" not in self._features:
            raise DataError(f"tfds:{name} has no feature `image`, only {[*self._features]}")
        self._builder = builder
        sizes = {part: info.num_examples or 0 for part, info in builder.info.splits.items()}
        members = _members(sizes)
        check_split(split, members, f"tfds:{name}")
        parts = members if split == "all" else {split: members[split]}
        self._keys = [key for keys in parts.values() for key in keys]
        check_filled(len(self._keys), split, f"tfds:{name}", sum(sizes.values()))
        # TFDS would read a palette as grey, and ignores EXIF and transparency. Images of one band
        # of 8 bits stay as TFDS reads them.
        feature: Any = self._features["image"]
        kind = (tuple(feature.shape)[-1:], feature.np_dtype)
        as_files = [((3,), np.uint8), ((3,), np.uint16), ((1,), np.uint16)]
        self._as_files = isinstance(feature, tfds.features.Image) and kind in as_files
        decoders = {"image": tfds.decode.SkipDecoding()} if self._as_files else None
        self._data: dict[str, Sequence[Any]] = {
            part: builder.as_data_source(part, decoders=decoders)
            for part in sorted({key[0] for key in self._keys})
        }
        label = dict(self._features.items()).get("label")
        has_classes = isinstance(label, tfds.features.ClassLabel)
        self.classes: tuple[str, ...] = tuple(label.names) if has_classes else ()
        self._mask = next((key for key in _MASK_FEATURES if key in self._features), None)
        self._mask_classes = functools.cache(self._find_mask_classes)

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """Names of the mask values; if TFDS has none, all masks are read to count the classes."""
        return self._mask_classes()

    def _find_mask_classes(self) -> tuple[str, ...]:
        if self._mask is None:
            return ()
        feature = self._features[self._mask]
        if isinstance(feature, tfds.features.LabeledImage):
            return tuple(feature.names or map(str, range(feature.num_classes or 0)))
        skip_image = {"image": tfds.decode.SkipDecoding()}
        values: set[int] = set()
        for part in self._builder.info.splits:
            for example in self._builder.as_data_source(part, decoders=skip_image):
                values |= set(np.unique(example[self._mask]).tolist())
        return names_of(values, f"tfds:{self.name}")

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int, /) -> Record:
        part, position = self._keys[index]
        name = f"{_id(part, position)} of tfds:{self.name}"
        # As in nec_jax.images.read: decoders raise nearly anything on damaged bytes.
        try:
            example = self._data[part][position]
            record: Record = {"id": _id(part, position), "image": example["image"]}
            if self._as_files:
                record = read_picture(io.BytesIO(example["image"]), _id(part, position))
        except Exception as error:
            raise_passing(error, name)
            raise CorruptImageError(f"cannot read {name}: {reason_of(error)}") from error
        image = record["image"]
        if image.ndim != 3 or 0 in image.shape or image.dtype.kind not in "uif":
            raise CorruptImageError(
                f"cannot read {name}: an image is [H, W, bands] of numbers, this is {image.dtype} "
                f"{image.shape}"
            )
        if missing := not_finite(image):
            record["missing"] = missing
        if self.classes and int(example["label"]) >= 0:  # -1 of the test splits of TFDS is none
            record["label"] = int(example["label"])
        if self._mask is not None:
            record["mask"] = _indices(example[self._mask], image, name)
        return whole(record, name)

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id of each example, and the shard that holds it."""
        ends: dict[str, list[int]] = {}
        for part, info in self._builder.info.splits.items():
            ends[part] = list(itertools.accumulate(info.shard_lengths))
        for part, position in self._keys:
            shard = bisect.bisect_right(ends[part], position)
            yield _id(part, position), Path(self._builder.info.splits[part].filepaths[shard])


def _indices(mask: np.ndarray, image: np.ndarray, name: str) -> np.ndarray:
    """Class indices uint8 [H, W] of a mask [H, W, 1] or [H, W]."""
    shape = image.shape[:2]
    if mask.shape not in (shape, (*shape, 1)) or mask.dtype not in (np.uint8, np.bool_):
        raise CorruptImageError(
            f"cannot read the mask of {name}: a mask has one band of uint8 class indices, as large "
            f"as its image {image.shape}, this is {mask.dtype} {mask.shape}"
        )
    return mask.reshape(shape).astype(np.uint8)


def _members(sizes: dict[str, int]) -> dict[str, list[tuple[str, int]]]:
    """TFDS' splits and sizes -> our splits, each a list of (TFDS split, index in it)."""
    members = {
        "val" if part == "validation" else part: [(part, i) for i in range(size)]
        for part, size in sizes.items()
    }
    missing = [part for part in ("val", "test") if part not in members]
    if "train" in members and missing:
        # Hashed ids move out of train, so that no image is both trained on and scored.
        keys = members["train"]
        homes = [part if (part := hash_split(_id(*key))) in missing else "train" for key in keys]
        for part in ("train", *missing):
            members[part] = [key for key, home in zip(keys, homes, strict=True) if home == part]
    return members


def _id(part: str, position: int) -> str:
    return f"{part}/{position:06d}"


def _prepared_builder(name: str, data_dir: str | None) -> Any:
    where = f"--data_dir={data_dir} " if data_dir else ""
    remedy = (
        f"prepare it with TFDS: `tfds build {name} {where}--file_format=array_record` (which may "
        f"need TensorFlow; reading does not), or builder.download_and_prepare() of "
        f"tfds.builder({name!r}, file_format='array_record')"
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:  # its own message lists 1,000 names
        raise DataError(
            f"TFDS knows no data set {name!r}, and none is in {data_dir or 'its default folder'}"
        ) from error
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if not builder.info.splits:
        raise DataError(f"tfds:{name} is not on disk at {builder.data_dir}: {remedy}")
    if not formats & {"array_record", "parquet"}:
        raise DataError(
            f"tfds:{name} at {builder.data_dir} is in the format {', '.join(sorted(formats))}, "
            f"which has no random access: {remedy}"
        )
    return builder
