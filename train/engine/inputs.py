"""The inputs of a training run: images, or cached activations of frozen blocks."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from coder import files
from nec_jax.api import check_images
from nec_jax.images.record import DataError, Record, Source
from nec_jax.model_file import NecParams
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.freezing import frozen_blocks, trainable_rule
from nec_jax.sources import at_most, folder_of, open_source
from train.configs.options import Compress, Distil, OptionsError, Pretrain, Training, refuse_warmup
from train.data import read_all, train_iterator
from train.engine.activation_cache import Prefix, finish, open_prefix
from train.engine.initial_model import config_for, given_model, initial_model, mask_ratio
from train.engine.processes import log_devices, own_share
from train.engine.run_record import refuse_changed_config

AnyTraining = TypeVar("AnyTraining", bound=Training)
Trained = TypeVar("Trained", Pretrain, Compress)


def refuse_folders(options: Training) -> None:
    """Refuse, before any work, folders of a run that cannot be written or that contain images.

    Raises:
      OutputError: a folder cannot be written, or is the folder of the images or inside it.
    """
    names = options.data.split(",") if isinstance(options, Distil) else [options.data]
    images = [folder for name in names if (folder := folder_of(name.strip())) is not None]
    own = ("run.json", "metrics.jsonl", "model.safetensors")
    for folder, inside in (("", own), ("checkpoints", ()), ("tensorboard", ())):
        files.check_outputs(options.workdir / folder, inside, overwrite=True, inputs=images)
    if isinstance(options, Compress | Distil) and options.cache is not None:
        refuse_cache(options.cache, images)


def refuse_cache(folder: Path, images: Sequence[Path]) -> None:
    """Refuse a folder of activations that cannot be made or that is inside one of images."""
    files.check_outputs(folder, ["prefix"], overwrite=True, inputs=images)


def open_training_source(options: Training) -> Source:
    """The images to train on."""
    if not options.data:
        raise OptionsError("no data: pass --data (a folder, tfds:NAME, or blue-marble)")
    return at_most(open_source(options.data, options.split, chip=options.chip), options.images)


def in_steps(options: AnyTraining, source: Source) -> AnyTraining:
    """The options with `epochs` converted to steps, rounded up."""
    if options.epochs is None:
        return options
    steps = -(-options.epochs * len(source) // options.batch)
    refuse_warmup(options, steps)
    return dataclasses.replace(options, steps=steps)


def train_batches(options: Training, source: Source, config: ModelConfig):
    """The endless, shuffled, augmented batches."""
    own, index, count = own_share(options.batch)
    return train_iterator(
        source,
        batch=own,
        size=config.image_size,
        seed=options.seed,
        process_index=index,
        process_count=count,
        check=functools.partial(held_to, config),
    )


def held_to(config: ModelConfig, record: Record) -> None:
    """Check that the model takes an image, as it was read and at any size.

    Raises:
      DataError: other bands, another dtype or range; the message names the image.
    """
    image, (low, high) = record["image"], config.value_range
    if image.shape[-1] != config.channels or image.dtype != np.dtype(config.dtype):
        raise DataError(
            f"{record['id']} has {image.shape[-1]} bands of {image.dtype}; the model takes "
            f"{config.channels} of {config.dtype} ({', '.join(config.bands)}): keep it in a folder "
            "of its own"
        )
    kind = np.iinfo(image.dtype) if image.dtype.kind in "ui" else None
    if kind is not None and low <= kind.min and kind.max <= high:  # as of pictures: no need to look
        return
    if not (image.min() >= low and image.max() <= high):
        raise DataError(
            f"{record['id']} ranges from {image.min():g} to {image.max():g}; the model takes "
            f"{low:g} to {high:g}: rescale or clip it"
        )


def unchanged_blocks(options: Compress, params: NecParams) -> int:
    """The number of a model's first blocks that stay frozen in a run."""
    rule = trainable_rule(options.trainable, config_for(options, params.config))
    return frozen_blocks(params.config, params.weights, rule)


