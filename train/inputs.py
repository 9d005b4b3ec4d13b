"""What a compression run reads: images, or the activations of its frozen blocks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from nec_jax.api import check_images
from nec_jax.params import NecParams
from nec_jax.trainable import frozen_blocks, trainable_rule
from train.config import Compress, OptionsError
from train.data import read_all
from train.data.record import Source
from train.initial import mask_ratio
from train.prefix import Prefix, finish, open_prefix
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


def open_inputs(options: Compress, base: NecParams, source: Source, val_source: Source) -> Inputs:
    """Images; with `--cache` the activations of all blocks that stay as they are."""
    config = base.config
    if options.cache is None:
        val_images = read_validation(options, config, val_source)
        check_images(config, val_images)  # before hours of training: bands, dtype, range

        def images(limit: int) -> np.ndarray:
            return read_all(source, config.image_size, limit=limit).images

        return Inputs(0, train_batches(options, source, config), {"image": val_images}, images)

    if config.decoder_target != "features" or mask_ratio(options, config):
        raise OptionsError(
            "--cache needs inputs that are the same in every epoch, and nothing but tokens to "
            "compare: pass --proxy features, and no --mask-ratio"
        )
    if jax.process_count() > 1:
        raise OptionsError("--cache is for a run in one process: leave it out")
    train = _open_cache(options, base, source, options.views)
    val = _open_cache(options, base, val_source, limit=options.val_images).whole()
    batches = train.batches(options.batch, options.seed)
    return Inputs(train.blocks, batches, {"tokens": val}, train.whole)


def cached_embeddings(
    options: Compress, source: Source
) -> Callable[[NecParams, int], NDArray[np.float32]]:
    """(model, limit) -> embeddings of at most so many whole images, from `--cache`."""

    def embed(params: NecParams, limit: int) -> NDArray[np.float32]:
        cache = _open_cache(options, params, source)
        return finish(params, cache.whole(limit), cache.blocks)

    return embed


def _open_cache(
    options: Compress, params: NecParams, source: Source, views: int = 1, limit: int | None = None
) -> Prefix:
    rule = trainable_rule(options.trainable, params.config)
    blocks = frozen_blocks(params.config, params.weights, rule)
    if not blocks:
        raise OptionsError(
            f"--cache: with --trainable {options.trainable} no first block stays as it is: pass "
            "--trainable late, or leave --cache out"
        )
    assert options.cache is not None
    folder, gb = options.cache, options.cache_gb
    return open_prefix(
        folder, gb, params, blocks, source, views=views, seed=options.seed, limit=limit
    )
