"""`Resampled`: mosaics on a grid of other pixels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nec_jax.images.record import Affine, DataError
from nec_jax.scene_encoding.mosaic import Mosaic
from nec_jax.scene_encoding.scene_files import OFF_GRID

_BLOCK = 256  # maximum side of what is resampled at once, in pixels of the result
_SOURCE = 1024  # about the side of what is read for it, in pixels of the files
_REACH = 3  # pixels beyond a block that a kernel may need, and one more


class Resampled:
    """Mosaics as one raster of square pixels, from the upper left corner of all of them.

    Missing pixels have no weight. Where mosaics overlap, the first with a valid pixel counts.

    Attributes:
        layers: in the order in which they count.
        method: "average" if the pixels are coarser than those of the first, else "cubic".
        dtype: of the values that are read.
        transform: pixel -> map.
        shape: height and width in pixels. The last row and column are those of which at least half
            lies in the mosaics.
    """

    def __init__(self, layers: Sequence[Mosaic], crs: Any, resolution: float):
        """Lay out the grid.

        Args:
            layers: the mosaics.
            crs: their coordinate reference system, as rasterio has it.
            resolution: side of a pixel in map units.

        Raises DataError: all mosaics together are smaller than a pixel.
        """
        self.layers, self._crs = layers, crs
        self.dtype = np.result_type(layers[0].dtype, np.float32)
        self._edges = np.array([layer.bounds for layer in layers])
        west, south = self._edges[:, :2].min(axis=0).tolist()
        east, north = self._edges[:, 2:].max(axis=0).tolist()
        sides = (north - south) / resolution, (east - west) / resolution
        if min(sides) < 1:
            raise DataError(
                f"--resolution {resolution:g}: the scene is {east - west:g} x {north - south:g} "
                "map units, less than one pixel: give fewer map units per pixel"
            )
        self.transform: Affine = (resolution, 0.0, west, 0.0, -resolution, north)
        self.shape = (math.floor(sides[0] + 0.5), math.floor(sides[1] + 0.5))
        pixels = np.array([(layer.transform[0], -layer.transform[4]) for layer in layers])
        self.method = "average" if resolution**2 > pixels[0].prod() else "cubic"
        self._margin = _REACH * max(resolution, pixels.max())
        # Blocks have fixed places, so that a pixel does not depend on the window.
        largest = int(_SOURCE * pixels.min() / resolution)
        self._block = 1 << max(0, min(_BLOCK, largest).bit_length() - 1)

    def read(
        self, row: int, column: int, height: int, width: int
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window; as `Mosaic.read`."""
        values = np.zeros((height, width, len(self.layers[0].bands)), self.dtype)
        valid = np.zeros((height, width), np.bool_)
        side = self._block
        first, last = (max(row, 0), max(column, 0)), (row + height, column + width)
        last = min(last[0], self.shape[0]), min(last[1], self.shape[1])
        for top in range(first[0] // side * side, last[0], side):
            for left in range(first[1] // side * side, last[1], side):
                start = max(top, first[0]), max(left, first[1])
                stop = min(top + side, last[0]), min(left + side, last[1])
                there = np.s_[start[0] - row : stop[0] - row, start[1] - column : stop[1] - column]
                here = np.s_[start[0] - top : stop[0] - top, start[1] - left : stop[1] - left]
                found, known = self._read_block(top, left)
                values[there], valid[there] = found[here], known[here]
        return values, valid

    def _read_block(self, top: int, left: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        side, (a, _, c, _, e, f) = self._block, self.transform
        transform = (a, 0.0, c + a * left, 0.0, e, f + e * top)
        west, north = transform[2], transform[5]
        east, south = west + a * side, north + e * side
        values = np.zeros((side, side, len(self.layers[0].bands)), self.dtype)
        valid = np.zeros((side, side), np.bool_)
        low, high = self._edges[:, :2] - self._margin, self._edges[:, 2:] + self._margin
        near = (low < (east, north)).all(axis=1) & (high > (west, south)).all(axis=1)
        for index in np.flatnonzero(near).tolist():
            if valid.all():
                break
            found = self._warped(self.layers[index], transform)
            new = np.isfinite(found).all(axis=-1) & ~valid
            values[new] = found[new]
            valid |= new
        return values, valid

    def _warped(self, layer: Mosaic, transform: Affine) -> NDArray[Any]:
        """A layer on the pixels of a block, [h, w, C], NaN where it has none.

        It is not a WarpedVRT: that knows one nodata value, and neither NaN beside it, nor that a
        pixel is missing where one of the chosen bands is.
        """
        from rasterio import Affine as Transform
        from rasterio.enums import Resampling
        from rasterio.warp import reproject

        side, (a, _, c, _, e, f) = self._block, layer.transform
        spans = []
        for begin, pixel, own_begin, own_pixel, length in (
            (transform[5], transform[4], f, e, layer.shape[0]),
            (transform[2], transform[0], c, a, layer.shape[1]),
        ):
            first = (begin - own_begin) / own_pixel
            factor = pixel / own_pixel
            margin = math.ceil(_REACH * max(1, factor))
            last = math.ceil(first + factor * side) + margin
            spans.append((max(0, math.floor(first) - margin), min(length, last)))
        (row, bottom), (column, right) = spans
        out = np.full((len(layer.bands), side, side), np.nan, self.dtype)
        if row < bottom and column < right:
            values, valid = layer.read(row, column, bottom - row, right - column)
            if valid.any():
                source = np.where(valid[..., None], values, np.nan).astype(self.dtype)
                reproject(
                    np.ascontiguousarray(np.moveaxis(source, -1, 0)),
                    out,
                    src_transform=Transform(a, 0, c + a * column, 0, e, f + e * row),
                    dst_transform=Transform(*transform),
                    src_crs=self._crs,
                    dst_crs=self._crs,
                    src_nodata=np.nan,
                    dst_nodata=np.nan,
                    resampling=Resampling[self.method],
                )
        return np.moveaxis(out, 0, -1)


def has_resolution(layer: Mosaic, resolution: float) -> bool:
    """Whether the pixels of a mosaic are squares of this side."""
    drifts = (
        abs(side / resolution - 1) * count
        for side, count in zip((-layer.transform[4], layer.transform[0]), layer.shape, strict=True)
    )
    return max(drifts) < OFF_GRID
