"""`RemoteImages`: images at URLs, each fetched to a temporary file and read as a local one is."""

import errno
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from coder.archive.remote_store import RemoteStore, open_url
from coder.errors import printable
from coder.files import is_url, without_query
from nec_jax.images.read import IMAGE_SUFFIXES, LARGEST, read_image
from nec_jax.images.record import CorruptImageError, DataError, Record

log = logging.getLogger(__name__)

_BESIDE = (".msk", ".aux.xml")
"""Endings of GDAL's files beside an image, which say what is missing in it."""


@dataclass(frozen=True)
class RemoteImages:
    """Whole images: record i is at `urls[i]`, with `labels[i]` if there are labels.

    Attributes:
        name: the name of the source.
        urls: a URL for each image, of any protocol that fsspec has.
        ids: their ids.
        sizes: the bytes of each, if known. A file that comes shorter is fetched again.
        labels: empty, or one for each.
        beside: by URL, endings and sizes of GDAL's files beside the image, which are fetched too.
    """

    name: str
    urls: tuple[str, ...]
    ids: tuple[str, ...]
    sizes: tuple[int | None, ...]
    labels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()
    beside: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.urls)

    def __getitem__(self, index: int, /) -> Record:
        """Fetch and read an image.

        Raises:
            CorruptImageError: it is not there, damaged, or no image; as `read_image`.
            StoreError: (an OSError) the network or the store failed, and may work again.
            NoPermission: the store refuses.
        """
        url = self.urls[index]
        with _as_files(url, self.sizes[index], self.beside.get(url, {})) as path:
            try:
                record = read_image(path, self.ids[index], largest=LARGEST)
            except DataError as error:
                said = str(error).replace(str(path), without_query(url))
                raise type(error)(said) from error
        if self.labels:
            record["label"] = self.labels[index]
        return record

    def files(self) -> Iterable[tuple[str, Any]]:
        """Id and URL of each image."""
        return zip(self.ids, self.urls, strict=True)


def images_at(
    name: str,
    urls: Sequence[str],
    ids: Sequence[str],
    *,
    sizes: Sequence[int | None] | None = None,
    labels: Sequence[int] = (),
    classes: Sequence[str] = (),
) -> RemoteImages:
    """A source of images at known URLs; makes no request.

    Args:
        name: the name of the source.
        urls: a URL for each image.
        ids: a unique id for each.
        sizes: their bytes, if known: by these it is noticed that an image was changed.
        labels: empty, or one for each: an index into `classes`.
        classes: the names of labels.

    Raises:
        DataError: not one id, size and label for each; an id twice; or a local path.
    """
    sizes = [None] * len(urls) if sizes is None else sizes
    for what, given in (("ids", ids), ("sizes", sizes), ("labels", labels)):
        if len(given) != len(urls) and (what != "labels" or given):
            raise DataError(f"{len(given)} {what} for {len(urls)} images: give one for each")
    if len(set(ids)) < len(ids):
        [(twice, _)] = Counter(ids).most_common(1)
        raise DataError(f"two images have the id {twice}: give each its own")
    for url in urls:
        if not is_url(url):
            raise DataError(f"{url} is no URL: give URLs, or local paths, but not both")
    return RemoteImages(name, tuple(urls), tuple(ids), tuple(sizes), tuple(labels), tuple(classes))


def open_urls(inputs: Sequence[str]) -> RemoteImages:
    """The images that URLs name together, in their order, each once; they have no labels.

    A URL is that of an image, of a folder whose images are taken at any depth, or a pattern. Only
    folders and patterns are listed, and single images are asked for their size. An id is the path
    below the folder that holds all images.

    Raises:
        DataError: a local path; a URL that names no image.
        FileNotFoundError: an image that does not exist.
        StoreError, NoPermission: as `RemoteImages`.
    """
    found: dict[str, int | None] = {}
    beside: dict[str, dict[str, int | None]] = {}
    for name in inputs:
        if not is_url(name):
            raise DataError(f"{name} is a local path: give URLs, or local paths, but not both")
        if without_query(name).lower().endswith(IMAGE_SUFFIXES) and not _magic(name):
            store, key = _opened(name)
            found.setdefault(name, sync(store.getsize(key)))
            continue
        listed = _listed(name)
        if f"{name.rstrip('/')}/split.csv" in listed:
            log.warning(
                "%s: its split.csv is not read, as images at URLs have no labels: list them in a "
                "table (CSV or Parquet) with the columns path and label",
                printable(without_query(name)),
            )  # fmt: skip
        images = [url for url in listed if _is_image(url, name)]
        if not images:
            raise DataError(f"no images at {without_query(name)}: {' '.join(IMAGE_SUFFIXES)}")
        for url in images:
            found.setdefault(url, listed[url])
            sizes = {end: listed[url + end] for end in _BESIDE if url + end in listed}
            if sizes:
                beside[url] = sizes
    folders = [without_query(url).split("/")[:-1] for url in found]
    shared = 0
    while all(len(one) > shared and one[shared] == folders[0][shared] for one in folders):
        shared += 1
    root = "/".join(folders[0][:shared])
    ids = [without_query(url).removeprefix(f"{root}/") for url in found]
    source = images_at(root.rpartition("/")[2], list(found), ids, sizes=list(found.values()))
    return RemoteImages(source.name, source.urls, source.ids, source.sizes, beside=beside)


