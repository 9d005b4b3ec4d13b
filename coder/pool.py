"""Batches on all cores. constriction keeps Python's lock while it codes, so threads do not help.

```python
with coder.Pool(codec) as pool:  # under `if __name__ == "__main__":` in a script
    blobs = pool.encode(y, grid=(14, 14))  # y: float [B, n, D]
    y_hat = pool.decode(blobs)  # float32 [B, n, D]
```
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.codec import EmbeddingCodec
from coder.errors import BlobError, InputError

_TASKS_A_WORKER = 8  # so that a worker that is done early finds more to do


class Pool:
    """Processes that code for one codec; they start here and end with the `with` block.

    Results are those of `codec.encode` and `codec.decode`, embedding by embedding.

    Args:
      codec: the codec.
      workers: how many processes; None for as many as there are cores to use.
    """

    def __init__(self, codec: EmbeddingCodec, workers: int | None = None):
        self.codec = codec
        self._memory: SharedMemory | None = None
        self._workers = workers or available_cores()
        self._file = codec.to_bytes()
        # Not fork: a process with JAX in it has threads, and a fork of it may hang.
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(self._workers, context)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)
        self._release()

    def encode(self, y: ArrayLike, grid: tuple[int, int]) -> list[bytes]:
        """Embeddings float [B, n, D] of one grid -> a blob each.

        Raises:
          InputError: as `codec.encode`, or not a batch.
        """
        values = np.asarray(y)
        if values.ndim != 3 or not values.size:
            raise InputError(f"embeddings of shape {values.shape}: give a batch, [B, n, D]")
        shared = self._shared(values.shape, values.dtype)
        with self._tasks() as submit:
            futures = []
            for start, end in self._spans(len(values)):
                # Workers begin on what is there while the rest is copied.
                shared[start:end] = values[start:end]
                futures.append(submit(_encode, start, end, values.shape, values.dtype, grid))
            return [blob for future in futures for blob in future.result()]

    def decode(self, blobs: Sequence[bytes]) -> NDArray[np.float32]:
        """Blobs of one grid -> float32 [B, n, D].

        Raises:
          BlobError: as `codec.decode`; says which blob.
          InputError: no blobs, or of different grids.
        """
        blobs = list(blobs)
        grids = {_named(self.codec.grid_of, i, blob) for i, blob in enumerate(blobs)}
        if len(grids) != 1:
            raise InputError(f"blobs of {len(grids)} grids {sorted(grids)[:3]}: give those of one")
        height, width = grids.pop()
        tokens = height * width + self.codec.class_token
        shape = (len(blobs), tokens, self.codec.channels)
        shared = self._shared(shape, np.dtype(np.float32))
        y_hat = np.empty(shape, np.float32)
        with self._tasks() as submit:
            spans = self._spans(len(blobs))
            futures = [submit(_decode, *span, shape, blobs[slice(*span)]) for span in spans]
            for (start, end), future in zip(spans, futures, strict=True):
                future.result()
                y_hat[start:end] = shared[start:end]
        return y_hat

    def _shared(self, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
        """An array that the workers see too; kept, since new memory costs more than the coding."""
        size = int(np.prod(shape)) * dtype.itemsize
        if self._memory is None or self._memory.size < size:
            self._release()
            self._memory = SharedMemory(create=True, size=size)
        return np.ndarray(shape, dtype, self._memory.buf)

    def _release(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory.unlink()
            self._memory = None

    def _spans(self, count: int) -> list[tuple[int, int]]:
        edges = np.linspace(0, count, min(count, self._workers * _TASKS_A_WORKER) + 1).astype(int)
        return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))

    @contextmanager
    def _tasks(self) -> Iterator[Callable[..., Future]]:
        """Gives `submit(work, start, end, ...)`; at the end none of the tasks is running."""
        assert self._memory is not None
        futures = []

        def submit(work: Callable, *arguments) -> Future:
            futures.append(self._executor.submit(work, self._file, name, *arguments))
            return futures[-1]

        name = self._memory.name
        try:
            yield submit
        finally:
            # After an error too, or they would write over what the next call shares.
            for future in futures:
                future.cancel()
            wait(futures)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # neither macOS nor Windows says


# In a worker: the codec, and the memory it shares, as long as they stay the same.


@lru_cache(1)
def _codec(file: bytes) -> EmbeddingCodec:
    return EmbeddingCodec.from_bytes(file)


@lru_cache(1)
def _memory(name: str) -> SharedMemory:
    return SharedMemory(name)


def _encode(file, name, start, end, shape, dtype, grid) -> list[bytes]:
    values = np.ndarray(shape, dtype, _memory(name).buf)
    return [_codec(file).encode(y, grid) for y in values[start:end]]


def _decode(file, name, start, end, shape, blobs) -> None:
    values = np.ndarray(shape, np.float32, _memory(name).buf)
    for i, blob in enumerate(blobs, start):
        values[i] = _named(_codec(file).decode, i, blob)


def _named(function, index: int, blob: bytes):
    try:
        return function(blob)
    except BlobError as error:
        raise type(error)(f"blob {index}: {error}") from error
