"""`python -m train.main pretrain`: a masked autoencoder from images."""

import json
import sys

import jax
import numpy as np

import nec_jax
from nec_jax.config import ModelConfig, model_config
from nec_jax.nec import Weights, init_weights, trainable_rule
from train import loop, objective
from train.config import OptionsError, Pretrain, Training
from train.data import open_source, read_all, train_iterator
from train.data.record import Source


def run(options: Pretrain) -> None:
    """Train and write `model.safetensors` in the work folder."""
    loop.print_devices()
    source = open_training_source(options)
    config = pretrain_config(options, source)

    def start() -> Weights:
        return init_weights(config, jax.random.key(options.seed))

    weights = loop.fit(
        options,
        objective.mae(config, options.mask_ratio),
        start,
        jax.eval_shape(start),
        trainable_rule("mae", config),
        train_batches(options, source, config),
        read_validation(options, config),
    )
    facts = {"pretrain": {"data": source.name, "images": len(source), "steps": options.steps}}
    path = options.workdir / "model.safetensors"
    nec_jax.save(nec_jax.NecParams(weights, config, None, json.dumps(facts, sort_keys=True)), path)
    print(f"wrote {path}", file=sys.stderr)


def pretrain_config(options: Pretrain, source: Source) -> ModelConfig:
    """The architecture with the bands, dtype and normalisation of the data."""
    sample = read_all(source, options.image_size, limit=512).images
    channels = sample.shape[-1]
    named = {1: ("grey",), 3: ("red", "green", "blue")}
    pixels = sample.reshape(-1, channels).astype(np.float64)
    limits = np.iinfo(sample.dtype) if sample.dtype.kind in "iu" else np.finfo(sample.dtype)
    overrides = {k: v for k in ("depth", "patch") if (v := getattr(options, k)) is not None}
    deviation = np.maximum(pixels.std(0), 1e-6 * np.maximum(1.0, np.abs(pixels.mean(0))))
    return model_config(
        options.arch,
        image_size=options.image_size,
        code_class_token=options.code_class_token,
        bands=named.get(channels, tuple(f"band_{i + 1}" for i in range(channels))),
        dtype=sample.dtype.name,
        value_range=(float(limits.min), float(limits.max)),
        mean=tuple(float(f"{v:.6g}") for v in pixels.mean(0)),
        std=tuple(float(f"{v:.6g}") for v in deviation),
        **overrides,
    )


def open_training_source(options: Training) -> Source:
    """The images to train on."""
    if not options.data:
        raise OptionsError("no data: pass --data (a folder, tfds:NAME, or blue-marble)")
    return open_source(options.data, options.split, chip=options.chip)


def train_batches(options: Training, source: Source, config: ModelConfig):
    """The endless, shuffled, augmented batches."""
    return train_iterator(source, batch=options.batch, size=config.image_size, seed=options.seed)


def read_validation(options: Training, config: ModelConfig) -> np.ndarray:
    """The validation images [N, S, S, C]."""
    source = open_source(options.data, options.val_split, chip=options.chip)
    return read_all(source, config.image_size, limit=options.val_images).images
