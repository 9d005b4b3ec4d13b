"""The codec's file, its fingerprint, and settings that make no codec."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from coder_cases import Y, small_codec
from hypothesis import given, settings
from hypothesis import strategies as st

import coder
from coder import (
    CodecError,
    FileError,
    codecs,
)


def test_save_and_load_keep_fingerprint_and_bytes(tmp_path):
    codec = small_codec(quality=2)
    path = tmp_path / "codec.safetensors"
    codec.save(path)
    loaded = coder.load(path)
    assert loaded == codec
    assert hash(loaded) == hash(codec)
    assert loaded.fingerprint == codec.fingerprint
    assert loaded.to_bytes() == codec.to_bytes() == path.read_bytes()
    assert codec.codec_bytes == path.stat().st_size
    assert loaded.encode(Y, (1, 2)) == codec.encode(Y, (1, 2))
    assert codecs.from_parts(*codec.to_parts()) == codec


@settings(max_examples=200)
@given(st.integers(0, 10**9), st.data())
def test_flipped_bits_of_the_file_are_detected(position, data):
    file = bytearray(small_codec().to_bytes())
    position %= 8 * len(file)
    file[position // 8] ^= 1 << position % 8
    with pytest.raises(FileError):
        coder.from_bytes(bytes(file))


def test_loading_names_the_file(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(small_codec().to_bytes()[:-1])
    with pytest.raises(FileError, match=r"broken\.safetensors"):
        coder.load(path)


@pytest.mark.parametrize(
    ("tensors", "content", "message"),
    [
        ({}, {"transform": "dct"}, "unknown transform 'dct'"),
        ({}, {"extra": 1}, "content"),
        ({}, {"max_tokens": 0}, "max_tokens"),
        ({}, {"rate_index": "0"}, "quality is '0'"),
        ({"steps": np.zeros(3, np.float32)}, {}, "step"),
        ({"grid_layout": np.array([0, 1, 3])}, {}, "table"),
        ({"surprise": np.zeros(3)}, {}, "tensors"),
    ],
)
def test_parts_that_make_no_codec_are_refused(tensors, content, message):
    parts = small_codec().to_parts()
    with pytest.raises(FileError, match=message):
        codecs.from_parts(parts[0] | tensors, parts[1] | content)


def test_every_part_changes_the_fingerprint():
    base = small_codec()
    tensors, content = base.to_parts()
    changed = [
        {"offsets": np.array([0, 0.5, 1], np.float32)},
        {"steps": np.array([1, 0.25, 3], np.float32)},
        {"minimum": np.array([-1, 0, -4])},
        {"weights": np.concatenate([tensors["weights"][[1, 0]], tensors["weights"][2:]])},
        {"grid_layout": np.array([0, 2, 1])},
        {"class_layout": np.array([2, 0, 0])},
    ]
    others = [codecs.from_parts(tensors | change, content) for change in changed]
    others += [small_codec(False), small_codec(max_tokens=9), small_codec(quality=1), base]
    assert len({codec.fingerprint for codec in others}) == len(others)
    assert base != others[0]
    assert base != "a codec"


def test_a_codec_cannot_be_changed_under_its_fingerprint():
    offsets = np.zeros(1, np.float32)
    tables = coder.Tables.from_pmfs([(0, [0.5], 0.5)])
    codec = coder.ScalarCodec(offsets, np.ones(1, np.float32), tables, np.zeros(1, int))
    offsets[0] = 5
    assert codec.offsets[0] == 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        codec.offsets.flags.writeable = True


def test_codecs_travel_between_processes():
    codec = small_codec()
    codec.encode(Y, (1, 2))  # builds the models, which cannot be pickled
    assert pickle.loads(pickle.dumps(codec)) == codec
    assert copy.deepcopy(codec) == codec


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": [1.0, -1.0]},
        {"steps": [1.0, 1e-40]},
        {"steps": [1.0, 1e30]},
        {"steps": [1.0, np.nan]},
        {"offsets": [0.0, np.inf]},
        {"offsets": [0.0]},
        {"offsets": []},
        {"grid_layout": [0, 1]},
        {"grid_layout": [-1, 0]},
        {"grid_layout": [0.0, 0.0]},
        {"class_layout": [0]},
        {"max_tokens": 0},
        {"max_tokens": 2**40},
        {"quality": -1},
        {"quality": True},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes):
    given_settings = {
        "offsets": [0.0, 0.0],
        "steps": [1.0, 1.0],
        "tables": coder.Tables.from_pmfs([(0, [0.5], 0.5)]),
        "grid_layout": [0, 0],
    }
    with pytest.raises(CodecError):
        coder.ScalarCodec(**(given_settings | changes))


def test_a_consumer_needs_no_jax():
    program = (
        "import sys, coder; from coder import entropy, format; "
        "sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'nec_jax', 'torch')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_public_names():
    assert all(hasattr(coder, name) for name in coder.__all__)
