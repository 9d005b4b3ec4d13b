"""The places of shards and chunks: what is stored is found by its key, whatever the keys are."""

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from coder import FileError
from coder.archive import zarr_nodes


@pytest.mark.parametrize(
    "settings",
    [
        {"shape": (5, 7), "chunks": (2, 3)},
        {"shape": (5, 7), "chunks": (1, 1), "shards": (2, 3)},
        {"shape": (5, 7), "chunks": (2, 3), "zarr_format": 2},
        {"shape": (5, 7), "chunks": (2, 3), "chunk_key_encoding": {"name": "v2", "separator": "."}},
        {"shape": (21,), "chunks": (2,), "name": "1/0"},  # numbers in its own path
        {"shape": ()},
        {"shape": (), "zarr_format": 2},
        {"shape": (0, 7), "chunks": (1, 3)},
    ],
)
def test_stored_places_are_those_that_were_written(settings):
    array = zarr.create_array(MemoryStore(), dtype="f4", fill_value=0, **settings)
    assert zarr_nodes.stored(array) == set()
    places = list(zarr_nodes.places(array))
    assert zarr_nodes.count(array) == len(places)
    for number, place in enumerate(places):
        assert zarr_nodes.place_at(array, number) == place
        sizes = array.shards or array.chunks
        array[tuple(i * size for i, size in zip(place, sizes, strict=True))] = 1
        assert zarr_nodes.stored(array) == set(places[: number + 1])


def test_chunks_beyond_the_shape_and_other_files_are_no_part_of_an_array(tmp_path):
    array = zarr.create_array(tmp_path / "a", data=np.ones(9), chunks=(3,))
    for name in ("3", "00", "1.partial", "1-2"):
        (tmp_path / f"a/c/{name}").write_bytes(b"x")
    assert zarr_nodes.stored(array) == {(0,), (1,), (2,)}


def test_metadata_that_claim_too_much_are_refused_and_not_listed():
    array = zarr.create_array(MemoryStore(), dtype="f4", shape=(10**9, 10**9), chunks=(1, 1))
    assert zarr_nodes.count(array) == 10**18
    assert zarr_nodes.stored(array) == set()
    with pytest.raises(FileError, match="makes 1,000,000,000,000,000,000 chunks, and at most"):
        zarr_nodes.places(array)
    empty = zarr.create_array(MemoryStore(), dtype="f4", shape=(10**9, 0), chunks=(1, 1))
    with pytest.raises(FileError, match="makes 1,000,000,000 chunks"):
        zarr_nodes.places(empty)
