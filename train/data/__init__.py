"""Images for training and scoring: batches of a source (`nec_jax.sources`), or all of it.

`pipeline` has `train_iterator` and `read_all`, `views` makes versions of an image. `fingerprint`
shows whether data changed, `untagged_nodata` warns of missing pixels.
"""

from train.data.fingerprint import fingerprint
from train.data.pipeline import Split, read_all, train_iterator

__all__ = ["Split", "fingerprint", "read_all", "train_iterator"]
