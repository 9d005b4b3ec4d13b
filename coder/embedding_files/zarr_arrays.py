"""Open a Zarr array of embeddings, or a group with one, of which damage is an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from coder.archive import manifest, zarr_nodes
from coder.archive.zarr_codec import nec_codec
from coder.embedding_files.georeference import (
    COLUMNS,
    ROWS,
    Georeference,
    cf_georeference,
    dimensions_of,
    is_map_dimension,
)
from coder.embedding_files.stated_numbers import StatedNumbers, stated_numbers
from coder.errors import FileError, InputError, NoPermission, StoreError, one_line

_OF_STORAGE = ("zarr_conventions", "coordinates", "multiscales", "spatial:", "proj:", "nec_")
_OF_STORAGE += ("_ARRAY_DIMENSIONS", "_FillValue", "missing_value", "grid_mapping")
_OF_STORAGE += ("scale_factor", "add_offset")
_FOR_XARRAY = (*ROWS, *COLUMNS, "spatial_ref", "crs", "time", "t")


class ZarrReader:
    """A Zarr array whose damage is a FileError."""

    def __init__(self, array: zarr.Array):
        self._array = array
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.nbytes, self.chunks = array.nbytes, array.chunks

    def __getitem__(self, place: Any) -> np.ndarray:
        try:
            return zarr_nodes.read(self._array, place)
        except (NoPermission, StoreError):
            raise
        except Exception as error:  # whatever any codec raises is damage here
            raise FileError(f"damaged ({one_line(error)}): `nec verify` says where") from error


class ZarrEmbeddings(NamedTuple):
    """An array of a Zarr store, and what the store says of it.

    Attributes:
      y: the array.
      numbers: what it says of its numbers.
      place: where its tokens lie.
      bands: names of its channels.
      facts: its other attributes, and those of its group, as JSON.
      lines: what to say.
    """

    y: ZarrReader
    numbers: StatedNumbers
    place: Georeference | None
    bands: list[str]
    facts: dict[str, Any]
    lines: list[str]


def open_zarr(
    path: Path | str, *, channel_first: bool, nodata: float | None = None
) -> ZarrEmbeddings:
    """Open an array, or a group with one array of embeddings, at a path or URL.

    Args:
      path: it.
      channel_first: whether the channels come first.
      nodata: the number that marks missing data, in place of what the array says.

    Raises:
      FileError: neither, an archive, several arrays, or damage.
      InputError: dimensions in another order, a georeference that cannot be kept, or attributes
        that are not understood.
    """
    node = zarr_nodes.open_node(path)
    if isinstance(node, zarr.Array):
        group, arrays, array = None, {}, node
    else:
        group, (arrays, damaged) = node, zarr_nodes.members(node)
        array = _only(node, arrays, damaged)
    zarr_nodes.check_readable(array)
    attributes: dict[str, Any] = array.attrs.asdict()
    names = dimensions_of(array)
    _check_order(names, channel_first)
    numbers = stated_numbers(array, nodata)
    place, lines = None, []
    if group is not None:
        place, lines = cf_georeference(group, arrays, array)
    elif "grid_mapping" in attributes:
        lines = ["an array alone: give the folder of its group to keep its place on the map"]
    bands: list[str] = []
    if names is not None and array.ndim > 2:
        bands = _band_names(arrays.get(names[-3 if channel_first else -1]), array, channel_first)
    if group is not None:
        known = {array.basename, *_FOR_XARRAY, *(names or ())}
        if left := sorted({*arrays} - known):
            lines.append(f"only {array.basename} is encoded, without {', '.join(left)}")
    if nec_codec(array) is not None:
        lines.append("coded by nec already: errors and sizes compare with its decoded embeddings")
    facts = {"attributes": _kept(attributes)} if group is None else {
        "attributes": _kept(attributes), "group_attributes": _kept(group.attrs.asdict())
    }  # fmt: skip
    return ZarrEmbeddings(
        ZarrReader(array),
        numbers,
        place,
        bands,
        facts,
        [*numbers.lines, *lines],
    )


def _only(
    group: zarr.Group, arrays: Mapping[str, zarr.Array], damaged: Mapping[str, Exception]
) -> zarr.Array:
    """The array of embeddings of a group. Raises FileError if that is not one array."""
    if manifest.read_state(group) or manifest.is_earlier(group, dict(arrays)):
        raise FileError(
            "an archive of images: `nec copy --codec` codes it at another quality, with its ids"
        )
    for name, error in damaged.items():
        raise FileError(f"{name} cannot be opened: {one_line(error)}")
    own = {name: array for name, array in arrays.items() if "/" not in name}
    numbers = {name: array for name, array in own.items() if array.dtype.kind in "fiu"}
    found = {name: array for name, array in numbers.items() if array.ndim in (3, 4)}
    # Of two dimensions: vectors, but not what is known of each cell of a map.
    found = found or {
        name: array
        for name, array in numbers.items()
        if array.ndim == 2 and not all(map(is_map_dimension, dimensions_of(array) or ("",)))
    }
    if len(found) != 1:
        names = ", ".join(found or arrays) or "none"
        raise FileError(f"a Zarr group: give the folder of one of its arrays ({names})")
    return next(iter(found.values()))


def _check_order(names: tuple[str, ...] | None, channel_first: bool) -> None:
    """Raise InputError if the names of dimensions contradict the order that is asked for."""
    if names is None or not any(map(is_map_dimension, names)):
        return
    lower = [name.lower() for name in names]
    shown = f"its dimensions are ({', '.join(names)})"
    last = lower[-2:] if channel_first else lower[-3:-1]
    if len(last) == 2 and last[0] in ROWS and last[1] in COLUMNS:
        return
    if channel_first and len(names) > 2 and lower[-3] in ROWS and lower[-2] in COLUMNS:
        raise InputError(f"{shown}: leave --channel-first out")
    if not channel_first and len(names) > 2 and lower[-2] in ROWS and lower[-1] in COLUMNS:
        raise InputError(f"{shown}: the channels come first, give --channel-first")
    raise InputError(f"{shown}: bring them into the order (y, x, channel) (xarray: transpose)")


def _band_names(array: zarr.Array | None, y: zarr.Array, channel_first: bool) -> list[str]:
    """The names of the channels, if a coordinate has them."""
    count = y.shape[-3 if channel_first else -1]
    if array is None or array.shape != (count,):
        return []
    return [str(one) for one in np.asarray(zarr_nodes.read(array)).tolist()]


def _kept(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes without those of storage."""
    return {name: v for name, v in attributes.items() if not name.startswith(_OF_STORAGE)}
