"""Integers that stand for embeddings: with a scale for each token or channel, or companded."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder.arrays import refuse
from coder.embedding_files.array_views import Dequantised, Place, all_slices
from coder.errors import InputError

COMPANDED_NODATA = -128
"""The mark of missing data in companded embeddings."""
_COMPANDED_UNITS = 127.5


def companded(y: Any, nodata: float | None) -> Dequantised:
    """Embeddings int8 [.., D] that were companded by a signed square root, as AlphaEarth's are.

    The value of q is sign(q) (|q| / 127.5)^2; -128 marks missing data, and so does `nodata`.

    Raises InputError: no int8.
    """
    if y.dtype != np.int8:
        raise InputError(f"--companded is for int8, and these are {y.dtype}: leave it out")
    table = np.arange(-128, 128, dtype=np.float32) / np.float32(_COMPANDED_UNITS)
    table = np.sign(table) * np.square(table)

    def rule(values: NDArray[Any], place: Place) -> NDArray[np.float32]:
        return table[values.astype(np.int16) + 128]

    marks = {COMPANDED_NODATA} if nodata is None else {COMPANDED_NODATA, nodata}
    return Dequantised(y, rule, *sorted(marks))


def linear(y: Any, scale: Any, offset: Any, nodata: float | None) -> Dequantised:
    """Numbers [.., D] whose values are `number * scale + offset`, one each, or [D] for channels."""

    def rule(values: NDArray[Any], place: Place) -> NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):
            return (values * np.float64(scale) + np.float64(offset)).astype(np.float32)

    return Dequantised(y, rule, nodata)


def scaled(y: Any, scale: Any, nodata: float | None) -> Dequantised:
    """Integers [.., D] times scales, of which the shape says what each is for.

    Args:
      y: integers [N, D], [H, W, D] or [N, H, W, D].
      scale: one for each token, of the shape of y without D, as TESSERA has them; or one for each
        channel, [D]. Where N is D, give [N, 1] or [1, D]. A token whose scale is NaN is missing.
      nodata: which integer marks missing data.

    Raises InputError: no integers; scales of another shape, or of channels that are not finite.
    """
    if y.dtype.kind not in "iu":
        raise InputError(f"--scale is for integers, and these are {y.dtype}: leave it out")
    if scale.dtype.kind not in "fiu":
        raise InputError(f"scales of {scale.dtype}: give floats")
    shape, d = tuple(scale.shape), y.shape[-1]
    tokens = y.shape[:-1]
    for_tokens = shape in (tokens, (*tokens, 1))
    for_channels = shape in [(*(1,) * ones, d) for ones in range(y.ndim)]
    if for_tokens and for_channels:
        raise InputError(
            f"scales of shape {list(shape)} fit rows and channels of {list(y.shape)}: give "
            f"[{y.shape[0]}, 1] for rows, or [1, {d}] for channels"
        )
    if for_channels:
        whole = np.ma.filled(np.ma.asarray(scale[:]).astype(np.float64), np.nan).reshape(d)
        refuse(~np.isfinite(whole), "scales of channels", "NaN or infinite", remedy="mend the file")
        return linear(y, whole, 0.0, nodata)
    if not for_tokens:
        raise InputError(
            f"scales of shape {list(shape)} for embeddings of shape {list(y.shape)}: give one for "
            f"each token, {list(tokens)}, or one for each channel, [{d}]"
        )

    def rule(values: NDArray[Any], place: Place) -> NDArray[np.float32]:
        own = scale[tuple(all_slices(place, y.shape)[:-1])]
        own = np.ma.filled(own.astype(np.float32), np.nan)  # masked: null in a column
        if len(shape) < y.ndim:
            own = own[..., None]
        with np.errstate(over="ignore", invalid="ignore"):
            return (values * own).astype(np.float32)

    return Dequantised(y, rule, nodata, more_bytes=int(scale.nbytes))
