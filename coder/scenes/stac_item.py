"""Describe a scene as a STAC Item, with the extensions projection and embeddings."""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder.errors import InputError
from coder.scenes.map_outline import PLACES, Ring, in_degrees
from coder.scenes.scene_grid import Bounds, SceneGrid
from coder.scenes.scene_layout import ATTRIBUTE, SOURCES
from coder.scenes.scene_part import time_number
from coder.scenes.scene_reader import Scene

STAC = "1.1.0"
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
EMBEDDINGS = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
_ZARR = "application/vnd+zarr"
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_PIECES = 16  # of each edge of an outline, as its projection may be bent
_QUANTIZATION = ("method", "original_dtype", "quantized_dtype")


def stac_item(
    scene: Scene,
    href: str,
    *,
    name: str | None = None,
    time: datetime | None = None,
    preview: str | None = None,
) -> dict[str, Any]:
    """A STAC Item 1.1 of a scene, as JSON.

    `datetime` is the time of the scene's pictures; for several times, of which none is given, it is
    null, and `start_datetime` and `end_datetime` are the first and the last. STAC demands one of
    them: it is what catalogues are searched by. The time of encoding would answer such a search
    wrongly, so that the time of a scene that does not record it must be given.

    The extension for embeddings (v0.0.1) has the type and the dimensions of embeddings in
    Collections alone; here they are among the runtime parameters.

    Args:
        scene: the scene.
        href: where the scene is: a URL, or a path relative to the Item.
        name: the Item's id; that of the scene's folder if not given, and the time after it if one
            of several is given.
        time: when the pictures were taken (in UTC, if it says no offset), for a scene without
            times. Of one with times: the one that the Item is of; all if it is not given.
        preview: where a GeoTIFF of the scene is.

    Raises:
        ModuleNotFoundError: rasterio is missing.
        InputError: no name; no time, or none of the scene's times; or no place on Earth.
    """
    if not name:
        name = re.split(r"[/\\]", href.rstrip("/\\"))[-1].removesuffix(".zarr")
        if not name:
            raise InputError(f"{href!r} ends in no name: name the Item")
        if time is not None and scene.times is not None and len(scene.times) > 1:
            name += f"_{utc(time):%Y%m%dT%H%M%S}"  # one of several times
    geometry, box = _place(scene.grid)
    extensions, properties = [PROJECTION, EMBEDDINGS], _span(_times(scene, time))
    step = _step(scene, time)
    properties |= _projection(scene.grid) | _embeddings(scene, step)
    build = scene.facts.get("geoemb:build_version")
    if isinstance(build, str):
        properties["processing:software"] = {"nec-jax": build}
        extensions.append(PROCESSING)
    assets = {"embeddings": {"href": href, "type": _ZARR, "roles": ["data"]}}
    if preview is not None:
        assets["preview"] = {"href": preview, "type": _COG, "roles": ["overview"]}
    return {
        "type": "Feature",
        "stac_version": STAC,
        "stac_extensions": extensions,
        "id": name,
        "geometry": geometry,
        "bbox": box,
        "properties": properties,
        "links": _links(scene, step),
        "assets": assets,
    }


def utc(time: datetime) -> datetime:
    """A time in UTC, without its offset; one without an offset is in UTC."""
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def _times(scene: Scene, given: datetime | None) -> NDArray[np.datetime64]:
    """The times of what the Item describes, the first first."""
    if scene.times is not None:
        return np.sort(
            scene.times if given is None else scene.times[[time_number(scene, utc(given))]]
        )
    if given is None:
        raise InputError(
            "the scene does not record when its pictures were taken, and a STAC Item must say it: "
            "give the time (nec export --time)"
        )
    return np.array([utc(given)], "datetime64[us]")


def _span(times: NDArray[np.datetime64]) -> dict[str, Any]:
    """The fields of times."""
    if len(times) == 1:
        return {"datetime": f"{times[0]}Z"}
    return {
        "datetime": None,
        "start_datetime": f"{times[0]}Z",
        "end_datetime": f"{times[-1]}Z",
    }


def _projection(grid: SceneGrid) -> dict[str, Any]:
    """The fields of the extension projection."""
    fields: dict[str, Any] = {"proj:code": grid.code}
    if grid.code is None:
        fields["proj:wkt2"] = grid.crs
    return fields | {
        "proj:shape": list(grid.shape),
        "proj:transform": list(grid.transform),
        "proj:bbox": list(grid.bounds),
    }


def _step(scene: Scene, given: datetime | None) -> dict[str, Any] | None:
    """What the scene records of the only time that the Item is of; None if it is of several."""
    state: Any = scene.facts.get(ATTRIBUTE, {})
    steps = state.get("steps", [])
    number = 0
    if scene.times is not None and given is not None:
        number = time_number(scene, utc(given))
    elif len(steps) != 1:
        return None
    return steps[number] if number < len(steps) else None


