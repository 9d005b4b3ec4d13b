"""Codecs of token embeddings that only `benchmarks.decoder` measures: OPQ, and VQ with contexts.

Embeddings are [N, n, D] of a grid, without class tokens; the rest of the practices are in
`train.studies.common_baselines`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec_jax.sources import spread
from train.studies.baselines import Coded

_FRAME = 12  # bytes of a blob's frame
_PER_CODEWORD = 60  # tokens to train on
_PRIOR = 4.0  # how many counts of pairs the probability of an index alone is worth


def optimised_pq(y: NDArray[np.float32], parts: int, calibration: NDArray[np.float32]) -> Coded:
    """Optimised product quantisation (Ge 2013) by faiss: a learned rotation, then PQ."""
    import faiss

    tokens = _tokens(calibration, 1 << 16)
    d = tokens.shape[1]
    rotation: Any = faiss.OPQMatrix(d, parts)
    rotation.niter, rotation.niter_pq_0, rotation.niter_pq = 8, 8, 2
    rotation.train(tokens[spread(len(tokens), 1 << 14)])
    quantiser: Any = faiss.ProductQuantizer(d, parts, 8)
    quantiser.train(rotation.apply(tokens))
    symbols = quantiser.compute_codes(rotation.apply(_tokens(y)))
    values = rotation.reverse_transform(quantiser.decode(symbols)).reshape(y.shape)
    return Coded(values, np.full(len(y), parts * y.shape[1]), 4 * (256 * d + d * d))


def vector_quantised(
    y: NDArray[np.float32],
    codewords: int,
    calibration: NDArray[np.float32],
    grid: tuple[int, int],
) -> Coded:
    """Whole tokens by k-means; an index is coded in the context of those to its left and above.

    Bytes are the ideal code length, under static probabilities that are counted on `calibration`,
    and a blob's frame. A real coder needs a little more.
    """
    words = kmeans(calibration, codewords)
    known, index = nearest(calibration, words), nearest(y, words)
    bits = context_bits(index.reshape(-1, *grid), known.reshape(-1, *grid), codewords)
    return Coded(words[index], np.ceil(_FRAME + bits / 8).astype(np.int64), 4 * words.size)


def context_bits(
    index: NDArray[np.int64], known: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """The ideal code length [N] in bits of indices [N, h, w] under counts of `known`.

    The probability of an index is the mean of those given its left and its upper neighbour. Each
    of the two is a smoothed count of pairs.
    """
    alone = np.bincount(known.ravel(), minlength=count) + 0.5
    alone /= alone.sum()
    p, there = np.zeros(index.shape), np.zeros(index.shape)
    for here, before in ((np.s_[:, :, 1:], np.s_[:, :, :-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        pairs = np.zeros((count, count), np.float32)
        np.add.at(pairs, (known[before].ravel(), known[here].ravel()), 1)
        i, j = index[here], index[before]
        p[here] += (pairs[j, i] + _PRIOR * alone[i]) / (pairs.sum(1)[j] + _PRIOR)
        there[here] += 1
    return -np.log2(np.where(there > 0, p / np.maximum(there, 1), alone[index])).sum((1, 2))


def kmeans(y: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Codewords [count, D] of embeddings [N, n, D]."""
    import faiss

    tokens = _tokens(y, _PER_CODEWORD * count)
    found: Any = faiss.Kmeans(tokens.shape[1], count, niter=15, seed=0)
    found.cp.max_points_per_centroid = _PER_CODEWORD
    found.train(tokens)
    return np.asarray(found.centroids).reshape(count, -1)


def nearest(y: NDArray[np.float32], codewords: NDArray[np.float32]) -> NDArray[np.int64]:
    """The index of the nearest codeword of each token: [N, n]."""
    import faiss

    index: Any = faiss.IndexFlatL2(codewords.shape[1])
    index.add(codewords)
    return index.search(_tokens(y), 1)[1].reshape(y.shape[:2])


def _tokens(y: NDArray[np.float32], most: int | None = None) -> NDArray[np.float32]:
    flat = np.ascontiguousarray(y.reshape(-1, y.shape[-1]), np.float32)
    return flat if most is None else np.ascontiguousarray(flat[spread(len(flat), most)])
