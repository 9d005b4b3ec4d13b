"""Write an archive shard by shard, in one process or several (`coder.archive`)."""

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, DTypeLike, NDArray
from zarr.core.sync import sync

from coder.archive import (
    contents,
    image_columns,
    image_ids,
    manifest,
    refiner_array,
    shards,
    zarr_nodes,
)
from coder.archive.lock import joined, locked
from coder.archive.manifest import ATTRIBUTE, shard_key, shard_size, shard_slices, written_shards
from coder.archive.zarr_codec import nec_codec
from coder.archive.zarr_nodes import about_store, local_path, read
from coder.arrays import (
    as_array,
    as_floats,
    is_whole,
    refuse_unordered,
    warn_of_integers,
    with_mask,
)
from coder.codecs import OneQualityCodec
from coder.errors import (
    CodecError,
    FileError,
    InputError,
    NoPermission,
    OutputError,
    StoreError,
    named,
    one_line,
    printable,
)

_AT_ONCE = 8  # shards that are looked at at once


class Writer:
    """Write an archive shard by shard; run again, it resumes where it stopped.

    ```python
    with archive.Writer("out.zarr", codec, len(images), (14, 14)) as writer:
        for part in writer.missing():
            writer.write(part, embeddings[part], ids[part])
        writer.finish()
    ```

    With `shared=True`, several processes may write one archive, each with this loop:

    ```python
        while writer.missing():
            for part in writer.claims():  # shards that no other process writes
                writer.write(part, embeddings[part], ids[part])
            time.sleep(1)  # the others finish theirs; if one dies, its shards are claimed again
        writer.finish()
    ```

    Attributes:
      group: the archive.
    """

    group: zarr.Group
    _plan: contents.Plan

    def __init__(
        self,
        store: Any,
        codec: OneQualityCodec,
        count: int,
        grid: tuple[int, int],
        *,
        shard: int | None = None,
        attributes: Mapping[str, Any] | None = None,
        strict: bool = False,
        retry: bool = False,
        shared: bool = False,
        notes: Mapping[str, Any] | None = None,
        columns: Mapping[str, DTypeLike] | None = None,
    ):
        """Take the arguments of `create`; the `with` block makes or opens the archive.

        Args:
          store: a path, a URL, or a Zarr store that can rewrite and delete what it holds. A zip
            store cannot: write a folder, and zip that. Only paths, and stores of local folders, are
            locked: see that no two processes write to one URL.
          codec: a codec of one quality. An archive that is made gets its refiner, if it has one.
          count: number of images.
          grid: tokens (height, width) of every image.
          shard: images per shard; None for `even_shard(count)`.
          attributes: further attributes of the archive, as JSON; an existing one must have them.
          strict: whether an image that is not valid is an error.
          retry: whether to write shards again that hold images that are not valid; for one process
            alone.
          shared: whether other processes may write shards at the same time, as shared writers with
            the same arguments. Only in a local folder; its file system must have locks.
          notes: further attributes, as JSON, that are written when the archive is made and not
            compared.
          columns: as for `create`.
        """
        self._store = zarr_nodes.place(store)
        self._settings = (codec, count, grid, shard, attributes, columns)
        self._strict = strict
        self._retry = retry
        self._shared, self._notes = shared, dict(notes or {})
        self._stack = ExitStack()
        self._is_open = False
        self._one_thread = threading.Lock()
        self._warned = False  # of integers
        self._known: image_ids.Known | None = None  # read when the first shard is written

    def __enter__(self) -> "Writer":
        """Raises as `create`; OutputError if another process writes it, or its settings differ."""
        with self._stack, about_store(self._store):
            self._plan = contents.planned(*self._settings)
            contents.check_store(self._store)
            path = local_path(self._store)
            self._known = None
            if self._shared and path is None:
                raise InputError("a store that is no local folder has no locks: write it alone")
            if self._shared and self._retry:
                raise InputError("retry is for a process that writes alone: leave out shared")
            self._lock = self._stack.enter_context((joined if self._shared else locked)(path))
            if not self._lock.is_real:
                warnings.warn(
                    f"{path}: its file system has no locks: see that no other process writes it",
                    stacklevel=3,
                )
            with self._lock.alone():
                if _holds(self._store):
                    self.group = self._open(path)
                else:
                    self.group = contents.create_locked(self._store, self._plan)
                    if self._notes:
                        self.group.attrs.update(self._notes)
            self._lock.keep = True  # until it is finished
            self._arrays = {
                name: contents.array_of(self.group, name) for name in self._state["shards"]
            }
            # A shard without valid images is stored too: it says that it is done.
            with zarr.config.set({"array.write_empty_chunks": True}):
                self._arrays["valid"] = contents.array_of(
                    zarr.open_group(self._store, mode="r+", use_consolidated=False), "valid"
                )
            self._stack = self._stack.pop_all()
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        self._stack.close()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the archive's columns."""
        return tuple(self._plan.columns)

    @property
    def member(self) -> Path | None:
        """The file that this process has locked as one of several; None if there is none."""
        return self._lock.own

    def missing(self) -> list[slice]:
        """The images of each shard that still must be written, as slices."""
        self._refuse_closed()
        todo, again = self._todo()
        parts = shard_slices(self._arrays["valid"])
        return [parts[i] for i in sorted(todo | (again if self._retry else set()))]

    def claims(self) -> Iterator[slice]:
        """Claim `missing` shards one by one, those that no other process has claimed.

        A claim ends when the shard is written, and with the writer's block. For a writer that is
        not shared, these are the `missing` ones.
        """
        return (part for part in self.missing() if self.claim(part))

    def claim(self, images: slice) -> bool:
        """Claim one shard. False if another process has claimed it, or if it is written."""
        self._refuse_closed()
        number = self._number(images)
        if not self._lock.claim(number):
            return False
        if self._shared and self._is_done(number):  # by another process, meanwhile
            self._lock.release(number, written=True)
            return False
        return True

    def release(self, images: slice) -> None:
        """Give a claim back without a write, so that another process may claim the shard."""
        self._lock.release(self._number(images), written=False)

    def write(
        self,
        images: slice,
        embeddings: ArrayLike,
        ids: Sequence[str],
        labels: ArrayLike | None = None,
        errors: Sequence[str | None] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Write one shard. Once this returns, no interruption loses it.

        Args:
          images: one of `missing`.
          embeddings: float [valid, n, D] of the images without error; n = h * w tokens, plus the
            class token, first, if it is coded.
          ids: ids of all images of the shard, unique texts of at most 65,535 bytes. Bytes of file
            names that are not UTF-8 become `\\xNN`.
          labels: labels of all images, int [images]; -1, masked or None for none. The label of an
            image with an error is stored as -1.
          errors: why each image could not be read; None or "" if it could.
          columns: for each of the archive's columns, the values of all images; None, masked values
            and columns that are left out are missing.

        Warns once of integer embeddings, which may have lost a scale (`UnusualEmbedding`).

        Raises:
          InputError: other shapes, embeddings that the codec cannot code, an id, a label or a value
            of a column that cannot be stored, not a shard of this archive; or an error, if the
            writer is strict.
          FileError: the archive was complete, and another shard has changed since.
        """
        with about_store(self._store), self._one_thread:
            self._refuse_closed()
            self._write(images, embeddings, ids, labels, errors, columns or {})
            self._lock.release(self._number(images), written=True)

    def stored_bytes(self, images: slice) -> int:
        """Bytes of the embeddings and class tokens of a shard that is written."""
        number, total = self._number(images), 0
        for name in {"embedding", "class_token"} & self._arrays.keys():
            array = self._arrays[name]
            if shards.is_stored(array, number):
                total += sync(array.store_path.store.getsize(shard_key(array, number)))
        return total

    def finish(self) -> None:
        """Mark the archive as complete; if it is already, check that it has not changed.

        Raises:
          FileError: something is missing, or has changed since it was finished; names it.
          InputError: the writer is strict, and an image is not valid.
        """
        with about_store(self._store), self._one_thread, self._lock.alone():
            self._refuse_closed()
            if self._shared:  # another process may have finished it
                self.group = zarr.open_group(self._store, mode="r+", use_consolidated=False)
                image_ids.refuse_repeated(self._arrays["id"])
            if self._strict:
                count, first = contents.not_valid(self.group)
                if count:
                    number, name, reason = first[0]
                    raise InputError(
                        f"{count} images are not valid, the first {number}, {name}: {reason}"
                    )
            state = self._state
            if state["state"] == "complete":
                contents.refuse_lost(
                    self.group, self._arrays, state, "give `missing` to `write` first"
                )
                self._refuse_changed(set())
            else:
                contents.finish(self.group)
        self._lock.keep = False

    @property
    def _state(self) -> dict[str, Any]:
        """The archive's record, as it is now."""
        state = manifest.read_state(self.group)
        assert state is not None
        return state

    def _refuse_closed(self) -> None:
        if not self._is_open:
            raise InputError("a writer works in its block: with archive.Writer(...) as writer")

    def _todo(self) -> tuple[set[int], set[int]]:
        """Shards that are not whole, and others that hold images that are not valid."""
        arrays, state, count = self._arrays, self._state, self._arrays["valid"].shape[0]
        there = {name: written_shards(array) for name, array in arrays.items()}
        todo: set[int] = set()
        again: set[int] = set()
        if state["state"] == "complete":
            for name, ranges in state["shards"].items():
                todo |= manifest.expected_shards(arrays[name], ranges) - there[name]
        stored = [
            {name for name, numbers in there.items() if i in numbers}
            for i in range(-(-count // shard_size(arrays["valid"])))
        ]
        # At once: in an object store, each look takes its time.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            checked = list(pool.map(self._checked, range(len(stored)), stored))
        for i, (has_all, all_valid) in enumerate(checked):
            if not has_all:
                todo.add(i)
            elif not all_valid:
                again.add(i)
        return todo, again - todo

    def _checked(self, number: int, stored: set[str]) -> tuple[bool, bool]:
        """Whether a shard is whole, and whether all its images are valid.

        Args:
          number: the number of the shard.
          stored: the arrays that have a shard of this number.
        """
        arrays = self._arrays
        if "valid" not in stored:
            return False, False
        try:
            marks = read(arrays["valid"], self._images(number))
            if "embedding" in stored:
                contents.images_in(arrays["embedding"], number)
        except (OSError, NoPermission):  # may pass: no reason to write the shard again
            raise
        except Exception:  # written in part, or damaged
            return False, False
        floats = {"embedding", "class_token"} & arrays.keys()
        return not marks.any() or floats <= stored, bool(marks.all())

    def _number(self, images: slice) -> int:
        """The number of the shard of these images. Raises InputError if they are no shard."""
        if isinstance(images, slice) and is_whole(images.start) and images.start >= 0:
            number = images.start // shard_size(self._arrays["valid"])
            if images == self._images(number):
                return number
        raise InputError(f"images {images!r} are no shard: give one of `missing`, a slice")

    def _images(self, number: int) -> slice:
        """The images of a shard."""
        size, count = shard_size(self._arrays["valid"]), self._arrays["valid"].shape[0]
        return slice(number * size, min((number + 1) * size, count))

    def _is_done(self, number: int) -> bool:
        """Whether nothing of a shard must be written, as `_todo` decides it."""
        stored = {name for name, one in self._arrays.items() if shards.is_stored(one, number)}
        state, expected = self._state, {"id"}
        if state["state"] == "complete":
            expected = {
                name
                for name, ranges in state["shards"].items()
                if any(first <= number < end for first, end in ranges)
            }
        return expected <= stored and self._checked(number, stored)[0]

    def _refuse_changed(self, but: set[int]) -> None:
        """Raises FileError if a shard, but for these, is not what it was when it was finished."""
        state = self._state
        for name, array in self._arrays.items():
            numbers = set(range(len(shard_slices(array)))) - but
            for where, what, _ in manifest.changed(name, array, state, numbers):
                raise FileError(
                    f"{where} {what}; if it is damaged, delete {where}, and this writer writes it "
                    "again"
                )

    def _begin_again(self, number: int) -> None:
        """Go on with a complete archive, to write shard `number`: its record is dropped.

        All that the record says is settled first: from now on, only `valid` says what is done.
        """
        todo, _ = self._todo()
        self._refuse_changed(todo | {number})
        for i in todo:
            shards.delete(self._arrays["valid"], i)
        self.group.attrs[ATTRIBUTE] = manifest.begun(self._arrays)

    def _refuse_uncodable(self, images: NDArray[np.intp], y: NDArray[np.float32]) -> None:
        """Raises what coding embeddings would: InputError, or a warning that is made an error.

        So no shard is deleted for one that cannot be coded.

        Args:
          images: the number of each.
          y: [images, n, D].
        """
        grid = self._plan.grid
        for_grid, for_class = self._plan.codec.split()
        for image, one in zip(images.tolist(), y, strict=True):
            named("image", image, for_grid.encode, one[-grid[0] * grid[1] :], grid)
            if for_class is not None:
                named("image", image, for_class.encode_quietly, one[:1], (1, 1))
        if for_class is not None and images.size:
            for_class.encode(y[:, 0], (1, len(y)))

    def _refuse_known(self, names: list[str], images: slice) -> None:
        """Raises InputError if another shard has one of these ids."""
        stored = self._arrays["id"]
        if self._known is None:
            self._known = image_ids.Known()
            parts = shard_slices(stored)
            for i in sorted(written_shards(self._arrays["valid"]) & written_shards(stored)):
                part = parts[i]
                try:
                    written = [str(name) for name in read(stored, part)]
                except (OSError, NoPermission):
                    raise
                except Exception as error:
                    where = shard_key(stored, i)
                    raise FileError(
                        f"{where} is damaged ({one_line(error)}): delete it and "
                        f"{shard_key(self._arrays['valid'], i)}, and this writer writes both again"
                    ) from error
                self._known.add(written, part.start)
        self._known.refuse(names, images, stored)

    def _open(self, path: Path | None) -> zarr.Group:
        if path is not None:
            zarr_nodes.check_metadata(path)
        try:
            group = zarr.open_group(self._store, mode="r+", use_consolidated=False)
        except (CodecError, StoreError):
            raise
        except Exception as error:  # another thing, or damaged metadata
            raise OutputError(f"exists, and is not an archive: choose another ({error})") from error
        state = manifest.read_state(group)
        if state is None:
            raise OutputError(
                "exists, and is not an archive of this version, which a writer could go on with: "
                "choose another place"
            )
        if contents.is_in_last_step(group):
            raise OutputError(contents.ADDING)
        arrays = zarr_nodes.opened(group, but=refiner_array.own_members(group))
        contents.refuse_lost(group, arrays, manifest.begun(state["shards"]), "write a new archive")
        given, embedding = self._plan, arrays["embedding"]
        class_codec = nec_codec(arrays["class_token"]) if "class_token" in arrays else None
        # For each setting: the value that the archive was begun with, and the one given now.
        settings = {
            **{name: (group.attrs.get(name), value) for name, value in given.attributes.items()},
            "number of images": (embedding.shape[0], given.count),
            "grid": (tuple(embedding.shape[1:3]), given.grid),
            "shard": (shard_size(embedding), given.shard),
            "columns": tuple(
                {name: str(dtype) for name, dtype in of.items()}
                for of in (contents.columns_of(group), given.columns)
            ),
            "codec": ((nec_codec(embedding), class_codec), given.codec.with_refiner(None).split()),
        }
        if given.codec.refiner is not None:  # else an archive keeps what it has
            fingerprint = given.codec.refiner.fingerprint.hex()
            settings["refiner"] = (group.attrs.get(refiner_array.ATTRIBUTE), fingerprint)
        if other := {name: two for name, two in settings.items() if two[0] != two[1]}:
            pairs = ((name, *map(_shown, two)) for name, two in other.items())
            shown = "; ".join(f"{name}: {before}, now {now}" for name, before, now in pairs)
            raise OutputError(
                f"was begun with another {', '.join(other)} ({shown}): give the same, or write a "
                "second archive (`nec append` adds it to the first)"
            )
        if given.codec.refiner is not None:
            try:
                refiner_array.read_refiner(group)
            except FileError:  # lost or damaged
                refiner_array.write_array(group, given.codec.refiner)
        if path is not None and self._lock.is_real and not self._lock.others():
            shards.remove_unfinished(path)
        return group

    def _write(
        self,
        images: slice,
        embeddings: ArrayLike,
        ids: Sequence[str],
        labels: ArrayLike | None,
        errors: Sequence[str | None] | None,
        columns: Mapping[str, Sequence[Any]],
    ) -> None:
        arrays = self._arrays
        number, count = self._number(images), images.stop - images.start
        for what, texts in (("ids", ids), ("errors", errors)):
            if isinstance(texts, str | bytes):
                raise InputError(f"{what} are one text: give a list, one for each image")
            refuse_unordered(texts, what)
        given = [""] * count if errors is None else errors
        # Text of a fixed length, such as NumPy's, loses a NUL at its end.
        reasons = [one_line(error or "").replace("\0", "\\x00") for error in given]
        names = image_ids.checked(ids, images.start)
        given = np.full(count, -1) if labels is None else with_mask(labels, "labels")
        if given.ndim != 1:
            raise InputError(f"labels of shape {given.shape}: give one for each image, [{count}]")
        has_none, marks = np.ma.getmaskarray(given), np.ma.getdata(given)
        for what, values in (("ids", names), ("errors", reasons), ("labels", marks)):
            if len(values) != count:
                raise InputError(f"{len(values)} {what} for {count} images: give one for each")
        if marks.dtype.kind not in "iu":
            raise InputError(f"labels are {marks.dtype}: labels are whole numbers, -1 for none")
        wrong = ~has_none & ((marks < -1) | (marks > np.iinfo(np.int32).max))
        if wrong.any():
            bad = int(np.argmax(wrong))
            raise InputError(
                f"image {images.start + bad}, {names[bad]}, has the label {marks[bad]}: labels are "
                "whole numbers of 32 bits, at least 0, or -1 for none"
            )
        good = np.array([not reason for reason in reasons])
        marks = np.where(has_none | ~good, np.int32(-1), marks.astype(np.int32))
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
        (_, height, width, channels), tokens = arrays["embedding"].shape, "class_token" in arrays
        shape = (int(good.sum()), height * width + tokens, channels)
        y = as_floats(values) if good.any() else np.empty(shape, np.float32)
        if y.shape != shape:
            raise InputError(
                f"embeddings of shape {y.shape}: give {shape[0]} of {shape[1]} tokens of "
                f"{channels} channels"
            )
        if not (finite := np.isfinite(y).all((1, 2))).all():
            bad = images.start + int(np.flatnonzero(good)[np.argmin(finite)])
            raise InputError(f"image {bad} has NaN or infinity: give it an error, and no embedding")
        if unknown := columns.keys() - self._plan.columns:
            raise InputError(f"the archive has no column {min(unknown)}: name it when you make it")
        of_images = {
            name: image_columns.as_stored(name, dtype, columns.get(name, [None] * count), images)
            for name, dtype in self._plan.columns.items()
        }
        self._refuse_known(names, images)
        if shards.is_stored(arrays["valid"], number):
            self._refuse_uncodable(images.start + np.flatnonzero(good), y)
        if self._state["state"] == "complete":
            with self._lock.alone():
                self._begin_again(number)
        # `valid` says that the shard is done: it goes first, and is written last.
        shards.delete(arrays["valid"], number)
        shards.delete(arrays["embedding"], number)  # zarr would read it, and it may be damaged
        shards.put(arrays, images, y, names, marks, reasons, of_images)
        if self._known is not None:
            self._known.add(names, images.start)


def _shown(value: Any) -> str:
    """A setting, short; of codecs, their fingerprints as `info` has them."""
    if isinstance(value, tuple) and any(isinstance(one, OneQualityCodec) for one in value):
        value = " and ".join(one.fingerprint[:4].hex() for one in value if one is not None)
    text = printable(str(value))
    return text if len(text) <= 80 else f"{text[:60]} ..."


def _holds(store: Any) -> bool:
    """Whether there is something in a store."""
    path = local_path(store)
    if path is not None:
        return path.exists() and not zarr_nodes.is_empty(path)
    try:
        zarr.open(store, mode="r")
    except FileNotFoundError:
        return False
    return True
