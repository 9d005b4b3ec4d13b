"""How many requests parts of a scene cost over HTTP, and how many bytes.

    python -m benchmarks.scene_requests SCENE

Makes a scene of at least 640 x 640 cells of one without times: the same cells, repeated and
mirrored. A web server in this process serves it, which answers ranges and lists no folders, as an
object store that is public. Prints a table of what nec-jax and xarray ask it for, as Markdown.
"""

import argparse
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

import coder
from coder.scenes.scene_reader import Scene
from coder.scenes.scene_writer import SceneWriter

_SIDE = 640  # cells: three shards, two of them whole


@dataclass(frozen=True)
class Cost:
    """What an action asks a server for.

    Attributes:
        what: the action.
        answers: key and bytes of each answer.
    """

    what: str
    answers: list[tuple[str, int]]

    @property
    def bytes(self) -> int:
        """All bytes that came, without headers."""
        return sum(size for _, size in self.answers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scene", type=Path, help="folder of a scene without times")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        large = repeated(coder.open_scene(options.scene), Path(name) / "large.zarr")
        scene = coder.open_scene(large)
        height, width = scene.grid.shape
        print(f"{height:,} x {width:,} cells, {len(scene.levels)} levels\n")
        print("| what | requests | bytes | of |\n| --- | ---: | ---: | --- |")
        for cost in costs(large):
            keys = dict.fromkeys(key for key, _ in cost.answers)
            shown = ", ".join(f"`{key}`" for key in keys)
            print(f"| {cost.what} | {len(cost.answers)} | {cost.bytes:,} | {shown} |")


def costs(folder: Path) -> list[Cost]:
    """The cost of reading parts of a scene of at least 640 x 640 cells without times.

    The cells at (8, 8) and (20, 20) must have embeddings.
    """
    import xarray

    found: list[Cost] = []
    with counting_server(folder) as (url, answers):

        def count(what: str, act: Callable[[], Any]) -> Any:
            answers.clear()
            result = act()
            found.append(Cost(what, list(answers)))
            return result

        scene = count("open a scene", lambda: coder.open_scene(url))
        x, y = scene.grid.x, scene.grid.y
        count("a cell", lambda: scene.at(x[8], y[8]))
        count("a cell of another chunk", lambda: scene.at(x[20], y[20]))
        count("a window of this chunk", lambda: scene.read(slice(20, 23), slice(20, 23)))
        parts = {
            "a window of one chunk": (slice(20, 23), slice(20, 23)),
            "a window of four chunks": (slice(31, 34), slice(31, 34)),
            "a window of four chunks and two shards": (slice(31, 34), slice(255, 258)),
            "a whole shard": (slice(0, 256), slice(0, 256)),
        }
        for what, part in parts.items():
            scene = coder.open_scene(url)
            count(what, lambda part=part, scene=scene: scene.read(*part))
        scene = coder.open_scene(url)
        count("`valid` of a window", lambda: scene.valid(slice(20, 23), slice(20, 23)))
        count("the coarsest overview", lambda: scene.read(level=scene.levels[-1]))
        data = count("xarray: open a scene", lambda: xarray.open_zarr(url, zarr_format=3))
        point = {"x": x[8], "y": y[8]}
        count("xarray: a cell", lambda: data.embedding.sel(point).load())
        count("xarray: the same cell", lambda: data.embedding.sel(point).load())
        whole: dict[str, Any] = {"y": 256, "x": 256}
        view = {"zarr_format": 3, "group": f"overviews/{scene.levels[-1]}"}
        data = count("xarray: open an overview", lambda: xarray.open_zarr(url, **view))
        count("xarray: the overview", lambda: data.embedding.load())
        data = xarray.open_zarr(url, **view, chunks=whole)
        count("xarray: the overview, by whole shards", lambda: data.embedding.load())
    return found


def repeated(scene: Scene, out: Path) -> Path:
    """Write a scene of at least 640 x 640 cells: those of another, mirrored at its edges."""
    y, coverage = scene.read(), scene.coverage()
    pads = [(0, max(0, _SIDE - side)) for side in scene.grid.shape]
    coverage = np.pad(coverage, pads, "symmetric")
    grid = replace(scene.grid, shape=coverage.shape)
    y = np.pad(y, [*pads, (0, 0)], "symmetric")
    with SceneWriter(out, scene.codec, grid, made={}, step={}) as writer:
        for part in writer.missing():
            writer.write(part, y[part], coverage[part])
        writer.finish()
    return out


@contextmanager
def counting_server(folder: Path) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """The URL of a folder on a web server, and the key and bytes of each answer that it gave.

    It answers ranges and lists no folders. An answer to HEAD, or an error, has no bytes.
    """
    answers: list[tuple[str, int]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None: ...

        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            status, data, headers = 404, b"", {}
            if path.is_file():
                status, data = 200, path.read_bytes()
            if asked and status == 200:
                first, last = asked.groups()
                size = len(data)
                start = int(first) if first else max(0, size - int(last))
                stop = int(last) + 1 if first and last else size
                status, data = 206, data[start:stop]
                headers = {"Content-Range": f"bytes {start}-{start + len(data) - 1}/{size}"}
            headers |= {"Content-Length": str(len(data)), "Accept-Ranges": "bytes"}
            is_head = self.command == "HEAD"
            answers.append((self.path.lstrip("/"), 0 if is_head else len(data)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if is_head else data)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", answers
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
