"""Data sources: images that are read one by one, with what is known of them.

Any is opened by `open_source`.
`open` finds the kind of a data set: `folder` (images in folders), `split_table` (a split.csv),
`tfds_source`, `blue_marble` or `potsdam`. `named_images` opens files, `image_table` tables, and
`remote_images` URLs. `splits` divides a data set into splits, takes some of its images, and joins
several. What a source is, `nec_jax.images.record` says.
"""

from nec_jax.sources.image_table import OF_FILES, ImageTable
from nec_jax.sources.named_images import absolute, open_inputs
from nec_jax.sources.open import folder_of, open_source
from nec_jax.sources.remote_images import images_at
from nec_jax.sources.splits import at_most, spread

__all__ = [
    "OF_FILES",
    "ImageTable",
    "absolute",
    "at_most",
    "folder_of",
    "images_at",
    "open_inputs",
    "open_source",
    "spread",
]
