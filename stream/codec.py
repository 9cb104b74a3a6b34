"""How messages become Kafka records: bytes, partition, tick."""

import struct
from collections.abc import Sequence
from typing import Final

from google.protobuf.message import Message

TICK_HEADER: Final[tuple[str, bytes]] = ("grade-tick", b"")
"""Header of a tick: a record without a value that only carries the log's time forward."""

TICK_VALUE: Final[bytes] = b""
"""Value of a tick."""

BOUNDARY_HEADER: Final[tuple[str, bytes]] = ("grade-boundary", b"")
"""Header of a boundary: an input record whose value is the Generation that begins there."""

REDRIVEN_HEADER: Final = "grade-redriven"
"""Header of a record that was sent again: topic/partition/offset of the one that was refused."""

_WORD = 0xFFFFFFFF
_MULTIPLIER = 0x5BD1E995
_SEED = 0x9747B28C


def encode(message: Message) -> bytes:
    """Serialize a message so that equal messages become equal bytes.

    The claim holds for one build of protobuf and for messages without map fields.
    """
    return message.SerializeToString(deterministic=True)


def partition_for(key: bytes, partitions: int) -> int:
    """The partition in which Kafka's Java client, and so every producer here, puts a key.

    librdkafka's default partitioner is another one; its users set `partitioner=murmur2_random`.

    Args:
        key: the record's key.
        partitions: number of partitions of the topic, at least 1.

    >>> partition_for(b"request-1", 4)
    3
    """
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(key: bytes) -> int:
    """MurmurHash2 of a key, as an unsigned 32-bit integer.

    Reference: org.apache.kafka.common.utils.Utils.murmur2.
    """
    length = len(key)
    whole = length // 4
    hashed = _SEED ^ length
    for word in struct.unpack_from(f"<{whole}I", key):
        word = (word * _MULTIPLIER) & _WORD
        word = ((word ^ (word >> 24)) * _MULTIPLIER) & _WORD
        hashed = ((hashed * _MULTIPLIER) & _WORD) ^ word
    rest = key[whole * 4 :]
    if rest:
        hashed = ((hashed ^ int.from_bytes(rest, "little")) * _MULTIPLIER) & _WORD
    hashed = ((hashed ^ (hashed >> 13)) * _MULTIPLIER) & _WORD
    return hashed ^ (hashed >> 15)


def has_tick_header(headers: Sequence[tuple[str, bytes | None]]) -> bool:
    """Whether a record says that it is a tick; with a value it is a broken one all the same."""
    return any(name == TICK_HEADER[0] for name, _ in headers)


def has_boundary_header(headers: Sequence[tuple[str, bytes | None]]) -> bool:
    """Whether a record says that a generation begins there; its value may be broken."""
    return any(name == BOUNDARY_HEADER[0] for name, _ in headers)


def is_tick(headers: Sequence[tuple[str, bytes | None]], value: bytes | None) -> bool:
    """Whether a record is a sound tick: it has the tick's header and no value."""
    return not value and has_tick_header(headers)
