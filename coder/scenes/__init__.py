"""Scenes: the embeddings of a georeferenced picture as a grid of cells on the map.

`scene_layout` says what a scene's Zarr group holds. `scene_grid` is where its cells lie.
`scene_writer` writes a scene shard by shard, and goes on after an interruption. `scene_reader` is
`coder.open_scene`.
"""
