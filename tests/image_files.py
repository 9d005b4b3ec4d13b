"""Write image files of every kind, and read one as `nec_jax.images` does."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from nec_jax.images.read import read_image

# A georeference.
PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500000, 0, -10, 4100000)}
_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}  # PNG's colour type by samples a pixel


def noise(*shape: int, seed: int = 0, high: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def png(array: np.ndarray, *chunks: tuple[bytes, bytes], bits: int = 16) -> bytes:
    """A PNG of uint16 [H, W, 1 to 4], or of fewer bits [H, W, 1]; `chunks` before the pixels."""
    height, width, samples = array.shape
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in array]
    else:
        each = np.unpackbits(array.astype(np.uint8), axis=-1, count=8)[..., 8 - bits :]
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in each]
    header = struct.pack(">IIBBBBB", width, height, bits, _COLOUR[samples], 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def encoded(image: np.ndarray | Image.Image, form: str, **options) -> bytes:
    """What Pillow writes."""
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, form, **options)
    return file.getvalue()


def write_raster(path: Path, bands: np.ndarray, *, alpha: int = 0, **options) -> Path:
    """Write [bands, H, W] by rasterio, as the TIFF or JPEG 2000 that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    lossless = {"QUALITY": 100, "REVERSIBLE": "YES"}
    driver, extra = ("JP2OpenJPEG", lossless) if path.suffix == ".jp2" else ("GTiff", {})
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver, width, height, count, dtype=bands.dtype, **extra, **options
    ) as file:
        if alpha:
            kinds = list(file.colorinterp)
            kinds[alpha - 1] = ColorInterp.alpha
            file.colorinterp = kinds
        file.write(bands)
    return path


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def pixels(path: Path) -> np.ndarray:
    return read_image(path, path.name)["image"]
