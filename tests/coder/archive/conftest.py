import pytest
from object_store import ObjectStore

from coder.archive import remote_store


@pytest.fixture(scope="module")
def server():
    store = ObjectStore()
    yield store
    store.close()


@pytest.fixture
def objects(server, monkeypatch):
    """An object store that fsspec knows as s3, whose clients do not wait between tries."""
    config = pytest.importorskip("fsspec.config")
    monkeypatch.setitem(config.conf, "s3", server.settings)
    monkeypatch.setattr(remote_store, "WAIT", 0)
    return server
