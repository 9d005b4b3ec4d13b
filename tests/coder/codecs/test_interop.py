"""The decoder in JavaScript, written from docs/format.md, agrees with the golden files."""

import dataclasses
import shutil
import subprocess
import zlib

import numpy as np
import pytest
from folders import GOLDEN, TESTS
from golden.make import REFINED
from test_golden import SHA256, TRANSFORMED

import coder
from coder import QualityLadder
from coder.codecs import NOT_CODED

DECODER = TESTS / "interop" / "decode.mjs"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js (node) on the path")


def decode(codec, blob, out, *more):
    assert NODE is not None
    command = [NODE, DECODER, codec, blob, out, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", SHA256)
def test_symbols_and_floats_are_the_same(name, tmp_path):
    files = GOLDEN / f"{name}.codec.safetensors", GOLDEN / f"{name}.blob"
    done = decode(*files, tmp_path / "q.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(
        np.load(tmp_path / "q.npy"), np.load(GOLDEN / f"{name}.symbols.npy")
    )
    assert decode(*files, tmp_path / "y.npy", "--floats").returncode == 0
    y_hat = coder.load(files[0]).decode(files[1].read_bytes())
    if name in TRANSFORMED:  # sums in another order
        scale = np.abs(y_hat).max()
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), y_hat, atol=1e-5 * scale)
    else:
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), y_hat)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_refined_embeddings_agree(name, tmp_path):
    files = GOLDEN / f"{name}.codec.safetensors", GOLDEN / f"{name}.blob"
    done = decode(*files, tmp_path / "y.npy", GOLDEN / f"{REFINED[name]}.refiner.safetensors")
    assert done.returncode == 0, done.stderr
    refined = np.load(GOLDEN / f"{name}.refined.npy")
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), refined, rtol=0, atol=1e-5 * np.abs(refined).max()
    )


def test_a_refiner_of_another_codec_and_a_damaged_one_are_refused(tmp_path):
    files = GOLDEN / "ladder.codec.safetensors", GOLDEN / "ladder.blob", tmp_path / "y.npy"
    done = decode(*files, GOLDEN / "channels-alone.refiner.safetensors")
    assert done.stderr == "Error: a refiner of another codec\n"
    done = decode(*files, GOLDEN / "ladder.codec.safetensors")
    assert done.stderr == "Error: not a refiner file\n"
    data = bytearray((GOLDEN / "ladder.refiner.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "refiner").write_bytes(data)
    assert decode(*files, tmp_path / "refiner").stderr == "Error: the refiner file is damaged\n"
    assert not (tmp_path / "y.npy").exists()


def test_a_rate_of_a_ladder_that_codes_nothing(tmp_path):
    whole = coder.load(GOLDEN / "ladder.codec.safetensors")
    assert isinstance(whole, QualityLadder)
    layout = whole.layout.copy()
    layout[0] = NOT_CODED
    codec = dataclasses.replace(whole, layout=layout)
    codec.save(tmp_path / "codec")
    tokens = 4 + codec.class_token
    blob = codec.encode(np.zeros((tokens, codec.channels), np.float32), (2, 2), quality=0)
    (tmp_path / "blob").write_bytes(blob)
    done = decode(tmp_path / "codec", tmp_path / "blob", tmp_path / "q.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "q.npy"), np.zeros((tokens, 1)))


def test_damage_is_named(tmp_path):
    codec, blob = GOLDEN / "woken.codec.safetensors", (GOLDEN / "woken.blob").read_bytes()

    def sealed(body):
        return body + zlib.crc32(body).to_bytes(4, "little")

    cases = {
        b"": "empty",
        b"\x20" + blob[1:]: "version 2",
        blob[:11]: "shorter",
        blob[:-1]: "checksum",
        sealed(b"\x13" + blob[1:-4]): "mode",
        sealed(blob[:1] + b"abcd" + blob[5:-4]): "another codec",
        sealed(blob[:6] + b"\x8e\x00" + blob[7:-4]): "longer form",
        sealed(blob[:6] + b"\xff\xff\x7f" + blob[7:-4]): "bounds",
        sealed(blob[:-4] + b"\0"): "zero",
        sealed(blob[:-4] + b"\1\1\1\1"): "does not end|a count|outside",
    }
    for damaged, message in cases.items():
        (tmp_path / "blob").write_bytes(damaged)
        done = decode(codec, tmp_path / "blob", tmp_path / "q.npy")
        assert done.returncode == 1, message
        assert done.stderr.startswith("Error: ")
        assert any(word in done.stderr for word in message.split("|")), done.stderr
    data = bytearray(codec.read_bytes())
    data[-3] ^= 1
    (tmp_path / "codec").write_bytes(data)
    done = decode(tmp_path / "codec", GOLDEN / "woken.blob", tmp_path / "q.npy")
    assert "the codec file is damaged" in done.stderr
