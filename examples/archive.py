"""Encode a folder of images into an archive, shard by shard; run it again to resume.

    python examples/archive.py MODEL IMAGES OUT.zarr [--split all] [--chip 256] [--shard 256]

MODEL is a model file or the name of a shipped model, such as nec-vit-ti. IMAGES is any data set
that `nec compress --data` takes. The archive is an ordinary Zarr group: with the package `coder`
installed, zarr and xarray open it without JAX. One process writes it. Images that cannot be read or
that the model does not take are marked as not valid, with the reason. `--retry` reads them again,
`--strict` stops at the first.

To resume, pass the same images: their names, labels and file sizes are compared with those that the
archive was begun with (with `--retry`, not the sizes near images that are not valid). The content
of files is not compared: a file that was changed in place and kept its size is not noticed.
"""

import argparse
import hashlib
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import nec_jax
from coder import CodecError, archive
from coder.format import container
from nec_jax import NecParams
from nec_jax.api import check_images
from nec_jax.images.rasters import SceneError
from nec_jax.images.record import raise_passing
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

_TRIED = 16  # images to try before an archive is begun
_LISTED = 256  # images per digest
_DIGITS = 8  # hexadecimal digits of a digest


def main() -> None:
    """Write the shards that are missing."""
    first, _, _, *more = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(description=first, epilog=" ".join(more))
    parser.add_argument("model", help="model file or name of a shipped model, such as nec-vit-ti")
    parser.add_argument("images", help="data set, as for nec compress --data")
    parser.add_argument("out", help="archive to write or to resume, a Zarr group")
    parser.add_argument("--split", default="all", help="split to encode (default: all)")
    parser.add_argument(
        "--chip",
        type=int,
        help="cut images into windows of this side, pixels; they begin at the upper left, and the "
        "remainder at the right and the bottom is dropped: a log line, and the archive's "
        "attributes pixels_in_no_window and pixels, say how much",
    )
    parser.add_argument(
        "--shard", type=int, default=archive.SHARD, help="maximum images per shard (%(default)s)"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image")
    parser.add_argument("--retry", action="store_true", help="read unreadable images again")
    options = parser.parse_args()
    params = nec_jax.load(options.model)
    if params.codec is None:
        raise SystemExit(f"{options.model} has no codec: train it with `nec compress`")
    config, codec = params.config, params.codec.at()
    refuse_inside(options.images, options.out)
    source = open_source(options.images, options.split, chip=options.chip)
    listed = image_digests(source)
    had = refuse_changed(options.out, options.split, source, listed, options.retry)
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
            "chip": getattr(source, "chip", None),
            "images": len(source),
            **had,
            "shard": options.shard,
            "classes": list(source.classes),
            "codec": codec.fingerprint.hex(),
            # The codec's fingerprint does not cover the encoder.
            "model": container.digest(
                flatten_weights(params.weights), container.canonical_json(config.to_meta())
            ).hex(),
        },
        strict=options.strict,
        retry=options.retry,
    )
    with writer:
        if had != listed:  # files of unreadable images have changed
            writer.group.attrs.update(listed)
        # Not among those that must be the same: they tell less than the digests, and archives of
        # earlier versions do not have them.
        left_out, pixels = getattr(source, "left_out", (None, None))
        counts = {"pixels_in_no_window": left_out, "pixels": pixels}
        if any(writer.group.attrs.get(name) != count for name, count in counts.items()):
            writer.group.attrs.update(counts)
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


def image_digests(source: Source) -> dict[str, str]:
    """Attributes that tell whether a source has the same images; no pixels are read.

    For every 256 images, in order, 8 hexadecimal digits each: of a SHA-256 over ids and labels, and
    of one over file sizes.
    """
    labels = getattr(source, "labels", ())
    if not labels:  # windows have the labels of their images
        labels = (getattr(part[0], "label", None) for part in getattr(source, "windows", ()))

    @lru_cache(4)  # consecutive windows are of one file
    def size(file: Path) -> int | None:
        try:
            return file.stat().st_size
        except OSError as error:
            raise_passing(error, file)
            return None  # it is left out later, when it is read

    names, sizes = hashlib.sha256(), hashlib.sha256()
    digests = {"image_names": "", "image_sizes": ""}
    for number, ((name, file), label) in enumerate(zip_longest(source.files(), labels), 1):
        names.update(f"{name}\t{label}\n".encode(errors="backslashreplace"))
        sizes.update(f"{size(file)}\n".encode())
        if number % _LISTED == 0 or number == len(source):
            digests["image_names"] += names.hexdigest()[:_DIGITS]
            digests["image_sizes"] += sizes.hexdigest()[:_DIGITS]
            names, sizes = hashlib.sha256(), hashlib.sha256()
    return digests


