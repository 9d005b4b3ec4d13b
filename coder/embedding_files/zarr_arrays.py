"""Open a Zarr array of embeddings, of which damage is an error."""

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from coder.archive import zarr_nodes
from coder.errors import FileError, NoPermission, StoreError, one_line

_SCALED = ("scale_factor", "add_offset")  # attributes of CF


class ZarrReader:
    """A Zarr array whose damage is a FileError."""

    def __init__(self, array: zarr.Array):
        self._array = array
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.nbytes, self.chunks = array.nbytes, array.chunks
        self.fill_value: Any = array.attrs.get("_FillValue")  # of CF, as xarray writes it

    def __getitem__(self, place: Any) -> np.ndarray:
        try:
            return zarr_nodes.read(self._array, place)
        except (NoPermission, StoreError):
            raise
        except Exception as error:  # whatever any codec raises is damage here
            raise FileError(f"damaged ({one_line(error)}): `nec verify` says where") from error


def open_zarr(path: Path | str) -> ZarrReader:
    """Open an array at a path or URL. Raises FileError: a group, scaled numbers, or damage."""
    node = zarr_nodes.open_node(path)
    if isinstance(node, zarr.Array):
        zarr_nodes.check_readable(node)
        scaled = [name for name in _SCALED if name in node.attrs]
        if scaled:
            raise FileError(
                f"its attribute {scaled[0]} says that its numbers are scaled: dequantise them, and "
                "save floats"
            )
        return ZarrReader(node)
    names = ", ".join(zarr_nodes.members(node)[0]) or "none"
    raise FileError(f"a Zarr group: give the folder of one of its arrays ({names})")
