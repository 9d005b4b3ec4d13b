"""Fit a codec to embeddings: statistics of a sample, then the table of each coefficient."""

from coder.fitting.fit_codec import MOST_RATES, fit, missing_tokens

__all__ = [
    "MOST_RATES",
    "fit",
    "missing_tokens",
]
