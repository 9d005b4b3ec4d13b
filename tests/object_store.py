"""A stand-in for an object store, which counts requests and fails as it is told to."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coder.archive import remote_store

BUCKET = "bucket"
HANG = 1.0
"""Seconds that a request hangs; an `impatient` client waits for `PATIENCE`."""
PATIENCE = 0.5
FAILURES = ("hang", "503", "closed", "short")
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class _Closed(Exception):
    """The connection is closed in the middle of a body."""


class ObjectStore:
    """A server of S3's protocol in a thread of this process.

    Attributes:
      url: the URL of an empty folder in the bucket.
      endpoint: the address of the server.
      requests: method and kind ("object", "range", "list"), one for each request since `counted`.
      keys: the key of each of these requests.
      failure: (method, key, number) -> one of `FAILURES`, "403", or None; asked at each request,
        by its number since the server was started.
    """

    def __init__(self) -> None:
        from moto.backends import get_backend
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: Any, **__: Any) -> None: ...

        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self.requests: list[tuple[str, str]] = []
        self.keys: list[str] = []
        self.failure: Callable[[str, str, int], str | None] = lambda method, key, number: None
        self._number = self._folders = 0
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._backend = get_backend("s3")["123456789012"]["aws"]
        self._backend.create_bucket(BUCKET, "us-east-1")

    def settings(self, patience: float = 60) -> dict[str, Any]:
        """What fsspec must know of it: its settings for the protocol s3.

        Args:
          patience: seconds that a client waits for an answer.
        """
        timeouts = {"read_timeout": patience, "connect_timeout": 60}
        return {
            "key": "any",
            "secret": "any",
            "endpoint_url": self.endpoint,
            "config_kwargs": {"retries": {"total_max_attempts": 1}, **timeouts},
        }

    def close(self) -> None:
        """Stop the server, and delete all that it holds, which moto keeps for the whole process."""
        self._server.shutdown()
        self._server.server_close()
        self._backend.reset()

    def folder(self) -> str:
        """The URL of a folder that nobody has used."""
        self._folders += 1
        return f"s3://{BUCKET}/{self._folders}"

    def upload(self, folder: Path, url: str) -> None:
        """Put all files of a folder, without a request."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def put(self, url: str, data: bytes) -> None:
        """Put an object, without a request."""
        self._backend.put_object(BUCKET, url.removeprefix(f"s3://{BUCKET}/"), data)

    def objects(self, url: str) -> dict[Path, bytes]:
        """All objects of a folder, by their paths in it, without a request."""
        start = f"{url.removeprefix(f's3://{BUCKET}/')}/"
        return {
            Path(name.removeprefix(start)): key.value
            for name, key in self._backend.buckets[BUCKET].keys.items()
            if name.startswith(start)
        }

    @contextmanager
    def counted(self) -> Iterator[Counter[tuple[str, str]]]:
        """The requests of a block, by method and kind; filled at its end."""
        found: Counter[tuple[str, str]] = Counter()
        self.requests.clear()
        self.keys.clear()
        yield found
        found.update(self.requests)

    @contextmanager
    def failing(self, failure: Callable[[str, str, int], str | None]) -> Iterator[None]:
        """Requests of a block fail as a function says (`failure`)."""
        before, self.failure = self.failure, failure
        try:
            yield
        finally:
            self.failure = before

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/")
        key = path.partition("/")[2]
        kind = "object" if key else "list"
        if "HTTP_RANGE" in environ and environ["HTTP_RANGE"] != "bytes=0-":
            kind = "range"
        with self._lock:
            self.requests.append((method, kind))
            self.keys.append(key)
            self._number += 1
            failure = self.failure(method, key, self._number)
        if failure == "hang":
            time.sleep(HANG)
        if failure == "403":
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [] if method == "HEAD" else [_DENIED]
        if failure == "503":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [] if method == "HEAD" else [_SLOW_DOWN]
        head: list[Any] = []
        body = b"".join(self._app(environ, lambda *given: head.append(given)))
        status, headers = head[0][:2]
        if failure == "short" and method == "GET" and key and status[:3] in ("200", "206"):
            body = body[: len(body) // 2]
            kept = [(n, v) for n, v in headers if n.lower() != "content-length"]
            headers = [*kept, ("Content-Length", str(len(body)))]
        start(status, headers)
        if failure == "closed" and body:
            return _cut(body)
        return [body]


def _cut(body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    raise _Closed


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    """An object store."""
    for package in ("moto", "s3fs"):  # not in the base install
        pytest.importorskip(package)
    store = ObjectStore()
    yield store
    store.close()


@pytest.fixture
def objects(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The same, which fsspec knows as s3, and whose clients do not wait between tries."""
    config = pytest.importorskip("fsspec.config")
    monkeypatch.setitem(config.conf, "s3", server.settings())
    monkeypatch.setattr(remote_store, "WAIT", 0)
    return server


@pytest.fixture
def impatient(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The same, whose clients do not wait for a request that hangs."""
    config = pytest.importorskip("fsspec.config")
    monkeypatch.setitem(config.conf, "s3", objects.settings(PATIENCE))
    return objects
