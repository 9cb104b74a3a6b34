"""Peers of the join: processes that only pass records on. `benchmarks/join.py` starts them.

    python -m benchmarks.pass_on faust|aiokafka SERVERS PREFIX PARTITIONS RECORDS

Prints one JSON object: how many records, wall and CPU seconds from the first record that was read
to the acknowledgement of the last one that was written.
"""

import asyncio
import json
import sys
import time
import uuid
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from faust.types import StreamT

from benchmarks.join import passed_topic
from stream.topics import Topics

BATCH_BYTES = 1024 * 1024


class _Clock:
    """Counts records, and the time from the first one on."""

    def __init__(self) -> None:
        self.records = 0
        self._began = (0.0, 0.0)

    def count(self, records: int) -> None:
        if not self.records:
            self._began = time.monotonic(), time.process_time()
        self.records += records

    def report(self) -> None:
        wall_s, cpu_s = time.monotonic() - self._began[0], time.process_time() - self._began[1]
        print(json.dumps({"records": self.records, "wall_s": wall_s, "cpu_s": cpu_s}), flush=True)


async def pass_on_by_faust(servers: str, topics: Topics, partitions: int, records: int) -> None:
    """A Faust agent as its tutorial has it, without decoding anything."""
    del partitions
    app = faust.App(
        f"pass-{uuid.uuid4().hex[:8]}",
        broker=f"kafka://{servers}",
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        autodiscover=False,
        store="memory://",
    )
    clock, finished = _Clock(), asyncio.Event()
    inputs = app.topic(*topics.inputs, key_serializer="raw", value_serializer="raw")
    out = app.topic(passed_topic(topics), key_serializer="raw", value_serializer="raw")
    sent: list[Any] = []

    async def passing(stream: StreamT[Any]) -> None:
        async for event in stream.events():
            if clock.records < records:
                clock.count(1)
                sent.append(await out.send(key=event.key, value=event.value))
            else:
                finished.set()

    app.agent(inputs)(passing)
    await app.start()
    await finished.wait()
    await sent[-1]
    clock.report()
    await app.stop()


async def pass_on_by_aiokafka(servers: str, topics: Topics, partitions: int, records: int) -> None:
    """Batches in, batches out, each acknowledged before the next."""
    clock = _Clock()
    consumer: Any = AIOKafkaConsumer(
        bootstrap_servers=servers, group_id=None, auto_offset_reset="earliest"
    )
    producer: Any = AIOKafkaProducer(
        bootstrap_servers=servers, enable_idempotence=True, acks="all", max_batch_size=BATCH_BYTES
    )
    async with consumer, producer:
        consumer.assign([TopicPartition(t, p) for t in topics.inputs for p in range(partitions)])
        while clock.records < records:
            for place, fetched in (await consumer.getmany(timeout_ms=1000)).items():
                clock.count(len(fetched))
                await _send_batches(producer, passed_topic(topics), place.partition, fetched)
        clock.report()


async def _send_batches(producer: Any, topic: str, partition: int, fetched: list[Any]) -> None:
    batch, sent = producer.create_batch(), []
    for record in fetched:
        if batch.append(key=record.key, value=record.value, timestamp=None) is None:
            sent.append(await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            batch.append(key=record.key, value=record.value, timestamp=None)
    sent.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*sent)


def main() -> None:
    """Pass on as the command line says."""
    how, servers, prefix, partitions, records = sys.argv[1:]
    pass_on = {"faust": pass_on_by_faust, "aiokafka": pass_on_by_aiokafka}[how]
    asyncio.run(pass_on(servers, Topics(prefix), int(partitions), int(records)))


if __name__ == "__main__":
    main()
