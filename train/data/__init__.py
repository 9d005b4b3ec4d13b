"""Images for training and scoring: `open_source`, then `train_iterator` or `read_all`.

`open` finds the kind of a data set: `folder` (images in folders), `split_table` (a split.csv),
`tfds_source`, `blue_marble` or `potsdam`. `splits` divides a data set into splits, takes some of
its images, and joins several. `pipeline` makes batches of any of them, `views` makes versions of an
image. `fingerprint` shows whether data changed, `untagged_nodata` warns of missing pixels. The size
rule is in `nec_jax.images.size_rule`.
"""

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
from train.data.splits import at_most, spread

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
