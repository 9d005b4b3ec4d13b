"""What CF says of a coordinate reference system: by attributes of coordinates and grid mapping.

CF Conventions 1.12, section 4 and appendix F, as pyproj has them.
"""

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from coder.scenes.scene_grid import SceneGrid

if TYPE_CHECKING:
    from pyproj import CRS

_DEGREE = math.radians(1)
_SAME = 1e-8  # degrees: a millimetre


def cf_attributes(grid: SceneGrid) -> dict[str, dict[str, Any]]:
    """The attributes of `x`, `y` and `spatial_ref` for a grid, as JSON.

    What CF cannot say is left out: names of axes that are neither projected nor angles in degrees,
    and the parameters of a projection if these alone do not give the grid's place, as those of a
    projection that CF does not have, and, by pyproj, with one parallel and a scale, or in feet.

    Args:
        grid: where the cells lie.

    Raises ModuleNotFoundError: pyproj is missing.
    """
    try:
        from pyproj import CRS
        from pyproj.exceptions import CRSError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("writing a scene needs pyproj: install nec-jax[scenes]") from (
            error
        )
    found: dict[str, dict[str, Any]] = {"x": {}, "y": {}, "spatial_ref": {}}
    try:
        crs = CRS.from_wkt(grid.crs)
    except CRSError:  # another version of PROJ read it
        return found
    if not (crs.is_projected or crs.is_geographic) or not _is_in_degrees(crs):
        return found
    axes = {axis["axis"].lower(): axis for axis in crs.cs_to_cf() if "axis" in axis}
    if {"x", "y"} <= axes.keys():  # not those of maps whose axes go south and west
        for name in ("x", "y"):
            found[name] = {key: axes[name][key] for key in ("standard_name", "units")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is lost: see below
        parameters = crs.to_cf()
        del parameters["crs_wkt"]
        if parameters and _is_same(crs, parameters, grid):
            found["spatial_ref"] = parameters
    return found


def _is_same(crs: "CRS", parameters: dict[str, Any], grid: SceneGrid) -> bool:
    """Whether points of a grid have the same places by the parameters of CF alone."""
    from pyproj import CRS, Transformer
    from pyproj.exceptions import CRSError, ProjError

    west, south, east, north = grid.bounds
    x, y = (side.ravel() for side in np.meshgrid([west, (west + east) / 2, east], [south, north]))
    try:
        places = [
            np.array(Transformer.from_crs(one, one.geodetic_crs, always_xy=True).transform(x, y))
            for one in (crs, CRS.from_cf(parameters))
        ]
    except (CRSError, ProjError, KeyError):
        return False
    there = np.isfinite(places[0])  # not all, where a map of the Earth has corners
    return bool(there.any()) and np.allclose(places[0][there], places[1][there], 0, _SAME)


def _is_in_degrees(crs: "CRS") -> bool:
    """Whether all angles are in degrees, as in CF; pyproj takes any for degrees."""
    if crs.is_bound and crs.source_crs is not None:
        crs = crs.source_crs  # without the shift of the datum, whose angles are in arc-seconds
    angles = []
    if crs.is_geographic:
        angles += [axis.unit_conversion_factor for axis in crs.axis_info[:2]]
    if crs.prime_meridian is not None:
        angles.append(crs.prime_meridian.unit_conversion_factor)
    if crs.coordinate_operation is not None:
        angles += [
            one.unit_conversion_factor
            for one in crs.coordinate_operation.params
            if one.unit_category == "angular"
        ]
    return all(math.isclose(one, _DEGREE, rel_tol=1e-9) for one in angles)
