"""Scores of heads as ratios of counts, image by image, so that images can be resampled."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nec_jax.images.record import IGNORE

Counts = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Scores:
    """The results of several trainings of a head on N images.

    Attributes:
      hits, totals: int64 [S, N, C], by training, image and class. A score is the sum of hits over
        the sum of totals, averaged over the classes that occur.
    """

    hits: NDArray[np.int64]
    totals: NDArray[np.int64]

    def percent(self, times: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """The score of each training in percent, [S]; `times` [N] counts each image so often."""
        weights = np.ones(self.hits.shape[1], np.int64) if times is None else times
        hits, totals = (np.einsum("snc,n->sc", part, weights) for part in (self.hits, self.totals))
        occurs = totals > 0
        ratios = np.divide(hits, totals, out=np.zeros(hits.shape), where=occurs)
        return 100 * ratios.sum(1) / occurs.sum(1)


def top1(predicted: NDArray, target: NDArray, classes: int) -> Counts:
    """Counts [N, 1] of top-1 accuracy: 1 hit if the class is correct, of a total of 1."""
    del classes
    hits = (predicted == target).astype(np.int64)[:, None]
    return hits, np.ones_like(hits)


def mean_iou(predicted: NDArray, target: NDArray, classes: int) -> Counts:
    """Counts [N, C] of the mean IoU: pixels in the intersection, and in the union.

    Ignored pixels are left out. Predicted and target are [N, H, W].
    """
    pairs = classes * target.astype(np.int64) + predicted
    confusion = np.stack(
        [
            np.bincount(p[t != IGNORE], minlength=classes**2).reshape(classes, classes)
            for p, t in zip(pairs, target, strict=True)
        ]
    )
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    return hits, confusion.sum(1) + confusion.sum(2) - hits


METRICS = {"classification": top1, "segmentation": mean_iou}
"""The function that counts the metric of each task."""
