import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coder import CorruptBlob, TruncatedBlob, UnsupportedVersion
from coder.format.blob import Header, pack, unpack

HEADER = Header(b"\x01\x02\x03\x04", 0, (14, 14), True)


def sealed(body):
    return body + zlib.crc32(body).to_bytes(4, "little")


numbers = st.integers(0, 2**31 - 1)
words = st.lists(st.integers(0, 2**32 - 1), max_size=6).map(lambda w: [*w, 1])


@given(st.binary(min_size=4, max_size=4), numbers, numbers, numbers, st.booleans(), words)
def test_unpack_inverts_pack(fingerprint, quality, height, width, class_token, payload):
    header = Header(fingerprint, quality, (height, width), class_token)
    result, out = unpack(pack(header, np.array(payload, np.uint32)))
    assert result == header
    assert out.tolist() == payload


def test_layout_is_the_documented_one():
    blob = pack(Header(b"\xaa\xbb\xcc\xdd", 3, (128, 5), True), np.array([0x01020304, 0x0506]))
    assert blob == sealed(bytes.fromhex("11 aabbccdd 03 8001 05 04030201 0605"))
    assert len(pack(Header(b"abcd", 127, (127, 127), False), np.zeros(0, np.uint32))) == 12


@given(st.integers(0, 11))
def test_too_short_is_truncated(length):
    blob = pack(HEADER, np.zeros(0, np.uint32))
    with pytest.raises(TruncatedBlob):
        unpack(blob[:length])


@pytest.mark.parametrize("rest", [b"", b"anything, of any length, with another checksum"])
def test_another_version_is_named_as_such(rest):
    with pytest.raises(UnsupportedVersion, match="version 2"):
        unpack(b"\x20" + rest)


def test_unknown_mode_is_named_as_such():
    with pytest.raises(UnsupportedVersion, match="mode 2"):
        unpack(sealed(b"\x12abcd\0\1\1"))


@pytest.mark.parametrize(
    "numbers", [b"\0\1\x80", b"\0\1\x81\x00", b"\x80\x80\x80\x80\x80\x01\1\1", b"\0\xff\xff"]
)
def test_overlong_and_endless_numbers_are_corrupt(numbers):
    with pytest.raises((CorruptBlob, TruncatedBlob)):
        unpack(sealed(b"\x10abcd" + numbers))


def test_payload_that_ends_in_zero_is_corrupt():
    with pytest.raises(CorruptBlob, match="zero byte"):
        unpack(sealed(b"\x10abcd\0\1\1\5\0"))
