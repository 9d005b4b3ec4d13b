"""Bytes that must never change: tables, symbols and blobs written once, committed."""

import hashlib

import numpy as np
import pytest
from folders import GOLDEN
from golden.make import REFINED, cases, encoded, refiners
from reference_ans import Table, integer_ans, reads

import coder
from coder import ScalarCodec, TransformCodec
from coder.format.blob import unpack

SHA256 = {
    "4096-tokens": "36312e1d526e326addef834b57be6a67177ea2abfff29d57a7df5f0319765cf6",
    "channels-alone": "71d41f5659a8bf5801eb2ee46320956f4426b073671792311a9130506f77086c",
    "dead": "05cbf90159be00989c8eff90e3bee03863528477d1959a4c2b5470bf35130ca5",
    "escapes": "371d1c13d350e8ef2c4ca2670c989dcfbb9721b51bb93b1e35a401a79a6b94ae",
    "ladder": "270bf37ad3deaa1696132b21443739ad4b292542a890866d513e0fd0cb066710",
    "one-token": "54240f7117efff101e081c6d5970cebf407a34c0db9baf7499dd272fcac77e2e",
    "sizes": "81e7b7ef631a1d27eedf72a6cb4bd43f0b719d679c6fa2b8ef6191e6a1b0901b",
    "transform": "7560a447450bb9a6873f1909f73bd8207a9411c8a24c9d225935fdbf2a0a15ae",
    "woken": "f9b227694084fd67d8ed803c030781625c786ac49a3571b5a384537f6182d15a",
}
TRANSFORMED = ("channels-alone", "ladder", "transform")
REFINERS = {
    "channels-alone": "68efbcbd3972335246bf19344ce9411d29d3b8b477ad0c1ad6d4824b709c63e6",
    "ladder": "40bd006c8207295e4e848adba6e5687a759ab64cfc804164f613e63c026d2500",
}


def load(name):
    # No case may be missing: each of these fails without its file.
    codec = coder.load(GOLDEN / f"{name}.codec.safetensors")
    return codec, (GOLDEN / f"{name}.blob").read_bytes(), np.load(GOLDEN / f"{name}.symbols.npy")


def test_every_case_has_its_files_and_no_file_is_extra():
    assert {name for name, *_ in cases()} == set(SHA256)
    expected = {f"{n}.{e}" for n in SHA256 for e in ("codec.safetensors", "blob", "symbols.npy")}
    expected |= {f"{name}.refiner.safetensors" for name in REFINERS}
    expected |= {f"{name}.refined.npy" for name in TRANSFORMED}
    found = {path.name for path in GOLDEN.iterdir() if path.is_file()}
    assert found - {"make.py"} == expected


@pytest.mark.parametrize("name", SHA256)
def test_bytes_and_symbols_are_what_they_were(name):
    codec, blob, symbols = load(name)
    assert hashlib.sha256(blob).hexdigest() == SHA256[name]
    decoded, grid = codec.decode_symbols(blob)
    np.testing.assert_array_equal(decoded, symbols)
    assert encoded(codec, symbols, grid) == blob
    assert codec.to_bytes() == (GOLDEN / f"{name}.codec.safetensors").read_bytes()


@pytest.mark.parametrize("name", SHA256)
def test_words_are_those_of_an_integer_ans(name):
    codec, blob, symbols = load(name)
    header = unpack(blob)[0]
    one = codec.at(header.rate_index)
    tables = [Table(low, one.tables.weights_of(k)) for k, low in enumerate(one.tables.minimum)]
    if isinstance(one, ScalarCodec):
        blocks = [(one.grid_layout, symbols)]
        if one.class_layout is not None:
            blocks = [(one.class_layout, symbols[:1]), (one.grid_layout, symbols[1:])]
        rows = [
            [(tables[k], column.tolist()) for k, column in zip(layout, block.T, strict=True)]
            for layout, block in blocks
        ]
    else:
        assert isinstance(one, TransformCodec)
        which = one.layout.T[one.transform.columns(header.grid)]
        used = [k for k in range(len(tables)) if (which == k).any()]
        rows = [[(tables[k], symbols[which == k].tolist()) for k in used]]
    steps = reads(rows)
    assert unpack(blob)[1].tolist() == integer_ans(steps[::-1])


@pytest.mark.parametrize("name", SHA256)
def test_the_recipe_still_makes_them(name):
    codec, blob, symbols = load(name)
    made, drawn, grid = next(case[1:] for case in cases() if case[0] == name)
    assert made == codec
    np.testing.assert_array_equal(drawn, symbols)
    assert encoded(made, drawn, grid) == blob


@pytest.mark.parametrize("name", REFINERS)
def test_refiners_are_what_they_were_and_the_recipe_still_makes_them(name):
    data = (GOLDEN / f"{name}.refiner.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == REFINERS[name]
    refiner = coder.Refiner.from_bytes(data)
    assert refiner.to_bytes() == data
    assert dict(refiners())[name] == refiner


@pytest.mark.parametrize("name", TRANSFORMED)
def test_refined_embeddings_are_what_they_were(name):
    codec, blob, _ = load(name)
    refiner = coder.load_refiner(GOLDEN / f"{REFINED[name]}.refiner.safetensors")
    refined = np.load(GOLDEN / f"{name}.refined.npy")
    found = codec.with_refiner(refiner).decode(blob, refine=True)
    np.testing.assert_allclose(found, refined, rtol=0, atol=1e-5 * np.abs(refined).max())
    assert np.abs(refined - codec.decode(blob)).max() > 1
