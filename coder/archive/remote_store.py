"""`RemoteStore`: a Zarr store behind a network, whose reads are whole or end with an error.

What fails and may pass is tried again. What the packages below leave open is settled here:

- No package compares the length of a range with what was asked for.
- fsspec's walk through folders takes one that cannot be listed for an empty one.
- fsspec's HTTP files are "not found" whatever made the request for their size fail.
- s3fs remembers listings, and says from them what is there and how long it is, although another
  process may have changed it.
- zarr's FsspecStore takes any error that it is told to for a missing key, whose values are then
  fill values; and a range beyond the end of an object for no bytes.
"""

import asyncio
import builtins
import copy
import errno
import os
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Self, TypeVar

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore

from coder.errors import CodecError, FileError, InputError, NoPermission, StoreError, one_line
from coder.files import without_query

TRIES = 5
WAIT = 0.5
"""Seconds before the second try. Each further wait is twice as long; chance adds up to half."""
_REFUSED = (401, 403)
_MISSING = (404, 410)
_PASSING = (408, 429)  # of the statuses below 500
# Faults of a program or its settings, if no status says otherwise.
_FAULTS = (TypeError, ValueError, AttributeError, LookupError, NotImplementedError, ImportError)
_INSTALL = "install nec-jax[remote], or the package of fsspec for this protocol"

T = TypeVar("T")


def open_url(url: str) -> "RemoteStore":
    """The store at a URL, by the package of fsspec for its protocol, as that is configured.

    Raises:
      ImportError: fsspec or this package is not installed.
      InputError: no such protocol, or a URL that its package does not take.
    """
    try:
        store = FsspecStore.from_url(url, storage_options=_options(url))
    except ImportError as error:
        raise ImportError(f"{url}: {one_line(error)}: {_INSTALL}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot be opened: {one_line(error)}", url) from error
    fs: Any = store.fs
    if hasattr(fs, "retries"):  # of s3fs
        fs.retries = 1
    return RemoteStore(store)


