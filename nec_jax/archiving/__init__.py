"""Images to archives: `encode_archive`, which `nec encode --model` calls.

`image_archive` reads, encodes and writes. `image_list` compares the images with those that an
archive was begun with. `cluster` does all this on the workers of a dask cluster, which open
`named_inputs`; it needs nec-jax[cluster], and is imported by its own name.
"""

from nec_jax.archiving.image_archive import Encoded, encode_archive, quality_for

__all__ = ["Encoded", "encode_archive", "quality_for"]
