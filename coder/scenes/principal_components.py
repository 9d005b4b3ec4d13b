"""Principal components of embeddings, the same at each run, and colours of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder.errors import InputError

Floats = NDArray[np.float32]


class PrincipalComponents(NamedTuple):
    """Vectors of D channels -> scores of K components.

    Attributes:
        mean: float64 [D].
        axes: float64 [D, K], orthonormal columns, by falling variance. The largest loading of each
            is positive, so that the sign does not depend on the library.
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]

    def scores(self, vectors: NDArray[np.floating]) -> Floats:
        """[..., D] -> float32 [..., K]; NaN stays NaN."""
        flat = vectors.reshape(-1, vectors.shape[-1]) - self.mean
        return (flat @ self.axes).astype(np.float32).reshape(*vectors.shape[:-1], -1)


def principal_components(vectors: NDArray[np.floating], count: int) -> PrincipalComponents:
    """The first components of vectors [N, D].

    Raises InputError: no vector, or a count that is not from 1 to D.
    """
    if not len(vectors):
        raise InputError("there is no embedding, so that there are no principal components")
    if not 1 <= count <= vectors.shape[1]:
        raise InputError(
            f"{count} components of {vectors.shape[1]} channels: give a number from 1 to "
            f"{vectors.shape[1]}"
        )
    mean = vectors.mean(0, dtype=np.float64)
    centred = vectors - mean
    _, found = np.linalg.eigh(centred.T @ centred)
    axes = found[:, ::-1][:, :count]
    largest = np.abs(axes).argmax(0)
    return PrincipalComponents(mean, axes * np.sign(axes[largest, np.arange(count)]))


def stretched(scores: Floats, limits: NDArray[np.floating]) -> Floats:
    """Scores [..., K] -> 0 to 1: linear between the limits [2, K] of each component, and cut."""
    low, high = limits
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    return np.clip((scores - low) / span, 0, 1).astype(np.float32)
