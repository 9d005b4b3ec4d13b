"""Fit a codec to embeddings: statistics of a sample, then the table of each coefficient."""

from coder.fitting.fit_codec import MAX_QUALITIES, fit, missing_tokens

__all__ = [
    "MAX_QUALITIES",
    "fit",
    "missing_tokens",
]
