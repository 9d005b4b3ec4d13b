"""From a source to batches: endless shuffled ones for training, everything at once for scoring."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grain
import numpy as np

from train.data.record import CorruptImageError, DataError, Record, Source
from train.data.resize import fit_to, random_crop
from train.data.subset import spread

log = logging.getLogger("train.data")


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
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Yield {"image": [batch, size, size, C] in the source's dtype} for ever.

    The images are shuffled anew in each epoch, and everything follows from `seed`. Batches run
    across the end of an epoch. `get_state()` of the iterator is a small JSON-able dict, and
    `set_state(state)` on a new iterator with the same source, seed and number of images a batch
    of all processes goes on with the next batch, be the processes as many as before or not.
    An image that cannot be read is logged once, by name; the next one of the source takes its
    place.

    Args:
        source: where the images come from.
        batch: images a batch of this process.
        size: side of an image, pixels.
        seed: of the order and the crops.
        augment: random crop (0.2 to 1 of the area) and mirror; otherwise `fit_to`.
        process_index: this process, of ...
        process_count: ... so many. Their batches, one after another, are the batch that one
            process would read.
        threads: that decode ahead of the training step.

    Raises:
        DataError: no images, or (while iterating) every image is corrupt.
    """
    count = len(source)
    if count == 0:
        raise DataError(f"{source.name} has no images")
    order_seed, crop_seed = np.random.SeedSequence([seed, 0]).generate_state(2)
    read = _Reader(source, count)

    def readable(index: int) -> Record:
        # Not left out: what is in a batch would then depend on all that came before it.
        records = (read((index + offset) % count) for offset in range(count))
        return next(record for record in records if record is not None)

    def cropped(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": random_crop(record["image"], size, rng)}

    def fitted(record: Record) -> dict[str, np.ndarray]:
        return {"image": fit_to(record["image"], size)}

    images = grain.MapDataset.range(count).shuffle(seed=int(order_seed)).repeat().map(readable)
    # The crop is drawn by the place in the order of all images, whichever process it falls to.
    images = images.random_map(cropped, seed=int(crop_seed)) if augment else images.map(fitted)
    batches = images.batch(batch, drop_remainder=True)[process_index::process_count]
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(ahead))


@dataclass(frozen=True)
class Split:
    """All of a data split, in memory, in the source's order."""

    images: np.ndarray  # [N, size, size, C], the source's dtype
    labels: np.ndarray | None  # int64 [N]
    masks: np.ndarray | None  # uint8 [N, size, size], 255 = ignore
    ids: list[str]
    skipped: list[str]  # one message an image that could not be read; it names the file
    tokens: np.ndarray | None = None  # float16 [N, n, width]: what frozen blocks made of the images

    def take(self, chosen: np.ndarray) -> "Split":
        """The images where `chosen`, bool [N], is true."""
        return Split(
            self.images[chosen],
            None if self.labels is None else self.labels[chosen],
            None if self.masks is None else self.masks[chosen],
            [name for name, keep in zip(self.ids, chosen, strict=True) if keep],
            self.skipped,
            None if self.tokens is None else self.tokens[chosen],
        )


def read_all(source: Source, size: int, *, limit: int | None = None, threads: int = 4) -> Split:
    """Read a whole source, brought to size x size by `fit_to`; images that are corrupt are skipped.

    Args:
        source: what to read.
        size: side of an image, pixels.
        limit: read only so many, spread evenly over the source, the same ones each time.
        threads: that decode in parallel.

    Raises:
        DataError: no image can be read, or images differ in bands or dtype.
    """
    total = len(source)
    wanted = total if limit is None else min(limit, total)
    if wanted < 1:
        raise DataError(f"nothing to read: {source.name} has {total} images, limit is {limit}")
    read = _Reader(source, wanted)

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
        maybe = pool.map(fitted, spread(total, limit))
        records = [record for record in maybe if record is not None]
    first = records[0]["image"]
    for record in records:
        image = record["image"]
        if image.shape != first.shape or image.dtype != first.dtype:
            raise DataError(
                f"{record['id']} has {image.shape[-1]} bands of {image.dtype}, but "
                f"{records[0]['id']} has {first.shape[-1]} of {first.dtype}: "
                f"keep them in folders of their own"
            )
    labels = [record["label"] for record in records if "label" in record]
    masks = [record["mask"] for record in records if "mask" in record]
    return Split(
        images=np.stack([record["image"] for record in records]),
        labels=np.array(labels, np.int64) if labels else None,
        masks=np.stack(masks) if masks else None,
        ids=[record["id"] for record in records],
        skipped=read.skipped(),
    )


class _Reader:
    """Index -> record, or None for a corrupt one; fails once nothing readable can be left."""

    def __init__(self, source: Source, count: int):
        self._source = source
        self._count = count  # how many different indices will be asked for
        self._corrupt: dict[int, str] = {}
        self._lock = threading.Lock()

    def __call__(self, index: int) -> Record | None:
        try:
            return self._source[index]
        except CorruptImageError as error:
            with self._lock:
                if index not in self._corrupt:
                    log.warning("skipped: %s", error)
                self._corrupt[index] = str(error)
                if len(self._corrupt) == self._count:
                    raise DataError(
                        f"none of the {self._count} images of {self._source.name} can be read; "
                        f"the last: {error}"
                    ) from error
        return None

    def skipped(self) -> list[str]:
        return [self._corrupt[index] for index in sorted(self._corrupt)]
