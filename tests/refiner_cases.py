"""A refiner that no training made."""

from typing import Any

import numpy as np

from coder import QualityLadder, Refiner


def random_refiner(codec: QualityLadder, seed: int = 2, **changes: Any) -> Refiner:
    """A refiner of random weights, for all qualities of a codec."""
    d, h, r = codec.channels, 9, codec.num_qualities
    m, c = d - 2, 5 * codec.transform.spatial
    rng = np.random.default_rng(seed)

    def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[0] or 1)).astype(dtype)

    qualities = [codec.at(quality) for quality in range(r)]
    codecs = {one.fingerprint.hex(): i for i, one in enumerate(qualities)}
    codecs |= {one.split()[0].fingerprint.hex(): i for i, one in enumerate(qualities)}
    half = np.float16
    parts: dict[str, Any] = {
        "codecs": codecs | {codec.fingerprint.hex(): -1},
        "mean": normal(d),
        "scale": np.exp(normal(d)),
        "basis": normal(d, m, dtype=half),
        "token": normal(m, h, dtype=half),
        "context": normal(2, c, h, dtype=half),
        "bias": normal(r, h),
        "out": normal(h, m, dtype=half),
        "offset": normal(m),
        "inputs": np.linspace(3, m, r).astype(np.int32),
        "outputs": np.linspace(m, 2, r).astype(np.int32),
        "gains": np.linspace(1, 0.1, r, dtype=np.float32),
    }
    return Refiner(**(parts | changes))