def _options(url: str) -> dict[str, Any]:
    """Options by which one try of ours is one request, unless the user has set his own."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    from fsspec.config import conf

    own = conf.get(url.partition("://")[0], {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}, **own}}


class _Short(Exception):
    """Fewer bytes came than there must be."""


class RemoteStore(Store):
    """A Zarr store behind a network: the errors of `get` and all others are as follows.

    A missing object is None, False or FileNotFoundError, as of any store, and is not asked for
    again. Otherwise:

    Raises:
      NoPermission: the store refuses (401, 403, no credentials).
      FileError: an object ends before the range that is asked for.
      StoreError: the request failed `TRIES` times: timeouts, connections that broke, statuses of
        500 and above, 408 and 429, and bodies that were too short. Another status is not tried
        again.
    """

    def __init__(self, store: Store):
        """Wrap a store: one of zarr's for fsspec or obstore."""
        super().__init__(read_only=store.read_only)
        self._fs: Any = None
        if isinstance(store, FsspecStore):
            store = copy.copy(store)
            store.allowed_exceptions = ()
            store.path = store.path.rstrip("/")
            self._fs, self._root = store.fs, store.path
        self._store = store
        self._process = os.getpid()
        self._sizes: dict[str, int] = {}  # by key, of the last listing

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same store, to be written or not."""
        other = type(self)(self._store.with_read_only(read_only))
        other._sizes = self._sizes
        return other

    def address(self, key: str = "") -> str:
        """The URL of an object, without its query."""
        if self._fs is None:
            return f"{self._store}/{key}".rstrip("/")
        return without_query(self._fs.unstrip_protocol(self._path(key)))

    def __str__(self) -> str:
        return self.address()

    def __repr__(self) -> str:
        return f"RemoteStore({self.address()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and self._store == other._store

    @property
    def is_http(self) -> bool:
        """Whether it is a web server, which lists folders as pages, if at all."""
        protocol = getattr(self._fs, "protocol", ())
        return "http" in ((protocol,) if isinstance(protocol, str) else protocol)

    @property
    def supports_writes(self) -> bool:
        """Whether the store can be written."""
        return self._store.supports_writes and not self.is_http

    @property
    def supports_deletes(self) -> bool:
        """Whether the store deletes."""
        return self._store.supports_deletes and not self.is_http

    @property
    def supports_listing(self) -> bool:
        """Whether the store lists."""
        return self._store.supports_listing

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The object, or a range of it, in full; None if there is no such object."""
        asked = byte_range
        if asked is None and self._fs is not None:
            asked = OffsetByteRequest(0)  # else s3fs makes a second request, for the size

        async def once() -> Buffer | None:
            found = await self._store.get(key, prototype, asked)
            if found is not None:
                await self._refuse_short(key, byte_range, len(found))
            return found

        return await self._tried(key, "read", once, missing=None)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> builtins.list[Buffer | None]:
        """As `get`, of several."""
        asked = (self.get(key, prototype, part) for key, part in key_ranges)
        return list(await asyncio.gather(*asked))

    async def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""
        return (
            await self._tried(key, "looked for", lambda: self._size(key), missing=None) is not None
        )

    async def getsize(self, key: str) -> int:
        """The size of an object, bytes. Raises FileNotFoundError if there is none."""
        size = await self._tried(key, "looked for", lambda: self._size(key), missing=None)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self.address(key))
        return size

    async def getsize_prefix(self, prefix: str) -> int:
        """The bytes of all objects in a folder."""
        found = await self.sizes(prefix)
        return sum([await self.getsize(k) if s is None else s for k, s in found.items()])

    async def set(self, key: str, value: Buffer) -> None:
        """Write a whole object."""
        self._check_writable()

        async def once() -> None:
            await self._store.set(key, value)

        await self._tried(key, "written", once)
        self._sizes[key] = len(value)

    async def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        self._check_writable()

        async def once() -> None:
            if self._fs is not None:
                try:
                    await self._fs._rm_file(self._path(key))
                    return
                except NotImplementedError:
                    pass
            await self._store.delete(key)

        await self._tried(key, "deleted", once, missing=None)
        self._sizes.pop(key, None)

    async def sizes(self, prefix: str = "") -> dict[str, int | None]:
        """The sizes, bytes, of all objects in a folder, by key; None where the store says none."""
        prefix = prefix.rstrip("/")
        if self._fs is None:

            async def once() -> dict[str, int | None]:
                return {key: None async for key in self._store.list_prefix(prefix)}

            return await self._tried(prefix, "listed", once, missing={})
        found = await (self._found(prefix) if _lists_all(self._fs) else self._walked(prefix))
        if not found and self.is_http:
            await self._refuse_unlisted(prefix)
        self._sizes |= {key: size for key, size in found.items() if size is not None}
        return found

    def expect(self, key: str, size: int) -> None:
        """Take the size of an object from a listing that was made elsewhere: see `get`."""
        self._sizes[key] = size

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        for key in await self.sizes():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys in a folder."""
        for key in await self.sizes(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names directly in a folder."""
        prefix = prefix.rstrip("/")
        if self._fs is None:

            async def once() -> Sequence[str]:
                return [name async for name in self._store.list_dir(prefix)]

            names = await self._tried(prefix, "listed", once, missing=[])
        else:
            names = [name for name, _, _ in await self._entries(prefix)]
            if not names and self.is_http:
                await self._refuse_unlisted(prefix)
        for name in names:
            yield name

    def _connect_again(self) -> None:
        """Connections of its own for a process that was forked, as one of PyTorch's DataLoader."""
        self._process, old = os.getpid(), self._fs
        if not _is_async(old):
            return
        self._fs = type(old)(*old.storage_args, **old.storage_options)
        if hasattr(old, "retries"):
            self._fs.retries = old.retries
        store: Any = copy.copy(self._store)
        store.fs, self._store = self._fs, store
        self._of_parent = old  # kept: its end would close connections that the parent uses

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".strip("/") if self._root and key else self._root or key

    async def _size(self, key: str) -> int | None:
        """One request. None if it is no object."""
        if self._fs is None:
            return await self._store.getsize(key)
        self._fs.invalidate_cache(self._path(key))
        info = await self._fs._info(self._path(key))
        if info["type"] != "file":
            return None
        return (
            len(await self._fs._cat_file(self._path(key))) if info["size"] is None else info["size"]
        )

    async def _entries(self, prefix: str) -> Sequence[tuple[str, bool, int | None]]:
        """Name, whether it is a folder, and size of what is directly in a folder."""
        path = self._path(prefix)

        async def once() -> Sequence[dict[str, Any]]:
            self._fs.invalidate_cache(path)
            return await self._fs._ls(path, detail=True)

        found = []
        for info in await self._tried(prefix, "listed", once, missing=[]):
            name = info["name"].rstrip("/")
            if name.rpartition("/")[0].strip("/") == path.strip("/"):  # not the folder itself
                found.append((name.rpartition("/")[2], info["type"] == "directory", info["size"]))
        return found

    async def _walked(self, prefix: str) -> dict[str, int | None]:
        """All objects in a folder, folder by folder."""
        found: dict[str, int | None] = {}
        folders = [prefix]
        for folder in folders:
            for name, is_folder, size in await self._entries(folder):
                key = f"{folder}/{name}".lstrip("/")
                if is_folder:
                    folders.append(key)
                else:
                    found[key] = size
        return dict(sorted(found.items()))

    async def _found(self, prefix: str) -> dict[str, int | None]:
        """All objects in a folder, by one request for a thousand."""

        async def once() -> dict[str, dict[str, Any]]:
            return await self._fs._find(self._path(prefix), detail=True)

        infos = await self._tried(prefix, "listed", once, missing={})
        start = f"{self._root}/" if self._root else ""
        inside = f"{self._path(prefix)}/"
        return {
            name.removeprefix(start): info.get("size")
            for name, info in sorted(infos.items())
            if name.startswith(inside) and not name.endswith("/") and info["type"] == "file"
        }

    async def _refuse_unlisted(self, prefix: str) -> None:
        """Raise StoreError if a web server lists no folders, so that an empty list says nothing."""
        if "zarr.json" not in {name for name, _, _ in await self._entries("")}:
            raise StoreError(
                errno.EOPNOTSUPP,
                "the server lists no folders, or nothing is in this one: archives and folders of "
                "images can be read only where they are listed. Copy it to a folder",
                self.address(prefix),
            )

    async def _refuse_short(self, key: str, asked: ByteRequest | None, length: int) -> None:
        """Refuse a body that has not the bytes that were asked for.

        Raises:
          _Short: it has fewer, and the object has them.
          FileError: the object ends before.
          StoreError: it has more than the range.
        """
        if isinstance(asked, RangeByteRequest | SuffixByteRequest):
            is_range = isinstance(asked, RangeByteRequest)
            expected = asked.end - asked.start if is_range else asked.suffix
            if length == expected:
                return
            if length > expected:
                raise StoreError(
                    errno.EOPNOTSUPP,
                    f"{length:,} bytes came of a range of {expected:,}: the server serves no "
                    "ranges. Copy the archive to a folder",
                    self.address(key),
                )
            size = await self._size(key)
            if size is not None and size < (asked.end if is_range else asked.suffix):
                raise FileError(
                    f"ends after {size:,} bytes, before a part that is asked for: it was cut "
                    "short. Copy the archive again",
                    self.address(key),
                )
            raise _Short(f"{length:,} bytes came of {expected:,}")
        start = 0 if asked is None else asked.offset
        if self._sizes.get(key, start + length) == start + length:
            return
        size = await self._size(key)  # the listing may be older than the object
        if size is not None:
            self._sizes[key] = size
            if size != start + length:
                raise _Short(f"{length:,} bytes came of {size - start:,}")

    def _said(self, error: BaseException, key: str) -> str:
        """An error as one line, without queries of web servers' URLs, which may be signatures."""
        text = one_line(error)
        if self.is_http and (query := key.partition("?")[2]):
            text = text.replace(f"?{query}", "")
        # Packages write them in other ways, too.
        return re.sub(r"(https?://[^\s?]*)\?\S*?(['\"),]*)(?=\s|$)", r"\1\2", text)

    async def _tried(
        self, key: str, what: str, once: Callable[[], Awaitable[T]], **missing: T
    ) -> T:
        """What `once` returns; or `missing`, if it is given and there is no such object."""
        if self._process != os.getpid():
            self._connect_again()
        number = 0
        while True:
            number += 1
            try:
                return await once()
            except (CodecError, StoreError):
                raise
            except Exception as error:
                if missing and _is_missing(error):
                    return missing["missing"]
                if _is_refused(error):
                    raise NoPermission(
                        f"cannot be {what}: the store refuses ({self._said(error, key)}): give "
                        "credentials that may, as the package of fsspec for this protocol takes "
                        "them",
                        self.address(key),
                    ) from error
                if number == TRIES or not _may_pass(error):
                    tries = f"{number} tries, the last" if number > 1 else "1 try"
                    raise StoreError(
                        errno.EIO,
                        f"cannot be {what} ({tries}: {self._said(error, key)}). Check the network "
                        "and the store, and try again",
                        self.address(key),
                    ) from error
            await asyncio.sleep(WAIT * 2 ** (number - 1) * random.uniform(1, 1.5))


