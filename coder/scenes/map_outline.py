"""Outlines on a map as polygons in degrees of longitude and latitude, cut at the 180th meridian."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLACES = 7
"""Decimals of a degree: a centimetre."""
_DEGREES = ("EPSG:4326", "OGC:CRS84")
Ring = list[tuple[float, float]]
"""A closed outline: longitudes and latitudes, degrees."""


def in_degrees(crs: str, ring: Sequence[tuple[float, float]]) -> list[list[Ring]]:
    """A closed outline on a map as polygons in degrees (WGS 84).

    Args:
        crs: the coordinate reference system of the map: a code, or WKT.
        ring: its points in map units; the last is the first.

    Returns:
        Polygons, each a list of rings, of which the first is outside: more than one where the
        outline crosses the 180th meridian; none if it has no place on Earth.
    """
    if not np.isfinite(ring).all():
        return []
    if crs in _DEGREES:
        return _within_180(np.array(ring))
    from rasterio.warp import transform_geom

    try:
        found: Any = transform_geom(crs, _DEGREES[1], {"type": "Polygon", "coordinates": [ring]})
    except Exception:  # also GDAL's own errors, for a place that is nowhere on Earth
        return []
    if not np.isfinite(_flat(found["coordinates"])).all():
        return []
    if found["type"] == "Polygon":
        outline = np.array(found["coordinates"][0])
        if len(outline) == len(ring):  # more points are GDAL's own outline of a pole
            outline[:, 0] = np.unwrap(outline[:, 0], period=360)
        return _within_180(outline)
    return found["coordinates"]


def _within_180(ring: NDArray[np.float64]) -> list[list[Ring]]:
    """A closed outline in degrees [points, 2] as polygons, cut at the 180th meridian."""
    x, y = ring.T
    if (np.abs(y) > 90 + 1e-9).any() or abs(x[0] - x[-1]) > 1e-9:  # or it goes around a pole
        return []
    parts: list[list[Ring]] = []
    # Once around the Earth at most, as the last cells of a map of it may reach further.
    once = _cut([(px, py) for px, py in ring[:-1].tolist()], x.min() + 360, -1)
    first, last = (int((end + 180) // 360) for end in (x.min(), max(px for px, _ in once)))
    for turn in range(first, last + 1):
        low = 360 * turn - 180
        inside = _cut(_cut(once, low, 1), low + 360, -1)
        points = [(round(px - 360 * turn, PLACES), round(py, PLACES)) for px, py in inside]
        points = list(dict.fromkeys(points))
        if len({px for px, _ in points}) > 1 and len(points) > 2:  # not a line on the meridian
            parts.append([[*points, points[0]]])
    return parts


def _cut(points: Ring, at: float, side: int) -> Ring:
    """The part of a closed outline on one side of a meridian, not closed (Sutherland-Hodgman)."""
    found: Ring = []
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        is_in, will_be = side * (x0 - at) >= 0, side * (x1 - at) >= 0
        if is_in:
            found.append((x0, y0))
        if is_in != will_be:
            found.append((at, y0 + (y1 - y0) * (at - x0) / (x1 - x0)))
    return found


def _flat(coordinates: Any) -> list[float]:
    if isinstance(coordinates, int | float):
        return [coordinates]
    return [value for part in coordinates for value in _flat(part)]