def _sources(scene: Scene, step: dict[str, Any] | None) -> Any:
    """The files that the Item's time was made of, of several; or all sources of the scene."""
    if step is not None and scene.times is not None and len(scene.times) > 1:
        preparation = step.get("preparation")
        return preparation.get("files") if isinstance(preparation, dict) else None
    return scene.facts.get(SOURCES)


def _embeddings(scene: Scene, step: dict[str, Any] | None) -> dict[str, Any]:
    """The fields of the extension for embeddings, and those of STAC that it uses."""
    facts = scene.facts
    held = {
        "type": facts.get("geoemb:type"),
        "dimensions": scene.codec.channels,
        "chip_layout": facts.get("geoemb:chip_layout"),
        "source_data": _sources(scene, step),
        **_made(facts),
        "preparation": None if step is None else step.get("preparation"),
        "model": facts.get("geoemb:model"),
    }
    fields: dict[str, Any] = {
        "data_type": "float32",
        "emb:runtime_parameters": {k: v for k, v in held.items() if v is not None},
    }
    if isinstance(gsd := facts.get("geoemb:gsd"), int | float) and gsd > 0:
        fields["gsd"] = gsd
    quantization = facts.get("geoemb:quantization")
    if isinstance(quantization, dict) and {"method", "original_dtype"} <= quantization.keys():
        own = {k: v for k, v in quantization.items() if k in _QUANTIZATION}
        if isinstance(link := quantization.get("link"), str):
            own["link"] = {"rel": "about", "href": link}
        fields["emb:quantization"] = own
    return fields


def _made(facts: dict[str, Any]) -> dict[str, Any]:
    """What the scene records of its making, equally for all times: model, quality."""
    state: Any = facts.get(ATTRIBUTE, {})
    return {"model_name": facts.get("model_name"), **state.get("made", {})}


def _links(scene: Scene, step: dict[str, Any] | None) -> list[dict[str, str]]:
    """Links to the model and the source data, where these are URLs."""
    sources = _sources(scene, step)
    named = [("emb:model", scene.facts.get("geoemb:model"))]
    named += [("emb:source-data", one) for one in (sources if isinstance(sources, list) else [])]
    return [
        {"rel": relation, "href": href}
        for relation, href in named
        if isinstance(href, str) and re.match("(https?|s3|gs)://", href)
    ]


def _place(grid: SceneGrid) -> tuple[dict[str, Any], list[float]]:
    """The outline of a grid in degrees as GeoJSON, and its bounds (RFC 7946, 5.2)."""
    try:
        west, south, east, north = _on_earth(grid)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("STAC needs rasterio: install nec-jax[scenes]") from error
    corners = np.array([(west, south), (east, south), (east, north), (west, north)])
    parts = in_degrees(grid.code or grid.crs, _dense(corners))
    if not parts:
        raise InputError(
            "the scene's outline has no place on Earth in degrees, which a STAC Item must have"
        )
    polygons = [[_rounded(ring) for ring in rings] for rings in parts]
    kind, coordinates = (
        ("Polygon", polygons[0])
        if len(polygons) == 1
        else (
            "MultiPolygon",
            polygons,
        )
    )
    return {"type": kind, "coordinates": coordinates}, _bounds(polygons)


def _on_earth(grid: SceneGrid) -> Bounds:
    """The bounds of a grid, without what its last cells reach beyond a pole."""
    from rasterio.crs import CRS

    west, south, east, north = grid.bounds
    crs = CRS.from_wkt(grid.crs)
    if not crs.is_geographic:
        return grid.bounds
    turn = math.tau / crs.units_factor[1]  # in map units
    height = -grid.transform[4]
    if -turn / 4 - height <= south < -turn / 4:
        south = -turn / 4
    if turn / 4 < north <= turn / 4 + height:
        north = turn / 4
    return west, south, east, north


def _dense(corners: NDArray[np.float64]) -> list[tuple[float, float]]:
    """A closed outline with more points on its edges, counter-clockwise as its corners."""
    pieces = np.arange(_PIECES)[:, None] / _PIECES
    edges = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    points = np.concatenate([start + (stop - start) * pieces for start, stop in edges])
    return [(x, y) for x, y in [*points.tolist(), points[0].tolist()]]


def _rounded(ring: Ring) -> list[list[float]]:
    return [[round(x, PLACES), round(y, PLACES)] for x, y, *_ in ring]


def _bounds(polygons: Sequence[Sequence[Sequence[Sequence[float]]]]) -> list[float]:
    """West, south, east, north; west is above east across the 180th meridian."""
    boxes = [
        (*points.min(0), *points.max(0)) for points in (np.array(rings[0]) for rings in polygons)
    ]
    west, south, _, _ = np.min(boxes, axis=0)
    _, _, east, north = np.max(boxes, axis=0)
    if len(boxes) > 1 and west == -180 and east == 180:
        begins = min(box[0] for box in boxes if box[2] == 180)
        ends = max(box[2] for box in boxes if box[0] == -180)
        if ends < begins:  # or it goes around the Earth
            west, east = begins, ends
    return [float(side) for side in (west, south, east, north)]
