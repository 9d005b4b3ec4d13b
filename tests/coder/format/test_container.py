import json

import numpy as np
import pytest
import safetensors.numpy

from coder import FileError
from coder.format.container import canonical_json, digest, from_bytes, read, to_bytes, write

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([1, 2], np.int32),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), np.uint8),
}
CONTENT = {"name": 'a "quoted" name, é', "numbers": [1, 0.1, None, True]}


def test_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, "head", TENSORS, CONTENT)
    tensors, content = read(path, "head")
    assert content == CONTENT
    assert set(tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert tensors[name].shape == value.shape
        np.testing.assert_array_equal(tensors[name], value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_bytes_depend_on_values_only():
    shuffled = {name: TENSORS[name] for name in sorted(TENSORS, reverse=True)}
    shuffled["b"] = np.asfortranarray(TENSORS["b"])
    reordered = dict(reversed(CONTENT.items()))
    assert to_bytes("head", shuffled, reordered) == to_bytes("head", TENSORS, CONTENT)


def test_digest_sees_names_types_shapes_and_text():
    base = {"a": np.zeros(4, np.int32)}
    others = [
        digest({"b": np.zeros(4, np.int32)}, ""),
        digest({"a": np.zeros(4, np.uint32)}, ""),
        digest({"a": np.zeros((2, 2), np.int32)}, ""),
        digest({"a": np.array([0, 0, 0, 1], np.int32)}, ""),
        digest(base, "x"),
    ]
    assert len({digest(base, ""), *others}) == 6
    assert digest({"a": np.zeros(4, ">i4")}, "") == digest(base, "")


def test_every_flipped_bit_is_detected():
    data = to_bytes("codec", TENSORS, CONTENT)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FileError, match="the-file"):
            from_bytes(bytes(damaged), "codec", path="the-file")


def test_every_truncation_and_an_added_byte_are_detected():
    data = to_bytes("codec", TENSORS, CONTENT)
    for end in range(len(data)):
        with pytest.raises(FileError):
            from_bytes(data[:end], "codec")
    with pytest.raises(FileError):
        from_bytes(data + b"\0", "codec")


def test_errors_name_the_file_and_the_cause(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, "model", TENSORS, CONTENT)
    with pytest.raises(FileError, match=r"m\.safetensors: a model file where a codec"):
        read(path, "codec")
    path.write_bytes(b"")
    with pytest.raises(FileError, match=r"m\.safetensors"):
        read(path, "codec")
    path.write_bytes(safetensors.numpy.save({"x": np.ones(2)}, {"format": "np"}))
    with pytest.raises(FileError, match="not one that nec-jax wrote"):
        read(path, "codec")
    with pytest.raises(FileError, match="absent: no such codec file"):
        read(tmp_path / "absent", "codec")


def file_of(record):
    return safetensors.numpy.save({"x": np.ones(2)}, {"nec": record})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("nonsense", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"content":[],"format":1,"kind":"codec","sha256":""}', "not an object"),
        ('{"content": {},"format":1,"kind":"codec","sha256":""}', "canonical"),
        ('{"content":{},"format":2,"kind":"codec","sha256":""}', "file format 2"),
        ('{"content":{},"format":1,"kind":"codec","sha256":""}', "SHA-256"),
        ('{"content":{"x":NaN},"format":1,"kind":"codec","sha256":""}', "damaged"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_bad_records_are_refused(record, message):
    with pytest.raises(FileError, match=message):
        from_bytes(file_of(record), "codec")


def test_nan_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        to_bytes("head", TENSORS, {"x": float("nan")})
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"\\u00e9","b":1}'
    assert json.loads(canonical_json(CONTENT)) == CONTENT


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write(path, "head", TENSORS, CONTENT)
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write(path, "head", {}, {})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
