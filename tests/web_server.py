"""A web server of a folder, in a thread of this process."""

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def web_server(
    folder: Path, status: int | None = None, *, is_signed: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of the files of a folder, and the paths that it was asked for.

    Args:
      folder: what it serves.
      status: the status of an error that it answers to each request, if given.
      is_signed: whether it refuses HEAD, as object stores do of a URL that is signed for GET.
    """
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def send_head(self):
            asked.append(self.path)
            if status is not None or (is_signed and self.command == "HEAD"):
                return self.send_error(status or 403)
            return super().send_head()

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
