"""Fit a codec to embeddings: statistics of a sample, then the table of each coefficient.

`fit_codec` has `fit`, and fits the transform. `sample` reads a sample of the embeddings, finds the
tokens that are missing, and holds a part out. `stated_error` measures the error of coding on it,
and finds the quality that keeps a bound. `histograms` counts how large coefficients are.
`table_choice` chooses the table of each kind of coefficient at each quality, or not to code it. The
tables themselves are in `coder.transform`. `fit_refiner` trains a refiner for a codec; a caller can
give the network that is trained, which gets the tokens in `Coded`.
"""

from coder.fitting.fit_codec import MAX_QUALITIES, METRICS, fit, fit_for_model, fit_measured
from coder.fitting.fit_refiner import (
    LEAST,
    Coded,
    fit_refiner,
    refuse_too_few,
)
from coder.fitting.sample import missing_tokens
from coder.fitting.stated_error import HeldOut, MaxError, StatedError, measure

__all__ = [
    "LEAST",
    "MAX_QUALITIES",
    "METRICS",
    "Coded",
    "HeldOut",
    "MaxError",
    "StatedError",
    "fit",
    "fit_for_model",
    "fit_measured",
    "fit_refiner",
    "measure",
    "missing_tokens",
    "refuse_too_few",
]
