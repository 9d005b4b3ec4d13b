"""Scenes: large georeferenced images, read in part and encoded cell by cell."""
