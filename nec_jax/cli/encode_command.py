"""`nec encode --model MODEL IMAGES --out ARCHIVE`: images to an archive, or a scene to a map."""

import hashlib
import sys
import time
from typing import Any

from rich import filesize
from rich.progress import MofNCompleteColumn, TextColumn

import nec_jax
from coder import InputError, archive
from coder.cli.arguments import Encode
from coder.files import without_query
from coder.pool import available_cores
from nec_jax.archiving import image_list
from nec_jax.archiving.image_archive import Amount, Encoded, encode_archive, quality_for
from nec_jax.archiving.named_inputs import NamedInputs
from nec_jax.cli import scene_command
from nec_jax.cli.progress_bar import ProgressBar
from nec_jax.images.record import DataError
from nec_jax.model_file import model_path
from nec_jax.sources import folder_of

NOT_ALL = 3
"""The exit status if the archive is complete, and some images or files could not be used."""
_NAMED = 5  # files that cannot be read


def run(options: Encode) -> tuple[int, dict[str, Any]]:
    """Encode images to an archive, and print what was done. Returns the status and the facts."""
    try:
        if scene_command.is_scene(options):
            return 0, scene_command.encode(options)
        if options.nodata is not None:
            raise InputError("--nodata is for embeddings and scenes: leave it out")
        done = _encode(options)
    except (DataError, FileNotFoundError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, which names the file
        # `file: why`, once.
        raise InputError(str(error).removeprefix(f"{options.file}: ")) from error
    is_all = not done.not_valid and not done.files_left_out["unreadable"]
    return (0 if is_all else NOT_ALL), _told(options, done)


def _encode(options: Encode) -> Encoded:
    given, split = options.images, options.images.split or "all"
    for name in options.inputs:
        if (folder := folder_of(name)) is not None:
            image_list.refuse_inside(folder, options.out)
    path = model_path(given.model or "")
    named = NamedInputs(path, options.inputs, split, given.chip, refiner=not given.no_refiner)
    quality = options.quality
    if options.max_bytes is not None or options.max_mse is not None:
        quality = quality_for(
            *named.opened,
            max_bytes=options.max_bytes,
            max_mse=options.max_mse,
            image_size=given.image_size,
            for_refiner=given.for_refiner,
        )
        print(f"quality {quality} fits")
    notes = {
        "inputs": [without_query(name) for name in options.inputs],  # it may be a signature
        "model_name": path.stem,
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "written_by": f"nec-jax {nec_jax.__version__}",
    }
    with _Bar() as bar:
        settings: dict[str, Any] = {"quality": quality, "image_size": given.image_size}
        settings |= {"for_refiner": given.for_refiner, "strict": given.strict}
        settings |= {"shard": given.shard or archive.SHARD, "notes": notes, "progress": bar}
        if given.scheduler is not None:
            from nec_jax.archiving.cluster import encode_on_cluster

            if isinstance(options.out, str):
                raise InputError("a URL has no locks, which workers need: give a folder")
            settings["readers"] = given.workers
            return encode_on_cluster(given.scheduler, named, options.out, **settings)
        settings |= {"retry": given.retry, "readers": given.workers or available_cores()}
        return encode_archive(*named.opened, options.out, split=split, **settings)


def _told(options: Encode, done: Encoded) -> dict[str, Any]:
    """Print what was done; the facts of it."""
    ratio = done.image_bytes / done.archive_bytes
    per_image = (done.archive_bytes - done.fixed_bytes) / done.images
    print(
        f"{options.out}: {done.images:,} images in {done.archive_bytes:,} bytes: "
        f"{done.fixed_bytes:,} for the codec, its refiner and metadata, and {per_image:.0f} per "
        "image"
    )
    if done.image_bytes:  # unknown of images at URLs that a table lists
        print(f"the image files have {done.image_bytes:,} bytes, {ratio:.1f} times as many")
    if done.written:
        speed = done.written / done.seconds
        print(f"{done.written:,} images in {done.seconds:.0f} s, {speed:.1f} images per second")
    else:
        print("it was complete, and nothing was written")
    if done.not_valid:
        print(f"{done.not_valid:,} images cannot be used, and are marked as not valid:")
        for _, name, reason in done.first_not_valid:
            print(f"  {name}: {reason}")
        if done.not_valid > len(done.first_not_valid):
            rest = done.not_valid - len(done.first_not_valid)
            print(f"  and {rest:,} more: see the array `error`")
    left_out = done.files_left_out
    if unreadable := left_out["unreadable"]:
        print(f"files that cannot be read, and of which the archive has no windows: {unreadable:,}")
        for file in left_out["first"][: min(unreadable, _NAMED)]:
            print(f"  {file['path']}: {file['reason']}")
        if unreadable > _NAMED:
            print(f"  and {unreadable - _NAMED:,} more: see the attribute `files_left_out`")
    if left_out["too_small"]:
        print(f"images that are smaller than a window, and are left out: {left_out['too_small']:,}")
    return {"out": str(options.out), **done._asdict(), "bytes_per_image": per_image, "ratio": ratio}


class _Bar(ProgressBar):
    """The progress of images."""

    def __init__(self) -> None:
        super().__init__(MofNCompleteColumn(), TextColumn("images, {task.fields[told]}, left:"))
        self._begun = False

    def __call__(self, done: int, total: int, written: Amount) -> None:
        """Show how many of the images are in the archive, and how much was written."""
        now = time.monotonic()
        if not written.images and not self._begun:
            self._begun, self.start = True, now
            print(f"{done:,} of {total:,} images are there", file=sys.stderr)
        speed = written.images / max(now - self.start, 1e-9)
        told = f"{speed:.1f} per second, {filesize.decimal(written.stored)} written"
        if written.read and written.stored:
            ratio = written.read / written.stored
            told += f", {filesize.decimal(written.read)} of images, {ratio:.1f} times as much"
        self.show(done, total, told, f"{done:,} of {total:,} images, {told}", speed)
