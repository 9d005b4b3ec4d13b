"""Scenes: the embeddings of a georeferenced picture as a grid of cells on the map.

`scene_layout` says what a scene's Zarr group holds, with `cf_attributes`. `scene_grid` is where its
cells lie. `scene_writer` writes a scene shard by shard, and goes on after an interruption.
`scene_reader` is `coder.open_scene`.

A `scene_part` is a window of a scene at one level and time. `raster_export` writes it as GeoTIFF,
with `principal_components`; `class_map` writes the classes of a head; `cell_table` is GeoParquet,
and `stac_item` a STAC Item, with `map_outline`.
"""
