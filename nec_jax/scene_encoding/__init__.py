"""Scenes: large georeferenced rasters, read window by window as a model takes them.

`raster_scene` opens one or several files as one north-up grid of pixels. `scene_files` reads their
headers, `scene_bands` chooses their bands, `mosaic` reads files that share a grid, and
`resampling` brings them to pixels of another size.

`tiles` turns windows that overlap into latents, and `scene_archive` writes these as a scene of
`coder.scenes`.
"""
