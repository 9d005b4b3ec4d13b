"""What may be handed to a codec: missing values, grids, dtypes and blobs."""

from collections import deque
from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
from coder_cases import small_codec
from transform_cases import GRID, embeddings, ladder

from coder import CodecError, InputError, Pool, Tables, UnusualEmbedding
from coder.arrays import as_blobs
from coder.entropy import pmf_from_counts, quantise_pmf

LADDER = ladder()
SCALAR = small_codec(class_token=False)
KINDS = {
    "scalar": (SCALAR, np.zeros((4, 3), np.float32), (2, 2)),
    "transform": (LADDER.at(5), embeddings(False)[0], GRID),
    "ladder": (LADDER, embeddings(False)[0], GRID),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, "masked"])
def test_what_is_missing_is_refused_with_its_place(kind, value):
    codec, y, grid = KINDS[kind]
    broken = y.astype(np.float64)
    broken[2, 1] = broken[3, 0] = np.nan if value == "masked" else value
    shown = "masked, the first at (2, 1): "
    if value == "masked":
        broken = np.ma.masked_invalid(broken)
    else:
        shown = f"NaN or infinite in float32, the first at (2, 1) ({value}): "
    calls = [lambda: codec.encode(broken, grid)]
    if kind == "ladder":
        calls += [lambda: codec.encode(broken, grid, max_bytes=999)]
        calls += [lambda: codec.encode(broken, grid, max_mse=9.0)]
    else:
        calls += [lambda: codec.quantise(broken, grid)]
    for call in calls:
        with pytest.raises(InputError) as caught:
            call()
        assert f"2 of {y.size} values of embeddings are {shown}" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_nothing_is_none(kind):
    codec, y, grid = KINDS[kind]
    blob = codec.encode(y, grid)
    assert codec.encode(np.ma.array(y), grid) == blob
    assert codec.encode(np.ma.array(y, mask=np.zeros(y.shape, bool)), grid) == blob
    assert codec.encode([*np.ma.array(y)], grid) == blob
    mask = np.arange(y.size).reshape(y.shape) % (y.size // 3) == 1
    with pytest.raises(InputError, match=r"3 of .* masked, the first at \(0, 1\)"):
        codec.encode([*np.ma.array(y, mask=mask)], grid)
    symbols, _ = codec.decode_symbols(blob)
    one, masked = codec.at(), np.ma.array(symbols, mask=symbols == symbols[0, 0])
    for function in (one.encode_symbols, one.dequantise, one.estimate_bits):
        with pytest.raises(InputError, match="values of symbols are masked"):
            function(masked, grid)
    np.testing.assert_array_equal(one.dequantise(np.ma.array(symbols), grid), codec.decode(blob))


NESTED = {
    "list of arrays": list,
    "tuple of arrays": tuple,
    "deque of arrays": deque,
    "list of lists of scalars": lambda y: [[*row] for row in y],
    "list of a list": lambda y: [[*y]],
    "list of an array": lambda y: [y],
    "tuple of lists of lists": lambda y: ([[*row] for row in y],),
    "array of dask": lambda y: da.from_array(y),
    "list of dask arrays": lambda y: [da.from_array(row) for row in y],
    "list of a list of dask arrays": lambda y: [[da.from_array(row) for row in y]],
}


@pytest.mark.parametrize("nesting", NESTED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_in_lists_is_seen_however_deep(kind, nesting):
    codec, y, grid = KINDS[kind]
    one, nested = codec.at(), NESTED[nesting]
    symbols = one.quantise(y, grid)
    whole = one.quantise(nested(np.ma.array(y)), grid)
    np.testing.assert_array_equal(whole.reshape(symbols.shape), symbols)
    masked = np.ma.array(y, mask=np.arange(y.size).reshape(y.shape) == 4)
    with pytest.raises(InputError, match=f"1 of {y.size} values of embeddings are masked"):
        one.quantise(nested(masked), grid)


def test_settings_of_codecs_are_not_masked():
    pmf = np.ma.array([0.5, 0.5], mask=[True, False])
    calls = [
        lambda: Tables.from_pmfs([(0, pmf, 0.1)]),
        lambda: quantise_pmf(pmf),
        lambda: pmf_from_counts(np.ma.array([1, 2], mask=[True, False]), 0, [0.5, 0.5]),
        lambda: pmf_from_counts([1, 2], 0, pmf),
        lambda: replace(SCALAR, steps=np.ma.array(SCALAR.steps, mask=[False, True, False])),
    ]
    for call in calls:
        with pytest.raises(CodecError, match=r"1 of . values of .* are masked"):
            call()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "grid",
    [None, 2, (2,), (2, 2, 1), (0, 4), (-2, -2), (2.0, 2.0), ("2", "2"), (True, 4), [[2, 2]]],
)
def test_a_grid_that_is_none_is_refused(kind, grid):
    codec, y, _ = KINDS[kind]
    with pytest.raises(
        InputError, match=r"grid is .*: give its height and width in tokens, two whole"
    ):
        codec.encode(y, grid)


@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_may_be_numpys(kind):
    codec, y, grid = KINDS[kind]
    for same in (np.array(grid), list(grid), tuple(map(np.uint8, grid))):
        assert codec.encode(y, same) == codec.encode(y, grid)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["?", "c8", "M8[s]", "U3", "O", "S3"])
def test_what_is_no_number_is_refused(kind, dtype):
    codec, y, grid = KINDS[kind]
    with pytest.raises(InputError, match=r"embeddings are .*: give (floats|an array)"):
        codec.encode(y.astype(dtype), grid)


@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_coded_as_they_are_and_warned_of(kind):
    codec, y, grid = KINDS[kind]
    whole = y.round()
    with pytest.warns(UnusualEmbedding, match="embeddings are int8: integers") as caught:
        assert codec.encode(whole.astype(np.int8), grid) == codec.encode(whole, grid)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("kind", KINDS)
def test_a_blob_is_bytes_in_anything_that_holds_them(kind):
    codec, y, grid = KINDS[kind]
    blob = codec.encode(y, grid)
    for same in (bytearray(blob), memoryview(blob), np.frombuffer(blob, np.uint8), np.bytes_(blob)):
        np.testing.assert_array_equal(codec.decode(same), codec.decode(blob))
    for wrong in ("text", None, 7, [blob], np.zeros(9)):
        for function in (codec.decode, codec.decode_symbols, codec.grid_of):
            with pytest.raises(InputError, match="a blob is bytes, as encode returns it, not"):
                function(wrong)


@pytest.mark.parametrize(
    ("blobs", "message"),
    [
        (b"blob", "wrap a single one in a list"),
        ("blob", "wrap a single one in a list"),
        (np.array([b"a", b"b\0"]), r"an array of \|S2: pass a list of byte strings"),
        (None, "of type NoneType: pass a list"),
        (7, "of type int: pass a list"),
        ({b"a", b"b"}, "blobs are a set, which has no order"),
        ([], "no blobs to decode"),
        ([b"a", "b"], "blob 1: a blob is bytes"),
    ],
)
def test_blobs_are_a_list_of_bytes(blobs, message):
    with pytest.raises(InputError, match=message):
        as_blobs(blobs)
    with Pool(SCALAR, workers=1) as pool, pytest.raises(InputError, match=message):
        pool.decode(blobs)


@pytest.mark.parametrize("target", ["x", -1, np.nan, True])
@pytest.mark.parametrize("name", ["max_bytes", "max_mse"])
def test_a_target_that_is_none_is_refused(name, target):
    with pytest.raises(InputError, match=f"{name} is "):
        LADDER.encode(embeddings(False)[0], GRID, **{name: target})
