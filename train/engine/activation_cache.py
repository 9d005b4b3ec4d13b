"""The activation cache: activations of frozen blocks, computed once and kept on disk.

If the first blocks of an encoder are frozen and its inputs are the same in every epoch, their
output is the same too. It is stored as float16, one row per image, in shards named with their
CRC-32:

    CACHE/prefix-KEY/about.json            the parts of the key
    CACHE/prefix-KEY/00007-1a2b3c4d.npy    float16 [rows, tokens, width]

The key is a hash of everything that decides the rows: the frozen weights, the configuration, the
data and the crops. A shard is written under another name and renamed when complete, so that an
interrupted run continues with the next one. A damaged shard is made again.
"""

import dataclasses
import functools
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from numpy.typing import NDArray

import nec_jax
from coder import InputError, files
from nec_jax.api import check_images
from nec_jax.images.record import CorruptImageError, DataError, Source
from nec_jax.model_file import NecParams
from nec_jax.models import nec
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.weight_tree import Weights, path_name
from train.configs.options import OptionsError
from train.data import fingerprint, spread
from train.data.pipeline import check_process
from train.data.views import MIXED, view_of

_SHARD_BYTES = 1 << 26
_LIMIT_GB = 20.0  # default limit of all caches in a folder
_BATCH = 16  # images that pass the frozen blocks together


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Activations of a source's images after the first `blocks` blocks.

    `views[0]` is of whole images, the others of random crops (`train.data.views`). Each is a list
    of shards float16 [rows, tokens, width], mapped from disk; all but the last have the same number
    of rows. The row of an image that cannot be read is NaN.
    """

    blocks: int
    images: int
    views: tuple[tuple[NDArray[np.float16], ...], ...]

    def row(self, view: int, image: int) -> NDArray[np.float16]:
        """Tokens [n, width] of one view of one image."""
        shards = self.views[view]
        return shards[image // len(shards[0])][image % len(shards[0])]

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
    facts = {"format": 1, **start_of(params, blocks), "data": fingerprint(source)}
    how = {"seed": seed} | ({"mixed": MIXED} if mixed else {})
    crops = [{"crop": "whole"}, *({"crop": view} | how for view in range(1, views))]
    keys = [json.dumps(facts | crop, indent=1, sort_keys=True) for crop in crops]
    names = [f"prefix-{hashlib.sha256(key.encode()).hexdigest()[:16]}" for key in keys]
    homes = [folder / name for name in names]
    side = params.config.image_size // params.config.patch
    tokens = side**2 + params.config.class_token + params.config.registers
    size = 2 * tokens * params.config.width
    per_shard = max(1, _SHARD_BYTES // size)
    chunks = [range(images)[i : i + per_shard] for i in range(0, images, per_shard)]
    there = [[_sound_shard(home, number) for number in range(len(chunks))] for home in homes]
    to_make = sum(
        len(chunk) * size
        for shards in there
        for chunk, shard in zip(chunks, shards, strict=True)
        if shard is None
    )
    _refuse_too_large(folder, to_make, _LIMIT_GB if limit_gb is None else limit_gb)

    def shards(view: int) -> Iterator[NDArray[np.float16]]:
        found = dict(enumerate(there[view]))
        missing = [number for number, shard in found.items() if shard is None]
        if missing:
            files.make_folder(homes[view])
            files.write_text(homes[view] / "about.json", keys[view] + "\n", overwrite=True)
            print(
                f"activations of {images} images after {blocks} blocks, view {view + 1} of {views}:"
                f" {images * size / 1e9:.2f} GB in {homes[view]}, {len(missing)} of {len(chunks)} "
                "shards to make",
                file=sys.stderr,
            )
        # Processes that share the folder start at different shards, and skip those made meanwhile.
        turn = len(missing) * jax.process_index() // jax.process_count()
        for number in missing[turn:] + missing[:turn]:
            shard = _sound_shard(homes[view], number)
            if shard is None:
                see = functools.partial(
                    _view, params.config, source, view=view, seed=seed, mixed=mixed
                )
                made = _compute(params, blocks, see, chunks[number], tokens)
                shard = _write_shard(homes[view], number, made)
                print(f"  shard {number + 1} of {len(chunks)}", file=sys.stderr)
            found[number] = shard
        return (shard for shard in found.values() if shard is not None)

    prefix = Prefix(blocks, images, tuple(tuple(shards(view)) for view in range(views)))
    missing = [i for i in range(images) if np.isnan(prefix.row(0, i)[0, 0])]
    if len(missing) == images:
        raise DataError(f"none of the images of {source.name} can be read")
    if missing:
        print(
            f"{len(missing)} images of {source.name} could not be read and are left out; if they "
            f"can be now, delete {homes[0]}",
            file=sys.stderr,
        )
    return prefix


def _view(config: ModelConfig, source: Source, index: int, size: int, **which: Any) -> NDArray[Any]:
    """`view_of`; raises DataError that names an image that the model does not take."""
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
                print(f"left out: {error}", file=sys.stderr)
                continue
            batch[len(rows)] = cut
            rows.append(row)
        # With one batch size, so that the activations do not depend on the division into batches.
        made = np.asarray(_prefix(params.weights, config, batch, blocks))[: len(rows)]
        if not np.abs(made).max(initial=0.0) <= np.finfo(np.float16).max:
            raise OptionsError(
                f"activations after {blocks} blocks exceed the largest float16, as which --cache "
                "keeps them: train without --cache"
            )
        out[rows] = made
    return out


@functools.partial(jax.jit, static_argnames=("config", "stop"))
def _prefix(weights: Weights, config: ModelConfig, images: jax.Array, stop: int) -> jax.Array:
    return nec.prefix(config, weights, images, stop)


def finish(params: NecParams, inputs: NDArray[Any], blocks: int) -> NDArray[np.float32]:
    """The embeddings [N, (1 +) T, D] of images, or of tokens [N, n, width] after `blocks` blocks.

    Tokens are completed as in `nec_jax.latents`, from activations rounded to float16.
    """
    if not blocks:
        return nec_jax.latents(params, inputs)
    out = []
    for first in range(0, len(inputs), _BATCH):
        part = inputs[first : first + _BATCH]
        padded = np.zeros((_BATCH, *part.shape[1:]), np.float16)
        padded[: len(part)] = part
        out.append(np.asarray(_finish(params.weights, params.config, padded, blocks))[: len(part)])
    return np.concatenate(out)


@functools.partial(jax.jit, static_argnames=("config", "start"))
def _finish(weights: Weights, config: ModelConfig, tokens: jax.Array, start: int) -> jax.Array:
    return nec.latents(config, weights, tokens, start=start)


def _write_shard(home: Path, number: int, rows: NDArray[np.float16]) -> NDArray[np.float16]:
    content = io.BytesIO()
    np.save(content, rows)
    path = home / f"{number:05d}-{zlib.crc32(content.getbuffer()):08x}.npy"
    # Other processes may make the same shard at the same time: the last stays, and all are equal.
    with files.writing(path, overwrite=True) as file:
        file.write(content.getbuffer())
    return np.load(path, mmap_mode="r")


def _sound_shard(home: Path, number: int) -> NDArray[np.float16] | None:
    for path in sorted(home.glob(f"{number:05d}-????????.npy")):
        if f"{_crc(path):08x}" == path.stem[-8:]:
            return np.load(path, mmap_mode="r")
        print(f"{path} is damaged: it is made again", file=sys.stderr)
        path.unlink(missing_ok=True)
    return None


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            crc = zlib.crc32(part, crc)
    return crc


def _refuse_too_large(folder: Path, to_make: int, limit_gb: float) -> None:
    taken = sum(path.stat().st_size for path in folder.glob("prefix-*/*.npy"))
    if to_make and taken + to_make > limit_gb * 1e9:
        rest = f", besides {taken / 1e9:.2f} GB that are in {folder}" if taken else ""
        raise OptionsError(
            f"these activations take {to_make / 1e9:.2f} GB{rest}; --cache-gb allows "
            f"{limit_gb:g}: raise it, lower --views, or delete caches that are no longer needed"
        )


def start_of(params: NecParams, blocks: int) -> dict[str, Any]:
    """A description of all that the tokens after `blocks` blocks depend on, except the image."""
    weights, config = _digest_weights(params, blocks), _config_facts(params.config)
    return {"weights": weights, "config": json.loads(json.dumps(config)), "blocks": blocks}


def _digest_weights(params: NecParams, blocks: int) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params.weights["encoder"]):
        name = path_name(path)
        first, _, _ = name.partition("/")
        if first == "norm" or (first.startswith("block_") and int(first[6:]) >= blocks):
            continue
        digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _config_facts(config: ModelConfig) -> dict[str, Any]:
    """The fields of a configuration that the encoder's first blocks depend on."""
    apart = ("coding_batch", "code_class_token", "embedding_blocks", "arch", "depth", "bands")
    facts = dataclasses.asdict(config)
    return {k: v for k, v in facts.items() if k not in apart and not k.startswith("decoder_")}
