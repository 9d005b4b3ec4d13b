"""An object store for these tests."""

from object_store import impatient, objects, server

__all__ = ["impatient", "objects", "server"]
