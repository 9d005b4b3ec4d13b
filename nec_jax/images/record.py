"""Data sources: random-access sequences of records, one per image; their windows and errors."""

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, Required, TypedDict

import numpy as np

from coder.errors import printable

IGNORE = 255  # mask value of pixels that no loss or score may read
Box = tuple[int, int, int, int]  # row, column, height, width in pixels

Affine = tuple[float, float, float, float, float, float]
"""a to f: pixel -> crs."""


class Record(TypedDict, total=False):
    """One image with its label, mask and georeference, if known."""

    image: Required[np.ndarray]  # [H, W, C], the file's own dtype (uint8 for RGB)
    id: Required[str]  # stable and relative: the path inside the root, for a window "path@row,col"
    label: int  # index into Source.classes; an image without a label has none, rather than -1
    mask: np.ndarray  # uint8 [H, W], index into Source.mask_classes, 255 = ignore
    transform: Affine
    crs: str  # e.g. "EPSG:4326"
    time: np.datetime64  # when it was taken, in UTC
    # Masks bool [H, W] by kind of missing pixel; no record of a source has it: see MissingPixels.
    missing: dict[str, np.ndarray]


class Source(Protocol):
    """A random-access data set that can be read from many threads at once."""

    @property
    def name(self) -> str:
        """The name of this source in error messages and reports."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the image labels; empty where images have none. Equal for every split."""
        ...

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """Names of the mask values; empty where there are no masks. Equal for every split."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record:
        """Raise CorruptImageError, naming the file, when record `index` cannot be read."""
        ...

    # A source may also have `columns`: what a table says of each image (`ImageTable`).

    def files(self) -> Iterable[tuple[str, Path]]:
        """Id (of a window, and its size) and file of each record, in order; reads no image."""
        ...


class DataError(ValueError):
    """A data set that cannot be used as asked; the message says what to change."""

    def __str__(self) -> str:
        return printable(super().__str__())


class CorruptImageError(DataError):
    """An image (or its mask) cannot be read; the message names the file and the reason."""


# Errors that say nothing about a file: of the disk, the network, memory, or the open files.
_PASSING = {
    getattr(errno, name)
    for name in (
        "EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "EAGAIN", "EINTR", "ETIMEDOUT", "ENOTCONN",
        "ECONNRESET", "ECONNABORTED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH",
        "ENOBUFS", "EREMOTEIO",
    )
    if hasattr(errno, name)
}  # fmt: skip


def raise_passing(error: BaseException, path: Path | str) -> None:
    """Raise the system error that `error` is or comes from: it does not mean a damaged image.

    A stopped run can resume when the disk or the network works again, while an image that was left
    out would stay so.

    Raises:
        OSError: it names the file.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        if number is not None and number in _PASSING:
            raise OSError(
                number,
                f"{os.strerror(number)}: the file may be sound, and could not be read; check the "
                "disk, the network or the limits of this process, and give the same command again",
                os.fspath(path),
            ) from error
        cause = cause.__cause__ or cause.__context__


class MissingPixels(CorruptImageError):
    """Some pixels of an image are missing; the message names the file, how many, and where.

    An encoder needs whole images, and a number that stands for "nothing here" would be blended
    with its neighbours and counted in the normalisation: such an image is not read.
    """


def whole(record: Record, path: Path | str, box: Box | None = None) -> Record:
    """Return a decoded record of the window `box` of `path`, unless pixels are missing.

    Raises:
        MissingPixels: how many are missing, why, and where the first one is.
    """
    gaps = {kind: where for kind, where in record.pop("missing", {}).items() if where.any()}
    if not gaps:
        return record
    where = np.logical_or.reduce(list(gaps.values()))
    row, col = (int(place[0]) for place in np.nonzero(where))
    kinds = " and ".join(gaps)
    scene = ""
    if "crs" in record and "transform" in record:
        scene = "encode it as a scene, where these pixels are left out (nec encode --scene); or "
    top, left = box[:2] if box else (0, 0)
    raise MissingPixels(
        f"cannot read {path}: {np.count_nonzero(where):,} of {where.size:,} pixels are missing "
        f"in at least one band ({kinds}), the first at row {top + row}, column {left + col}; an "
        f"encoder needs whole images: {scene}fill these pixels, or cut images that have none. If "
        "they are not missing, the file says so wrongly: unset its nodata value, its mask, or its mark of "
        "alpha (gdal_edit.py -unsetnodata, -colorinterp_4 undefined)"
    )


def cut(record: Record, box: Box | None) -> Record:
    """Return the window `box` of an already decoded record (the arrays are views)."""
    if box is None:
        return record
    out, window = record.copy(), slices_of(box)
    out["image"] = out["image"][window]
    if "mask" in out:
        out["mask"] = out["mask"][window]
    if "missing" in out:
        out["missing"] = {kind: where[window] for kind, where in out["missing"].items()}
    if "transform" in out:
        out["transform"] = moved(out["transform"], box)
    return out


def slices_of(box: Box | None) -> tuple[slice, slice]:
    """The rows and columns of a window."""
    if box is None:
        return np.s_[:, :]
    row, col, height, width = box
    return np.s_[row : row + height, col : col + width]


def moved(transform: Sequence[float], box: Box | None) -> Affine:
    """The transform of a window."""
    a, b, c, d, e, f = transform
    row, col = box[:2] if box else (0, 0)
    return a, b, c + a * col + b * row, d, e, f + d * col + e * row
