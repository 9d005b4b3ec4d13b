"""The sample that a codec is fitted to: embeddings in batches, and which of them are missing.

A part of the sample can be held out: the fit leaves it alone, so that the error of coding can be
measured on it. It is held out in the units that are read: grids, tiles of a raster, or runs of
vectors; single vectors if there are few.
"""

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder.arrays import as_floats, check_whole, is_number, refuse, with_mask
from coder.errors import InputError, UnusualEmbedding
from coder.transform import LARGEST, Transform, filled, spans

_BATCH = 1 << 23  # values per batch
_TILE = (LARGEST, 4 * LARGEST)  # size of the sampled tiles of a raster, tokens
MOST_SAMPLES = 4096
HOLES = 0.25  # part of a block's tokens that may be missing if the block is to count
_MANY = 1000  # more than a thousandth of the tokens with one number in all channels is unusual
_RUN = LARGEST**2  # vectors that are read together
_FEW_RUNS = 64  # of fewer, single vectors are held out
_EIGHTH = 8  # one unit of so many is held out; of fewer vectors up to one of ...
_QUARTER = 4
_HELD_OUT = 64  # vectors at least, if there are enough
_LEAST = 32  # vectors; of fewer, none is held out
_MOST_VALUES, _MOST_TOKENS = 1 << 23, 1 << 15  # that are held out
_GOLDEN = (5**0.5 - 1) / 2

_Place = slice | tuple[slice, ...]


class Batch(NamedTuple):
    """Embeddings of one grid: values, masks and the grid (h, w).

    The values are float32 [B, n, D], or float64 if float32 cannot hold them. The masks [B, n] say
    which tokens are there, and which lie in blocks that count.
    """

    y: NDArray[np.floating]
    there: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    grid: tuple[int, int]
    units: NDArray[np.intp]
    """The unit of each of the B; of vectors, B is 1, and it is the unit of each of them, [1, n]."""

    @property
    def first(self) -> int:
        """The place of the first token of the grid: 1 after a class token, else 0."""
        return self.y.shape[1] - self.grid[0] * self.grid[1]

    def only(self, units: NDArray[np.bool_]) -> "Batch":
        """The part of those of `units`, a mask of its shape."""
        if units.all():
            return self
        place = units if units.ndim == 1 else (slice(None), units[0])
        grid = self.grid if units.ndim == 1 else (int(np.count_nonzero(units)), 1)
        y, there, counted = self.y[place], self.there[place], self.counted[place]
        return Batch(y, there, counted, grid, self.units[place])


