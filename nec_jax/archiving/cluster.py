"""`encode_on_cluster`: images to an archive, by the workers of a dask cluster.

A task is a shard. Each worker process opens the model, the images and the archive with its first
task, and keeps them; it reads and encodes one shard while another thread writes the one before. The
workers are processes that share an archive (`coder.archive.Writer`): they claim shards. So a worker
that the scheduler has given up, and that still writes, does no harm.
"""

import asyncio
import logging
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import uuid4

from coder import CodecError, InputError, PoolError, archive
from coder.archive import is_held
from coder.pool import available_cores
from nec_jax.archiving.image_archive import Amount, Encoded, Encoding, Progress, raise_failure
from nec_jax.archiving.named_inputs import NamedInputs
from nec_jax.images.record import DataError
from nec_jax.jax_defaults import jax_defaults

try:
    from distributed import (
        CancelledError,
        Client,
        Future,
        KilledWorker,
        LocalCluster,
        Worker,
        WorkerPlugin,
        get_worker,
        wait,
    )
    from distributed.comm.core import CommClosedError
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"--scheduler needs dask.distributed ({missing}): install nec-jax[cluster]"
    ) from missing

LOCAL = "local:"
"""The beginning of an address that starts processes on this machine, such as local:4."""
_PROCESSES = 4  # at most, for each core of this machine
_THREADS = 2  # of a process on this machine: one encodes a shard, one writes the shard before
_AHEAD = 2  # tasks that are handed out at a time, for each worker
_CONNECT = 20.0  # seconds to wait for the scheduler
_PATIENCE = 300.0  # seconds to wait for a worker, while there is none
_POLL = 1.0  # seconds between two looks at shards that other processes write, and at tasks
_WATCH = 5.0  # seconds between two looks at whether the command still runs
_GO_ON = "give the same command again, and it goes on"
_SAME = ("nec-jax", "jax", "jaxlib")  # packages whose versions may change bytes


def encode_on_cluster(
    scheduler: str,
    named: NamedInputs,
    out: Path,
    *,
    quality: int | None = None,
    image_size: int | None = None,
    for_refiner: bool = False,
    shard: int = archive.SHARD,
    strict: bool = False,
    readers: int | None = None,
    notes: dict[str, Any] | None = None,
    progress: Progress = lambda done, total, written: None,
) -> Encoded:
    """Do what `encode_archive` does on the workers of a dask cluster, or go on with it.

    The model, the images and the archive have the same paths on all machines, on a file system with
    locks that all share. The archive has the bytes that `encode_archive` gives, if the workers
    compute what this machine computes (docs/design.md, Exactness). The shards of a worker that dies
    are written by others.

    Args:
        scheduler: address of a dask scheduler, such as "tcp://host:8786"; or "local:N", to start N
            worker processes on this machine for this call.
        named: the model and the images.
        readers: number of threads that read images in each worker process; None for one per core.
        out, quality, image_size, for_refiner, shard, strict, notes, progress: as for
            `encode_archive`.

    Raises:
        InputError: no scheduler at this address; a worker that has other versions, does not see the
            archive, or whose file system has no locks that all share.
        PoolError: there is no worker; or several died with the same shard.
        CodecError, DataError, OSError: as `encode_archive`, here or in a worker. The same call goes
            on.
    """
    settings: dict[str, Any] = {"split": named.split, "quality": quality, "strict": strict}
    settings |= {"image_size": image_size, "for_refiner": for_refiner, "shard": shard}
    settings |= {"retry": False, "notes": notes, "readers": readers}
    with _client(scheduler) as client:
        start, written = time.monotonic(), Amount()
        encoding = _encoding(named, out, settings)
        with encoding.writer as writer:
            total, there = len(encoding.source), encoding.begin()
            progress(there, total, written)
            if writer.member is None:
                raise InputError(f"{out}: its file system has no locks, which workers need")
            worker = _Worker(
                named.absolute(),
                out.absolute(),
                settings,
                writer.member.absolute(),
                _versions(),
                scheduler.startswith(LOCAL),
            )
            with _registered(client, worker) as name:
                for done in _written(client, name, writer):
                    written = written.plus(done.amount)
                    progress(there + written.images, total, written)
            return encoding.finish(written.images, time.monotonic() - start)


