"""The size rule (`fit_to`), and random crops, for any number of bands and any dtype."""

from typing import overload

import numpy as np
from PIL import Image

from nec_jax.images.record import Box, DataError

_SCALE = (0.2, 1.0)  # area of a random crop, as a fraction of the image's
_RATIO = (3 / 4, 4 / 3)  # its width / height
_LONG = 8  # longer side over shorter side of an image that is cropped before it is resized


def resize(image: np.ndarray, height: int, width: int, box: Box | None = None) -> np.ndarray:
    """Resize [H, W, C] to [height, width, C], bicubic and antialiased, in the same dtype.

    `box` is the part to read. Integers are rounded and clipped.
    """
    row, col, box_height, box_width = box or (0, 0, *image.shape[:2])
    region = (col, row, col + box_width, row + box_height)
    bicubic = Image.Resampling.BICUBIC
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return np.asarray(Image.fromarray(image).resize((width, height), bicubic, region))
    bands = [
        Image.fromarray(np.ascontiguousarray(image[..., c], np.float32))
        .resize((width, height), bicubic, region)
        for c in range(image.shape[-1])
    ]  # fmt: skip
    return as_dtype(np.stack([np.asarray(band) for band in bands], axis=-1), image.dtype)


def as_dtype(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert floats to `dtype`; rounded and clipped for integers."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        # In float64: float32 cannot hold the largest uint32, which would wrap around to 0.
        x = np.clip(np.rint(x.astype(np.float64)), limits.min, limits.max)
    return x.astype(dtype)


@overload
def fit_to(image: np.ndarray, size: int) -> np.ndarray: ...
@overload
def fit_to(image: np.ndarray, size: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
def fit_to(
    image: np.ndarray, size: int, mask: np.ndarray | None = None
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Bring an image to size x size: the size rule, for all training of heads and all scores.

    The shorter side is resized to `size` (bicubic, antialiased; a mask by nearest neighbour),
    then the centre is cropped. An image whose shorter side is `size` keeps its pixels. If an
    image is more than 8 times as long as wide, only its middle 8 squares are resized; otherwise a
    scan line would take gigabytes. This moves pixels by less than one pixel of the result.

    Args:
        image: [H, W, C], any dtype.
        size: side of the result, pixels.
        mask: [H, W]; if given, it is cropped in the same way, and (image, mask) is returned.
    """
    height, width = image.shape[:2]
    if min(height, width) < 1:
        raise DataError(f"an image of {height} x {width} px has no pixels")
    if size != min(height, width) and _LONG * min(height, width) < max(height, width):
        middle = _middle(height, width)
        image, mask = image[middle], None if mask is None else mask[middle]
        height, width = image.shape[:2]
    scale = size / min(height, width)
    new_height, new_width = round(height * scale), round(width * scale)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    centre = np.s_[top : top + size, left : left + size]
    if (new_height, new_width) != (height, width):
        image = resize(image, new_height, new_width)
        if mask is not None:
            nearest = Image.Resampling.NEAREST
            mask = np.asarray(Image.fromarray(mask).resize((new_width, new_height), nearest))
    if mask is None:
        return np.ascontiguousarray(image[centre])
    return np.ascontiguousarray(image[centre]), np.ascontiguousarray(mask[centre])


def _middle(height: int, width: int) -> tuple[slice, slice]:
    """The middle of a very long image, as slices."""
    limit = _LONG * min(height, width)
    sides = ((side, min(side, limit + (side - limit) % 2)) for side in (height, width))
    return tuple(slice((side - kept) // 2, (side + kept) // 2) for side, kept in sides)  # type: ignore[return-value]


def random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random part of [H, W, C], resized to [size, size, C] and perhaps mirrored.

    The part has 0.2 to 1 of the area and an aspect of 3/4 to 4/3 (He 2022, app. A.1).
    """
    height, width = image.shape[:2]
    box = _random_box(height, width, rng)
    out = resize(image, size, size, box)
    return out[:, ::-1] if rng.random() < 0.5 else out


def _random_box(height: int, width: int, rng: np.random.Generator) -> Box:
    for _ in range(10):
        area = height * width * rng.uniform(*_SCALE)
        aspect = np.exp(rng.uniform(*np.log(_RATIO)))
        crop_height, crop_width = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        if 0 < crop_height <= height and 0 < crop_width <= width:
            row = int(rng.integers(height - crop_height + 1))
            col = int(rng.integers(width - crop_width + 1))
            return row, col, crop_height, crop_width
    # The image is too long for such a part: take one of its largest squares.
    side = min(height, width)
    row, col = (int(rng.integers(extent - side + 1)) for extent in (height, width))
    return row, col, side, side
