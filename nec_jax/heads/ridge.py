"""The linear head: ridge regression to one-hot labels, in closed form and float64."""

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nec_jax.heads.inference import batch_size, in_batches
from nec_jax.heads.network import as_norm, jitted_features, standardisation, with_decoder
from nec_jax.heads.params import HeadConfig, HeadParams
from nec_jax.params import NecParams

# From next to nothing to 100 times the data's own weight, two steps a decade.
STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 5))

Labelled = tuple[NDArray[np.floating], NDArray[np.int32]]  # features [N, D]
Embedded = tuple[NDArray[np.float32], NDArray[np.int32]]  # embeddings [N, n, D]


def fit_linear(
    config: HeadConfig, params: NecParams, data: Embedded, val: Embedded | None
) -> HeadParams:
    """Ridge regression on the mean token, standardised; that is done before the mean in a head."""
    decoder = with_decoder(config, params, {}) if config.with_decoder else {}

    def pooled(part: Embedded) -> NDArray[np.float64]:
        if not decoder:
            return part[0][:, config.class_tokens :].mean(1, dtype=np.float64)

        def mean_token(y: NDArray[np.float32]) -> NDArray[np.float64]:
            return np.asarray(jitted_features(config, decoder, y)).mean(1, dtype=np.float64)

        return in_batches(mean_token, part[0], batch_size(config))

    own = pooled(data)
    scaling = standardisation(own)
    mean, std = (np.asarray(scaling[k], np.float64) for k in ("mean", "std"))
    held = None if val is None else ((pooled(val) - mean) / std, val[1])
    train = ((own - mean) / std, data[1])
    kernel, bias, _ = fit_ridge(train, held, len(config.classes))
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    before = decoder | {"norm": as_norm(scaling)} if decoder else {"scaling": scaling}
    return HeadParams(before | {"head": {"classifier": layer}}, config)


def fit_ridge(
    train: Labelled, val: Labelled | None, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Minimise |X W + b - T|^2 / N + strength |W|^2 for targets T of +-1.

    Args:
      train: standardised features X [N, D] and labels [N].
      val: to choose the strength by accuracy on it, then by squared error; None: by the same
        scores of leave-one-out predictions, which ridge regression has in closed form.
      classes: number of classes.

    Returns:
      W [D, K], b [K], and the strength.
    """
    x = train[0].astype(np.float64)
    targets = signs(train[1], classes)
    x_mean, t_mean = x.mean(0), targets.mean(0)
    values, vectors = np.linalg.eigh((x - x_mean).T @ (x - x_mean) / len(x))
    projected = (x - x_mean) @ vectors
    moments = projected.T @ (targets - t_mean) / len(x)
    best = None
    for strength in STRENGTHS:
        shrunk = 1.0 / (np.maximum(values, 0.0) + strength)
        solution = shrunk[:, None] * moments
        if val is None:
            leverage = 1 / len(x) + (projected**2 @ shrunk) / len(x)
            residual = targets - t_mean - projected @ solution
            # A sample that decides its own fit alone has nothing left to be predicted from.
            scores = targets - residual / np.maximum(1 - leverage, 1e-9)[:, None]
            labels = train[1]
        else:
            scores = (val[0].astype(np.float64) - x_mean) @ vectors @ solution + t_mean
            labels = val[1]
        accuracy = np.mean(scores.argmax(1) == labels)
        merit = (accuracy, -np.mean((scores - signs(labels, classes)) ** 2))
        if best is None or merit > best[0]:
            best = merit, solution, strength
    assert best is not None
    kernel = vectors @ best[1]
    return kernel, t_mean - x_mean @ kernel, best[2]


def signs(labels: NDArray[np.int32], classes: int) -> NDArray[np.float64]:
    """Labels [N] -> [N, K], 1 at the label and -1 elsewhere."""
    return np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