@jax_defaults()
def _encoding(named: NamedInputs, out: Path, settings: dict[str, Any]) -> Encoding:
    readers = settings["readers"] or available_cores()
    return Encoding(*named.opened, out, **{**settings, "readers": readers})


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _SAME}


class _Done(NamedTuple):
    """What a task did.

    Attributes:
        amount: how much it wrote; of no images if another process writes the shard.
        warned: categories and texts of warnings.
    """

    amount: Amount = Amount()
    warned: tuple[tuple[type[Warning], str], ...] = ()


# Of the process that runs the command.


@contextmanager
def _client(scheduler: str) -> Iterator[Client]:
    """A client of the scheduler at an address, or of one that is started for this block."""
    with ExitStack() as stack:
        stack.enter_context(_quiet("distributed", "tornado", "asyncio"))
        if scheduler.startswith(LOCAL):
            count = scheduler.removeprefix(LOCAL)
            most = _PROCESSES * available_cores()
            if not count.isdecimal() or not 1 <= int(count) <= most:
                raise InputError(
                    f"give the number of processes, from 1 to {most} on this machine, such as "
                    f"{LOCAL}2",
                    scheduler,
                )
            cluster = LocalCluster(
                n_workers=int(count),
                threads_per_worker=_THREADS,
                processes=True,
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
            client = Client(stack.enter_context(cluster))
        else:
            try:
                client = Client(scheduler, timeout=_CONNECT)
            except (OSError, ValueError, TypeError) as error:
                raise InputError(
                    "no dask scheduler answers: start one (`dask scheduler`), and give the address "
                    f"that it prints ({error})",
                    scheduler,
                ) from error
        yield stack.enter_context(client)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silence loggers and those below them for a block: errors are raised, too."""
    below = tuple(f"{name}." for name in names)
    loggers = [
        logging.getLogger(name)
        for name in list(logging.root.manager.loggerDict)
        if name in names or name.startswith(below)
    ]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


@contextmanager
def _registered(client: Client, worker: "_Worker") -> Iterator[str]:
    """Have workers, also those that come later, keep what a `_Worker` opens, for a block."""
    name = f"nec-encode-{uuid4().hex}"
    there = cast(Any, client.get_versions(packages=["nec-jax"]))["workers"]
    for address, found in there.items():
        if found["packages"].get("nec-jax") is None:
            raise InputError(f"worker {address} has no nec-jax: install nec-jax[train,cluster]")
    client.register_plugin(worker, name=name)
    try:
        yield name
    finally:
        # Waits until each worker has left the archive. The scheduler may be gone.
        with suppress(OSError, RuntimeError, ValueError):
            client.unregister_worker_plugin(name)


def _written(client: Client, name: str, writer: archive.Writer) -> Iterator[_Done]:
    """Have workers write all shards that are missing; yields what each task did."""
    while missing := writer.missing():
        written = 0
        for done in _results(client, name, missing):
            written += done.amount.images
            yield done
        if not written:
            time.sleep(_POLL)  # other processes write the rest


def _results(client: Client, name: str, parts: list[slice]) -> Iterator[_Done]:
    """What the tasks of these shards did. Few are handed out at a time, however many there are."""
    rest, running = deque(parts), dict[Future, slice]()
    seen = time.monotonic()  # when a worker was there last
    try:
        while rest or running:
            workers = len(cast(dict, client.nthreads()))
            now = time.monotonic()
            seen = now if workers else seen
            if now - seen > _PATIENCE:
                raise PoolError(f"no worker has been there for {_PATIENCE:.0f} s: {_GO_ON}")
            while rest and len(running) < _AHEAD * workers:
                part = rest.popleft()
                running[client.submit(_write_shard, name, part, pure=False)] = part
            if not running:
                time.sleep(_POLL)
                continue
            with suppress(TimeoutError):
                some = wait(list(running), timeout=_POLL, return_when="FIRST_COMPLETED")
                ended: set[Future] = cast(Any, some).done
                for future in ended:
                    yield _result(future, running.pop(future))
    finally:
        with suppress(OSError, RuntimeError):
            client.cancel(list(running))


def _result(future: Future, part: slice) -> _Done:
    try:
        done: _Done = future.result()
    except _Stopped:  # the worker ends, and others do not
        return _Done()
    except KilledWorker as error:
        raise PoolError(
            f"several workers died while they encoded images {part.start} to {part.stop - 1}, the "
            f"last of them {error.last_worker.address}: did they run out of memory? {_GO_ON}"
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise PoolError(f"the scheduler is gone ({error}): {_GO_ON}") from error
    for category, text in done.warned:
        warnings.warn(text, category, stacklevel=2)
    return done


# In a worker.


def _write_shard(name: str, part: slice) -> _Done:
    """A task."""
    return cast(_Worker, get_worker().plugins[name]).write(part)


class _Stopped(Exception):
    """The command has ended, or the worker ends."""


@dataclass
class _Worker(WorkerPlugin):
    """What a worker process keeps between tasks: opened with the first.

    Attributes:
        named, out, settings: of the archive, as for `Encoding`.
        member: a file whose lock the command holds while it runs.
        versions: those of the command.
        local: whether the process was started for this command.
    """

    named: NamedInputs
    out: Path
    settings: dict[str, Any]
    member: Path
    versions: dict[str, str]
    local: bool

    def setup(self, worker: Worker) -> None:
        """When the worker hears of the command."""
        if self.local:  # an interrupt in a terminal reaches all processes: the command ends these
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._address = worker.address
        self._encoding: Encoding | None = None
        self._entered = ExitStack()
        self._stop = threading.Event()
        # Each is held while a task is at that: opening, reading and encoding, and writing.
        self._opening, self._reading, self._writing = (threading.Lock() for _ in range(3))

    async def teardown(self, worker: Worker) -> None:
        """When the command ends, or the worker."""
        await asyncio.to_thread(self._close)

    def write(self, part: slice) -> _Done:
        """Read, encode and write a shard, unless another process does."""
        try:
            return self._write(part)
        except OSError as error:
            if error.errno is None:
                raise
            text = f"{error.strerror} (worker {self._address})"
            raise OSError(error.errno, text, error.filename) from error

    def _write(self, part: slice) -> _Done:
        encoding = self._opened()
        writer = encoding.writer
        if not writer.claim(part):
            return _Done()
        try:
            with self._reading, jax_defaults():
                some = []
                for pair in encoding.embedded(range(part.start, part.stop)):
                    some.append(pair)
                    if self._stop.is_set():
                        raise _Stopped
                raise_failure(some)
            # No other thread of this process catches warnings meanwhile.
            with self._writing, jax_defaults(), warnings.catch_warnings(record=True) as caught:
                if self._stop.is_set():
                    raise _Stopped
                encoding.write(part, some)
        except BaseException:
            writer.release(part)
            raise
        warned = tuple((one.category, str(one.message)) for one in caught)
        return _Done(encoding.amount(part), warned)

    def _opened(self) -> Encoding:
        with self._opening:
            if self._stop.is_set():
                raise _Stopped
            if self._encoding is None:
                try:
                    self._open()
                except (CodecError, DataError, FileNotFoundError) as error:
                    if isinstance(error, OSError) and error.errno is not None:
                        raise  # of the system; otherwise of an input that is not there
                    raise InputError(f"worker {self._address}: {error}") from error
            assert self._encoding is not None
            return self._encoding

    def _open(self) -> None:
        if (own := _versions()) != self.versions:
            other = {name: one for name, one in own.items() if one != self.versions[name]}
            here, there = (
                ", ".join(f"{name} {held[name]}" for name in other) for held in (own, self.versions)
            )
            raise InputError(f"it has {here}, and the command has {there}: install the same")
        if not self.member.exists():
            raise InputError(
                f"it does not see {self.out}: write the archive on a file system that the command "
                "and all workers share, under one path"
            )
        if not is_held(self.member):
            raise InputError(
                f"the file system of {self.out} has no locks that reach other machines: write the "
                "archive on one that has"
            )
        with _quiet("nec_jax") if self.local else nullcontext():  # the command says the same
            encoding = _encoding(self.named, self.out, self.settings)
        self._entered.enter_context(encoding.writer)
        self._encoding = encoding
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Leave the archive when the command is there no more: twice, as a disk may fail once."""
        missed = 0
        while not self._stop.wait(_WATCH):
            with self._opening:  # not while the command ends, and removes the file
                is_there = self._stop.is_set() or is_held(self.member)
            missed = 0 if is_there else missed + 1
            if missed > 1:
                self._close()

    def _close(self) -> None:
        self._stop.set()
        with self._opening, self._reading, self._writing:  # no task is at any of these
            self._entered.close()
