"""What CF says of a coordinate reference system: by attributes of coordinates and grid mapping.

CF Conventions 1.12, section 4 and appendix F, as pyproj has them.
"""

import math
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyproj import CRS

_DEGREE = math.radians(1)


def cf_attributes(wkt: str) -> dict[str, dict[str, Any]]:
    """The attributes of `x`, `y` and `spatial_ref` for a coordinate reference system, as JSON.

    What CF cannot say is left out: names of axes that are neither projected nor angles in degrees,
    and the parameters of a projection that CF does not have or not fully.

    Args:
        wkt: the coordinate reference system.

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
        crs = CRS.from_wkt(wkt)
    except CRSError:  # another version of PROJ read it
        return found
    if not (crs.is_projected or crs.is_geographic) or not _is_in_degrees(crs):
        return found
    axes = {axis["axis"].lower(): axis for axis in crs.cs_to_cf() if "axis" in axis}
    if {"x", "y"} <= axes.keys():  # not those of maps whose axes go south and west
        for name in ("x", "y"):
            found[name] = {key: axes[name][key] for key in ("standard_name", "units")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found["spatial_ref"] = crs.to_cf()
        except UserWarning:  # a parameter is lost
            return found
    del found["spatial_ref"]["crs_wkt"]
    return found


def _is_in_degrees(crs: "CRS") -> bool:
    """Whether all angles are in degrees, as in CF; pyproj takes any for degrees."""
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
