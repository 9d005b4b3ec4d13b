"""The commands that make an archive of others, write it in another format, or add to it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from coder import codecs, files
from coder.archive import (
    appending,
    contents,
    copying,
    exact_copy,
    exporting,
    refiner_array,
    zarr_nodes,
)
from coder.archive.zarr_codec import nec_codec
from coder.cli import refiner_facts, scene_export
from coder.cli.arguments import AddRefiner, Append, Copy, Export, is_given
from coder.cli.progress_lines import ProgressLines
from coder.cli.table_commands import told_csv
from coder.embedding_files import with_vectors, write_csv
from coder.errors import FileError, InputError
from coder.refiner import load_refiner
from coder.scenes import scene_layout
from coder.scenes.scene_reader import Scene


def run(options: AddRefiner | Append | Copy | Export) -> tuple[int, dict[str, Any]]:
    """Run one of the commands below; where it is stopped, zarr's reading is too."""
    with zarr_nodes.settled():
        if isinstance(options, Copy):
            return _copied_exactly(options) if options.codec is None else copied(options)
        if isinstance(options, Append):
            return appended(options)
        return export(options) if isinstance(options, Export) else add_refiner(options)


def add_refiner(options: AddRefiner) -> tuple[int, dict[str, Any]]:
    """Add a refiner to an archive, or mend the one that it has."""
    refiner = load_refiner(options.refiner)
    store = zarr_nodes.place(options.file)
    if not isinstance(zarr_nodes.open_node(store), zarr.Group):
        raise InputError("a Zarr array, and only archives hold refiners")
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    contents.add_refiner(group, refiner)
    print(f"{options.file}: {refiner_facts.line(refiner)}")
    return 0, {"file": str(options.file)} | refiner_facts.facts(refiner)


def appended(options: Append) -> tuple[int, dict[str, Any]]:
    """Add the images of archives to an archive, or take an addition back."""
    if options.undo:
        was_there = appending.undo_append(options.file)
        print(f"{options.file}: {'taken back' if was_there else 'nothing is being added to it'}")
        return 0, {"archive": str(options.file), "undone": was_there}
    done = appending.append(options.file, options.more, progress=ProgressLines("images"))
    size = sum(zarr_nodes.sizes(options.file).values())
    if done.added:
        print(
            f"{options.file}: {done.added:,} images were added, {done.not_valid:,} of them not "
            f"valid; it has {done.images:,} images in {size:,} bytes"
        )
    else:
        print(f"{options.file}: has these images already, and nothing was written")
    return 0, {"archive": str(options.file), "bytes": size} | done._asdict()


def copied(options: Copy) -> tuple[int, dict[str, Any]]:
    """Copy archives to a new one."""
    assert options.codec is not None
    codec = codecs.load(options.codec)
    keep, drop = (None if path is None else _lines(path) for path in (options.keep, options.drop))
    done = copying.copy(
        list(options.inputs),
        options.out,
        codec,
        quality=options.quality,
        keep=keep,
        drop=drop,
        replace=options.replace,
        shard=options.shard or contents.SHARD,
        progress=ProgressLines("images"),
    )
    size = sum(zarr_nodes.sizes(options.out).values())
    print(f"{options.out}: {done.images:,} images, {done.not_valid:,} not valid, {size:,} bytes")
    return 0, {"out": str(options.out), "bytes": size} | done._asdict()


def _copied_exactly(options: Copy) -> tuple[int, dict[str, Any]]:
    if scene_export.is_scene(options.file):
        group = Scene(options.file).group
        arrays = zarr_nodes.opened(group, but=refiner_array.own_members(group))
        for error in scene_layout.unlike(group, arrays).values():
            raise error
        for key, why in scene_layout.misplaced(group):
            raise FileError(f"{key} {why}: `nec verify` says more")
        shards = scene_layout.shards_of(group)
        copy = exact_copy.copy_group(group, options.out, shards, progress=ProgressLines("objects"))
        print(
            f"{options.out}: a scene, {copy.bytes:,} bytes in {copy.objects:,} objects, "
            f"{copy.copied:,} of them copied now"
        )
        return 0, {"out": str(options.out), **copy._asdict()}
    done = exact_copy.copy_exactly(options.file, options.out, progress=ProgressLines("objects"))
    print(
        f"{options.out}: {done.images:,} images, {done.bytes:,} bytes in {done.objects:,} objects, "
        f"{done.copied:,} of them copied now"
    )
    if not done.checked:
        print("the archive has no digests, so that only sizes were compared: run `nec verify`")
    return 0, {"out": str(options.out), **done._asdict()}


def export(options: Export) -> tuple[int, dict[str, Any]]:
    """Write an archive, or a scene, in another format."""
    if options.out.suffix not in (".parquet", ".zarr", ".csv", ".tif", ".json"):
        raise InputError(
            "name it NAME.parquet, NAME.zarr or NAME.csv; or, for a scene, NAME.tif, NAME.parquet "
            "or NAME.json, which says the format",
            options.out,
        )
    if scene_export.is_scene(options.file):
        return scene_export.export(options)
    write = {".parquet": exporting.to_parquet, ".zarr": exporting.to_zarr}.get(options.out.suffix)
    is_csv = options.out.suffix == ".csv"
    if write is None and not is_csv:
        raise InputError(
            "an archive of images has no map: name it NAME.parquet or NAME.zarr, which says the "
            "format",
            options.out,
        )
    if (name := next((k for k, v in vars(options.part).items() if is_given(v)), None)) is not None:
        raise InputError(f"--{name} is for scenes, and this is an archive of images: leave it out")
    inputs = [options.file] if isinstance(options.file, Path) else []
    is_zarr = options.out.suffix == ".zarr"
    files.check_output(options.out, overwrite=options.overwrite, inputs=inputs, folder=is_zarr)
    exporter = exporting.Exporter(options.file, pool=options.pool, refine=options.refine)
    if write is None:
        return 0, _csv(exporter, options)
    write(exporter, options.out, overwrite=options.overwrite)
    size = sum(p.stat().st_size for p in [options.out, *options.out.rglob("*")] if p.is_file())
    print(f"{options.out}: embeddings float32 {list(exporter.shape)}, {size:,} bytes")
    return 0, {"out": str(options.out), "shape": exporter.shape, "bytes": size}


def _csv(exporter: exporting.Exporter, options: Export) -> dict[str, Any]:
    """Write the pooled embeddings of an archive as NeuCo-Bench reads them."""
    if options.pool is None:
        raise InputError("a CSV has one vector for each image: give --pool mean, or class-token")
    count, width = exporter.shape

    def rows() -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        for _, values in exporter.shards():
            y, ids = values["embedding"], [str(one) for one in values["id"]]
            yield from with_vectors(ids, y, np.atleast_1d(~np.isnan(y).any(axis=1)))

    written = write_csv(rows(), width, options.out, overwrite=options.overwrite)
    group = exporter.group
    arrays = [contents.array_of(group, n) for n in ("embedding", "class_token") if n in group]
    stored = sum(array.nbytes_stored() for array in arrays)
    coded = sum(one.codec_bytes for array in arrays if (one := nec_codec(array)) is not None)
    facts = told_csv(options.out, written, count, width, stored, coded)
    return {"out": str(options.out), "shape": exporter.shape} | facts


def _lines(path: Path) -> list[str]:
    try:
        text = files.read_bytes(path, "list of ids").decode("utf-8-sig")
        return [line for line in text.replace("\r\n", "\n").split("\n") if line]
    except UnicodeDecodeError as error:
        raise FileError(f"not UTF-8 ({error}): give a text with one id per line", path) from error
