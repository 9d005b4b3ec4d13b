"""`Embeddings`: the embeddings of an archive as a sequence, read when they are asked for."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from coder.archive import contents, refiner_array, zarr_nodes
from coder.archive.manifest import shard_size
from coder.archive.stored_chunks import StoredChunks
from coder.archive.zarr_codec import nec_codec
from coder.codecs import OneQualityCodec
from coder.errors import FileError, InputError, named
from coder.lazy_attribute import lazy_attribute
from coder.pool import Pool


class Embeddings:
    """The embeddings of an archive, float32 [images, y, x, channel], sliced on the first axis.

    ```python
    embeddings = coder.open("archive.zarr")
    one = embeddings[5]  # float32 [y, x, channel]
    some = embeddings[[3, 8, 9]]  # or a slice, or bool [images]
    ```

    Images without an embedding are masked: the result is then a `numpy.ma.MaskedArray`. Asking for
    one of them alone is an error, since what puts images together would lose the mask. It is a
    sequence of random access, as PyTorch's DataLoader and grain take a data set, and can be sent to
    other processes; take the numbers in `valid.nonzero()[0]` of it. One image is decoded on one
    thread.

    Attributes:
      group: the archive, open for reading.
      codec: the codec of its embeddings; with its refiner, if embeddings are refined.
      refine: whether embeddings are refined.
      masked: whether images without an embedding are masked; otherwise asking for one is an error.
    """

    def __init__(self, store: Any, *, refine: bool = False, masked: bool = True):
        """Open a complete archive.

        Args:
          store: a path, a URL (`s3://`, ...), a Zarr store, or an open group.
          refine: bring embeddings closer to those that were encoded, by the refiner of the archive.
          masked: see the class.

        Raises:
          StoreError: (an OSError) an object store failed; so does any later reading.
          FileError: as `coder.archive.open_archive`; refine, and the refiner is damaged.
          InputError: refine, and the archive has no refiner.
        """
        path = zarr_nodes.local_path(store)
        # Absolute: a process that it is sent to may work in another folder.
        self._store = store if path is None else path.absolute()
        self.refine, self.masked = refine, masked
        self.group = contents.open_archive(store)
        self._array = contents.array_of(self.group, "embedding")
        codec = nec_codec(self._array)
        with zarr_nodes.about_store(self.group.store):
            if codec is None:
                raise FileError("its embeddings are not coded by nec: read them with zarr")
            if self._array.shards is None:
                raise FileError("its embeddings have no shards: read them with zarr")
        if refine:
            codec = codec.with_refiner(refiner_array.read_refiner(self.group))
        self.codec: OneQualityCodec = codec
        self._chunks = StoredChunks(self._array, "archive")
        self._marks: dict[int, NDArray[np.bool_]] = {}  # `valid`, by shard

    def __reduce__(self):
        return _opened, (self._store, self.refine, self.masked)

    def __repr__(self) -> str:
        sides = " x ".join(map(str, self.shape))
        return f"<Embeddings {sides}, {int((~self.valid).sum())} without an embedding>"

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, y, x, channels)."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """float32."""
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    def __len__(self) -> int:
        return self.shape[0]

    @lazy_attribute
    def valid(self) -> NDArray[np.bool_]:
        """bool [images]: which images have an embedding."""
        return self._read_valid(np.arange(len(self)))

    @lazy_attribute
    def labels(self) -> NDArray[np.int32]:
        """int32 [images]: the class of each image; -1 where there is none."""
        return contents.read_array(self.group, "label")

    @lazy_attribute
    def ids(self) -> NDArray[Any]:
        """Text [images]: the id of each image."""
        return contents.read_array(self.group, "id")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the archive's columns, such as `time`; see `column`."""
        return tuple(contents.columns_of(self.group))

    def column(self, name: str) -> NDArray[Any]:
        """The values of a column [images], also of images without an embedding.

        Missing are "", NaN and NaT; times are in UTC. Raises InputError for no such column.
        """
        if name not in self.columns:
            raise InputError(f"no column {name!r}; there are {', '.join(self.columns) or 'none'}")
        return contents.read_array(self.group, name)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels; empty if the archive does not say."""
        names = self.group.attrs.get("classes", ())
        return tuple(map(str, names)) if isinstance(names, Sequence) else ()

    def __getitem__(self, key: Any, /) -> NDArray[np.float32]:
        """Decode images: one by its number, or several by a slice, a list or a mask.

        A tuple also cuts the other axes, after decoding, by whole numbers and slices.

        Raises:
          InputError: no such images; or one without an embedding, if these are not masked.
          FileError: a shard is lost or damaged; `nec verify` says where.
          BlobError: the embedding of an image is damaged.
        """
        first, *rest = key or (...,) if isinstance(key, tuple) else (key,)
        if first is None or any(
            isinstance(one, bool) or not (isinstance(one, int | np.integer | slice) or one is ...)
            for one in rest
        ):
            raise InputError("only the first axis takes a list or a mask: cut the result of it")
        if first is Ellipsis:
            first, rest = slice(None), [Ellipsis, *rest] if rest else []
        if isinstance(first, int | np.integer) and not isinstance(first, bool):
            if not -len(self) <= first < len(self):  # also ends a loop over all images
                raise IndexError(f"image {first} of {len(self)}")
            self._refuse_not_valid(np.array([int(first) % len(self)]))
            return self.read([int(first)])[(0, *rest)]
        return self.read(first)[(slice(None), *rest)]

    def __getitems__(self, images: Sequence[int]) -> list[NDArray[np.float32]]:
        """The embeddings of a batch, for PyTorch's DataLoader, which asks for them at once.

        Raises InputError for an image without an embedding.
        """
        self._refuse_not_valid(contents.selected(len(self), list(images)))
        return list(self.read(list(images)))

    def read(self, images: Any = None, *, pool: Pool | None = None) -> NDArray[np.float32]:
        """Decode images: a slice, whole numbers, or bool [images]; None for all.

        Args:
          images: which.
          pool: `coder.Pool(embeddings.codec)`, to decode on all cores.

        Raises as `__getitem__`.
        """
        every = images is None
        numbers = np.arange(len(self)) if every else contents.selected(len(self), images)
        valid = self._are_valid(numbers)
        if not self.masked:
            self._refuse_not_valid(numbers)
        places = np.flatnonzero(valid)
        result = np.full((len(numbers), *self.shape[1:]), np.nan, np.float32)
        with zarr_nodes.about_store(self.group.store):
            blobs = self._blobs(numbers[places])
            if pool is not None and blobs:
                y_hat = pool.decode(blobs, refine=self.refine)
                result[places] = y_hat.reshape(-1, *self.shape[1:])
            else:
                decode = partial(self.codec.decode, refine=self.refine)
                for place, blob in zip(places, blobs, strict=True):
                    y_hat = named("image", int(numbers[place]), decode, blob)
                    result[place] = y_hat.reshape(self.shape[1:])
        if valid.all():
            return result
        mask = np.broadcast_to(~valid[:, None, None, None], result.shape)
        return np.ma.MaskedArray(result, mask, fill_value=np.nan)

    def _are_valid(self, numbers: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which of these images have an embedding; reads their shards of `valid` alone."""
        if "valid" in self.__dict__:
            return self.valid[numbers]
        size = shard_size(self._array)
        shards, places = np.unique(numbers // size, return_inverse=True)
        new = [shard for shard in shards.tolist() if shard not in self._marks]
        if new:
            parts = [np.arange(size * i, min(size * (i + 1), len(self))) for i in new]
            found = self._read_valid(np.concatenate(parts))
            ends = np.cumsum([len(part) for part in parts])
            self._marks |= zip(new, np.split(found, ends[:-1]), strict=True)
        marks = np.zeros((len(shards), size), np.bool_)
        for row, shard in zip(marks, shards.tolist(), strict=True):
            row[: len(self._marks[shard])] = self._marks[shard]
        return marks[places, numbers % size]

    def _read_valid(self, numbers: NDArray[np.intp]) -> NDArray[np.bool_]:
        if self._valid_array is None:
            return np.ones(len(numbers), np.bool_)
        return contents.read_stored(self.group, self._valid_array, numbers)

    @lazy_attribute
    def _valid_array(self) -> zarr.Array | None:
        """The array `valid`; None in archives of earlier versions."""
        return contents.array_of(self.group, "valid") if "valid" in self.group else None

    def _refuse_not_valid(self, numbers: NDArray[np.intp]) -> None:
        valid = self._are_valid(numbers)
        if not valid.all():
            bad = int(numbers[~valid][0])
            reason = contents.array_of(self.group, "error")[bad] if "error" in self.group else ""
            raise InputError(f"image {bad} has no embedding: {reason}")

    def _blobs(self, numbers: NDArray[np.intp]) -> list[bytes]:
        """The blobs of images, in their order. Raises FileError if one is lost."""
        places = [(number, 0, 0, 0) for number in numbers.tolist()]
        found = self._chunks.read(places)
        for place in places:
            if place not in found:
                where = self._chunks.shard_of(place)
                if self._chunks.is_lost(place):
                    raise FileError(f"{where} is lost: copy the archive again")
                raise FileError(f"{where} holds no embedding of image {place[0]}, which is valid")
        return [found[place] for place in places]


def _opened(store: Any, refine: bool, masked: bool) -> Embeddings:
    return Embeddings(store, refine=refine, masked=masked)
