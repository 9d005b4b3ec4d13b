"""Export an archive to formats that need no codec: a Parquet table, or a plain Zarr group."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from coder import files
from coder.archive import contents, zarr_nodes
from coder.archive.image_columns import TIME
from coder.archive.manifest import shard_size, shard_slices
from coder.errors import InputError

if TYPE_CHECKING:
    import pyarrow

Pool = Literal["mean", "class-token"]


class Exporter:
    """Embeddings of an archive, decoded shard by shard, for other formats.

    Attributes:
      group: the archive.
      names: the arrays to export, the embeddings last.
    """

    def __init__(self, store: Any, *, pool: Pool | None = None, refine: bool = False):
        """Open a complete archive.

        Args:
          store: the archive, as `open_archive` takes it.
          pool: one vector for each image: the mean of its tokens, or its class token. None for all
            tokens.
          refine: bring embeddings closer to those that were encoded, by the archive's refiner.

        Raises:
          FileError: as `open_archive`.
          InputError: there are no class tokens, or no refiner.
        """
        self.group, self._pool, self._refine = contents.open_archive(store), pool, refine
        self._has_class = "class_token" in self.group
        with zarr_nodes.about_store(self.group.store):
            if pool == "class-token" and not self._has_class:
                raise InputError("has no class tokens: pool by the mean")
            if pool == "class-token" and refine:
                raise InputError("class tokens are not refined: leave --refine out")
        if refine:
            contents.read_array(self.group, "embedding", slice(0, 0), refine=True)
        columns = contents.columns_of(self.group)
        beside = ["id", "label", *(n for n in ("valid", "error") if n in self.group), *columns]
        with_class = ["class_token"] if self._has_class and pool is None else []
        self.names = [*beside, *with_class, "embedding"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, y, x, channels), or (images, channels) if tokens are pooled."""
        count, *sides = contents.array_of(self.group, "embedding").shape
        return (count, sides[-1]) if self._pool else (count, *sides)

    @property
    def attributes(self) -> dict[str, Any]:
        """The archive's attributes that are true of what is exported."""
        kept = self.group.attrs.asdict()
        own = {name: value for name, value in kept.items() if name not in contents.OWN}
        return own | {"pooled": self._pool, "refined": self._refine}

    def shards(self) -> Iterator[tuple[slice, dict[str, NDArray[Any]]]]:
        """The images of each shard, and the values of each array of `names`.

        Floats of images that are not valid are NaN.

        Raises FileError: a shard is damaged.
        """
        for part in shard_slices(contents.array_of(self.group, "embedding")):
            values = {name: self._read(name, part) for name in self.names[:-1]}
            yield part, values | {"embedding": self._embeddings(part)}

    def _read(self, name: str, part: slice) -> NDArray[Any]:
        return contents.read_array(self.group, name, part)

    def _embeddings(self, part: slice) -> NDArray[np.float32]:
        if self._pool == "class-token":
            return self._read("class_token", part)
        y = contents.read_array(self.group, "embedding", part, refine=self._refine)
        return y.mean((1, 2), dtype=np.float64).astype(np.float32) if self._pool else y


def to_parquet(exporter: Exporter, out: Path, *, overwrite: bool = False) -> None:
    """Write a Parquet table with a row for each image, and a row group for each shard.

    `embedding` is a list of fixed size, or a tensor of fixed shape; null where an image is not
    valid, as a label is where there is none. `label_name` is the class of the label.

    Raises:
      ModuleNotFoundError: pyarrow is missing.
      OutputError: the file cannot be written.
    """
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Parquet needs pyarrow: install nec-jax[parquet]") from error
    named, writer = exporter.attributes.get("classes"), None
    classes = [str(name) for name in named] if isinstance(named, list) else []
    with files.writing(out, overwrite=overwrite) as file, ExitStack() as stack:
        for _, values in exporter.shards():
            table = _table(exporter, values, classes)
            if writer is None:
                writer = parquet.ParquetWriter(
                    file, table.schema, compression="zstd", write_page_checksum=True
                )
                stack.enter_context(writer)
            writer.write_table(table)


def _table(
    exporter: Exporter, values: Mapping[str, NDArray[Any]], classes: Sequence[str]
) -> "pyarrow.Table":
    import pyarrow

    valid, columns = values.get("valid"), {}
    for name, own in values.items():
        if name in ("embedding", "class_token"):
            columns[name] = _vectors(own, valid)
        elif name == "label":
            columns[name] = pyarrow.array(own, mask=own < 0)
            if classes:
                known = [classes[i] if 0 <= i < len(classes) else None for i in own.tolist()]
                columns["label_name"] = pyarrow.array(known, pyarrow.string())
        elif own.dtype == TIME:
            columns[name] = pyarrow.array(own, pyarrow.timestamp("us", "UTC"))
        elif own.dtype.kind in "OTU":
            columns[name] = pyarrow.array([str(text) for text in own], pyarrow.string())
        else:
            columns[name] = pyarrow.array(own)
    about = {"nec": json.dumps(exporter.attributes)}
    return pyarrow.table(columns, metadata=about)


def _vectors(values: NDArray[np.float32], valid: NDArray[np.bool_] | None) -> "pyarrow.Array":
    """Vectors, or tensors of more dimensions, as Arrow has them; null where they are not valid."""
    import pyarrow

    shape = values.shape[1:]
    lists = pyarrow.FixedSizeListArray.from_arrays(
        pyarrow.array(values.reshape(-1)),
        int(np.prod(shape)),
        mask=None if valid is None else pyarrow.array(~valid),
    )
    if len(shape) == 1:
        return lists
    kind = pyarrow.fixed_shape_tensor(pyarrow.float32(), list(shape))
    return pyarrow.ExtensionArray.from_storage(kind, lists)


def to_zarr(exporter: Exporter, out: Path, *, overwrite: bool = False) -> None:
    """Write a plain Zarr v3 group with the archive's arrays, whose codecs every reader has.

    Floats of images that are not valid are NaN. It is no archive, and bears no digests.

    Raises OutputError: the folder cannot be written.
    """
    with files.writing_folder(out, overwrite=overwrite) as folder:
        group = zarr.create_group(folder, attributes=exporter.attributes)
        arrays = {name: _create(group, exporter, name) for name in exporter.names}
        for part, values in exporter.shards():
            for name, own in values.items():
                arrays[name][part] = own.astype(np.int64) if own.dtype == TIME else own
        coordinates = exporter.group.attrs.get("coordinates", "id label")  # for xarray
        zarr_nodes.with_copies(group, arrays).attrs.update({"coordinates": coordinates})


def _create(group: zarr.Group, exporter: Exporter, name: str) -> zarr.Array:
    """Make an array as the archive has it, without the codec nec."""
    array = contents.array_of(exporter.group, name)
    shape, size = array.shape, shard_size(array)
    dimensions = getattr(array.metadata, "dimension_names", None)
    if name == "embedding":
        shape = exporter.shape
        dimensions = ("image", "channel") if len(shape) == 2 else dimensions
    own = name == "embedding" and len(shape) == 4  # one image may be read alone
    return group.create_array(
        name,
        shape=shape,
        chunks=(1 if own else size, *shape[1:]),
        shards=(size, *shape[1:]) if own else None,
        dtype=str if array.dtype.kind in "OTU" else array.dtype,
        fill_value=array.fill_value,
        compressors=[ZstdCodec()],
        dimension_names=dimensions,
        attributes=array.attrs.asdict(),
    )
