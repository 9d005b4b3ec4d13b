"""Encode a folder of images into an archive, shard by shard; run it again to go on.

    python examples/archive.py MODEL IMAGES OUT.zarr [--split all] [--chip 256] [--shard 256]

MODEL is a model file or the name of a model that ships, as nec-vit-ti. IMAGES is whatever
`train.main --data` takes. The archive is an ordinary Zarr group: open it with zarr or xarray where
the package `coder` is installed, no JAX needed. One process writes it. Images that cannot be read,
or that the model does not take, are marked as not valid, with the reason: `--retry` reads them once
more, `--strict` stops at the first.
"""

import argparse
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

import nec_jax
from coder import CodecError, archive
from coder.format import container
from nec_jax import NecParams
from nec_jax.api import check_images
from nec_jax.images.read import SceneError
from nec_jax.models.weight_tree import flatten_weights
from train.data import (
    CorruptImageError,
    DataError,
    Record,
    Source,
    fit_to,
    open_source,
    spread,
)

_TRIED = 16  # images that are looked at before an archive is begun


def main() -> None:
    """Write what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("out")
    parser.add_argument("--split", default="all")
    parser.add_argument("--chip", type=int, help="cut images into windows of this side, pixels")
    parser.add_argument("--shard", type=int, default=archive.SHARD, help="most images per shard")
    parser.add_argument("--strict", action="store_true", help="stop at an unreadable image")
    parser.add_argument("--retry", action="store_true", help="read unreadable images once more")
    options = parser.parse_args()
    params = nec_jax.load(options.model)
    if params.codec is None:
        raise SystemExit(f"{options.model} has no codec: train it with `train.main compress`")
    config, codec = params.config, params.codec.at()
    refuse_inside(options.images, options.out)
    source = open_source(options.images, options.split, chip=options.chip)
    refuse_other_images(params, source)  # before anything is written
    writer = archive.Writer(
        options.out,
        codec,
        len(source),
        config.grid(config.image_size, config.image_size),
        shard=archive.even_shard(len(source), options.shard),
        attributes={
            "data": source.name,
            "split": options.split,
            "images": len(source),
            "image_list": image_list(source),
            "shard": options.shard,
            "classes": list(source.classes),
            "codec": codec.fingerprint.hex(),
            # A codec's fingerprint says nothing of the encoder before it.
            "model": container.digest(
                flatten_weights(params.weights), container.canonical_json(config.to_meta())
            ).hex(),
        },
        strict=options.strict,
        retry=options.retry,
    )
    with writer:
        missing = writer.missing()
        shards = -(-len(source) // archive.even_shard(len(source), options.shard))
        print(f"{shards - len(missing)} of {shards} shards are there")
        known_ids = cache(lambda: id_list(source))
        for part in missing:
            write(writer, params, source, part, known_ids)
            print(f"{part.stop} of {len(source)} images", flush=True)
        writer.finish()
        count, first = archive.not_valid(writer.group)
    if count:
        print(f"{count} images cannot be used, and are marked as not valid:")
        for _, name, reason in first:
            print(f"  {name}: {reason}")
        if count > len(first):
            print(f"  and {count - len(first)} more: see the array `error`")


def image_list(source: Source) -> str:
    """SHA-256 (hex) over which images a source has, in their order; no pixels are read."""
    # Files have paths and labels, windows their places; a TFDS data set is its name and split.
    known = [getattr(source, name, None) for name in ("paths", "labels", "windows")]
    return hashlib.sha256(repr(known).encode()).hexdigest()


def id_list(source: Source) -> list[str]:
    """Ids of all images, in their order; no pixels are read."""
    # Those of windows end with the window's size, which a record's id has not.
    size = f",{getattr(source, 'chip', None)}"
    return [name.removesuffix(size) for name, _ in source.files()]


def read(params: NecParams, source: Source, index: int) -> tuple[Record, np.ndarray]:
    """An image that the model takes, of the model's size; CorruptImageError for any other."""
    try:
        record = source[index]
    except SceneError as error:
        raise CorruptImageError(str(error)) from error
    image = fit_to(record["image"], params.config.image_size)
    try:
        check_images(params.config, image[None])
    except CodecError as error:
        raise CorruptImageError(f"{record['id']}: {error}") from error
    return record, image


def refuse_inside(images: str, out: str) -> None:
    """Raise DataError if the archive would lie in the folder of images: it would be one of them."""
    folder, target = Path(images).resolve(), Path(out).resolve()
    if folder.is_dir() and folder in (target, *target.parents):
        raise DataError(f"{out} lies in the folder of images {images}: choose another place")


def refuse_other_images(params: NecParams, source: Source) -> None:
    """Raise CorruptImageError if none of some images can be used: is it the right model?"""
    last = None
    for i in spread(len(source), _TRIED):
        try:
            read(params, source, i)
        except CorruptImageError as error:
            last = error
        else:
            return
    if last is not None:
        raise last


def write(
    writer: archive.Writer,
    params: NecParams,
    source: Source,
    part: slice,
    known_ids: Callable[[], list[str]],
) -> None:
    """Embed one shard of images and write it."""
    ids, labels, errors, images = [], [], [], []
    for i in range(part.start, part.stop):
        try:
            record, image = read(params, source, i)
        except CorruptImageError as error:
            ids.append(known_ids()[i])
            labels.append(-1)
            errors.append(str(error))
            continue
        ids.append(record["id"])
        labels.append(record.get("label", -1))
        errors.append(None)
        images.append(image)
    y_hat = nec_jax.embed(params, np.stack(images)) if images else np.empty(0)
    writer.write(part, y_hat, ids, labels, errors)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped: the same command goes on with it") from None
    except (CodecError, DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
