"""Batches of a source: endless and shuffled for training, all at once for scoring."""

import dataclasses
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import compress

import grain
import numpy as np

from nec_jax.images.read import not_finite, whole
from nec_jax.images.record import CorruptImageError, DataError, Record, Source
from nec_jax.images.size_rule import fit_to, random_crop
from nec_jax.sources.splits import spread

log = logging.getLogger(__name__)


def train_iterator(
    source: Source,
    *,
    batch: int,
    size: int,
    seed: int,
    augment: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    check: Callable[[Record], None] = lambda record: None,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Yield {"image": [batch, size, size, C] in the source's dtype} for ever.

    The images are shuffled anew in each epoch, all from `seed`. A batch may span the end of an
    epoch. `get_state()` of the iterator returns a small dict for JSON. `set_state(state)` on a new
    iterator with the same source, seed and global batch continues with the next batch; the number
    of processes may differ. An image that cannot be read is logged once, by name, and replaced by
    the next one of the source.

    Args:
        source: where the images come from.
        batch: images per batch in this process.
        size: side of an image, pixels.
        seed: seed of the order and the crops.
        augment: random crop (0.2 to 1 of the area) and mirror; otherwise `fit_to`.
        process_index: the index of this process.
        process_count: the number of processes. Their batches, concatenated, are the batch that one
            process would read.
        threads: number of threads that decode ahead of the training step.
        check: a function that raises DataError for a record that the model does not take.

    Raises:
        DataError: no images, no such process, or (while iterating) every image is corrupt, or one
            has other bands or another dtype than the others.
    """
    count = len(source)
    if count == 0:
        raise DataError(f"{source.name} has no images")
    check_process(process_index, process_count)
    order_seed, crop_seed = np.random.SeedSequence([seed, 0]).generate_state(2)
    read = _Reader(source, count, check)

    def readable(index: int) -> Record:
        # Replaced, not left out: otherwise the content of a batch would depend on all before it.
        records = (read((index + offset) % count) for offset in range(count))
        return next(record for record in records if record is not None)

    def cropped(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": random_crop(record["image"], size, rng)}

    images = grain.MapDataset.range(count).shuffle(seed=int(order_seed)).repeat().map(readable)
    # The crop depends on the place in the order of all images, not on the process.
    if augment:
        images = images.random_map(cropped, seed=int(crop_seed))
    else:
        images = images.map(lambda record: {"image": fit_to(record["image"], size)})
    batches = images.batch(batch, drop_remainder=True)[process_index::process_count]
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(ahead))


def check_process(index: int, count: int) -> None:
    """Raise DataError unless 0 <= index < count: the process would read another's images."""
    if not 0 <= index < count:
        raise DataError(f"process {index} of {count}: they are counted from 0 to {count - 1}")


@dataclasses.dataclass(frozen=True)
class Split:
    """All of a data split, in memory, in the source's order."""

    images: np.ndarray  # [N, size, size, C], the source's dtype
    labels: np.ndarray | None  # int64 [N]; None unless every image has one
    masks: np.ndarray | None  # uint8 [N, size, size], 255 = ignore; None unless every image has one
    ids: list[str]
    skipped: list[str]  # one message per image that could not be read; it names the file
    tokens: np.ndarray | None = None  # float16 [N, n, width]: activations after frozen blocks
    unlabelled: str = ""  # id of the first image without a label
    unmasked: str = ""  # and without a mask
    places: tuple[int, ...] = ()  # index of each image in its source, if known

    def take(self, chosen: np.ndarray) -> "Split":
        """The images where `chosen`, bool [N], is true."""
        optional = {"labels": self.labels, "masks": self.masks, "tokens": self.tokens}
        return dataclasses.replace(
            self,
            images=self.images[chosen],
            ids=[*compress(self.ids, chosen)],
            places=tuple(compress(self.places, chosen)),
            **{name: rows[chosen] for name, rows in optional.items() if rows is not None},
        )


def read_all(
    source: Source,
    size: int,
    *,
    limit: int | None = None,
    threads: int = 4,
    check: Callable[[Record], None] = lambda record: None,
) -> Split:
    """Read a whole source, brought to size x size by `fit_to`; corrupt images are skipped.

    Args:
        source: what to read.
        size: side of an image, pixels.
        limit: maximum number of images to read, evenly spread, the same ones each time.
        threads: number of threads that decode in parallel.
        check: a function that is called with each record as it was read, in any thread.

    Raises:
        DataError: no image can be read, or images differ in bands or dtype.
    """
    total = len(source)
    chosen = spread(total, limit)
    if not chosen:
        raise DataError(f"nothing to read: {source.name} has {total} images, limit is {limit}")
    read = _Reader(source, len(chosen), check)

    def fitted(index: int) -> Record | None:
        record = read(index)
        if record is None:
            return None
        if "mask" in record:
            record["image"], record["mask"] = fit_to(record["image"], size, record["mask"])
        else:
            record["image"] = fit_to(record["image"], size)
        return record

    with ThreadPoolExecutor(threads) as pool:
        maybe = pool.map(fitted, chosen)
        found = [(i, record) for i, record in zip(chosen, maybe, strict=True) if record is not None]
    records = [record for _, record in found]
    # All or none: otherwise labels would be assigned to the wrong images.
    labels = [record["label"] for record in records if "label" in record]
    masks = [record["mask"] for record in records if "mask" in record]
    return Split(
        images=np.stack([record["image"] for record in records]),
        labels=np.array(labels, np.int64) if len(labels) == len(records) else None,
        masks=np.stack(masks) if len(masks) == len(records) else None,
        ids=[record["id"] for record in records],
        skipped=[read.corrupt[index] for index in sorted(read.corrupt)],
        unlabelled=next((record["id"] for record in records if "label" not in record), ""),
        unmasked=next((record["id"] for record in records if "mask" not in record), ""),
        places=tuple(i for i, _ in found),
    )


class _Reader:
    """Index -> checked record, or None for a corrupt one; fails if none of the images is readable.

    Every image must have the bands and dtype of the first one read.
    """

    def __init__(self, source: Source, count: int, check: Callable[[Record], None]):
        self._source = source
        self._count = count  # number of different indices that will be asked for
        self._check = check
        self.corrupt: dict[int, str] = {}
        self._first: Record | None = None
        self._lock = threading.Lock()

    def __call__(self, index: int) -> Record | None:
        try:
            record = self._source[index]
            if missing := not_finite(record["image"]):  # from a source outside this package
                record = whole({**record, "missing": missing}, record["id"])
        except CorruptImageError as error:
            with self._lock:
                if index not in self.corrupt:
                    log.warning("skipped: %s", error)
                self.corrupt[index] = str(error)
                if len(self.corrupt) == self._count:
                    raise DataError(
                        f"none of the {self._count} images of {self._source.name} can be read; "
                        f"the last: {error}"
                    ) from error
            return None
        self._check(record)
        self._refuse_other_kind(record)
        return record

    def _refuse_other_kind(self, record: Record) -> None:
        here = record["image"]
        if here.ndim != 3 or 0 in here.shape:
            raise DataError(f"{record['id']} is an array {here.shape}: an image is [H, W, bands]")
        with self._lock:
            first = self._first = self._first or {"id": record["id"], "image": here[:0]}
        there = first["image"]
        if here.shape[2:] != there.shape[2:] or here.dtype != there.dtype:
            raise DataError(
                f"{record['id']} has {here.shape[-1]} bands of {here.dtype}, but "
                f"{first['id']} has {there.shape[-1]} of {there.dtype}: "
                f"keep them in folders of their own"
            )
