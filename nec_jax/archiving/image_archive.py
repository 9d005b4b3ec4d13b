"""`encode_archive`: images to an archive, shard by shard; called again, it goes on.

Threads read images ahead of the encoder. The device computes one batch while the next is put
together, and another thread codes and writes the shard before. Memory holds a few batches of images
and the embeddings of two shards, however many images there are.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from coder import CodecError, InputError, archive
from coder.archive import zarr_nodes
from coder.codecs import OneQualityCodec, QualityLadder
from coder.refiner import NO_REFINER
from nec_jax.api import check_images, latents, latents_of
from nec_jax.archiving import image_list
from nec_jax.images.acquisition import footprint
from nec_jax.images.rasters import SceneError
from nec_jax.images.record import CorruptImageError, DataError, Source
from nec_jax.images.size_rule import fit_to
from nec_jax.jax_defaults import jax_defaults
from nec_jax.model_file import NecParams, digest_of
from nec_jax.sources import OF_FILES, ImageTable, spread

_SAMPLE = 64  # images that a quality is chosen by
_TRIED = 16  # images to try before an archive is begun
_AHEAD = 4  # batches of images that are read ahead of the encoder
_POLL = 1.0  # seconds between two looks at the shards that other processes write

T = TypeVar("T")
R = TypeVar("R")


class Amount(NamedTuple):
    """How much was written.

    Attributes:
        images: the number of images.
        read: bytes of their files; windows share those of their image. 0 where that is unknown.
        stored: bytes of their embeddings in the archive.
    """

    images: int = 0
    read: int = 0
    stored: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """The sum."""
        return Amount(*map(sum, zip(self, other, strict=True)))


class Progress(Protocol):
    """What is told as an archive grows."""

    def __call__(self, done: int, total: int, written: Amount) -> None:
        """Take the images that are in the archive, all images, and what this call has written."""
        ...


class Encoded(NamedTuple):
    """What `encode_archive` did.

    Attributes:
        images: the number of images of the archive.
        written: how many of them this call wrote.
        not_valid: how many have no embedding.
        first_not_valid: number, id and reason of the first of these.
        files_left_out: the files that no window is cut from, as `image_list.files_left_out`.
        image_bytes: the size of all image files.
        archive_bytes: the size of all files of the archive.
        fixed_bytes: that of the codec, the refiner and other metadata, whatever the images.
        seconds: how long reading, encoding and writing took.
    """

    images: int
    written: int
    not_valid: int
    first_not_valid: list[tuple[int, str, str]]
    files_left_out: dict[str, Any]
    image_bytes: int
    archive_bytes: int
    fixed_bytes: int
    seconds: float


class _Row(NamedTuple):
    """An image that was read, or why it cannot be used, or what failed while it was read."""

    id: str
    label: int
    image: NDArray | None
    about: Mapping[str, Any] = MappingProxyType({})  # values of the archive's columns
    error: str | None = None
    failure: OSError | None = None


_Pair = tuple[_Row, NDArray[np.float32] | None]  # an image, and its latents [n, D] if it was read


class Encoding:
    """Images, a model and the archive that they are encoded to: opened once for all shards.

    Attributes:
        writer: writes the archive; not entered yet.
        source: the images.
    """

    def __init__(
        self,
        params: NecParams,
        source: Source,
        out: Path | str,
        *,
        split: str,
        quality: int | None,
        image_size: int | None,
        for_refiner: bool,
        shard: int,
        strict: bool,
        retry: bool,
        readers: int,
        notes: Mapping[str, Any] | None,
    ):
        """Look at the images, and compare them with those of an existing archive; write nothing.

        Args and errors: those of `encode_archive`.
        """
        if params.codec is None:
            raise InputError("the model has no codec: train it with `nec compress`")
        codec = cast(OneQualityCodec, params.codec.at(quality))
        if for_refiner and codec.refiner is None:
            raise InputError(NO_REFINER)
        size, grid = _size_and_grid(params, image_size)
        self._left_out = image_list.files_left_out(source)
        if strict and self._left_out["unreadable"]:
            raise InputError("{path}: {reason}".format_map(self._left_out["first"][0]))
        images = image_list.listed(source)
        had = image_list.refuse_changed(out, source, split, images.digests, retry=retry)
        self.source = source
        self._params, self._out, self._readers = params, out, readers
        self._codec, self._grid, self._for_refiner = codec, grid, for_refiner
        self._images, self._had = images, had
        self._read = partial(_read, params, source, size)
        self._ids = image_list.Ids(source)
        _refuse_other_images(self._read, len(source))  # before anything is written
        attributes = {
            "data": source.name,
            "split": split,
            "chip": getattr(source, "chip", None),
            "image_size": size,
            "images": len(source),
            **had,
            "shard": shard,
            "classes": list(source.classes),
            "codec": params.codec.fingerprint.hex(),  # of all qualities, as `nec info MODEL` has it
            "quality": codec.quality,
            "for_refiner": for_refiner,
            # The codec's fingerprint does not cover the encoder.
            "model": digest_of(params),
        }
        self.writer = archive.Writer(
            out,
            codec,
            len(source),
            grid,
            shard=archive.even_shard(len(source), shard),
            attributes=attributes,
            strict=strict,
            retry=retry,
            shared=not retry and zarr_nodes.local_path(out) is not None,
            notes={**_left_out(source), "files_left_out": self._left_out, **(notes or {})},
            columns={**OF_FILES, **(source.columns if isinstance(source, ImageTable) else {})},
        )

    def begin(self) -> int:
        """Note the sizes of changed files. Returns how many images the archive has already."""
        if self._had != self._images.digests:  # files of unreadable images have changed
            self.writer.group.attrs.update(self._images.digests)
        return len(self.source) - sum(part.stop - part.start for part in self.writer.missing())

    def embedded(self, places: Iterable[int]) -> Iterator[_Pair]:
        """Images that are read, and their latents, in order; a few batches are read ahead."""
        ahead = _AHEAD * self._params.config.coding_batch
        return _embedded(self._params, _ahead(self._row, places, self._readers, ahead))

    def write(self, part: slice, some: Sequence[_Pair]) -> None:
        """Write a shard: images part.start to part.stop - 1."""
        y = np.stack([y for _, y in some if y is not None] or [np.empty(0, np.float32)])
        rows = [row for row, _ in some]
        self.writer.write(
            part,
            self._decoded(y) if y.size else np.empty(0),
            [row.id for row in rows],
            [row.label for row in rows],
            [row.error for row in rows],
            {name: [row.about.get(name) for row in rows] for name in self.writer.columns},
        )

    def amount(self, part: slice) -> Amount:
        """How much a shard is that was written."""
        read = int(self._images.bytes_of[part].sum())
        return Amount(part.stop - part.start, read, self.writer.stored_bytes(part))

    def finish(self, written: int, seconds: float) -> Encoded:
        """Finish the archive, of which this call wrote so many images in so many seconds."""
        self.writer.finish()
        count, first = archive.not_valid(self.writer.group)
        sizes = zarr_nodes.sizes(self._out)
        fixed = sum(
            size
            for key, size in sizes.items()
            if key.endswith("zarr.json") or key.startswith("refiner/")
        )
        return Encoded(
            images=len(self.source),
            written=written,
            not_valid=count,
            first_not_valid=first,
            files_left_out=self._left_out,
            image_bytes=self._images.file_bytes,
            archive_bytes=sum(sizes.values()),
            fixed_bytes=fixed,
            seconds=seconds,
        )

    def _row(self, index: int) -> _Row:
        try:
            return self._read(index)
        except CorruptImageError as error:
            about = _listed_about(self.source, index)
            return _Row(self._ids[index], -1, None, about, str(error))
        except OSError as failure:  # raised once all shards before it are written
            return _Row("", -1, None, failure=failure)

    def _decoded(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """What `nec_jax.embed` returns for these latents; written, it has the same symbols.

        An archive codes grids and class tokens apart. The latents themselves would be rounded
        otherwise there, where one lies near the border of two symbols.
        """
        aimed = self._codec.aim(y, self._grid) if self._for_refiner else y
        return self._codec.dequantise(self._codec.quantise(aimed, self._grid), self._grid)


@jax_defaults()
def encode_archive(
    params: NecParams,
    source: Source,
    out: Path | str,
    *,
    split: str = "all",
    quality: int | None = None,
    image_size: int | None = None,
    for_refiner: bool = False,
    shard: int = archive.SHARD,
    strict: bool = False,
    retry: bool = False,
    readers: int = 2,
    notes: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total, written: None,
) -> Encoded:
    """Encode all images of a source to an archive (`coder.archive`), or go on with one.

    Several processes may call it for one archive at the same time: each writes other shards. A
    shard is whole or not there, also if a process is killed, and the archive has the bytes that one
    uninterrupted call gives. An image that cannot be read, or that the model does not take, is
    marked as not valid, with the reason. Windows are cut from files whose header can be read; the
    others are named in the archive's attribute `files_left_out`.

    Args:
        params: a model with a codec.
        source: the images.
        out: folder or URL of the archive. Only one process at a time may write to a URL, which has
            no locks. One that is there must have been begun with the same images,
            model, quality and image size.
        split: the split of the data set that the images are.
        quality: quality of the model's codec; None for its default.
        image_size: side of the square to which images are brought (`fit_to`), pixels; None for the
            model's.
        for_refiner: choose symbols for readers that refine, as `nec_jax.encode` does.
        shard: maximum number of images per shard.
        strict: whether the first image that is not valid, or file that cannot be read, ends the
            call with an error.
        retry: whether to read images again that are not valid; no other process may write then.
        readers: number of threads that read images.
        notes: further attributes of the archive, as JSON. They are written when it is begun, and
            not compared.
        progress: called after each shard.

    Raises:
        CodecError: the archive cannot be written or does not fit (`coder.archive.Writer`); the
            model has no codec, not that quality, or no refiner; with `strict`, an image.
        DataError: other images than those of the archive; none of the first images can be used.
        OSError: the disk or the network failed. The same call goes on.
    """
    encoding = Encoding(
        params,
        source,
        out,
        split=split,
        quality=quality,
        image_size=image_size,
        for_refiner=for_refiner,
        shard=shard,
        strict=strict,
        retry=retry,
        readers=readers,
        notes=notes,
    )
    start, written = time.monotonic(), Amount()
    with encoding.writer as writer:
        there = encoding.begin()
        progress(there, len(source), written)
        while True:
            for part in _write_shards(encoding):
                written = written.plus(encoding.amount(part))
                progress(there + written.images, len(source), written)
            if retry or not writer.missing():
                break
            time.sleep(_POLL)  # other processes write the rest
        return encoding.finish(written.images, time.monotonic() - start)


@jax_defaults()
def quality_for(
    params: NecParams,
    source: Source,
    *,
    max_bytes: float | None = None,
    max_mse: float | None = None,
    image_size: int | None = None,
    for_refiner: bool = False,
) -> int:
    """The quality that fits the images of a source on average, by at most 64 of them.

    Args:
        params, source, image_size, for_refiner: as for `encode_archive`.
        max_bytes, max_mse: as `coder.QualityLadder.quality_for`; give one.

    Raises:
        InputError: as `quality_for`; the model has no codec of many qualities.
        DataError: none of these images can be used.
        OSError: the disk or the network failed.
    """
    if not isinstance(params.codec, QualityLadder):
        raise InputError("the model has no codec of many qualities: leave max_bytes, max_mse out")
    size, grid = _size_and_grid(params, image_size)
    images, last = [], None
    for i in spread(len(source), _SAMPLE):
        try:
            images.append(_read(params, source, size, i).image)
        except CorruptImageError as error:
            last = error
    if not images:
        raise last or DataError(f"{source.name} has no images")
    return params.codec.quality_for(
        latents(params, np.stack(images)),
        grid,
        max_bytes=max_bytes,
        max_mse=max_mse,
        for_refiner=for_refiner,
    )


def _size_and_grid(params: NecParams, image_size: int | None) -> tuple[int, tuple[int, int]]:
    """The side of images, and their token grid. Raises InputError if the codec does not take it."""
    size = params.config.image_size if image_size is None else image_size
    height, width = params.config.grid(size, size)
    assert params.codec is not None
    if height * width > params.codec.max_tokens:  # before an image of this size is made
        raise InputError(
            f"images of {size} px have {height * width:,} tokens, and the model's codec takes at "
            f"most {params.codec.max_tokens:,}: give a smaller image size"
        )
    return size, (height, width)


def _write_shards(encoding: Encoding) -> Iterator[slice]:
    """Write the shards that no other process has claimed; yield the images of each one."""
    claimed: deque[slice] = deque()

    def places() -> Iterator[int]:
        for part in encoding.writer.claims():
            claimed.append(part)
            yield from range(part.start, part.stop)

    def write(part: slice, some: list[_Pair]) -> slice:
        encoding.write(part, some)
        return part

    pairs = encoding.embedded(places())
    waiting: Future[slice] | None = None
    with ThreadPoolExecutor(1) as background:
        for first in pairs:
            part = claimed.popleft()
            some = [first, *islice(pairs, part.stop - part.start - 1)]
            if waiting is not None:
                yield waiting.result()
                waiting = None
            raise_failure(some)
            waiting = background.submit(write, part, some)
        if waiting is not None:
            yield waiting.result()


def raise_failure(some: Sequence[_Pair]) -> None:
    """Raise what failed while images were read."""
    if failures := [row.failure for row, _ in some if row.failure is not None]:
        raise failures[0]


def _ahead(function: Callable[[T], R], items: Iterable[T], threads: int, most: int) -> Iterator[R]:
    """The results for the items, in order; at most `most` are computed ahead, in threads."""
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _embedded(params: NecParams, rows: Iterable[_Row]) -> Iterator[_Pair]:
    """Each row with its latents [n, D], or None for an image that was not read; in order."""
    waiting: deque[_Row] = deque()

    def batches() -> Iterator[NDArray]:
        images = []
        for row in rows:
            waiting.append(row)
            if row.image is not None:
                images.append(row.image)
            if len(images) == params.config.coding_batch:
                yield np.stack(images)
                images = []
        if images:
            yield np.stack(images)

    for batch in latents_of(params, batches()):
        for y in batch:
            while waiting[0].image is None:
                yield waiting.popleft(), None
            yield waiting.popleft(), y
    yield from ((row, None) for row in waiting)


def _read(params: NecParams, source: Source, size: int, index: int) -> _Row:
    """An image at the model's size. Raises CorruptImageError if the model does not take it."""
    try:
        record = source[index]
    except SceneError as error:
        raise CorruptImageError(str(error)) from error
    image = fit_to(record["image"], size)
    try:
        check_images(params.config, image[None])
    except CodecError as error:
        raise CorruptImageError(f"{record['id']}: {error}") from error
    about = {"time": record.get("time"), "footprint": footprint(record)}
    # What a table says comes first.
    about |= {k: v for k, v in _listed_about(source, index).items() if v is not None}
    return _Row(record["id"], record.get("label", -1), image, about)


def _listed_about(source: Source, index: int) -> Mapping[str, Any]:
    """What a table says of an image; empty if there is none."""
    return source.about(index) if isinstance(source, ImageTable) else {}


def _refuse_other_images(read: Callable[[int], _Row], count: int) -> None:
    """Raise CorruptImageError if none of a few images can be used, as with the wrong model."""
    last = None
    for i in spread(count, _TRIED):
        try:
            read(i)
        except CorruptImageError as error:
            last = error
        else:
            return
    if last is not None:
        raise last


def _left_out(source: Source) -> dict[str, Any]:
    """How many pixels lie in no window, and how many there are; None of images that are whole."""
    left_out, pixels = getattr(source, "left_out", (None, None))
    return {"pixels_in_no_window": left_out, "pixels": pixels}
