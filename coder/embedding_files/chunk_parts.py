"""The parts of embeddings that become one blob each, checked, with NaN where tokens are missing."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder.arrays import as_floats, refuse, with_mask
from coder.codecs import OneQualityCodec
from coder.embedding_files.array_views import Place, all_slices
from coder.errors import InputError
from coder.fitting import missing_tokens
from coder.transform import filled

VECTORS = 256  # in a chunk
TILE = 64  # side of a raster's chunks, tokens


def chunks_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The chunk shape for a plain array of embeddings; each chunk becomes one blob."""
    if len(shape) == 4:
        return (1, *shape[1:])
    if len(shape) == 3:
        return (*(min(TILE, side) for side in shape[:2]), shape[2])
    return (min(VECTORS, shape[0]), shape[1])


def checked_part(y: Any, place: Place, nodata: float | None) -> NDArray[np.float32]:
    """A part of embeddings as float32: NaN in all channels of tokens that are missing.

    A token is missing if it is masked or holds `nodata` in any channel, or is NaN in all.

    Raises InputError: infinity, or NaN in some channels of a token; says where the first is.
    """
    values = with_mask(y[place])
    floats = as_floats(np.ma.getdata(values))
    start = tuple(one.start for one in all_slices(place, y.shape))
    missing = missing_tokens(values, nodata, nan=False)
    unknown = np.isnan(floats)
    missing |= unknown.all(-1)
    refuse(
        unknown.any(-1) & ~missing,
        "tokens",
        "NaN in some of their channels",
        remedy="if they are missing, say so with --nodata nan; or fill them first",
        start=start[: missing.ndim],
    )
    bad = np.isinf(floats) & ~missing[..., None]
    remedy = "if those are missing data, name them with --nodata; or fill them first"
    refuse(bad, "values", "infinite in float32", np.ma.getdata(values), remedy, start)
    if missing.any():
        floats = np.where(missing[..., None], np.float32(np.nan), floats)
    return floats


def sampled_parts(
    y: Any, chunk: tuple[int, ...], nodata: float | None, count: int
) -> NDArray[np.float32]:
    """Chunks without missing tokens that are evenly spread: [B, n, D], of at most `count` places.

    Of vectors, those that are missing are left out, and the others make chunks.

    Raises InputError: as `checked_part`; or no chunk that was looked at is whole.
    """
    *sides, d = chunk
    numbers = [size // side for size, side in zip(y.shape, sides, strict=False)]
    found = []
    for number in np.unique(np.linspace(0, math.prod(numbers) - 1, count).astype(int)).tolist():
        at = np.unravel_index(number, numbers)
        place = tuple(slice(side * i, side * (i + 1)) for i, side in zip(at, sides, strict=True))
        part = checked_part(y, place, nodata).reshape(-1, d)
        there = ~np.isnan(part).any(-1)
        if len(sides) == 1:
            found.append(part[there])
        elif there.all():
            found.append(part)
    if len(sides) == 1:
        tokens = np.concatenate(found)
        if not len(tokens):
            raise InputError("all tokens that were looked at are missing: give --quality")
        size = min(sides[0], len(tokens))
        return tokens[: len(tokens) // size * size].reshape(-1, size, d)
    if not found:
        raise InputError(
            "tokens are missing in every chunk that a quality would be chosen by: give --quality"
        )
    return np.stack(found)


def aimed_chunk(y: NDArray[np.float32], codec: OneQualityCodec) -> NDArray[np.float32]:
    """One chunk, moved so that coding it is best for readers that refine; missing tokens stay."""
    tokens = y.reshape(-1, y.shape[-1])
    there = ~np.asarray(np.isnan(tokens).any(-1))
    grid = math.prod(y.shape[:-2]), y.shape[-2]
    aimed = tokens.copy()
    if there.any() and not codec.spatial:
        aimed[there] = codec.aim(tokens[there], (1, int(there.sum())))
    elif there.any():
        whole = filled(tokens.reshape(*grid, -1), there.reshape(grid)).reshape(tokens.shape)
        aimed[there] = codec.aim(whole, grid)[there]
    return aimed.reshape(y.shape)


def aimed(
    y: NDArray[np.float32], codec: OneQualityCodec, chunk: tuple[int, ...]
) -> NDArray[np.float32]:
    """Embeddings of whole chunks, moved so that coding them is best for readers that refine."""
    found = np.empty(y.shape, np.float32)
    counts = [-(-side // width) for side, width in zip(y.shape, chunk, strict=True)]
    for at in np.ndindex(*counts):
        place = tuple(slice(w * i, w * (i + 1)) for i, w in zip(at, chunk, strict=True))
        found[place] = aimed_chunk(y[place], codec)
    return found
