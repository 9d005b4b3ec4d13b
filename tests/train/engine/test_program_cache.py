"""The cache of compiled programs that both workers of the tests share (conftest.py)."""

from pathlib import Path

import pytest
from jax._src.lru_cache import LRUCache


def test_an_entry_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX writes in place: what another worker reads meanwhile would be half an entry."""
    writer, reader = (LRUCache(str(tmp_path), max_size=-1) for _ in range(2))
    seen = []
    write = Path.write_bytes

    def write_in_halves(self: Path, data: bytes) -> int:
        for end in (0, len(data) // 2, len(data)):
            write(self, data[:end])
            seen.append(reader.get("key"))
        return len(data)

    monkeypatch.setattr(Path, "write_bytes", write_in_halves)
    writer.put("key", b"program")
    assert seen == [None, None, None]
    assert reader.get("key") == b"program"
    writer.put("key", b"another")  # an entry is written once, as JAX does
    assert reader.get("key") == b"program"
    assert [path.name for path in tmp_path.iterdir()] == ["key-cache"]
