"""Code batches on all cores, in processes.

constriction holds Python's global lock while it codes, so threads do not help.

```python
with coder.Pool(codec) as pool:  # under `if __name__ == "__main__":` in a script
    blobs = pool.encode(y, grid=(14, 14))  # y: float [B, n, D]
    y_hat = pool.decode(blobs)  # float32 [B, n, D]; refine=True as for codec.decode
```

Floats pass between the processes in blocks of shared memory. A block belongs to one task until the
task's result has arrived. Without such memory they pass through pipes, which is slower.
"""

import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from multiprocessing import connection, reduction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import as_array, as_blobs, as_floats, check_whole, warn_of_integers
from coder.codecs import EmbeddingCodec
from coder.errors import InputError, PoolError, named
from coder.refiner import NO_REFINER

_TASKS_PER_WORKER = 8  # tasks of a batch; several, so that a worker that is early finds more
_AHEAD = 2  # tasks for each worker that a call hands out before it waits for the oldest
_BLOCK = 1 << 22  # bytes of a block; larger only for one embedding that is larger
MAX_WORKERS = 61 if sys.platform == "win32" else 1024
"""Windows can wait for at most 61 processes. Elsewhere, more than the cores of any machine."""


class Pool:
    """Processes that run `codec.encode` and `codec.decode` on all cores.

    Any number of threads may call it at the same time. The processes start with the first call and
    end with the `with` block, with `close`, or with the process that made them, however that ends.

    A daemonic process (such as a worker of a PyTorch data loader) cannot start processes: there,
    a pool codes in the process itself.

    Args:
      codec: the codec. A codec of many qualities encodes at its default quality; for another
        quality, make a pool of `codec.at(quality)`.
      workers: maximum number of processes, 1 to 1024 (61 on Windows); None for one per available
        core.

    Raises:
      InputError: not a codec, or workers that are not a whole number in this range.
      PoolError: the program's script is not a file (it comes from standard input), or this machine
        cannot start the processes.
    """

    def __init__(self, codec: EmbeddingCodec, workers: int | None = None):
        if not isinstance(codec, EmbeddingCodec):
            raise InputError(
                f"a pool of a {type(codec).__name__}: give a codec, as coder.load returns"
            )
        self.codec = codec
        if workers is None:
            workers = min(available_cores(), MAX_WORKERS)
        self._workers = check_whole("workers", workers, highest=MAX_WORKERS)
        self._process = os.getpid()
        self._closed = False
        self._memory = self._executor = None
        if not multiprocessing.current_process().daemon:
            _check_script()
            self._memory = _Memory()
            try:
                self._executor = ProcessPoolExecutor(
                    self._workers,
                    # Not fork: a process with JAX in it has threads, and a fork of it may hang.
                    multiprocessing.get_context("spawn"),
                    initializer=_start,
                    initargs=(pickle.dumps(codec), self._memory.file),
                )
            except (OSError, ImportError) as error:
                raise PoolError(
                    f"this machine gives no processes that can wait for one another ({error}; "
                    "often /dev/shm is missing or read-only): use the codec itself"
                ) from error

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self):
        raise PoolError("a pool cannot be sent to another process: send its codec, pool.codec")

    def close(self) -> None:
        """End the processes. Unfinished calls in other threads fail with PoolError."""
        self._closed = True
        # The processes of a pool that a fork copied are its parent's.
        if self._executor is not None and self._memory is not None and self._is_here():
            self._executor.shutdown(cancel_futures=True)
            self._memory.close()

    def encode(
        self, y: ArrayLike, grid: tuple[int, int], *, for_refiner: bool = False
    ) -> list[bytes]:
        """Embeddings float [B, n, D] of one grid -> B blobs; `for_refiner` as for `codec.encode`.

        Warns as `codec.encode`, once for each distinct message.

        Raises:
          InputError: as `codec.encode`, and says which embedding; not a batch; for_refiner, and the
            codec has no refiner.
          PoolError: the pool is closed, was made by another process, or a process of it has died.
        """
        if for_refiner and self.codec.refiner is None:
            raise InputError(NO_REFINER)
        values = _batch(y)
        self._check()
        warn_of_integers(values.dtype, stacklevel=2)
        if self._executor is None:
            code, floats = partial(self.codec.encode, for_refiner=for_refiner), as_floats(values)
            return [named("embedding", i, code, one, grid) for i, one in enumerate(floats)]
        blobs: list[bytes] = []
        how = grid, for_refiner
        caught: dict[tuple[type[Warning], str], None] = {}

        def hand_out(span: slice, block: "_Block | None") -> tuple:
            with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
                if block is None:
                    return _encode, span.start, values[span].astype(np.float32), None, *how
                shape = values[span].shape
                block.floats(shape)[...] = values[span]
            return _encode, span.start, shape, block.place, *how

        def take(_: slice, __: "_Block | None", result: tuple) -> None:
            blobs.extend(result[0])
            caught.update(dict.fromkeys(result[1]))

        self._run(values.shape, hand_out, take)
        for category, text in caught:
            warnings.warn(text, category, stacklevel=2)
        return blobs

    def decode(self, blobs: Iterable[bytes], *, refine: bool = False) -> NDArray[np.float32]:
        """Blobs of one grid -> float32 [B, n, D]; the same floats as `codec.decode`.

        Args:
          blobs: the blobs.
          refine: as for `codec.decode`; the codec of the pool must have a refiner.

        Raises:
          BlobError: as `codec.decode`, and says which blob.
          InputError: no blobs, no bytes, or blobs of different grids; refine, and the codec has no
            refiner.
          PoolError: as `encode`.
        """
        if refine and self.codec.refiner is None:
            raise InputError(NO_REFINER)
        # Copies: not everything that `codec.decode` reads can be sent to a process.
        sent = as_blobs(blobs)
        self._check()
        grids = {named("blob", i, self.codec.grid_of, blob) for i, blob in enumerate(sent)}
        if len(grids) != 1:
            raise InputError(f"blobs of {len(grids)} grids {sorted(grids)[:3]}: give those of one")
        height, width = grids.pop()
        y_hat = np.empty(
            (len(sent), height * width + self.codec.class_token, self.codec.channels), np.float32
        )
        if self._executor is None:
            decode = partial(self.codec.decode, refine=refine)
            for i, blob in enumerate(sent):
                y_hat[i] = named("blob", i, decode, blob)
            return y_hat

        def hand_out(span: slice, block: "_Block | None") -> tuple:
            place = None if block is None else block.place
            return _decode, span.start, y_hat[span].shape, place, sent[span], refine

        def take(span: slice, block: "_Block | None", result: NDArray | None) -> None:
            y_hat[span] = result if block is None else block.floats(y_hat[span].shape)

        self._run(y_hat.shape, hand_out, take)
        return y_hat

    def _run(
        self,
        shape: tuple[int, ...],
        hand_out: Callable[[slice, "_Block | None"], tuple],
        take: Callable[[slice, "_Block | None", Any], None],
    ) -> None:
        """Code a batch of this shape in spans; `take` gets their results in order."""
        assert self._executor is not None
        assert self._memory is not None
        give_back = self._memory.give_back
        count, size = shape[0], 4 * int(np.prod(shape[1:]))
        step = -(-count // (self._workers * _TASKS_PER_WORKER))
        step = max(1, min(step, _BLOCK // size))
        pending: deque[tuple[slice, _Block | None, Future]] = deque()

        def take_oldest() -> None:
            span, block, future = pending[0]
            take(span, block, future.result())
            pending.popleft()
            give_back(block)

        try:
            for start in range(0, count, step):
                if len(pending) == self._workers * _AHEAD:
                    take_oldest()
                span = slice(start, min(start + step, count))
                block = self._memory.take(step * size)
                try:
                    future = self._executor.submit(*hand_out(span, block))
                except BaseException:
                    give_back(block)
                    raise
                pending.append((span, block, future))
            while pending:
                take_oldest()
        except BrokenProcessPool as error:
            raise PoolError(
                "a process of the pool has died: it was killed, or ran out of memory; make a new "
                "pool, with fewer workers. A script that makes one does so under "
                '`if __name__ == "__main__":`'
            ) from error
        except (CancelledError, RuntimeError) as error:
            self._check()  # closed by another thread
            # "... after interpreter shutdown", or "... after shutdown" where that has come first.
            if "cannot schedule new futures" in str(error):
                raise PoolError(
                    "the program has ended while a thread codes: join its threads first"
                ) from error
            raise
        finally:
            for _, block, future in pending:
                # Not before its task is done, which may be running.
                future.add_done_callback(lambda _, block=block: give_back(block))
                future.cancel()

    def _check(self) -> None:
        if not self._is_here():
            raise PoolError("the pool was made by another process: make one in this process")
        if self._closed:
            raise PoolError("the pool is closed: make a new one, or call it in its `with` block")

    def _is_here(self) -> bool:
        return os.getpid() == self._process


def available_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # neither macOS nor Windows says


def _check_script() -> None:
    """Raise PoolError if processes cannot start: each begins by running the main script."""
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    by_name = getattr(getattr(main, "__spec__", None), "name", None) is not None
    if script is None or by_name or getattr(sys, "frozen", False) or Path(script).is_file():
        return
    raise PoolError(
        f"each process of a pool begins by running the program's script, and {script} is not a "
        "file that it can open: save the script as a file and run that, or use the codec itself"
    )


def _batch(y: ArrayLike) -> NDArray:
    """An array of numbers [B, n, D], none masked; InputError for anything else."""
    values = as_array(y)
    if values.ndim != 3 or not values.size:
        raise InputError(f"embeddings of shape {values.shape}: give a batch, [B, n, D]")
    as_floats(values[:0])  # numbers?
    return values


class _Place(NamedTuple):
    """The place of a block in the file that the processes share, in bytes."""

    offset: int
    size: int


class _Block(NamedTuple):
    """A block of memory that the workers share."""

    place: _Place
    memory: mmap.mmap

    def floats(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An array at its beginning."""
        return _floats(self.memory, shape)


def _floats(memory: mmap.mmap, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.frombuffer(memory, np.float32, int(np.prod(shape))).reshape(shape)


class _Memory:
    """Blocks of shared memory, kept for the next task: new memory costs as much as coding.

    The blocks are in a file without a name, which disappears with its processes. It is not in
    /dev/shm, which is small in containers. Only Linux has such files.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[_Block]] = defaultdict(list)
        self._end = 0
        self.file: _File | None = None
        try:
            if hasattr(os, "memfd_create"):
                self.file = _File(os.memfd_create("nec-jax"))
        except OSError:
            return
        if self.file is not None:
            self._close_file = weakref.finalize(self, os.close, self.file.number)

    def take(self, size: int) -> _Block | None:
        """A block of at least `size` bytes; None if there is no more memory."""
        size = max(_BLOCK, 1 << (size - 1).bit_length())  # few sizes, so that they are found again
        with self._lock:
            if self.file is None:
                return None
            if self._free[size]:
                return self._free[size].pop()
            try:
                # Memory that is not there is an error here, and would be a bus error later.
                os.posix_fallocate(self.file.number, self._end, size)
                memory = mmap.mmap(self.file.number, size, offset=self._end)
            except OSError:
                return None
            self._end += size
            return _Block(_Place(self._end - size, size), memory)

    def give_back(self, block: _Block | None) -> None:
        """Return a block, for another task."""
        if block is not None:
            with self._lock:
                self._free[block.place.size].append(block)

    def close(self) -> None:
        """Free the blocks that are not in use, and give out no more."""
        with self._lock:
            self._free.clear()
            if self.file is not None:
                self.file = None
                self._close_file()


class _File:
    """The descriptor of an open file; a process that is started gets a duplicate of its own."""

    def __init__(self, number: int):
        self.number = number

    def __reduce__(self):
        return _received, (reduction.DupFd(self.number),)


def _received(file: Any) -> _File:
    return _File(file.detach())


# In a worker: its codec, with its refiner, and the shared file, from its start on.

_codec: EmbeddingCodec
_file: _File | None


def _start(codec: bytes, file: _File | None) -> None:
    global _codec, _file
    # An interrupt in a terminal reaches all processes: the one that made the pool ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _codec, _file = pickle.loads(codec), file


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@cache
def _mapped(place: _Place) -> mmap.mmap:
    assert _file is not None
    return mmap.mmap(_file.number, place.size, offset=place.offset)


def _encode(
    start: int, values: Any, place: _Place | None, grid: tuple[int, int], for_refiner: bool
) -> tuple[list[bytes], list[tuple[type[Warning], str]]]:
    """Blobs and warnings; `values` is an array, or the shape of the array at `place`."""
    y = values if place is None else _floats(_mapped(place), values)
    code = partial(_codec.encode, for_refiner=for_refiner)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        blobs = [named("embedding", i, code, one, grid) for i, one in enumerate(y, start)]
    return blobs, [(one.category, str(one.message)) for one in caught]


def _decode(
    start: int, shape: tuple[int, ...], place: _Place | None, blobs: list[bytes], refine: bool
) -> NDArray[np.float32] | None:
    """Decode to floats of this shape; they are written to `place` if it is given."""
    y_hat = np.empty(shape, np.float32) if place is None else _floats(_mapped(place), shape)
    decode = partial(_codec.decode, refine=refine)
    for i, blob in enumerate(blobs, start):
        y_hat[i - start] = named("blob", i, decode, blob)
    return y_hat if place is None else None
