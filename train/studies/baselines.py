"""The baselines of NEC: quantised embeddings and compressed images.

They are those of arXiv 2403.17886, and a fairer form of its UQE.

Every size is the length of real bytes, and every value comes from decoding them. Lossless coding
is Blosc, zstd at level 3 after a bit shuffle, as in the paper: one chunk per image, its header of
16 bytes counted. The bit shuffle gathers equal bits of all values, so that b-bit numbers need
no packing: their empty bit planes are runs of zeros.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from coder import InputError, ScalarCodec, Tables
from coder.codecs import OneQualityCodec, quantise
from coder.entropy import pmf_from_counts

_ZSTD_LEVEL = 3
_FLOAT32_PAIR = 8  # bytes of a minimum and a maximum
# The search for a size, in dB of PSNR: at the lowest, OpenJPEG codes almost nothing; the highest is
# well above that of rounding to integers. A codestream of 97 % of the target or more ends it.
_LOWEST_PSNR, _ABOVE_ROUNDING = 8.0, 4.0
_SEARCH_STEPS, _CLOSE = 14, 0.97


@dataclass(frozen=True)
class Coded:
    """The result of a method for images or embeddings.

    Attributes:
      values: decoded, in the input's order: float32 [N, n, D], or images [N, H, W, C].
      bytes_per_image: int64 [N], real sizes with all framing.
      codec_bytes: bytes that a decoder needs once, in addition to those of the images.
    """

    values: NDArray
    bytes_per_image: NDArray[np.int64]
    codec_bytes: int = 0


def uqe(y: NDArray[np.float32], bits: int, batch: int = 32) -> Coded:
    """Uniformly quantised embeddings as published: one minimum and maximum per batch.

    So an embedding depends on its neighbours, and one outlier channel sets the step of all. The
    symbols are stored as uint8 and compressed by Blosc; the two float32 are counted per image.

    Args:
      y: embeddings [N, n, D] of an uncompressed model; all tokens are coded, as by NEC.
      bits: 1 to 8.
      batch: number of images that share a range.

    Raises:
      InputError: another shape, NaN or infinity, other bits, no batch.
    """
    y = embeddings(y)
    if batch < 1:
        raise InputError(f"batch is {batch}: give 1 image or more")
    parts = []
    for start in range(0, len(y), batch):
        part = y[start : start + batch]
        low, high = part.min(keepdims=True), part.max(keepdims=True)
        parts.append(_uniform(part, bits, low, high))
    sizes = np.concatenate([p.bytes_per_image for p in parts]) + _FLOAT32_PAIR
    return Coded(np.concatenate([p.values for p in parts]), sizes)


def uqe_channel(y: NDArray[np.float32], bits: int, calibration: NDArray[np.float32]) -> Coded:
    """Uniformly quantised embeddings in a fairer form: fixed ranges, one per channel.

    Ranges are minima and maxima over `calibration` (training embeddings [M, n, D]); values outside
    are clipped. The ranges are counted once, in `codec_bytes`. Raises as `uqe`.
    """
    y, calibration = embeddings(y), embeddings(calibration)
    if calibration.shape[2] != y.shape[2]:
        raise InputError(f"calibration has {calibration.shape[2]} channels, y {y.shape[2]}")
    low, high = calibration.min((0, 1)), calibration.max((0, 1))
    coded = _uniform(y, bits, low, high)
    return Coded(coded.values, coded.bytes_per_image, _FLOAT32_PAIR * y.shape[2])


def per_channel(calibration: NDArray[np.float32], gain: float, class_tokens: int) -> ScalarCodec:
    """An untrained per-channel codec for embeddings [M, n, D].

    Args:
      gain: symbols per standard deviation of a channel.
      class_tokens: number of first tokens with their own tables, 0 or 1.
    """
    y = embeddings(calibration)
    offsets = y.mean((0, 1), dtype=np.float64).astype(np.float32)
    deviations = np.maximum(y.std((0, 1), dtype=np.float64), 1e-6)
    steps = (deviations / gain).astype(np.float32)
    symbols, channels = quantise(y, offsets, steps), np.arange(y.shape[2], dtype=np.int32)
    parts = [symbols[:, class_tokens:], symbols[:, :class_tokens]][: 1 + class_tokens]
    rows = []
    for part in parts:
        for d in channels:
            low = int(part[..., d].min())
            counts = np.bincount((part[..., d] - low).ravel())
            rows.append(pmf_from_counts(part[..., d], low, counts / counts.sum()))
    layout = channels + len(channels) if class_tokens else None
    return ScalarCodec(
        offsets=offsets,
        steps=steps,
        tables=Tables.from_pmfs(rows),
        grid_layout=channels,
        class_layout=layout,
    )


def coded_by(y: NDArray[np.float32], codec: OneQualityCodec, grid: tuple[int, int]) -> Coded:
    """Embeddings [N, n, D] coded by a codec that was fitted, not trained. Raises as `uqe`."""
    y = embeddings(y)
    blobs = [codec.encode(one, grid) for one in y]
    sizes = np.array([len(blob) for blob in blobs])
    return Coded(np.stack([codec.decode(blob) for blob in blobs]), sizes, codec.codec_bytes)


def float16(y: NDArray[np.float32]) -> Coded:
    """Embeddings [N, n, D] as float16, then Blosc. Raises InputError above 65504 also."""
    y = embeddings(y)
    if np.abs(y).max() > np.finfo(np.float16).max:
        raise InputError("an embedding exceeds float16's 65504: use float32")
    coded = lossless(y.astype(np.float16))
    return Coded(coded.values.astype(np.float32), coded.bytes_per_image)


def float32(y: NDArray[np.float32]) -> Coded:
    """Embeddings [N, n, D] as they are, then Blosc."""
    return lossless(embeddings(y))


def raw_zstd(images: NDArray) -> Coded:
    """Images [N, H, W, C] of any pixel type, lossless by Blosc (RDC in the paper)."""
    if images.ndim != 4 or images.size == 0:
        raise InputError(f"images have shape {images.shape}: pass [N, H, W, C]")
    return lossless(images)


def jpeg2000(images: NDArray, ratio: float) -> Coded:
    """JPEG 2000 at a compression ratio: the largest codestream that the search finds below it.

    OpenJPEG's 9-7 wavelet with the colour transform for three bands, one layer, one tile. The
    result is a raw codestream (J2K) without boxes and without the comment of 39 bytes that names
    the encoder. imagecodecs takes a quality in dB, so the ratio is searched for: sizes are within a
    few percent of the target, never above. If even the smallest codestream is larger (about 140
    bytes of headers), it is returned and counted.

    Args:
      images: [N, H, W, 1 or 3], uint8 or uint16 (full range).
      ratio: raw bytes over coded bytes, above 1.

    Raises:
      InputError: other images, or another ratio.
    """
    if images.ndim != 4 or images.size == 0 or images.shape[3] not in (1, 3):
        raise InputError(f"images have shape {images.shape}: JPEG 2000 takes 1 or 3 bands here")
    if images.dtype not in (np.uint8, np.uint16):
        raise InputError(f"images are {images.dtype}: JPEG 2000 takes uint8 or uint16")
    if not 1 < ratio < np.inf:
        raise InputError(f"ratio is {ratio}: give raw bytes over coded bytes, above 1")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenJPEG releases the interpreter's lock
        streams = list(pool.map(lambda image: _largest_below(image, image.nbytes / ratio), images))
    decoded = [imagecodecs.jpeg2k_decode(s).reshape(images.shape[1:]) for s in streams]
    return Coded(np.stack(decoded), np.array([len(stream) for stream in streams]))


def _largest_below(image: NDArray, limit: float) -> bytes:
    """Search the quality for a codestream of at most `limit` bytes; the smallest if none is."""
    low = _LOWEST_PSNR
    # Rounding errors have the variance 1 / 12.
    high = 10 * np.log10(12.0 * np.iinfo(image.dtype).max ** 2) + _ABOVE_ROUNDING
    best, above = _codestream(image, low), image.nbytes
    for step in range(_SEARCH_STEPS):
        if not _CLOSE * limit > len(best):
            break
        # Sizes grow about exponentially with the quality: alternate interpolation and halving.
        part = np.log(0.99 * limit / len(best)) / np.log(above / len(best))
        psnr = low + (high - low) * (np.clip(part, 0.1, 0.9) if step % 2 else 0.5)
        stream = _codestream(image, psnr)
        if len(stream) > limit:
            high, above = psnr, len(stream)
        else:
            low, best = psnr, max(best, stream, key=len)
    return best


def _codestream(image: NDArray, psnr: float) -> bytes:
    bands = image[..., 0] if image.shape[2] == 1 else image
    stream = imagecodecs.jpeg2k_encode(
        np.ascontiguousarray(bands),
        cast(Any, psnr),  # a float, whatever the stubs say
        codecformat="J2K",
        reversible=False,
        mct=image.shape[2] == 3,
        numthreads=1,
    )
    return without_comments(bytes(stream))


def without_comments(stream: bytes) -> bytes:
    """A JPEG 2000 codestream without the comment segments of its main header.

    ISO/IEC 15444-1, annex A: after SOC come segments of marker and length (that counts itself),
    until SOT opens the first tile.
    """
    kept, at = [stream[:2]], 2
    while stream[at : at + 2] != b"\xff\x90":
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at : at + 2] != b"\xff\x64":
            kept.append(stream[at:end])
        at = end
    return b"".join([*kept, stream[at:]])


def embeddings(y: NDArray) -> NDArray[np.float32]:
    """Embeddings in float32. Raises InputError unless they are finite, [N, n, D]."""
    y = np.asarray(y, np.float32)
    if y.ndim != 3 or y.size == 0 or not np.isfinite(y).all():
        raise InputError(f"embeddings have shape {y.shape}: pass finite ones, [N, n, D]")
    return y


def _uniform(y: NDArray[np.float32], bits: int, low: NDArray, high: NDArray) -> Coded:
    """Round to 2^bits levels from low to high, both included; values outside are clipped."""
    if bits not in range(1, 9):
        raise InputError(f"bits is {bits}: give 1 to 8")
    top = 2**bits - 1
    # A constant channel has one level, whatever its step.
    step = np.where(high > low, (high.astype(np.float64) - low) / top, 1.0)
    symbols = np.clip(np.rint((y - low.astype(np.float64)) / step), 0, top).astype(np.uint8)
    coded = lossless(symbols)
    values = (coded.values * step + low).astype(np.float32)
    return Coded(values, coded.bytes_per_image)


def lossless(arrays: NDArray) -> Coded:
    """Each array [i] of [N, ...] through Blosc and back."""
    streams = []
    for array in arrays:
        # imagecodecs shuffles by the array's item size and ignores `typesize`.
        buffer: Any = np.ascontiguousarray(array)
        stream = imagecodecs.blosc_encode(
            buffer,
            level=_ZSTD_LEVEL,
            compressor=imagecodecs.BLOSC.COMPRESSOR.ZSTD,
            shuffle=imagecodecs.BLOSC.SHUFFLE.BITSHUFFLE,
            numthreads=1,
        )
        streams.append(bytes(stream))
    decoded = [
        np.frombuffer(imagecodecs.blosc_decode(s), arrays.dtype).reshape(arrays.shape[1:])
        for s in streams
    ]
    values = np.stack(decoded)
    if values.tobytes() != arrays.tobytes():
        raise RuntimeError("Blosc did not return what it was given")
    return Coded(values, np.array([len(stream) for stream in streams]))