def refuse_changed(
    out: str, split: str, source: Source, listed: dict[str, str], retry: bool
) -> dict[str, str]:
    """Compare images with those that an existing archive was begun with.

    Args:
        out: the archive.
        split: the split of the images.
        source: the images.
        listed: the `image_digests` of the images.
        retry: whether images that could not be read may have changed.

    Returns:
        The archive's attributes of these names; `listed` if there is no archive.

    Raises:
        DataError: other images of the same data set; names the first, if known.
    """
    if not (Path(out) / "zarr.json").is_file():
        return listed
    try:
        group: Any = zarr.open_group(out, mode="r")
    except ValueError:  # damaged, or no archive: its writer says so
        return listed
    had = {name: group.attrs.get(name) for name in (*listed, "images")}
    # Of an earlier version, or damaged: its writer says so.
    if None in had.values() or "id" not in group or "valid" not in group:
        return listed
    same = {"data": source.name, "split": split, "chip": getattr(source, "chip", None)}
    if any(group.attrs.get(name) != value for name, value in same.items()):
        return {name: had[name] for name in listed}  # its writer says so; all others differ too
    text = f"{out} was begun with other images ({had['images']} then, {len(source)} now): "
    remedy = ": put them back as they were, or write a second archive"
    for name, now in listed.items():
        for block in range(-(-max(len(had[name]), len(now)) // _DIGITS)):
            digits = slice(_DIGITS * block, _DIGITS * (block + 1))
            rows = slice(_LISTED * block, _LISTED * (block + 1))
            if had[name][digits] == now[digits]:
                continue
            ids, paths = id_list(source)[rows], [path for _, path in source.files()][rows]
            if name == "image_sizes":
                if retry and not group["valid"][rows].all():
                    continue
                newest = max(paths, key=lambda path: path.stat().st_mtime if path.exists() else 0)
                raise DataError(
                    f"{text}the size of a file differs among images {rows.start} to "
                    f"{rows.start + len(ids) - 1}, {ids[0]} to {ids[-1]}; of these, {newest} "
                    f"changed last{remedy}, or give --retry if only unreadable images changed"
                )
            # Only the ids that are written; others are empty.
            stored = [str(one) for one in group["id"][rows]]
            for i, (old, new) in enumerate(zip_longest(stored, ids, fillvalue="")):
                if old and old != new:
                    raise DataError(
                        f"{text}image {rows.start + i} was {old}, and is {new or 'none'}{remedy}"
                    )
            raise DataError(
                f"{text}a name or a label differs from image {rows.start} on"
                f"{', ' + ids[0] if ids else ''}{remedy}"
            )
    return {name: had[name] for name in listed}


def id_list(source: Source) -> list[str]:
    """Ids of all images, in their order; no pixels are read."""
    # Ids of windows end with the window's size, which the ids of records lack.
    size = f",{getattr(source, 'chip', None)}"
    return [name.removesuffix(size) for name, _ in source.files()]


def read(params: NecParams, source: Source, index: int) -> tuple[Record, np.ndarray]:
    """An image at the model's size. Raises CorruptImageError if the model does not take it."""
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
    """Raise DataError if the archive would be inside the folder of images."""
    folder, target = Path(images).resolve(), Path(out).resolve()
    if folder.is_dir() and folder in (target, *target.parents):
        raise DataError(f"{out} lies in the folder of images {images}: choose another place")


def refuse_other_images(params: NecParams, source: Source) -> None:
    """Raise CorruptImageError if none of a few images can be used, as with the wrong model."""
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
        raise SystemExit("stopped: the same command resumes the archive") from None
    except (CodecError, DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