def _is_async(fs: Any) -> bool:
    """Whether a file system of fsspec has connections in an event loop."""
    if fs is None:
        return False
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    return not isinstance(fs, AsyncFileSystemWrapper)


def _lists_all(fs: Any) -> bool:
    """Whether a file system lists what is in all folders by requests of its own for that."""
    from fsspec.asyn import AsyncFileSystem

    return _is_async(fs) and type(fs)._find is not AsyncFileSystem._find


def _chain(error: BaseException) -> list[BaseException]:
    """An error and its causes."""
    found = [error]
    while (cause := found[-1].__cause__) is not None:
        found.append(cause)
    return found


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of a package carries.

    Not its `code`: that of a body that is too short is 400 in aiohttp.
    """
    for name in ("status", "status_code"):
        value = getattr(error, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None


def _statuses(error: BaseException) -> list[int]:
    return [status for one in _chain(error) if (status := _status(one)) is not None]


def _is_missing(error: BaseException) -> bool:
    """Whether it says that there is no such object, and not that the request failed."""
    if not isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return False
    known = (FileNotFoundError, KeyError)
    return all(isinstance(one, known) or _status(one) in _MISSING for one in _chain(error)[1:])


def _is_refused(error: BaseException) -> bool:
    return any(
        isinstance(one, PermissionError)
        or _status(one) in _REFUSED
        or "Credential" in type(one).__name__  # of botocore, Google and Azure
        for one in _chain(error)
    )


def _may_pass(error: BaseException) -> bool:
    """Whether another try may succeed."""
    if any(isinstance(one, TimeoutError | ConnectionError) for one in _chain(error)):
        return True
    if statuses := _statuses(error):
        return any(status >= 500 or status in _PASSING for status in statuses)
    return not isinstance(error, _FAULTS)