def same_in_every_epoch(options: Training, config: ModelConfig) -> bool:
    """Whether a cache is possible: only tokens are compared, and nothing is hidden.

    Args:
      config: the configuration of the model to train.
    """
    return config.decoder_target == "features" and not mask_ratio(options, config)


class Cache:
    """The activations of the images of a run, kept in `--cache`.

    Those of the training images are opened once.
    """

    def __init__(self, options: Compress, source: Source):
        self._options = options
        self._source = source
        self._train: Prefix | None = None

    def train(self, params: NecParams) -> Prefix:
        """The activations of the training images; every call needs the same encoder."""
        if self._train is None:
            self._train = self.open(params, self._source, self._options.views)
        return self._train

    def embed(self, params: NecParams, limit: int) -> NDArray[np.float32]:
        """The embeddings of at most `limit` whole training images."""
        train = self.train(params)
        return finish(params, train.whole(limit), train.blocks)

    def open(self, params: NecParams, source: Source, views: int = 1) -> Prefix:
        """The activations of any source."""
        options = self._options
        blocks = unchanged_blocks(options, params)
        if not blocks:
            raise OptionsError(
                f"--cache: with --trainable {options.trainable} no first block stays as it is: "
                "pass --trainable late, or leave --cache out"
            )
        assert options.cache is not None
        where = options.cache, options.cache_gb
        return open_prefix(*where, params, blocks, source, views=views, seed=options.seed)


class Run(NamedTuple, Generic[Trained]):
    """What a run starts from and reads, checked before any work.

    Attributes:
      options: with `epochs` converted to steps.
      source, val_source: the images to train on, and to validate on.
      base: the model to train.
      rule: which of its weights train, by path.
      mask_ratio: part of the patches to hide.
      start: number of frozen blocks that the inputs have passed; 0 for images.
      batches: endless training batches for the objective; resumable.
      val: all validation data for the objective.
      sample: (limit) -> at most `limit` whole training images, or their tokens.
    """

    options: Trained
    source: Source
    val_source: Source
    base: NecParams
    rule: Callable[[str], bool]
    mask_ratio: float
    start: int
    batches: Iterator[dict[str, np.ndarray]]
    val: dict[str, np.ndarray]
    sample: Callable[[int], np.ndarray]


def open_run(options: Trained) -> Run[Trained]:
    """Open the data and the model of a run, in the order in which errors cost the user least."""
    log_devices()
    refuse_folders(options)
    given = given_model(options)
    source = open_training_source(options)
    options = in_steps(options, source)
    val_source = open_source(options.data, options.val_split, chip=options.chip)
    refuse_changed_config(options)
    cache = None
    if isinstance(options, Compress) and options.cache is not None:
        cache = Cache(options, source)
    base = initial_model(options, given, source, cache.embed if cache else None)
    config = base.config
    rule, ratio = trainable_rule(options.trainable, config), mask_ratio(options, config)
    if cache is None:

        def read(source: Source, limit: int) -> np.ndarray:
            return read_all(source, config.image_size, limit=limit).images

        start, sample = 0, functools.partial(read, source)
        val = {"image": read(val_source, options.val_images)}
        check_images(config, val["image"])  # before hours of training: bands, dtype, range
        batches = train_batches(options, source, config)
    else:
        if not same_in_every_epoch(options, config):
            raise OptionsError(
                "--cache needs inputs that are the same in every epoch, and compares only tokens: "
                "pass --proxy features, and leave --mask-ratio out"
            )
        train = cache.train(base)
        start, sample = train.blocks, train.whole
        val = {"tokens": cache.open(base, at_most(val_source, options.val_images)).whole()}
        own, index, count = own_share(options.batch)
        batches = train.batches(own, options.seed, index, count)
    return Run(options, source, val_source, base, rule, ratio, start, batches, val, sample)
