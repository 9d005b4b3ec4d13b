"""The activation cache: activations of frozen blocks, computed once and kept on disk.

If the first blocks of an encoder are frozen and its inputs are the same in every epoch, their
output is the same too. CACHE/prefix-KEY is a Zarr array float16 [images, tokens, width], whose
attributes are the parts of the key: a hash of everything that decides the rows, which are the
frozen weights, the configuration, the data and the crops. Its chunks are not compressed, so that
they can be mapped from disk, and each ends with its CRC-32C. An interrupted run continues with the
first chunk that is not there. A damaged chunk is made again.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

import nec_jax
from coder import InputError, files
from nec_jax.api import check_images
from nec_jax.images.record import CorruptImageError, DataError, Source
from nec_jax.model_file import NecParams
from nec_jax.models import nec
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.weight_tree import path_name
from nec_jax.sources import spread
from train.configs.options import OptionsError
from train.data import fingerprint
from train.data.pipeline import check_process
from train.data.views import MIXED, view_of

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 26
_LIMIT_GB = 20.0  # default limit of all caches in a folder
_BATCH = 16  # images that pass the frozen blocks together


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Activations of a source's images after the first `blocks` blocks.

    `views[0]` is of whole images, the others of random crops (`train.data.views`). Each is a list
    of chunks float16 [rows, tokens, width], mapped from disk. The row of an image that cannot be
    read is NaN.
    """

    blocks: int
    images: int
    views: tuple[tuple[NDArray[np.float16], ...], ...]

    def row(self, view: int, image: int) -> NDArray[np.float16]:
        """Tokens [n, width] of one view of one image."""
        chunk, row = divmod(image, len(self.views[view][0]))
        return self.views[view][chunk][row]

    def whole(self, limit: int | None = None) -> NDArray[np.float16]:
        """View 0 [N, n, width] of at most `limit` images, evenly spread as by `read_all`.

        Raises:
          DataError: none of them can be read.
        """
        places = self.readable(limit)
        if not places:
            raise DataError("none of the images whose activations are needed can be read")
        return np.stack([self.row(0, image) for image in places])

    def readable(self, limit: int | None = None) -> list[int]:
        """The indices of the images in `whole`: those that can be read."""
        places = spread(self.images, limit)
        return [place for place in places if not np.isnan(self.row(0, place)[0, 0])]

    def batches(
        self, batch: int, seed: int, process_index: int = 0, process_count: int = 1
    ) -> grain.DatasetIterator[dict[str, Any]]:
        """Endless shuffled {"tokens": [batch, n, width]}; an epoch has every view of every image.

        Resumable, and shared among processes, like `train_iterator`. An unreadable image is
        replaced by the next one.
        """
        check_process(process_index, process_count)
        count = len(self.views) * self.images

        def readable(number: int) -> dict[str, NDArray[np.float16]]:
            rows = (self.row(*divmod((number + i) % count, self.images)) for i in range(count))
            return {"tokens": np.array(next(row for row in rows if not np.isnan(row[0, 0])))}

        rows = grain.MapDataset.range(count).shuffle(seed=seed).repeat().map(readable)
        batches = rows.batch(batch, drop_remainder=True)[process_index::process_count]
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        return iter(batches.to_iter_dataset(ahead))


