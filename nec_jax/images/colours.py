"""Read what a TIFF or JPEG 2000 file says about its colours, and refuse some of these."""

import struct
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags

from nec_jax.images.record import DataError

TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What TIFF and BigTIFF files begin with."""
_COLOUR_MARKS = ("red", "green", "blue")
_COLOURS = {  # by their names in rasterio's ColorInterp
    *_COLOUR_MARKS, "hue", "saturation", "lightness", "cyan", "magenta", "yellow", "Y", "Cb", "Cr",
}  # fmt: skip
# Tags of a TIFF, and the photometric interpretations that are read (TIFF 6.0, section 8).
_COMPRESSION, _PHOTOMETRIC, _PLANAR = 259, 262, 284
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_JPEG = 7
_PHOTOMETRICS = {
    4: "a transparency mask", 5: "CMYK", 6: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB",
    32803: "the mosaic of a camera's sensor", 32844: "LogL", 32845: "LogLuv",
    34892: "linear values of a camera's sensor",
}  # fmt: skip
# Enumerated colour spaces of JPEG 2000 that are grey or RGB (ISO 15444-1 and -2, the colr box).
_JP2_PLAIN = (16, 17, 20, 21)
_JP2_SPACES = {12: "CMYK", 13: "YCCK", 14: "CIELAB", 18: "sYCC", 24: "e-sYCC"}


def refuse_colours(file: IO[bytes], head: bytes) -> bool:
    """Refuse a raster that is stored rotated, or in colours that would be taken for RGB.

    GDAL leaves some of these as they are and converts others to RGB, without saying which.

    Returns:
        Whether white is zero.
    """
    if not head.startswith(TIFFS):
        space = _jp2_space(file)
        if space is not None and space not in _JP2_PLAIN:
            name = _JP2_SPACES.get(space, "none that is known")
            raise DataError(f"its colour space is {name} ({space}): convert it to RGB or grey")
        return False
    tags = _tiff_tags(file, head)
    turn, kind = tags.get(ExifTags.Base.Orientation, 1), tags.get(_PHOTOMETRIC, _BLACK_IS_ZERO)
    if turn in range(2, 9):
        raise DataError(f"its orientation tag is {turn}: save it upright, as 1")
    by_jpeg = kind == _YCBCR and tags.get(_COMPRESSION) == _JPEG and tags.get(_PLANAR, 1) == 1
    if kind not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE) and not by_jpeg:
        name = _PHOTOMETRICS.get(kind, "none that is known")
        raise DataError(
            f"its photometric interpretation is {name} ({kind}), which would be taken for RGB or "
            "for bands: convert it to RGB or grey"
        )
    return kind == _WHITE_IS_ZERO


def refuse_other_colours(marks: list[str]) -> None:
    """Refuse three bands that are marked as colours but not as red, green, blue.

    In stored order they would be taken for red, green, blue. If they were reordered, a model whose
    bands are named in the file's order would get others.
    """
    if (
        len(marks) != len(_COLOUR_MARKS)
        or tuple(marks) == _COLOUR_MARKS
        or not _COLOURS.issuperset(marks)
    ):
        return
    if set(marks) == set(_COLOUR_MARKS):
        order = " ".join(f"-b {1 + marks.index(colour)}" for colour in _COLOUR_MARKS)
        remedy = f"store them in this order (gdal_translate {order})"
    else:
        remedy = "convert it to these colours"
    unset = " ".join(f"-colorinterp_{1 + i} undefined" for i in range(len(marks)))
    raise DataError(
        f"its bands are marked {', '.join(marks)}, and three colours are read as "
        f"{', '.join(_COLOUR_MARKS)}: {remedy}; or, for a model that takes the bands as they are, "
        f"unset the marks (gdal_edit.py {unset})"
    )


def _tiff_tags(file: IO[bytes], head: bytes) -> dict[int, int]:
    """The tags of a TIFF's first image that are one whole number."""
    order, big = ("<" if head[:1] == b"I" else ">"), b"+" in head[2:4]
    offset, entry, value = (8, 20, 12) if big else (4, 12, 8)
    file.seek(struct.unpack_from(order + "IQ"[big], head, offset)[0])
    (count,) = struct.unpack(order + "HQ"[big], file.read(8 if big else 2))
    found, tags = file.read(entry * min(count, 4096)), {}
    for place in range(0, len(found) - entry + 1, entry):
        tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), found, place)
        if number == 1 and kind in (1, 3, 4):  # bytes, and whole numbers of 16 and 32 bits
            form = {1: "B", 3: "H", 4: "I"}[kind]
            (tags[tag],) = struct.unpack_from(order + form, found, place + value)
    return tags


def _jp2_space(file: IO[bytes]) -> int | None:
    """The enumerated colour space of a JPEG 2000 file, if it has one."""
    head = file.read(1 << 16)  # the boxes before the pixels; a codestream has none
    place, end = 0, len(head)
    while place + 8 <= end:
        size, kind = struct.unpack_from(">I4s", head, place)
        if kind == b"jp2h":  # a box of boxes
            place += 8
            continue
        if kind == b"colr" and place + 15 <= end:
            method, _, _, space = struct.unpack_from(">BBBI", head, place + 8)
            return space if method == 1 else None
        if kind == b"jp2c" or size < 8:
            return None
        place += size
    return None


def black_is_zero(image: np.ndarray, bits: int) -> np.ndarray:
    """Invert a band [H, W, 1] in which white is zero."""
    if image.shape[-1] > 1 or image.dtype.kind != "u":
        what = "several bands" if image.shape[-1] > 1 else f"a band of {image.dtype}"
        raise DataError(
            f"white is zero in it (photometric MINISWHITE), which has no meaning in {what}: save "
            "it as MINISBLACK"
        )
    return image.dtype.type(2**bits - 1) - image


def coloured(
    indices: np.ndarray, palette: dict[int, tuple[int, ...]]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """RGB [H, W, 3] from palette indices [H, W], and where the colour is transparent."""
    table = np.zeros((max(palette) + 1, 4), np.uint8)
    table[list(palette)] = list(palette.values())
    if indices.max() >= len(table):
        raise DataError(f"its palette has {len(table)} colours, a pixel is {indices.max()}")
    coloured = table[indices]
    return np.ascontiguousarray(coloured[..., :3]), coloured[..., 3] < 255
