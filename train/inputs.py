"""What a compression run reads: images, or the activations of its frozen blocks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from nec_jax.api import check_images
from nec_jax.params import NecParams
from nec_jax.trainable import frozen_blocks
from train.config import Compress, OptionsError
from train.data import open_source, read_all
from train.data.record import Source
from train.initial import mask_ratio
from train.prefix import open_prefix
from train.pretrain import read_validation, train_batches


class Inputs(NamedTuple):
    """Inputs of one run.

    Attributes:
      start: blocks that the inputs have passed; 0 for images.
      batches: endless training batches, as the objective takes them; resumable.
      val: all that is validated on.
      sample: (limit) -> at most so many whole training images, or their tokens.
    """

    start: int
    batches: Iterator[dict[str, np.ndarray]]
    val: dict[str, np.ndarray]
    sample: Callable[[int], np.ndarray]


def open_inputs(
    options: Compress, base: NecParams, source: Source, trainable: Callable[[str], bool]
) -> Inputs:
    """Images; with `--cache` the activations of all blocks that stay as they are."""
    config = base.config
    if options.cache is None:
        val_images = read_validation(options, config)
        check_images(config, val_images)  # before hours of training: bands, dtype, range

        def images(limit: int) -> np.ndarray:
            return read_all(source, config.image_size, limit=limit).images

        return Inputs(0, train_batches(options, source, config), {"image": val_images}, images)

    if config.decoder_target != "features" or mask_ratio(options, config):
        raise OptionsError(
            "--cache needs inputs that are the same in every epoch, and nothing but tokens to "
            "compare: pass --proxy features, and no --mask-ratio"
        )
    blocks = frozen_blocks(config, base.weights, trainable)
    if not blocks:
        raise OptionsError(
            f"--cache: with --trainable {options.trainable} no first block stays as it is: pass "
            "--trainable late, or leave --cache out"
        )
    cache = (options.cache, options.cache_gb, base, blocks)
    train = open_prefix(*cache, source, views=options.views, seed=options.seed)
    val_source = open_source(options.data, options.val_split, chip=options.chip)
    val = open_prefix(*cache, val_source, limit=options.val_images).whole()
    batches = train.batches(options.batch, options.seed)
    return Inputs(blocks, batches, {"tokens": val}, train.whole)
