"""The kind of a file, from its first bytes and not its name; and what to do with other kinds."""

import zipfile
from pathlib import Path

from coder.errors import BlobError
from coder.format import blob as framing

SAVE = "save the array of the embeddings as .npy (numpy.save)"
_BANDS = f"read its bands as [H, W, D] (rasterio), and {SAVE}"
_PICTURE = "a model makes embeddings of pictures and codes them (nec_jax.encode)"
_CODE = "it may run code, so it is not opened: where it was made"
NPY, PARQUET = b"\x93NUMPY", b"PAR1"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# First bytes -> the kind of the file, and what to do with it.
_STARTS = {
    NPY: ("a .npy file", ""),
    PARQUET: ("a Parquet file", ""),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 or NetCDF file", SAVE),
    b"CDF": ("a NetCDF file", SAVE),
    TIFF: ("a TIFF", _BANDS),
    b"\x80": ("a pickle", f"{_CODE}, {SAVE}"),
    b"ARROW1": ("an Arrow file (Feather)", "write its table as Parquet"),
    b"\x89PNG\r\n\x1a\n": ("a PNG picture", _PICTURE),
    b"\xff\xd8\xff": ("a JPEG picture", _PICTURE),
    b"\0\0\0\x0cjP  \r\n\x87\n": ("a JPEG 2000 picture", _PICTURE),
    b"GIF8": ("a GIF picture", _PICTURE),
    b"RIFF": ("a WebP picture, or another RIFF file", _PICTURE),
}
_BYTES = 12  # of the longest start


def start_of(path: Path) -> bytes:
    """The first bytes of a file, for the functions below."""
    with path.open("rb") as file:
        return file.read(_BYTES)


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins so is a safetensors file, as codecs and models are."""
    # It begins with the length of its header, below 2^56, and the header. The eighth byte of a
    # blob is never 0: it is part of a side of its grid.
    return start[7:9] == b"\0{"


def may_be_blob(start: bytes) -> bool:
    """Whether a file that begins so may be a blob that this version reads."""
    return start[0] >> 4 == framing.VERSION and not is_safetensors(start)


def described(path: Path) -> tuple[str, str] | None:
    """The kind of a file, and how to get readable embeddings from it; None if it is unknown."""
    start = start_of(path)
    if start.startswith(b"PK"):
        return _zipped(path)
    for first, found in _STARTS.items():
        if start.startswith(first):
            return found
    if is_safetensors(start):
        return "a safetensors file (a codec, a model, or tensors), not embeddings", SAVE
    if may_be_blob(start):
        try:
            framing.unpack(path.read_bytes())
        except BlobError:
            return None
        return "a blob, which is coded", "decode it with `nec decode`"
    return None


def _zipped(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as file:
            names = {Path(name).name for name in file.namelist()}
    except (zipfile.BadZipFile, OSError):
        names = set()
    if names & {".zarray", ".zgroup", "zarr.json"}:
        return "a zipped Zarr store", "unpack it, and give its folder"
    if "data.pkl" in names:
        return "a checkpoint of PyTorch", f"{_CODE}, {SAVE}"
    return "a .npz (or other zip) file, which may hold several arrays", SAVE
