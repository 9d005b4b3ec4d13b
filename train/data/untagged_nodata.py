"""Numbers that often stand for missing pixels, in files that have no nodata tag."""

import logging
import threading
from collections import Counter

import numpy as np

from coder.errors import printable
from nec_jax.images.record import Record

_MARKS = (-9999, -32768)
_FLOOR = -1e38  # of floats: lower values are float32's lowest, or -3.4e38 typed by hand
_FAR = 0.05  # distance of a mark below all other values, as a part of their range
_EMPTY = (np.inf, -np.inf)  # the range of no values

log = logging.getLogger(__name__)


class UntaggedNodata:
    """Watches images as they are read, in any thread, for values that mark missing pixels.

    A mark is the lowest value of a band, is one of the usual numbers, and is far below all other
    values. A band whose values continue down to -9999 has none.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._pixels = 0
        self._counts: Counter[tuple[int, float]] = Counter()  # by band and mark
        self._ranges: dict[int, tuple[float, float]] = {}  # of each band, without its marks

    def __call__(self, record: Record) -> None:
        """Count the marks of an image [H, W, C]."""
        image = record["image"]
        if image.dtype.kind not in "if" or 0 in image.shape:
            return
        with self._lock:
            self._pixels += image.shape[0] * image.shape[1]
            for band, values in enumerate(np.moveaxis(image, -1, 0)):
                found = np.isin(values, _MARKS)
                if values.dtype.kind == "f":
                    found |= values < _FLOOR
                for mark, count in zip(*np.unique(values[found], return_counts=True), strict=True):
                    self._counts[band, float(mark)] += int(count)
                if not found.all():
                    rest, (low, high) = values[~found], self._ranges.get(band, _EMPTY)
                    self._ranges[band] = min(low, float(rest.min())), max(high, float(rest.max()))

    def warn(self, name: str) -> None:
        """Log the values that look like marks of missing pixels."""
        for band, mark in sorted(self._counts):
            low, high = self._ranges.get(band, _EMPTY)
            if low - mark <= _FAR * max(high - low, 1.0):
                continue
            log.warning(
                "band %d of %s has the value %g in %.2g %% of the pixels: if it marks missing "
                "data, set the nodata tag of the files (gdal_edit.py -a_nodata %.9g FILE), so that "
                "nothing is learned from it",
                band + 1,
                printable(name),
                mark,
                100 * self._counts[band, mark] / self._pixels,
                mark,
            )
