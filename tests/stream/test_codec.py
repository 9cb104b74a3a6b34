"""Partitions as Kafka's own clients choose them; ticks; bytes."""

import pytest
from grade.v1 import conversion_pb2
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as reference_murmur2

from stream.codec import (
    TICK_HEADER,
    TICK_VALUE,
    encode,
    has_tick_header,
    is_tick,
    murmur2,
    partition_for,
    partitions_for,
)
from stream.connection import Connection, open_producer
from stream.topics import Topics

# Kafka's own test: org.apache.kafka.common.utils.UtilsTest.testMurmur2, as signed integers.
JAVA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("key", JAVA_VECTORS)
def test_murmur2_is_java_kafkas(key: bytes) -> None:
    assert murmur2(key) == JAVA_VECTORS[key] % 2**32


@given(st.binary(max_size=70))
def test_murmur2_is_kafka_pythons(key: bytes) -> None:
    assert murmur2(key) == reference_murmur2(key)


def test_partition_ignores_the_sign_of_the_hash() -> None:
    # Java: toPositive(-973932308) = -973932308 & 0x7fffffff = 1173551340; mod 7 = 3.
    assert partition_for(b"21", 7) == 3


def test_a_producer_that_chooses_itself_chooses_the_same_partition(
    connection: Connection, topics: Topics
) -> None:
    keys = [f"request-{number}".encode() for number in range(40)]
    with open_producer(connection) as producer:
        count = len(producer.partitions_for(topics.impressions))
        futures = [producer.send(topics.impressions, b"value", key=key) for key in keys]
        chosen = [future.get(30).partition for future in futures]
    assert count == 2
    assert chosen == [partition_for(key, count) for key in keys]
    assert set(chosen) == {0, 1}


def test_ticks_have_the_header_and_no_value() -> None:
    assert is_tick([TICK_HEADER], TICK_VALUE)
    assert is_tick((("other", b"x"), TICK_HEADER), None)
    assert not is_tick([], TICK_VALUE)
    assert not is_tick([("other", b"")], None)
    assert not is_tick([TICK_HEADER], b"value")


def test_what_has_the_ticks_header_says_that_it_is_one_whatever_its_value() -> None:
    assert has_tick_header([("other", b"x"), TICK_HEADER])
    assert has_tick_header([("grade-tick", None)])
    assert not has_tick_header([("other", b"")])
    assert not has_tick_header([])


def test_equal_messages_are_equal_bytes() -> None:
    one = conversion_pb2.Conversion(policy="p", request_id="r", value=1.0)
    other = conversion_pb2.Conversion(value=1.0, request_id="r")
    other.policy = "p"
    assert encode(one) == encode(other)
    assert conversion_pb2.Conversion.FromString(encode(one)) == one


def test_many_keys_get_the_partitions_that_each_gets_alone() -> None:
    keys = [bytes(range(length)) * repeat for length in range(18) for repeat in (1, 2)]
    keys += [f"request-{number}".encode() for number in range(200)] + [b"\xff" * 7, b""]
    for count in (1, 3, 4, 1000):
        assert partitions_for(keys, count) == [partition_for(key, count) for key in keys]
    assert partitions_for([], 3) == []
