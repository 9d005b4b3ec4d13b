"""An object store for these tests."""

from object_store import objects, server

__all__ = ["objects", "server"]
