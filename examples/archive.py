"""Encode a folder of images into an archive, shard by shard; run it again to go on.

    python examples/archive.py MODEL IMAGES OUT.zarr [--split all] [--shard 256]

MODEL is a model file or the name of a model that ships, as nec-vit-ti. IMAGES is whatever
`train.main --data` takes. The archive is an ordinary Zarr group: open it with zarr or xarray where
the package `coder` is installed, no JAX needed. One process writes it.
"""

import argparse
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import nec_jax
from coder import CodecError, archive, safefile
from coder.one_rate import OneRateCodec
from nec_jax import NecParams
from nec_jax.params import flatten_weights
from train.data import DataError, Source, fit_to, open_source


def main() -> None:
    """Write what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", default="all")
    parser.add_argument("--shard", type=int, default=archive.SHARD, help="images a shard, at most")
    options = parser.parse_args()
    params = nec_jax.load(options.model)
    if params.codec is None:
        raise SystemExit(f"{options.model} has no codec: train it with `train.main compress`")
    source = open_source(options.images, options.split)
    group = open_or_create(options, params, params.codec.at(), source)
    embedding = group["embedding"]
    shard = embedding.shards[0]
    shards = range(-(-len(source) // shard))
    done = archive.written_shards(embedding)
    print(f"{len(done)} of {len(shards)} shards are there")
    for i in shards:
        if i in done:
            continue
        part = slice(i * shard, min((i + 1) * shard, len(source)))
        write(group, params, [source[j] for j in range(part.start, part.stop)], part)
        print(f"{part.stop} of {len(source)} images", flush=True)


def open_or_create(
    options: argparse.Namespace, params: NecParams, codec: OneRateCodec, source: Source
) -> Any:
    """The archive, which must be of this model and these images if it exists."""
    config = params.config
    settings = safefile.canonical_json(config.to_meta())
    facts = {
        "data": source.name,
        "split": options.split,
        "images": len(source),
        "image_list": image_list(source),
        "shard": options.shard,
        "classes": list(source.classes),
        "codec": codec.fingerprint.hex(),
        # A codec's fingerprint says nothing of the encoder before it.
        "model": safefile.digest(flatten_weights(params.weights), settings).hex(),
    }
    if options.out.exists():
        group = zarr.open_group(options.out, mode="r+")
        other = [name for name, value in facts.items() if group.attrs.get(name) != value]
        if other:
            raise SystemExit(f"{options.out} was begun with another {', '.join(other)}")
        # What a killed run was writing: zarr renames a file once it is whole.
        for part in options.out.rglob("*.partial"):
            part.unlink()
        return group
    # Made beside it and renamed, so that an interruption leaves all of it or nothing.
    new = options.out.with_name(options.out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    archive.create(
        new,
        codec,
        len(source),
        config.grid(config.image_size, config.image_size),
        shard=archive.even_shard(len(source), options.shard),
        attributes=facts,
    )
    new.rename(options.out)
    return zarr.open_group(options.out, mode="r+")


def image_list(source: Source) -> str:
    """SHA-256 (hex) over which images a source has, in their order; no pixels are read."""
    # Files have paths and labels, windows their places; a TFDS data set is its name and split.
    known = [getattr(source, name, None) for name in ("paths", "labels", "windows")]
    return hashlib.sha256(repr(known).encode()).hexdigest()


def write(group: Any, params: NecParams, records: list, part: slice) -> None:
    """Embed one shard of images and write it, the array that says it is done last."""
    size = params.config.image_size
    y_hat = nec_jax.embed(params, np.stack([fit_to(record["image"], size) for record in records]))
    group["id"][part] = np.array([record["id"] for record in records])
    group["label"][part] = np.array([record.get("label", -1) for record in records], np.int32)
    if "class_token" in group:
        group["class_token"][part] = y_hat[:, 0]
        y_hat = y_hat[:, 1:]
    group["embedding"][part] = y_hat.reshape(-1, *group["embedding"].shape[1:])


if __name__ == "__main__":
    try:
        main()
    except (CodecError, DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
