"""The one process that writes an archive, shard by shard (`coder.archive`)."""

import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike
from zarr.core.sync import sync

from coder import files
from coder.archive.contents import (
    ATTRIBUTE,
    array_of,
    begun,
    check_attributes,
    check_one_rate,
    create,
    even_shard,
    expected_shards,
    finish,
    not_valid,
    read_state,
    shard_key,
    shard_size,
    shard_slices,
    written_shards,
)
from coder.archive.zarr_codec import nec_codec
from coder.archive.zarr_nodes import (
    about_store,
    check_metadata,
    is_empty,
    local_path,
    members,
    read,
)
from coder.arrays import as_array, as_floats, refuse_unordered, warn_of_integers, with_mask
from coder.codecs.base import OneRateCodec
from coder.errors import (
    CodecError,
    InputError,
    OutputError,
    UnusualEmbedding,
    named,
    one_line,
    printable,
)


class Writer:
    """Writes an archive, shard by shard, alone; run again, it goes on where it was stopped.

    ```python
    with archive.Writer("out.zarr", codec, len(images), (14, 14)) as writer:
        for part in writer.missing():
            writer.write(part, embeddings[part], ids[part])
        writer.finish()
    ```

    Attributes:
      group: the archive.
    """

    group: zarr.Group

    def __init__(
        self,
        store: Any,
        codec: OneRateCodec,
        count: int,
        grid: tuple[int, int],
        *,
        shard: int | None = None,
        attributes: Mapping[str, Any] | None = None,
        strict: bool = False,
        retry: bool = False,
    ):
        """Takes what `create` takes; the block of `with` makes or opens the archive.

        Args:
          store: a path, or what zarr opens. Only paths, and stores of paths, are locked.
          codec: of one rate.
          count: images.
          grid: tokens (height, width) of every image.
          shard: images per shard; None is `even_shard(count)`.
          attributes: what the archive should say of itself, and must say if it is there (JSON).
          strict: whether an image that is not valid is an error.
          retry: whether shards that hold images that are not valid are written anew.
        """
        self._store = store
        self._settings = (codec, count, grid)
        self._shard = shard
        self._attributes = attributes
        self._strict = strict
        self._retry = retry
        self._stack = ExitStack()
        self._is_open = False
        self._one_thread = threading.Lock()
        self._warned = False  # of integers

    def __enter__(self) -> "Writer":
        """Raises as `create`; OutputError if another writes it, or it was begun with others."""
        with self._stack, about_store(self._store):
            self._enter()
            self._stack = self._stack.pop_all()
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        self._stack.close()

    def missing(self) -> list[slice]:
        """The images of each shard that is still to be written."""
        self._refuse_closed()
        arrays = self._arrays
        state = read_state(self.group)
        valid = arrays["valid"]
        there = {name: written_shards(array) for name, array in arrays.items()}
        todo: set[int] = set()
        if state and state["state"] == "complete":
            for name, ranges in state["shards"].items():
                todo |= expected_shards(arrays[name], ranges) - there[name]
        parts = shard_slices(valid)
        for i, part in enumerate(parts):
            if i not in there["valid"]:
                todo.add(i)
                continue
            try:
                marks = read(valid, part)
            except OSError:  # may pass: no reason to write the shard again
                raise
            except Exception:  # written in part, or damaged
                todo.add(i)
                continue
            floats = [name for name in ("embedding", "class_token") if name in arrays]
            if marks.any() and any(i not in there[name] for name in floats):
                todo.add(i)
            if self._retry and not marks.all():
                todo.add(i)
        return [parts[i] for i in sorted(todo)]

    def write(
        self,
        images: slice,
        embeddings: ArrayLike,
        ids: Sequence[str],
        labels: ArrayLike | None = None,
        errors: Sequence[str | None] | None = None,
    ) -> None:
        """Writes one shard; when this returns, no interruption loses it.

        Args:
          images: one of `missing`.
          embeddings: float [valid, n, D] of those images that have no error, n = h * w tokens, one
            more (the first) with a class token.
          ids: of all images of the shard. What is no UTF-8 in the name of a file becomes `\\xNN`.
          labels: of all images, int [images]; -1, masked or None for none.
          errors: why an image could not be read, None or "" where it could.

        Warns of integer embeddings, which may have lost a scale (`UnusualEmbedding`), once.

        Raises:
          InputError: other shapes than these, what the codec cannot code, no shard of this archive,
            or, if the writer is strict, an error.
        """
        with about_store(self._store), self._one_thread:
            self._refuse_closed()
            self._write(images, embeddings, ids, labels, errors)

    def finish(self) -> None:
        """Marks the archive as complete.

        Raises:
          FileError: something is missing; it is named.
          InputError: the writer is strict, and an image is not valid.
        """
        with about_store(self._store), self._one_thread:
            self._refuse_closed()
            if self._strict:
                count, first = not_valid(self.group)
                if count:
                    number, name, reason = first[0]
                    raise InputError(
                        f"{count} images are not valid, the first {number}, {name}: {reason}"
                    )
            finish(self.group)
        self._finished = True

    def _refuse_closed(self) -> None:
        if not self._is_open:
            raise InputError("a writer works in its block: with archive.Writer(...) as writer")

    def _enter(self) -> None:
        codec, count, grid = self._settings
        check_one_rate(codec)
        path = local_path(self._store)
        self._finished = True  # as long as nothing is begun
        if path is not None:
            self._lock(path)
        if not _holds(self._store):
            self.group = create(
                self._store, codec, count, grid, shard=self._shard, attributes=self._attributes
            )
        else:
            self.group = self._open(path)
        self._finished = False
        self._arrays = {
            name: array_of(self.group, name) for name in (read_state(self.group) or {})["shards"]
        }
        # Where no image is valid, the shard says so by being there.
        with zarr.config.set({"array.write_empty_chunks": True}):
            self._arrays["valid"] = array_of(zarr.open_group(self._store, mode="r+"), "valid")

    def _lock(self, path: Path) -> None:
        path = files.real_path(path)
        if not path.parent.is_dir():
            raise OutputError(f"there is no folder {path.parent}: make it first")
        # Beside the archive: readers list what is in it.
        name = path.with_name(f".{path.name}.lock")
        lock = FileLock(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OutputError("another process is writing this archive: wait for its end") from None
        except NotImplementedError:
            warnings.warn(
                f"{path}: its file system has no locks: see that no other process writes it",
                stacklevel=5,
            )
            return

        def release() -> None:
            # While it is held: a process that has opened it already finds no work.
            if self._finished:
                name.unlink(missing_ok=True)
            lock.release()

        self._stack.callback(release)

    def _open(self, path: Path | None) -> zarr.Group:
        codec, count, grid = self._settings
        if path is not None:
            check_metadata(path)
        try:
            group = zarr.open_group(self._store, mode="r+")
        except CodecError:
            raise
        except Exception as error:  # another thing, or damaged metadata
            raise OutputError(f"exists, and is not an archive: choose another ({error})") from error
        state = read_state(group)
        if state is None:
            raise OutputError(
                "exists, and is not an archive of this version, which could be gone on with: "
                "choose another"
            )
        arrays, damaged = members(group)
        for name in state["shards"]:
            if name not in arrays:
                error = damaged.get(name, "its zarr.json is lost")
                raise OutputError(f"{name} cannot be opened: {error}; write a new archive")
        for_grid, for_class = codec.split()
        embedding = arrays["embedding"]
        class_codec = nec_codec(arrays["class_token"]) if "class_token" in arrays else None
        shard = even_shard(count) if self._shard is None else self._shard
        attributes = check_attributes(self._attributes)
        same = {
            **{name: group.attrs.get(name) == value for name, value in attributes.items()},
            "number of images": embedding.shape[0] == count,
            "grid": tuple(embedding.shape[1:3]) == tuple(grid),
            "shard": shard_size(embedding) == shard,
            "codec": nec_codec(embedding) == for_grid and class_codec == for_class,
        }
        if other := [name for name, is_same in same.items() if not is_same]:
            raise OutputError(
                f"was begun with another {', '.join(other)}: give the same, or write a second "
                "archive (images cannot be added to one)"
            )
        if path is not None:
            # What a killed run was writing: zarr renames a file once it is whole.
            for part in path.rglob("*.partial"):
                part.unlink()
        return group

    def _write(
        self,
        images: slice,
        embeddings: ArrayLike,
        ids: Sequence[str],
        labels: ArrayLike | None,
        errors: Sequence[str | None] | None,
    ) -> None:
        arrays = self._arrays
        if not isinstance(images, slice):
            raise InputError(f"images {images!r} are no shard: give one of `missing`, a slice")
        size, total = shard_size(arrays["valid"]), arrays["valid"].shape[0]
        first = images.start
        if first not in range(0, total, size) or images != slice(first, min(first + size, total)):
            raise InputError(f"images {images.start} to {images.stop} are no shard: see `missing`")
        count = images.stop - images.start
        for what, texts in (("ids", ids), ("errors", errors)):
            if isinstance(texts, str | bytes):
                raise InputError(f"{what} are one text: give a list, one for each image")
            refuse_unordered(texts, what)
        reasons = [one_line(error or "") for error in ([""] * count if errors is None else errors)]
        names = [printable(str(name)) for name in ids]
        given = np.full(count, -1) if labels is None else with_mask(labels, "labels")
        if given.ndim != 1:
            raise InputError(f"labels of shape {given.shape}: give one for each image, [{count}]")
        has_none, marks = np.ma.getmaskarray(given), np.ma.getdata(given)
        for what, values in (("ids", names), ("errors", reasons), ("labels", marks)):
            if len(values) != count:
                raise InputError(f"{len(values)} {what} for {count} images: give one for each")
        if marks.dtype.kind not in "iu" or (marks != marks.astype(np.int32))[~has_none].any():
            raise InputError("labels are whole numbers of 32 bits, -1 for none")
        marks = np.where(has_none, np.int32(-1), marks.astype(np.int32))
        good = np.array([not reason for reason in reasons])
        if self._strict and not good.all():
            bad = int(np.argmin(good))
            raise InputError(f"image {images.start + bad}, {names[bad]}: {reasons[bad]}")
        values = as_array(embeddings)
        if not good.any() and values.size:
            raise InputError(
                f"every image has an error, and embeddings of shape {values.shape} are given: give "
                "those of images without an error"
            )
        if not self._warned:
            warn_of_integers(values.dtype, stacklevel=3)
            self._warned = values.dtype.kind in "iu"
        y = as_floats(values)
        (_, height, width, channels), tokens = arrays["embedding"].shape, "class_token" in arrays
        if good.any() and y.shape != (good.sum(), height * width + tokens, channels):
            raise InputError(
                f"embeddings of shape {y.shape}: give {good.sum()} of {height * width + tokens} "
                f"tokens of {channels} channels"
            )
        if good.any() and not (finite := np.isfinite(y).all((1, 2))).all():
            bad = images.start + int(np.flatnonzero(good)[np.argmin(finite)])
            raise InputError(f"image {bad} has NaN or infinity: give it an error, and no embedding")
        number = first // size
        if number in written_shards(arrays["valid"]):
            # What is there is not taken away for what the codec will refuse.
            codec, _, grid = self._settings
            for place, one in zip(np.flatnonzero(good), y, strict=False):
                named("image", images.start + int(place), codec.encode_quietly, one, grid)
        if (read_state(self.group) or {})["state"] == "complete":
            self.group.attrs[ATTRIBUTE] = begun(arrays)
        grids = np.full((count, height, width, channels), np.nan, np.float32)
        if good.any():
            grids[good] = y[:, tokens:].reshape(-1, height, width, channels)
        store = arrays["valid"].store_path.store
        sync(store.delete(shard_key(arrays["valid"], number)))
        arrays["embedding"][images] = grids
        if tokens:
            # All are one blob, which has no NaN: zeros, where an image is not valid.
            classes = np.full((count, channels), 0 if good.any() else np.nan, np.float32)
            if good.any():
                classes[good] = y[:, 0]
            with warnings.catch_warnings():
                if not good.all():  # zeros are unusual
                    warnings.simplefilter("ignore", UnusualEmbedding)
                arrays["class_token"][images] = classes
        arrays["id"][images] = np.array(names)
        arrays["label"][images] = marks
        arrays["error"][images] = np.array(reasons)
        # Last: it says that the shard is done. Before any other, it no longer did.
        arrays["valid"][images] = good


def _holds(store: Any) -> bool:
    """Whether there is something in a store."""
    path = local_path(store)
    if path is not None:
        return path.exists() and not is_empty(path)
    try:
        zarr.open(store, mode="r")
    except FileNotFoundError:
        return False
    return True