def fetched(url: str) -> bytes:
    """The whole file at a URL. Its size is asked for first, so that no end of it is lost.

    Raises:
        FileNotFoundError: there is none.
        StoreError, NoPermission: as `RemoteImages`.
    """
    store, key = _opened(url)
    store.expect(key, sync(store.getsize(key)))
    found = sync(store.get(key, default_buffer_prototype()))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no such object", store.address(key))
    return found.to_bytes()


def url_beside(url: str, path: str) -> str:
    """The URL of a file, by its path relative to the folder of the file at `url`.

    The path is one of a file system: `..` leads up, and a percent sign stands for itself, although
    a web server has it as %25.

    Raises:
        DataError: the path leads out of the bucket, or above the root of the server.
    """
    scheme, _, place = without_query(url).partition("://")
    parts = place.split("/")[:-1]
    for part in path.split("/"):
        if part == "..":
            if len(parts) < 2:
                raise DataError(f"{path} leads above {scheme}://{'/'.join(parts)}: give a URL")
            parts.pop()
        elif part not in ("", "."):
            parts.append(quote(part) if scheme.endswith(("http", "https")) else part)
    return f"{scheme}://{'/'.join(parts)}"


def _magic(url: str) -> bool:
    """Whether a URL is a pattern."""
    return any(sign in without_query(url) for sign in "*?[")


def _is_image(url: str, listed: str) -> bool:
    """Whether what was listed is an image; none that is hidden, below the folder of the list."""
    is_hidden = any(part.startswith((".", "__MACOSX")) for part in url.split("/")[3:])
    own_hidden = any(part.startswith(".") for part in listed.split("/")[3:])
    return url.lower().endswith(IMAGE_SUFFIXES) and (own_hidden or not is_hidden)


def _opened(url: str) -> tuple[RemoteStore, str]:
    """The store of a file's folder, and the file's key in it."""
    folder = without_query(url).rpartition("/")[0]
    return open_url(folder), url[len(folder) + 1 :]


def _listed(url: str) -> dict[str, int | None]:
    """All files, by URL, in a folder, or that fit a pattern; with their sizes, if listed."""
    parts = url.rstrip("/").split("/")
    first = next((i for i, part in enumerate(parts) if _magic(part)), len(parts))
    folder, pattern = "/".join(parts[:first]), "/".join(parts[first:])
    store = open_url(folder)
    found = sync(store.sizes())
    if pattern:
        from fsspec.utils import glob_translate

        fits = re.compile(glob_translate(pattern))
        # What is beside an image need not fit.
        ends = ("", *_BESIDE)
        found = {
            key: size
            for key, size in found.items()
            if any(key.endswith(end) and fits.match(key.removesuffix(end)) for end in ends)
        }
    return {f"{folder}/{key}": size for key, size in found.items()}


@contextmanager
def _as_files(url: str, size: int | None, beside: Mapping[str, int | None]) -> Iterator[Path]:
    """A temporary file of what is at a URL, with its suffix, and what is beside it."""
    store, key = _opened(url)
    suffix = Path(without_query(url)).suffix
    with tempfile.TemporaryDirectory(prefix="nec-") as folder:
        for end, length in {"": size, **beside}.items():
            if length is not None:
                store.expect(key + end, length)
            found = sync(store.get(key + end, default_buffer_prototype()))
            if found is None:
                where = without_query(url) + end
                raise CorruptImageError(f"cannot read {where}: there is no such object")
            (Path(folder) / f"image{suffix}{end}").write_bytes(found.to_bytes())
        yield Path(folder) / f"image{suffix}"
