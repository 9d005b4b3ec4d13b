"""Codecs and data that the coder's tests share."""

import numpy as np
from numpy.typing import NDArray

from coder import ScalarCodec, Tables
from coder.entropy import pmf_from_counts

Y = np.array([[0.2, 3.0, -40.0], [1.4, 0.5, 2.0], [-9.0, 0.6, 900.0]], np.float32)


def laplace_embeddings(seed: int, images: int, tokens: int, scale: NDArray) -> NDArray[np.float32]:
    """[images, tokens, D]: heavy-tailed channels of these scales [D]."""
    rng = np.random.default_rng(seed)
    return (rng.laplace(size=(images, tokens, scale.size)) * scale).astype(np.float32)


def fitted_codec(y: NDArray, *, class_token: bool, step: float = 1.0, **settings) -> ScalarCodec:
    """A codec calibrated on embeddings [images, tokens, D], class token first if it is coded."""
    channels = y.shape[-1]
    offsets = np.linspace(-0.03, 0.04, channels, dtype=np.float32)
    q = np.rint((y - offsets) / np.float32(step)).astype(np.int32)
    prior = np.array([0.05, 0.2, 0.5, 0.2, 0.04])
    grid = q[:, 1:] if class_token else q
    pmfs = [pmf_from_counts(grid[..., d], -2, prior) for d in range(channels)]
    if class_token:
        pmfs += [pmf_from_counts(q[:, 0, d], -2, prior) for d in range(channels)]
    return ScalarCodec(
        offsets,
        np.full(channels, step, np.float32),
        Tables.from_pmfs(pmfs),
        np.arange(channels),
        np.arange(channels) + channels if class_token else None,
        **settings,
    )


def small_codec(class_token: bool = True, **settings) -> ScalarCodec:
    """Three channels, tables of different sizes; probabilities that floats hold exactly."""
    tables = Tables.from_pmfs(
        [
            (-1, np.array([0.25, 0.5, 0.125]), 0.125),
            (0, np.array([0.875]), 0.125),
            (-3, np.full(7, 0.125), 0.125),
        ]
    )
    return ScalarCodec(
        np.array([0.0, 0.5, -1.0]),
        np.array([1.0, 0.25, 2.0]),
        tables,
        np.array([0, 1, 2]),
        np.array([2, 2, 0]) if class_token else None,
        **settings,
    )


def own_lines(stderr: str) -> list[str]:
    """What a command printed to stderr itself."""
    # numcodecs says this whenever it is imported beside the dependencies of zarr 3.1.1.
    return [line for line in stderr.splitlines() if "crc32c usage" not in line]
