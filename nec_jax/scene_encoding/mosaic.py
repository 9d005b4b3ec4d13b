"""`Mosaic`: rasters whose pixels lie on one grid, read as one raster."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nec_jax.images.rasters import missing_by_mark
from nec_jax.images.record import Affine, DataError
from nec_jax.scene_encoding.scene_files import OFF_GRID, OpenFiles, SceneFile, quoted

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


class Mosaic:
    """Files on one north-up grid. Where they overlap, the first with a valid pixel counts.

    Attributes:
        files: in the order in which they count.
        bands: the numbers of the bands that are read, from 1.
        nodata: a stored value that means that a pixel is missing, in place of the files' tags.
        limits: lowest and highest value that a valid pixel may have.
        transform: pixel -> map.
        shape: height and width in pixels.
        is_scaled: whether values are scaled, and so float64; else they have the dtype of the files.
    """

    def __init__(
        self,
        files: Sequence[SceneFile],
        bands: tuple[int, ...],
        opened: OpenFiles,
        *,
        nodata: float | None = None,
        limits: tuple[float, float] | None = None,
    ):
        """Lay out the files on the grid of the first.

        Raises DataError: another has pixels of another size, or between those of the first.
        """
        self.files, self.bands, self.nodata, self.limits = files, bands, nodata, limits
        self._opened = opened
        first = files[0]
        self.is_scaled = any(
            (first.scales[band - 1], first.offsets[band - 1]) != (1, 0) for band in bands
        )
        places = np.array([place_on_grid(file, first) for file in files], np.int64)  # row, column
        sizes = np.array([file.shape for file in files], np.int64)
        self._first = places - places.min(axis=0)
        self._last = self._first + sizes
        a, _, c, _, e, f = first.transform
        top, left = places.min(axis=0).tolist()
        self.transform: Affine = (a, 0.0, c + a * left, 0.0, e, f + e * top)
        height, width = self._last.max(axis=0).tolist()
        self.shape: tuple[int, int] = (height, width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values that are read."""
        return np.dtype("float64" if self.is_scaled else self.files[0].dtypes[self.bands[0] - 1])

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north, in map units."""
        a, _, c, _, e, f = self.transform
        return c, f + e * self.shape[0], c + a * self.shape[1], f

    def read(self, row: int, column: int, height: int, width: int) -> tuple[Any, NDArray[np.bool_]]:
        """Read a window, which may reach beyond the mosaic.

        Returns:
            values [h, w, C], 0 where none is valid; where all bands are valid, bool [h, w].

        Raises:
            DataError: a file cannot be read, or has values outside the limits; names it.
            OSError: the system failed, and not the file.
        """
        values = np.zeros((height, width, len(self.bands)), self.dtype)
        valid = np.zeros((height, width), np.bool_)
        start, stop = np.array([row, column]), np.array([row + height, column + width])
        first, last = np.maximum(self._first, start), np.minimum(self._last, stop)
        for index in np.flatnonzero((first < last).all(axis=1)).tolist():
            (top, left), (bottom, right) = first[index].tolist(), last[index].tolist()
            part = np.s_[top - row : bottom - row, left - column : right - column]
            if valid[part].all():
                continue
            place = self._first[index].tolist()
            rows, columns = (top - place[0], bottom - place[0]), (left - place[1], right - place[1])
            pixels, found = self.read_file(self.files[index], rows, columns)
            new = found & ~valid[part]
            values[part][new] = pixels[new]
            valid[part] |= new
        return values, valid

    def read_file(
        self, file: SceneFile, rows: tuple[int, int], columns: tuple[int, int]
    ) -> tuple[Any, NDArray[np.bool_]]:
        """Read a window of one file, given by its first rows and columns and those after the last.

        Returns and raises as `read`; values that are not valid may be any.
        """
        height, width = file.shape
        flip_rows, flip_columns = file.flips
        stored_rows = (height - rows[1], height - rows[0]) if flip_rows else rows
        stored_columns = (width - columns[1], width - columns[0]) if flip_columns else columns
        window = (stored_rows, stored_columns)
        with self._opened.handle(file) as dataset:
            values = dataset.read(list(self.bands), window=window)
            valid = self._valid(dataset, window, values)
        if self.is_scaled:
            scale, offset = (
                np.array([of[band - 1] for band in self.bands])[:, None, None]
                for of in (file.scales, file.offsets)
            )
            values = values * scale + offset
        values = np.moveaxis(values, 0, -1)
        values = values[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        valid = valid[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        if self.limits is not None:
            self._refuse_beyond(file, values, valid, (rows[0], columns[0]))
        return values, valid

    def _valid(
        self, dataset: "DatasetReader", window: Any, stored: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Where no band is missing: by nodata value, mask, alpha, NaN or infinity."""
        valid = np.ones(stored.shape[1:], np.bool_)
        for where in missing_by_mark(dataset, self.bands, window, stored, self.nodata).values():
            valid &= ~where
        if stored.dtype.kind == "f":
            valid &= np.isfinite(stored).all(axis=0)
        return valid

    def _refuse_beyond(
        self, file: SceneFile, values: Any, valid: NDArray[np.bool_], corner: tuple[int, int]
    ) -> None:
        assert self.limits is not None
        low, high = self.limits
        beyond = ((values < low) | (values > high)).any(axis=-1) & valid
        if not beyond.any():
            return
        row, column = (int(place[0]) for place in np.nonzero(beyond))
        found = values[row, column]
        value = found[(found < low) | (found > high)][0]
        raise DataError(
            f"{file.shown}: a pixel is {value:.6g}, at row {row + corner[0]}, column "
            f"{column + corner[1]} from the upper left, and the model takes {low:g} to {high:g}: "
            f"pass --value-range LOW HIGH, the values that become {low:g} and {high:g}"
        )

    def sample(self, windows: int = 64, side: int = 32) -> Any:
        """Values of valid pixels [N, C], of windows that are spread over the files.

        Raises as `read`.
        """
        files = [self.files[i] for i in _spread(len(self.files), min(16, len(self.files)))]
        found = []
        per_side = max(1, round((windows / len(files)) ** 0.5))
        for file in files:
            height, width = file.shape
            for row in _spread(height - side, per_side):
                for column in _spread(width - side, per_side):
                    rows = (row, min(row + side, height))
                    values, valid = self.read_file(file, rows, (column, min(column + side, width)))
                    found.append(values[valid])
        return np.concatenate(found)


