"""Write a georeferenced raster of embeddings as a scene, which `coder.open_scene` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coder.codecs import OneQualityCodec
from coder.embedding_files.chunk_parts import aimed, checked_part
from coder.embedding_files.georeference import Georeference
from coder.errors import InputError
from coder.scenes import scene_layout
from coder.scenes.scene_writer import SceneWriter


def scene_chunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what is one blob of a raster [H, W, D], or of rasters [N, H, W, D]."""
    sides = (min(scene_layout.CHUNK, side) for side in shape[-3:-1])
    return (*(1,) * (len(shape) - 3), *sides, shape[-1])


def write_scene(
    path: Path,
    y: Any,
    codec: OneQualityCodec,
    nodata: float | None,
    place: Georeference,
    attributes: Mapping[str, Any],
) -> int:
    """Write a raster [H, W, D], or one for each time [N, H, W, D], shard by shard.

    There are no overviews: they would take a third more bytes.

    Args:
      path: an empty folder.
      y: the embeddings, north-up.
      codec: without class token.
      nodata: the number that marks missing data.
      place: where the tokens lie.
      attributes: further attributes of the group, as JSON.

    Returns the number of missing tokens.

    Raises:
      ModuleNotFoundError: zarr-cm is missing.
      InputError: as `checked_part`; all tokens of a time are missing, or a time is there twice.
    """
    times: list[Any] = [None] if place.times is None else list(place.times)
    if place.times is not None and (
        len(np.unique(place.times)) < len(times) or np.isnat(place.times).any()
    ):
        raise InputError("its coordinate time has a time twice, or none: mend it first")
    made = {"codec": codec.fingerprint.hex(), "quality": codec.quality}
    missing = 0
    for number, time in enumerate(times):
        lead = () if time is None else (slice(number, number + 1),)
        with SceneWriter(
            path,
            codec,
            place.grid,
            made=made,
            step={},
            attributes=attributes,
            time=time,
            has_overviews=False,
        ) as writer:
            for part in writer.missing():
                values = checked_part(y, (*lead, *part), nodata).reshape(
                    *(one.stop - one.start for one in part), y.shape[-1]
                )
                valid = ~np.isnan(values[..., 0])
                missing += int(valid.size - valid.sum())
                if codec.refiner is not None:
                    values = aimed(values, codec, scene_chunk(values.shape))
                writer.write(part, values, np.where(valid, 100, 0).astype(np.uint8))
            if not writer.valid_count():
                at = "" if time is None else f" at {time}"
                raise InputError(f"all tokens are missing{at}: there is nothing to code")
            writer.finish()
    return missing
