"""Open a GeoTIFF whose bands are the channels of embeddings; it is read in windows."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coder.embedding_files.array_views import Place, all_slices
from coder.embedding_files.georeference import Georeference, georeference
from coder.errors import FileError, InputError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


class GeoTiff:
    """The bands of a TIFF as [H, W, D]; pixels that its mask or alpha band hides are masked.

    Attributes:
      nodata: its value of missing data; None if it has none, or if it is NaN, which needs no mark.
      scales, offsets: of its bands, float64 [D].
      place: where its pixels lie; None if it has no georeference.
      bands: descriptions of its bands, "" where one has none; empty if none has.
      alpha: numbers of its alpha bands, which are no channels.
      tags: its metadata.
      band_tags: those of each band; empty if there are none.
    """

    def __init__(self, path: Path, nodata: float | None = None):
        """Open it.

        Args:
          path: it.
          nodata: the number that marks missing data, in place of what the file says.

        Raises:
          ModuleNotFoundError: rasterio is missing.
          FileError: it is damaged.
          InputError: it is rotated, has control points alone, or several values of missing data.
        """
        try:
            import rasterio
            from rasterio.enums import ColorInterp, MaskFlags
            from rasterio.errors import NotGeoreferencedWarning, RasterioError
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("GeoTIFF needs rasterio: install nec-jax[scenes]") from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                dataset: DatasetReader = rasterio.open(path)
        except UnicodeEncodeError as error:
            raise FileError("its name is not UTF-8, which GDAL needs: rename it") from error
        except (RasterioError, OSError) as error:
            raise FileError(f"a damaged TIFF ({error}): copy it again") from error
        self._dataset, self._path = dataset, path
        colours = dataset.colorinterp
        # Alone, what is called alpha is data.
        has_alpha = dataset.count > 1 and ColorInterp.alpha in colours
        numbers = range(1, dataset.count + 1)
        self.alpha = [n for n in numbers if has_alpha and colours[n - 1] is ColorInterp.alpha]
        self._numbers = [n for n in numbers if n not in self.alpha]
        flags = dataset.mask_flag_enums[0]
        self._has_mask = MaskFlags.per_dataset in flags and not has_alpha
        own = [number - 1 for number in self._numbers]
        self.dtype = np.dtype(dataset.dtypes[own[0]])
        self.shape = (dataset.height, dataset.width, len(own))
        self.ndim, self.nbytes = 3, int(np.prod(self.shape)) * self.dtype.itemsize
        high, wide = dataset.block_shapes[0]
        self.chunks = (min(high, self.shape[0]), min(wide, self.shape[1]), self.shape[2])
        self.nodata = self._nodata(own) if nodata is None else nodata
        self.scales = np.array([dataset.scales[i] for i in own], np.float64)
        self.offsets = np.array([dataset.offsets[i] for i in own], np.float64)
        described = [dataset.descriptions[i] for i in own]
        self.bands = [str(one or "") for one in described] if any(described) else []
        self.tags: dict[str, str] = dataset.tags()
        own_tags = [dict(dataset.tags(number)) for number in self._numbers]
        self.band_tags = own_tags if any(own_tags) else []
        self.place = self._place()

    def _nodata(self, own: list[int]) -> float | None:
        marks = {mark for i in own if (mark := self._dataset.nodatavals[i]) is not None}
        found = sorted(float(mark) for mark in marks if not np.isnan(mark))
        if len(found) > 1:
            said = ", ".join(f"{mark:g}" for mark in found)
            raise InputError(f"its bands have several nodata values ({said}): choose, --nodata")
        return found[0] if found else None

    def _place(self) -> Georeference | None:
        dataset = self._dataset
        if dataset.crs is None and dataset.gcps[0]:
            raise InputError(
                "georeferenced by control points alone: make it north-up (gdalwarp INPUT OUT.tif)"
            )
        if dataset.crs is None or dataset.transform.is_identity:
            return None
        return georeference(dataset.crs, tuple(dataset.transform)[:6], self.shape[:2])

    def __getitem__(self, place: Place) -> NDArray[Any]:
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        rows, columns, channels = all_slices(place, self.shape)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not height or not width:
            return np.empty((height, width, channels.stop - channels.start), self.dtype)
        window: Any = Window(columns.start, rows.start, width, height)  # type: ignore[call-arg]
        try:
            values = self._dataset.read(self._numbers[channels], window=window)
            hidden = None
            if self.alpha:  # GDAL's mask heeds it in files of 2 and 4 bands alone
                hidden = (self._dataset.read(self.alpha, window=window) == 0).any(0)
            elif self._has_mask:
                hidden = self._dataset.dataset_mask(window=window) == 0
        except RasterioError as error:
            cause = error.__cause__ or error
            raise FileError(f"damaged ({cause}): copy it again", self._path) from error
        part = np.ascontiguousarray(values.transpose(1, 2, 0))
        if hidden is None or not hidden.any():
            return part
        return np.ma.masked_array(part, np.repeat(hidden[..., None], part.shape[-1], -1))
