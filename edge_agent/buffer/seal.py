"""The sealed block: records in msgpack, compressed with zstd, sealed with AES-256-GCM.

    blob = nonce (12 random bytes) + AES-256-GCM(zstd(msgpack [version, gateway, entries])), tag last

What a block says about itself in plain columns is bound as associated data: kind, key, instance, place, range of
records, length and times. So a block that was cut, altered, moved to another place, stream or file, or given another
time does not open. Nonces are random, because a counter repeats after a rollback or on a cloned card.

Source: NIST SP 800-38D (GCM; random 96-bit nonces up to 2^32 blocks a key).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge_agent.records import Entry

MAGIC = b"BEB1"
VERSION = 1  # of payload and associated data
CODEC_ZSTD = 1  # msgpack, then zstd without a dictionary
NONCE_BYTES = 12
_ZSTD_LEVEL = 1  # 23 us for 110 records; level 5 takes 49 us to save another tenth
_PLAIN_LIMIT = 256 << 20  # no writer makes such a block: refuse before memory is asked for

# magic, version, codec, stream, priority, quality; key id, number, first, records, plain; t0, t1, utc, mono; uuid, boot
_BOUND = struct.Struct("<4s5B q4Q 4q 16s16s")


class Damaged(Exception):
    """A block that does not open: its tag, its header or its content is not what was sealed."""


class Head(NamedTuple):
    """Everything a block says about itself outside the seal; bound to it as associated data."""

    version: int
    codec: int
    stream: int  # index in STREAMS
    priority: int
    quality: int  # of the clock, when the block was sealed
    key_id: int
    number: int
    first: int
    records: int
    plain: int  # bytes before compression
    t0_ns: int  # CLOCK_MONOTONIC receipt of the first and the last record
    t1_ns: int
    utc_ns: int  # the same moment on both clocks, at commit
    mono_ns: int
    instance: bytes
    boot: bytes

    def bound(self) -> bytes:
        """The associated data.

        Raises: Damaged when a number does not fit, which no sealed block has.
        """
        try:
            return _BOUND.pack(MAGIC, *self)
        except (struct.error, TypeError) as error:
            raise Damaged(f"header out of range: {error}") from error


class _Payload(msgspec.Struct, array_like=True, gc=False):
    version: int
    gateway: str
    entries: Sequence[Entry]


class _Opened(msgspec.Struct, array_like=True, gc=False):
    version: int
    gateway: str
    entries: list[Entry]


# Made while the module is imported: msgspec prepares a struct at its first decoder, and two threads that made theirs at
# the same moment met half-prepared types and ended the process with a segmentation fault (msgspec 0.22, 5 of 30 runs
# with four threads). Decoding itself may be done by any number of threads.
_DECODE = msgspec.msgpack.Decoder(_Opened).decode


class Packer:
    """Encodes and compresses the records of one block; for one thread."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._encode = msgspec.msgpack.Encoder().encode
        self._compress = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=False).compress

    def pack(self, entries: Sequence[Entry]) -> tuple[bytes, int]:
        """The compressed payload and its length before compression."""
        plain = self._encode(_Payload(VERSION, self._gateway, entries))
        return self._compress(plain), len(plain)


class Unpacker:
    """Decompresses and decodes what Packer made; for one thread."""

    def __init__(self) -> None:
        self._decode = _DECODE
        self._decompress = zstandard.ZstdDecompressor().decompress

    def unpack(self, packed: bytes, head: Head) -> tuple[str, list[Entry]]:
        """Gateway and records of a block.

        Raises: Damaged when the content is not that of the head.
        """
        if head.version != VERSION or head.codec != CODEC_ZSTD:
            raise Damaged(f"format {head.version}.{head.codec} is newer than this program")
        if not 0 <= head.plain <= _PLAIN_LIMIT:
            raise Damaged(f"plain length {head.plain} is beyond all measure")
        try:
            payload = self._decode(self._decompress(packed, max_output_size=head.plain))
        except (zstandard.ZstdError, msgspec.DecodeError, MemoryError) as error:
            raise Damaged(f"content: {error}") from error
        if len(payload.entries) != head.records:
            raise Damaged(f"{len(payload.entries)} records, header says {head.records}")
        return payload.gateway, payload.entries


class Cipher:
    """One data key at work."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal(self, head: Head, packed: bytes) -> bytes:
        """The blob of a block."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, packed, head.bound())

    def unseal(self, head: Head, blob: bytes) -> bytes:
        """The compressed payload.

        Raises: Damaged when head and blob are not what was sealed together.
        """
        try:
            return self._aead.decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], head.bound())
        except (InvalidTag, ValueError, TypeError) as error:
            raise Damaged("tag does not fit") from error


class Box:
    """One data key at work on small pieces that have no head of a block, such as an entry of the alarm log."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal(self, plain: bytes, bound: bytes) -> bytes:
        """Nonce, sealed bytes and tag; it opens only together with the same `bound`."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, bound)

    def unseal(self, blob: bytes, bound: bytes) -> bytes:
        """What was sealed.

        Raises: Damaged when these bytes were not sealed together.
        """
        try:
            return self._aead.decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], bound)
        except (InvalidTag, ValueError, TypeError) as error:
            raise Damaged("tag does not fit") from error
