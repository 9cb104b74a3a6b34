"""Logging a slot of any size through a real Kafka."""

from evaluation.replay import UserAction
from evaluation.through_kafka import FLUSH_EVERY, ThroughKafka
from grade_client import EventProducer, PolicyClient
from stream.connection import Connection
from tests.kafka import create_fresh


def test_a_slot_may_hold_more_than_a_producer_has_unconfirmed(connection: Connection) -> None:
    topics = create_fresh(connection, timestamps="event")
    count = 2 * FLUSH_EVERY + 1
    actions = [UserAction(f"r{n}", "a", "click", 1.0, "c", 1_000) for n in range(count)]
    with (
        PolicyClient("127.0.0.1:1", "example") as nobody,
        EventProducer(connection, topics, "example", max_unconfirmed=FLUSH_EVERY) as producer,
    ):
        way = ThroughKafka(nobody, producer, connection, topics)
        way.log([], actions)
        assert producer.confirmed >= 2 * FLUSH_EVERY
        producer.flush()
        assert producer.confirmed == producer.sent == count
