"""Images to archives: `encode_archive`, which `nec encode --model` calls.

`image_archive` reads, encodes and writes. `image_list` compares the images with those that an
archive was begun with.
"""

from nec_jax.archiving.image_archive import Encoded, encode_archive, quality_for

__all__ = ["Encoded", "encode_archive", "quality_for"]
