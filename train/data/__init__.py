"""Images for training and scoring: `open_source`, then `train_iterator` or `read_all`."""

from nec_jax.images.record import (
    IGNORE,
    CorruptImageError,
    DataError,
    MissingPixels,
    Record,
    Source,
)
from nec_jax.images.size_rule import fit_to
from train.data.fingerprint import fingerprint
from train.data.open import folder_of, open_source
from train.data.pipeline import Split, read_all, train_iterator
from train.data.subset import at_most, spread

__all__ = [
    "IGNORE",
    "CorruptImageError",
    "DataError",
    "MissingPixels",
    "Record",
    "Source",
    "Split",
    "at_most",
    "fingerprint",
    "fit_to",
    "folder_of",
    "open_source",
    "read_all",
    "spread",
    "train_iterator",
]
