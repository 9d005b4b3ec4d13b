"""One embedding <-> one framed byte string.

| bytes | content |
| --- | --- |
| 1 | format version (high nibble, 1) and mode (low nibble; bit 0: class token coded, others 0) |
| 4 | the first bytes of the codec's SHA-256 fingerprint |
| 1+ each | quality index, grid height, grid width: LEB128, shortest form, at most 5 bytes |
| any | the ANS words, little endian, without the zero bytes at the very end |
| 4 | CRC-32 (zlib's) of everything before, little endian |

12 bytes of framing for grids and quality indices below 128. One content has one byte string. The
checksum finds accidents, not forgers.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coder.errors import CorruptBlob, TruncatedBlob, UnsupportedVersion

VERSION = 1
_CLASS_TOKEN = 1
_FINGERPRINT_BYTES = 4
_CRC_BYTES = 4
_SHORTEST = 1 + _FINGERPRINT_BYTES + 3 + _CRC_BYTES
_VARINT_BYTES = 5


@dataclass(frozen=True)
class Header:
    """What a blob says before its payload.

    Attributes:
      fingerprint: the first 4 bytes of the codec's fingerprint.
      rate_index: the quality at which it was coded, >= 0.
      grid: tokens, (height, width).
      class_token: whether a class token is coded before the grid.
    """

    fingerprint: bytes
    rate_index: int
    grid: tuple[int, int]
    class_token: bool


def pack(header: Header, words: NDArray[np.uint32]) -> bytes:
    """Frame ANS words uint32 [W] as a blob."""
    body = bytes([VERSION << 4 | (_CLASS_TOKEN if header.class_token else 0)])
    body += header.fingerprint[:_FINGERPRINT_BYTES]
    body += b"".join(_varint(value) for value in (header.rate_index, *header.grid))
    # Stripping before joining, so that only the payload's zeros go.
    body += words.astype("<u4").tobytes().rstrip(b"\0")
    return body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little")


def unpack(blob: bytes) -> tuple[Header, NDArray[np.uint32]]:
    """Check and open a blob: its header and the ANS words uint32 [W].

    Raises:
      TruncatedBlob: shorter than any blob.
      UnsupportedVersion: another format version or coding mode.
      CorruptBlob: the checksum or the framing is wrong.
    """
    if not blob:
        raise TruncatedBlob("the blob is empty: nothing was written or read")
    # Before the checksum: another version may keep its checksum elsewhere.
    if blob[0] >> 4 != VERSION:
        raise UnsupportedVersion(
            f"not a blob of format version {VERSION}: if it is one of version {blob[0] >> 4}, "
            "update nec-jax; if its first byte is damaged, fetch it again"
        )
    if len(blob) < _SHORTEST:
        raise TruncatedBlob(
            f"the blob has {len(blob)} bytes, the shortest has {_SHORTEST}: fetch it again"
        )
    body, checksum = blob[:-_CRC_BYTES], int.from_bytes(blob[-_CRC_BYTES:], "little")
    if zlib.crc32(body) != checksum:
        raise CorruptBlob(
            "the blob's checksum is wrong, it is truncated or damaged: fetch it again"
        )
    mode = body[0] & 0xF
    if mode & ~_CLASS_TOKEN:
        raise UnsupportedVersion(f"the blob uses coding mode {mode}: update nec-jax")
    at = 1 + _FINGERPRINT_BYTES
    fingerprint = body[1:at]
    rate_index, at = _read_varint(body, at)
    height, at = _read_varint(body, at)
    width, at = _read_varint(body, at)
    payload = body[at:]
    if payload.endswith(b"\0"):
        raise CorruptBlob("the blob's payload ends in a zero byte, which no encoder writes")
    words = np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32)
    return Header(fingerprint, rate_index, (height, width), bool(mode & _CLASS_TOKEN)), words


def _varint(value: int) -> bytes:
    """LEB128: seven bits per byte, least significant first; the high bit means that more follow."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(body[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if byte == 0 and count:
                raise CorruptBlob("the blob's header holds a number in a longer form than needed")
            return value, at + count + 1
    raise CorruptBlob("the blob's header holds a number that does not end")
