"""Common ways to make embeddings smaller: fewer channels, fewer bits, codebooks.

Each is fitted on training embeddings. The part of the fit that a decoder needs is counted once
(`codec_bytes`). Tokens are coded one by one, so that all images take the same number of bytes. With
`zstd`, the bytes of each image are then compressed by Blosc, as in the other baselines.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder import InputError
from nec_jax.sources import spread
from train.studies.baselines import Coded, embeddings, lossless

_SAMPLE = 1 << 16  # maximum number of tokens to train codebooks on
_CENTROIDS = 256


def pca_int8(
    y: NDArray[np.float32], components: int, calibration: NDArray[np.float32], *, zstd: bool
) -> Coded:
    """The first principal components of each token, one byte each.

    The step of a component is its largest magnitude in `calibration`, divided by 127; larger values
    are clipped.

    Args:
      y: [N, n, D] embeddings.
      components: number of components, 1 to D.
      calibration: [M, m, D], training embeddings.
      zstd: whether to compress the bytes by Blosc.

    Raises:
      InputError: other shapes, NaN or infinity, or another number of components.
    """
    y, tokens = _checked(y, calibration)
    if not 1 <= components <= y.shape[2]:
        raise InputError(
            f"{components} principal components: the embeddings have {y.shape[2]} channels, give 1 "
            f"to {y.shape[2]}"
        )
    mean = tokens.mean(0, dtype=np.float64)
    centred = tokens - mean.astype(np.float32)
    _, vectors = np.linalg.eigh(np.atleast_2d(np.cov(centred, rowvar=False, bias=True)))
    basis = vectors[:, ::-1][:, :components].astype(np.float32)
    mean = mean.astype(np.float32)
    step = np.maximum(np.abs((tokens - mean) @ basis).max(0), 1e-30) / 127
    symbols = np.clip(np.rint((y - mean) @ basis / step), -127, 127).astype(np.int8)
    values = (symbols * step) @ basis.T + mean
    return _coded(symbols, values, 4 * (basis.size + mean.size + step.size), zstd)


def product_quantised(
    y: NDArray[np.float32], parts: int, calibration: NDArray[np.float32], *, zstd: bool
) -> Coded:
    """Product quantisation (Jegou 2011) by faiss: one byte for each of `parts` parts of a token.

    Args:
      y, calibration, zstd: as in `pca_int8`.
      parts: number of parts, a divisor of D.

    Raises:
      InputError: as `pca_int8`; parts that do not divide D; fewer than 256 tokens to train on.
      ModuleNotFoundError: faiss is not installed.
    """
    import faiss  # an optional dependency, which `Evaluate` checks

    y, tokens = _checked(y, calibration)
    channels = y.shape[2]
    if parts < 1 or channels % parts:
        raise InputError(
            f"{channels} channels cannot be cut into {parts} equal parts: give a divisor of "
            f"{channels}"
        )
    if len(tokens) < _CENTROIDS:
        raise InputError(
            f"{len(tokens)} tokens to train on: {_CENTROIDS} are needed, give more images"
        )
    quantiser: Any = faiss.ProductQuantizer(channels, parts, 8)
    quantiser.train(np.ascontiguousarray(tokens[spread(len(tokens), _SAMPLE)]))
    symbols = quantiser.compute_codes(np.ascontiguousarray(y.reshape(-1, channels)))
    values = quantiser.decode(symbols).reshape(y.shape)
    symbols = symbols.reshape(*y.shape[:2], parts)
    return _coded(symbols, values, 4 * _CENTROIDS * channels, zstd)


def binary(y: NDArray[np.float32], calibration: NDArray[np.float32], *, zstd: bool) -> Coded:
    """One bit per channel: the side of its mean. It decodes to the mean of that side.

    Arguments and errors are those of `pca_int8`.
    """
    y, tokens = _checked(y, calibration)
    mean = tokens.mean(0, dtype=np.float64).astype(np.float32)
    above = tokens > mean
    # A side without tokens decodes to the mean of all.
    high, low = (
        mean + np.where(side, tokens - mean, 0).sum(0) / side.sum(0).clip(1)
        for side in (above, ~above)
    )
    symbols = np.packbits(y > mean, axis=-1)
    bits = np.unpackbits(symbols, axis=-1, count=y.shape[2]).astype(bool)
    values = np.where(bits, high, low).astype(np.float32)
    return _coded(symbols, values, 4 * (mean.size + high.size + low.size), zstd)


def _checked(y: NDArray, calibration: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings [N, n, D], and the tokens [T, D] of those to calibrate on."""
    y, calibration = embeddings(y), embeddings(calibration)
    if y.shape[2] != calibration.shape[2]:
        raise InputError(f"calibration has {calibration.shape[2]} channels, y {y.shape[2]}")
    return y, calibration.reshape(-1, y.shape[2])


def _coded(symbols: NDArray, values: NDArray, codec_bytes: int, zstd: bool) -> Coded:
    """The symbols [i] of each image in [N, ...], as they are or compressed by Blosc."""
    sizes = lossless(symbols).bytes_per_image if zstd else np.full(len(symbols), symbols[0].nbytes)
    return Coded(values.astype(np.float32), sizes, codec_bytes)