def _spread(count: int, wanted: int) -> list[int]:
    """Numbers from 0 to `count` - 1 (or 0 alone), evenly spread, each once."""
    return sorted({int((i + 0.5) * max(count, 1) / wanted) for i in range(wanted)})


def place_on_grid(file: SceneFile, first: SceneFile) -> tuple[int, int]:
    """Row and column of a file's upper left pixel, on the grid of another file.

    Raises DataError: its pixels have another size, or lie between those of the other.
    """
    a, _, c, _, e, f = first.transform
    own_a, _, own_c, _, own_e, own_f = file.transform
    height, width = file.shape
    offsets = ((own_f - f) / e, (own_c - c) / a)
    # How far the last pixel is from where it would be with pixels of the other's size.
    drifts = ((own_e / e - 1) * height, (own_a / a - 1) * width)
    size = f"{abs(a):.10g}"
    remedy = (
        f"pass --resolution {size}, to resample all to pixels of {size}; or bring all files to one "
        f"grid (gdalwarp -tr {size} {abs(e):.10g} -tap {quoted(file.shown)} OUT.tif)"
    )
    if max(map(abs, drifts)) > OFF_GRID:
        raise DataError(
            f"{file.shown}: its pixels are {own_a:.10g} x {-own_e:.10g}, and in {first.shown} they "
            f"are {a:.10g} x {-e:.10g}: {remedy}"
        )
    off = max(abs(offset - round(offset)) for offset in offsets)
    if off > OFF_GRID:
        raise DataError(
            f"{file.shown}: its pixels lie {off:.2f} pixels beside those of {first.shown}: {remedy}"
        )
    return round(offsets[0]), round(offsets[1])
