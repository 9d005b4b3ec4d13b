"""The refiner of an archive: the array `refiner` holds its file, an attribute its fingerprint.

The attribute `nec_refiner` says that the archive has a refiner. Who does not refine never looks at
the array.
"""

from typing import Any

import numpy as np
import zarr

from coder.archive import zarr_nodes
from coder.archive.zarr_codec import LARGEST, nec_codec
from coder.codecs import OneQualityCodec
from coder.errors import CodecError, FileError, InputError, NoPermission, StoreError, one_line
from coder.refiner import Refiner, check_refiner

GROUP, ARRAY = "refiner", "refiner/file"
"""Not beside the arrays of images: xarray would join it to them."""
ATTRIBUTE = "nec_refiner"
_PLAIN = (
    "copy the archive again, or coder.archive.add_refiner(group, refiner) mends it; its plain "
    "embeddings can be read without it"
)


def write_array(group: zarr.Group, refiner: Refiner) -> None:
    """Write the array; the attribute is the caller's. One chunk holds the refiner's file as is."""
    data = np.frombuffer(refiner.to_bytes(), np.uint8)
    group.require_group(GROUP).create_array(
        ARRAY.removeprefix(f"{GROUP}/"),
        data=data,
        chunks=data.shape,
        dimension_names=("refiner_byte",),
        compressors=None,
        overwrite=True,
    )


def own_members(group: zarr.Group) -> tuple[str, ...]:
    """The names of the members of a group that hold its refiner, and no data of images."""
    return (GROUP,) if ATTRIBUTE in group.attrs else ()


def read_refiner(group: zarr.Group) -> Refiner:
    """Read the refiner of an archive.

    Raises:
      InputError: the archive has none.
      FileError: it is lost or damaged, or belongs to another archive.
    """
    with zarr_nodes.about_store(group.store):
        if ATTRIBUTE not in group.attrs:
            raise InputError(
                "the archive has no refiner: coder.archive.add_refiner(group, refiner) adds one"
            )
        try:
            refiner = _read(group)
        except (NoPermission, StoreError):
            raise
        except Exception as error:  # whatever any codec raises is damage here
            text = f"{ARRAY} is lost or damaged ({one_line(error)}): {_PLAIN}"
            raise FileError(text) from error
        if refiner.fingerprint.hex() != group.attrs[ATTRIBUTE]:
            raise FileError(f"{ARRAY} is not the one that {ATTRIBUTE} names: {_PLAIN}")
        try:
            codec = nec_codec(group["embedding"])
        except (NoPermission, StoreError):
            raise
        except Exception:  # lost or damaged embeddings are named where they are read
            codec = None
        if codec is not None and not codec.is_served_by(refiner):
            raise FileError(f"{ARRAY} belongs to another codec than `embedding`: {_PLAIN}")
    return refiner


def holds(group: zarr.Group, refiner: Refiner) -> bool:
    """Whether the array holds this refiner, whatever the attribute says."""
    try:
        return _read(group) == refiner
    except (NoPermission, StoreError):
        raise
    except Exception:  # not there, or damaged
        return False


def check_serves(refiner: Refiner, codec: Any) -> None:
    """Raise InputError if a refiner does not refine what this codec decodes."""
    check_refiner(refiner)
    if not isinstance(codec, OneQualityCodec) or not codec.is_served_by(refiner):
        raise InputError(
            "the refiner belongs to another codec than that of the embeddings: give one that was "
            "fitted for this codec"
        )


def _read(group: zarr.Group) -> Refiner:
    # Not `group[ARRAY]`: consolidated metadata may be of a time before it was added.
    array = zarr_nodes.open_node(group.store_path / ARRAY)
    if not isinstance(array, zarr.Array) or array.dtype != np.uint8 or array.ndim != 1:
        raise CodecError("not an array of bytes")
    if array.size > LARGEST:
        raise CodecError(f"{array.size:,} bytes")
    zarr_nodes.check_readable(array)
    return Refiner.from_bytes(zarr_nodes.read(array).tobytes())
