"""The sample that a codec is fitted to: embeddings in batches, and which of them are missing."""

import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder.arrays import as_floats, check_whole, is_number, refuse, with_mask
from coder.errors import InputError, UnusualEmbedding
from coder.transform import LARGEST, Transform, spans

_BATCH = 1 << 23  # values per batch
_TILE = (LARGEST, 4 * LARGEST)  # size of the sampled tiles of a raster, tokens
HOLES = 0.25  # part of a block's tokens that may be missing if the block is to count
_MANY = 1000  # more than a thousandth of the tokens with one number in all channels is unusual

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


class Sample:
    """The sample of the embeddings, in batches of one grid each."""

    def __init__(self, embeddings: Any, class_tokens: Any, nodata: float | None, most: int):
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
        unit = 1 if self.spatial else LARGEST**2
        runs = _spread(-(-shape[0] // unit), self._most)
        size = max(1, _BATCH // (unit * int(np.prod(shape[1:]))))
        for some in np.array_split(runs, -(-len(runs) // size)):
            # One slice per run without gaps: everything that can be indexed takes slices.
            parts = np.split(some, np.flatnonzero(np.diff(some) > 1) + 1)
            spans = [slice(int(p[0]) * unit, (int(p[-1]) + 1) * unit) for p in parts]
            rows, there = self._read_all(self._embeddings, spans, "embeddings")
            if not self.spatial:  # one after another, as they may be coded
                rows = rows[there][None]
                if rows.size:
                    there = np.ones(rows.shape[:2], bool)
                    yield Batch(rows, there, there, (rows.shape[1], 1))
                continue
            rows, there, counted = _patched(rows, there)
            if self._class is not None:
                tokens, known = self._read_all(self._class, spans, "class tokens")
                tokens = np.where(known[:, None], tokens, 0)
                rows = np.concatenate([tokens[:, None], rows], axis=1)
                there, counted = (
                    np.concatenate([known[:, None], part], axis=1) for part in (there, counted)
                )
            yield Batch(rows, there, counted, shape[1:3])

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
            for tile, there in self._read_each(self._embeddings, some, "embeddings"):
                yield Batch(*_patched(tile[None], there[None]), tile.shape[:2])

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

    A block counts if at most a quarter of it is missing. Its holes are filled from their
    neighbours, which adds almost nothing to the coefficients of high frequencies.

    Returns:
      [B, n, D], and [B, n] twice.
    """
    counted = np.ones_like(there)
    if not there.all():
        y = np.where(there[..., None], y, 0)
        for b in np.flatnonzero(~there.all((1, 2))):
            for place in itertools.product(*map(spans, there.shape[1:])):
                block = there[b][place]
                if block.mean() < 1 - HOLES:
                    counted[b][place] = False
                elif not block.all():
                    y[b][place] = _filled(y[b][place], block)
    shape = (len(y), -1)
    return y.reshape(*shape, y.shape[-1]), there.reshape(shape), counted.reshape(shape)


def _filled(y: NDArray[np.floating], there: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Fill the holes (zeros) of a block [h, w, D] with means of neighbours, from the rim in."""
    y, there = y.astype(np.float64), there.copy()
    height, width = there.shape
    while not there.all():
        sums, count = np.zeros_like(y), np.zeros(there.shape)
        values, known = np.pad(y, [(1, 1), (1, 1), (0, 0)]), np.pad(there, 1)
        for place in np.ndindex(3, 3):
            around = tuple(slice(i, i + n) for i, n in zip(place, (height, width), strict=True))
            sums += values[around]
            count += known[around]
        rim = ~there & (count > 0)
        y[rim] = sums[rim] / count[rim][:, None]
        there |= rim
    return y


def _spread(count: int, most: int) -> NDArray[np.intp]:
    """At most `most` of the numbers 0 .. count - 1, evenly spread."""
    some = min(count, most)
    return np.arange(some) * count // some