class Sample:
    """The sample of the embeddings, in batches of one grid each.

    Attributes:
      channels: D.
      spatial: whether there are grids or a raster.
      class_tokens: whether there are class tokens.
      dtypes: those of the embeddings and class tokens that were read.
      held_out: one unit of so many is held out; 0 for none.
    """

    def __init__(
        self, embeddings: Any, class_tokens: Any, nodata: float | None, most: int = MOST_SAMPLES
    ):
        if nodata is not None and not is_number(nodata):
            raise InputError(f"nodata is {nodata!r}: give the number that stands for missing data")
        most = check_whole("max_samples", most)
        if not hasattr(embeddings, "shape"):
            embeddings = with_mask(embeddings)
        shape = tuple(embeddings.shape)
        if any(side != side for side in shape):  # NaN, of a dask array
            raise InputError(
                f"embeddings of shape {shape}, which dask does not know: call compute_chunk_sizes "
                "on the array first"
            )
        if len(shape) not in (2, 3, 4) or 0 in shape:
            raise InputError(
                f"embeddings of shape {shape}: give grids [N, H, W, D], a raster [H, W, D], "
                "or vectors [N, D]"
            )
        if class_tokens is not None:
            if not hasattr(class_tokens, "shape"):
                class_tokens = with_mask(class_tokens, "class tokens")
            if len(shape) != 4 or tuple(class_tokens.shape) != (shape[0], shape[-1]):
                raise InputError(
                    f"class tokens of shape {tuple(class_tokens.shape)}: give one for each of the "
                    f"grids, of shape {shape}"
                )
        self._embeddings, self._class, self._most = embeddings, class_tokens, most
        self._nodata = nodata
        self._unnamed = self._seen = 0
        self._same: Counter[float] = Counter()  # tokens by the number that all their channels have
        self.channels = shape[-1]
        self.spatial = len(shape) > 2
        self.class_tokens = class_tokens is not None
        self.dtypes: dict[str, np.dtype] = {}  # of embeddings, and of class tokens
        self._looking = False
        self.held_out = 0

    @property
    def tokens(self) -> int:
        """The number of tokens of a grid, which is always coded as a whole."""
        shape = self._embeddings.shape
        return shape[1] * shape[2] if len(shape) == 4 else 1

    def check_fits(self, transform: Transform, owner: str) -> None:
        """Raise InputError if a transform, which `owner` names, is of other embeddings."""
        if self.channels != transform.channels:
            raise InputError(
                f"the {owner} is of {transform.channels} channels, the embeddings have "
                f"{self.channels}"
            )
        if self.spatial != transform.spatial:
            one, two = ("grids", "vectors") if transform.spatial else ("vectors", "grids")
            raise InputError(f"the {owner} is for {one}, and the embeddings are {two}")
        has_class = transform.class_mean is not None
        if has_class and not self.class_tokens:
            raise InputError(
                f"the {owner} codes class tokens, and none are given: give class_tokens in Python; "
                "for a model, use `nec refine`"
            )
        if self.class_tokens and not has_class:
            raise InputError(f"the {owner} codes no class tokens: leave them out")

    def batches(self, *, looking: bool = False) -> Iterator[Batch]:
        """All of the sample, in the same order each time.

        Args:
          looking: whether to count the tokens to warn of; one round does.
        """
        self._looking = looking
        shape = self._embeddings.shape
        if len(shape) == 3:
            yield from self._tiles()
            return
        unit = 1 if self.spatial else _RUN
        runs = _spread(-(-shape[0] // unit), self._most)
        size = max(1, _BATCH // (unit * int(np.prod(shape[1:]))))
        first = 0
        for some in np.array_split(runs, -(-len(runs) // size)):
            # One slice per run without gaps: everything that can be indexed takes slices.
            parts = np.split(some, np.flatnonzero(np.diff(some) > 1) + 1)
            spans = [slice(int(p[0]) * unit, (int(p[-1]) + 1) * unit) for p in parts]
            rows, there = self._read_all(self._embeddings, spans, "embeddings")
            if not self.spatial:  # one after another, as they may be coded
                if self._single:
                    units = first + np.arange(np.count_nonzero(there))
                    first += units.size
                else:
                    units = (first + np.arange(there.size) // unit)[there]
                    first += len(some)
                rows = rows[there][None]
                if rows.size:
                    there = np.ones(rows.shape[:2], bool)
                    yield Batch(rows, there, there, (rows.shape[1], 1), units[None])
                continue
            units = np.arange(first, first + len(some))
            first += len(some)
            rows, there, counted = _patched(rows, there)
            if self._class is not None:
                tokens, known = self._read_all(self._class, spans, "class tokens")
                tokens = np.where(known[:, None], tokens, 0)
                rows = np.concatenate([tokens[:, None], rows], axis=1)
                there, counted = (
                    np.concatenate([known[:, None], part], axis=1) for part in (there, counted)
                )
            yield Batch(rows, there, counted, shape[1:3], units)

    @property
    def _single(self) -> bool:
        """Whether the units are single vectors."""
        return not self.spatial and self._embeddings.shape[0] < _FEW_RUNS * _RUN

    def _tiles(self) -> Iterator[Batch]:
        sides = self._embeddings.shape[:2]
        down, across = (-(-side // tile) for side, tile in zip(sides, _TILE, strict=True))
        places = [
            tuple(
                slice(int(k) * t, (int(k) + 1) * t)
                for k, t in zip(divmod(number, across), _TILE, strict=True)
            )
            for number in _spread(down * across, self._most)
        ]
        size = max(1, _BATCH // (int(np.prod(_TILE)) * self.channels))
        for start in range(0, len(places), size):
            some = places[start : start + size]
            tiles = self._read_each(self._embeddings, some, "embeddings")
            for number, (tile, there) in enumerate(tiles, start):
                parts = _patched(tile[None], there[None])
                yield Batch(*parts, tile.shape[:2], np.array([number]))

    @property
    def _units(self) -> tuple[int, int, int]:
        """How many units there are, how many are read, and the vectors of the largest."""
        shape, most = self._embeddings.shape, self._most
        if len(shape) == 2:
            whole, size = (shape[0], 1) if self._single else (-(-shape[0] // _RUN), _RUN)
            most *= _RUN if self._single else 1
        elif len(shape) == 3:
            sides = list(zip(shape[:2], _TILE, strict=True))
            whole = math.prod(-(-side // tile) for side, tile in sides)
            size = math.prod(min(side, tile) for side, tile in sides)
        else:
            whole, size = shape[0], shape[1] * shape[2]
        return whole, min(whole, most), size

    @property
    def whole(self) -> int:
        """The number of vectors that there are, without class tokens."""
        return math.prod(self._embeddings.shape[:-1])

    @property
    def vectors(self) -> int:
        """About how many vectors are read, without class tokens."""
        whole, read, _ = self._units
        return self.whole * read // whole

    def hold_out(self) -> None:
        """Hold a part out, unless all is needed."""
        _, units, size = self._units
        if units < _QUARTER or self.vectors < _LEAST:
            return
        most = max(1, self._most_tokens // size)
        usual = min(max(self.vectors // _HELD_OUT, _QUARTER), _EIGHTH)
        self.held_out = units if units < _EIGHTH else max(usual, -(-units // most))

    @property
    def _most_tokens(self) -> int:
        return min(_MOST_TOKENS, _MOST_VALUES // self.channels)

    def limit(self) -> None:
        """Read no more than could be held out of a larger sample."""
        _, _, size = self._units
        self._most = min(self._most, max(1, self._most_tokens // (_RUN if self._single else size)))

    def is_held_out(self, units: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which units are held out: one of each `held_out` that follow one another, if any.

        Its place among them changes, so that nothing that repeats in the embeddings is left out.
        """
        if not (every := self.held_out):
            return np.zeros(units.shape, bool)
        group, place = np.divmod(units, every)
        return place == ((group + 1) * _GOLDEN % 1 * every).astype(np.intp)

    def warn_of_unnamed(self, *, stacklevel: int) -> None:
        """Warn of NaN that neither a mask nor `nodata` marks as missing."""
        if self._unnamed:
            warnings.warn(
                f"{self._unnamed} of {self._seen} tokens hold NaN, and were left out: if they are "
                "missing data, pass nodata nan, or mask them",
                UnusualEmbedding,
                stacklevel=stacklevel,
            )

    def warn_of_marks(self, *, stacklevel: int) -> None:
        """Warn of tokens with the same number in all channels, which no model makes."""
        same = self._same.total()
        if same > self._seen // _MANY:
            [(value, _)] = self._same.most_common(1)
            warnings.warn(
                f"{same} of {self._seen} tokens have one number in all channels, as {value:g}: do "
                "they mark missing data? Name it with nodata, or mask them",
                UnusualEmbedding,
                stacklevel=stacklevel,
            )

    def _read_all(
        self, array: Any, spans: list[slice], what: str
    ) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
        values, there = zip(*self._read_each(array, spans, what), strict=True)
        return np.concatenate(values), np.concatenate(there)

    def _read_each(
        self, array: Any, places: Sequence[_Place], what: str
    ) -> Iterator[tuple[NDArray[np.floating], NDArray[np.bool_]]]:
        """Parts of an array, [..., D], and which of their tokens [...] are there."""
        parts = (array[place] for place in places)
        if _is_lazy(array):
            from dask.base import compute

            # At once: a chunk of which there are many parts is computed once for all of them.
            parts = compute(*parts)
        for place, part in zip(places, parts, strict=True):
            yield self._checked(part, place, what)

    def _checked(
        self, part: Any, place: _Place, what: str
    ) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
        values = with_mask(part, what)
        dtype = self.dtypes[what] = values.dtype
        # In float64 while values beyond float32 may still turn out to be missing data.
        wide = dtype.itemsize > (2 if dtype.kind in "iu" else 4)
        floats = as_floats(np.ma.getdata(values), what, np.float64 if wide else np.float32)
        named = missing_tokens(values, self._nodata, nan=False)
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = as_floats(floats)
            finite = np.isfinite(narrow.sum(dtype=np.float64))
        if not finite:
            missing = named | np.isnan(narrow).any(-1)
            unnamed = int(missing.sum() - named.sum())
            refuse(
                np.isinf(narrow) & ~missing[..., None],
                f"values of {what} looked at",
                "infinite in float32",
                np.ma.getdata(values),
                "if those are missing data, name them with nodata, or mask them",
                tuple(part.start for part in (place if isinstance(place, tuple) else (place,))),
            )
        else:
            missing, unnamed = named, 0
        if self._looking:
            self._seen += missing.size
            self._unnamed += unnamed
            if self.channels > 1:
                equal = (narrow == narrow[..., :1]).all(-1) & ~missing
                self._same.update(narrow[..., 0][equal].tolist())
        return floats, ~missing


def _is_lazy(array: Any) -> bool:
    """Whether dask computes an array."""
    graph = getattr(array, "__dask_graph__", None)
    return graph is not None and graph() is not None


def missing_tokens(values: NDArray, nodata: float | None, *, nan: bool = True) -> NDArray[np.bool_]:
    """Which tokens of [..., D] are missing [...]: masked, `nodata` or NaN in any channel.

    Args:
      values: numbers, a masked array or not.
      nodata: the mark of missing data, as a value of their dtype; float64 values also match its
        nearest float32. None if there is none. Raises InputError if the dtype cannot hold it.
      nan: whether NaN counts as missing.
    """
    missing = np.zeros(values.shape[:-1], bool)
    if isinstance(values, np.ma.MaskedArray):
        missing |= np.ma.getmaskarray(values).any(-1)
        values = values.data
    if nodata is not None:
        mark = _in_dtype(nodata, values.dtype)
        nan = nan or bool(np.isnan(mark))
        missing |= (values == mark).any(-1)
        if values.dtype.kind == "f" and values.dtype.itemsize > 4:
            # Embeddings that were float32 hold the mark as float32 does.
            with np.errstate(over="ignore"):
                missing |= (values == np.float32(nodata)).any(-1) & np.isfinite(np.float32(nodata))
    if nan and values.dtype.kind not in "iu":
        missing |= np.isnan(values).any(-1)
    return missing


def _in_dtype(nodata: float, dtype: np.dtype) -> Any:
    """`nodata` in a dtype, to be compared with values of that dtype."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        fits = np.isfinite(nodata) and nodata % 1 == 0 and limits.min <= nodata <= limits.max
        nodata = int(nodata) if fits else nodata
    else:
        with np.errstate(over="ignore"):
            fits = np.isfinite(dtype.type(nodata)) or not np.isfinite(nodata)
    if not fits:
        raise InputError(f"nodata is {nodata}: embeddings of {dtype} cannot hold that")
    return dtype.type(nodata)


def _patched(
    y: NDArray[np.floating], there: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], NDArray[np.bool_], NDArray[np.bool_]]:
    """Fill the holes of grids [B, h, w, D]; say which tokens are there, and which blocks count.

    A block counts if at most a quarter of it is missing. Holes are filled from their neighbours,
    which adds almost nothing to the coefficients of high frequencies.

    Returns:
      [B, n, D], and [B, n] twice.
    """
    counted = np.ones_like(there)
    if not there.all():
        y = np.where(there[..., None], y, 0)
        for b in np.flatnonzero(~there.all((1, 2))):
            if there[b].any():
                y[b] = filled(y[b], there[b])
            for place in itertools.product(*map(spans, there.shape[1:])):
                if there[b][place].mean() < 1 - HOLES:
                    counted[b][place] = False
    shape = (len(y), -1)
    return y.reshape(*shape, y.shape[-1]), there.reshape(shape), counted.reshape(shape)


def _spread(count: int, most: int) -> NDArray[np.intp]:
    """At most `most` of the numbers 0 .. count - 1, evenly spread."""
    some = min(count, most)
    return np.arange(some) * count // some
