"""Arrays seen in another order or in other units, each part when it is sliced."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder.fitting import missing_tokens

Place = slice | tuple[slice, ...]
"""What the arrays of this room are sliced by: slices without a step."""


class View:
    """What all views share.

    Attributes:
      shape, dtype, ndim: as an array has them.
      nbytes: of what the view is of.
      chunks: the shape of the parts that are best read as a whole.
    """

    def __init__(
        self, source: Any, shape: Sequence[int], chunks: Sequence[int], dtype: Any = None
    ) -> None:
        self.source = source
        self.shape, self.chunks = tuple(shape), tuple(chunks)
        self.dtype = np.dtype(source.dtype if dtype is None else dtype)
        self.ndim, self.nbytes = len(self.shape), int(source.nbytes)


def chunks_at(y: Any) -> tuple[int, ...]:
    """The shape of the parts of an array that are best read as a whole."""
    return tuple(getattr(y, "chunks", None) or y.shape)


def all_slices(place: Place, shape: Sequence[int]) -> list[slice]:
    """A slice with start and stop for each dimension."""
    given = list(place) if isinstance(place, tuple) else [place]
    given += [slice(None)] * (len(shape) - len(given))
    found = []
    for one, side in zip(given, shape, strict=True):
        start, stop, _ = one.indices(side)
        found.append(slice(start, max(start, stop)))
    return found


class ChannelsLast(View):
    """A raster [D, H, W] as [H, W, D], or grids [N, D, H, W] as [N, H, W, D]."""

    def __init__(self, source: Any):
        def moved(sides: Sequence[int]) -> tuple[int, ...]:
            return (*sides[:-3], *sides[-2:], sides[-3])

        super().__init__(source, moved(source.shape), moved(chunks_at(source)))

    def __getitem__(self, place: Place) -> NDArray[Any]:
        *first, rows, columns, channels = all_slices(place, self.shape)
        part = self.source[(*first, channels, rows, columns)]
        order = (*range(len(first)), part.ndim - 2, part.ndim - 1, part.ndim - 3)
        return part.transpose(order)


class Flipped(View):
    """Rasters [.., H, W, D] whose rows, or columns, are in reverse order."""

    def __init__(self, source: Any, *, rows: bool, columns: bool):
        super().__init__(source, source.shape, chunks_at(source))
        self._turned = {source.ndim - 3: rows, source.ndim - 2: columns}

    def __getitem__(self, place: Place) -> NDArray[Any]:
        slices = all_slices(place, self.shape)
        back = [slice(None)] * len(slices)
        for axis, turned in self._turned.items():
            if turned:
                one, side = slices[axis], self.shape[axis]
                slices[axis] = slice(side - one.stop, side - one.start)
                back[axis] = slice(None, None, -1)
        return self.source[tuple(slices)][tuple(back)]


class Marked(View):
    """Numbers of any shape, masked where they hold `nodata`."""

    def __init__(self, source: Any, nodata: float | None):
        super().__init__(source, source.shape, chunks_at(source))
        self._nodata = nodata

    def __getitem__(self, place: Place) -> NDArray[Any]:
        values = self.source[place]
        return values if self._nodata is None else np.ma.masked_equal(values, self._nodata)


class Dequantised(View):
    """Numbers that stand for others, as float32; missing tokens are masked.

    A token is missing if it is masked or holds `nodata` in any channel, or if its numbers are all
    NaN, as by a scale that is NaN.
    """

    def __init__(
        self,
        source: Any,
        rule: Callable[[NDArray[Any], Place], NDArray[np.float32]],
        *nodata: float | None,
        more_bytes: int = 0,
    ):
        """Take the numbers, and how to make floats of them.

        Args:
          source: an array of [.., D].
          rule: numbers, and their place in the source -> floats.
          nodata: which of the numbers mark missing data; None for none.
          more_bytes: the size of what the rule needs.
        """
        super().__init__(source, source.shape, chunks_at(source), np.float32)
        self._rule, self._nodata = rule, nodata
        self.nbytes += more_bytes

    def __getitem__(self, place: Place) -> NDArray[Any]:
        values = self.source[place]
        missing = np.zeros(values.shape[:-1], bool)
        for mark in self._nodata:
            missing |= missing_tokens(values, mark)
        floats = self._rule(np.ma.getdata(values), place)
        missing |= np.isnan(floats).all(-1)
        if not missing.any():
            return floats
        return np.ma.masked_array(floats, np.repeat(missing[..., None], floats.shape[-1], -1))