def open_prefix(
    folder: Path,
    limit_gb: float | None,
    params: NecParams,
    blocks: int,
    source: Source,
    *,
    views: int = 1,
    seed: int = 0,
    mixed: bool = False,
) -> Prefix:
    """Read the activations of a source from `folder`, and compute those that are not there.

    Args:
      folder: the folder of the caches, of any number.
      limit_gb: maximum size of all caches together, in units of 1e9 bytes; None for 20.
      params: the model; its first `blocks` blocks are frozen.
      views: number of views of each image.
      seed: seed of all views but the first.
      mixed: see `view_of`.

    Raises:
      OptionsError: the caches would exceed `limit_gb`, or activations exceed float16.
      DataError: no image can be read.
    """
    images = len(source)
    facts = {"format": 2, **start_of(params, blocks), "data": fingerprint(source)}
    how = {"seed": seed} | ({"mixed": MIXED} if mixed else {})
    crops = [{"crop": "whole"}, *({"crop": view} | how for view in range(1, views))]
    side = params.config.image_size // params.config.patch
    tokens = side**2 + params.config.class_token + params.config.registers
    size = 2 * tokens * params.config.width
    rows = min(max(1, _CHUNK_BYTES // size), images)
    numbers = range(-(-images // rows))
    keys = [json.dumps(facts | crop, indent=1, sort_keys=True) for crop in crops]
    homes = [folder / f"prefix-{hashlib.sha256(key.encode()).hexdigest()[:16]}" for key in keys]
    there = [{n for n in numbers if _is_there(home, n)} for home in homes]
    to_make = sum(len(numbers) - len(found) for found in there) * rows * size
    _refuse_too_large(folder, to_make, _LIMIT_GB if limit_gb is None else limit_gb)

    def chunks(view: int) -> Iterator[NDArray[np.float16]]:
        home, missing = homes[view], [n for n in numbers if n not in there[view]]
        if missing:
            array = _array(home, (images, tokens, params.config.width), rows, facts | crops[view])
            log.info(
                f"activations of {images} images after {blocks} blocks, view {view + 1} of {views}:"
                f" {images * size / 1e9:.2f} GB in {home}, {len(missing)} of {len(numbers)} chunks "
                "to make"
            )
            see = functools.partial(_view, params.config, source, view=view, seed=seed, mixed=mixed)
            # Processes that share the folder start at different chunks, and skip those made
            # meanwhile. If two make the same one, the last stays, and both are equal.
            turn = len(missing) * jax.process_index() // jax.process_count()
            for number in missing[turn:] + missing[:turn]:
                if not _is_there(home, number):
                    part = range(images)[number * rows : (number + 1) * rows]
                    array[part.start : part.stop] = _compute(params, blocks, see, part, tokens)
                    log.info(f"  chunk {number + 1} of {len(numbers)}")
        shape = (rows, tokens, params.config.width)
        return (np.memmap(home / f"c/{n}/0/0", "<f2", "r", shape=shape) for n in numbers)

    prefix = Prefix(blocks, images, tuple(tuple(chunks(view)) for view in range(views)))
    readable = len(prefix.readable())
    if not readable:
        raise DataError(f"none of the images of {source.name} can be read")
    if readable < images:
        log.warning(
            f"{images - readable} images of {source.name} could not be read and are left out; if "
            f"they can be read now, delete {homes[0]}"
        )
    return prefix


def _view(config: ModelConfig, source: Source, index: int, size: int, **which: Any) -> NDArray[Any]:
    """As `view_of`. Raises DataError, which names the image, if the model does not take it."""
    cut = view_of(source, index, size, **which)
    try:
        check_images(config, cut[None])
    except InputError as error:
        raise DataError(f"{source[index]['id']} of {source.name}: {error}") from error
    return cut


def _compute(
    params: NecParams,
    blocks: int,
    see: Callable[[int, int], NDArray],  # index, size
    indices: Sequence[int],
    tokens: int,
) -> NDArray[np.float16]:
    config, image_size = params.config, params.config.image_size
    out = np.full((len(indices), tokens, config.width), np.nan, np.float16)
    batch = np.zeros((_BATCH, image_size, image_size, config.channels), config.dtype)
    for first in range(0, len(indices), _BATCH):
        rows = []
        for row in range(first, min(first + _BATCH, len(indices))):
            try:
                cut = see(indices[row], image_size)
            except CorruptImageError as error:
                log.warning(f"left out: {error}")
                continue
            batch[len(rows)] = cut
            rows.append(row)
        # With one batch size, so that the activations do not depend on the division into batches.
        made = np.asarray(_prefix(config, params.weights, batch, blocks))[: len(rows)]
        if not np.abs(made).max(initial=0.0) <= np.finfo(np.float16).max:
            raise OptionsError(
                f"activations after {blocks} blocks exceed the largest float16, in which --cache "
                "keeps them: train without --cache"
            )
        out[rows] = made
    return out


_prefix = jax.jit(nec.prefix, static_argnames=("config", "stop"))
_latents = jax.jit(nec.latents, static_argnames=("config", "start"))


def finish(params: NecParams, inputs: NDArray[Any], blocks: int) -> NDArray[np.float32]:
    """The embeddings [N, (1 +) T, D] of images, or of tokens [N, n, width] after `blocks` blocks.

    Tokens are completed as in `nec_jax.latents`, from activations rounded to float16.
    """
    if not blocks:
        return nec_jax.latents(params, inputs)
    out = []
    for first in range(0, len(inputs), _BATCH):
        part = inputs[first : first + _BATCH].astype(np.float16)
        padded = np.pad(part, [(0, _BATCH - len(part)), (0, 0), (0, 0)])
        y = _latents(params.config, params.weights, padded, start=blocks)
        out.append(np.asarray(y)[: len(part)])
    return np.concatenate(out)


def _array(home: Path, shape: tuple[int, int, int], rows: int, facts: dict[str, Any]) -> zarr.Array:
    """The array of a cache, to be filled."""
    files.make_folder(home)
    with suppress(FileNotFoundError, ValueError):  # there is none, or its metadata is damaged
        return zarr.open_array(home, mode="r+")
    return zarr.create_array(
        home,
        overwrite=True,
        shape=shape,
        dtype="float16",
        chunks=(rows, *shape[1:]),
        compressors=Crc32cCodec(),
        fill_value=np.nan,
        attributes=facts,
        config={"write_empty_chunks": True},
    )


def _is_there(home: Path, number: int) -> bool:
    """Whether a chunk is there and sound; reads it. A damaged one is removed and logged."""
    path = home / f"c/{number}/0/0"
    if not path.exists():
        return False
    try:
        zarr.open_array(home, mode="r").blocks[number]
    except (FileNotFoundError, ValueError):  # no metadata; or a wrong checksum or length
        log.warning(f"{path} is damaged: it is made again")
        path.unlink(missing_ok=True)
        return False
    return True


def _refuse_too_large(folder: Path, to_make: int, limit_gb: float) -> None:
    """Raise OptionsError if `to_make` more bytes would exceed the limit of the folder."""
    found = folder.glob("prefix-*/**/*")
    taken = sum(path.stat().st_size for path in found if path.is_file())
    if to_make and taken + to_make > limit_gb * 1e9:
        rest = f", besides {taken / 1e9:.2f} GB that are in {folder}" if taken else ""
        raise OptionsError(
            f"these activations take {to_make / 1e9:.2f} GB{rest}; --cache-gb allows "
            f"{limit_gb:g}: raise it, lower --views, or delete caches that are no longer needed"
        )


def start_of(params: NecParams, blocks: int) -> dict[str, Any]:
    """All that the tokens after `blocks` blocks depend on, except the image; JSON can hold it."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params.weights["encoder"]):
        name = path_name(path)
        first, _, _ = name.partition("/")
        if first == "norm" or (first.startswith("block_") and int(first[6:]) >= blocks):
            continue
        digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    # The first blocks do not depend on these fields of the configuration.
    apart = ("coding_batch", "code_class_token", "embedding_blocks", "arch", "depth", "bands")
    facts = dataclasses.asdict(params.config).items()
    config = {k: v for k, v in facts if k not in apart and not k.startswith("decoder_")}
    as_json = json.loads(json.dumps(config))
    return {"weights": digest.hexdigest(), "config": as_json, "blocks": blocks}
