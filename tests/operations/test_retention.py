"""Retention has deleted what a process still needed: it stops with the numbers and skips nothing.

A join worker that is started too late is in tests/integration/test_join_kafka.py.
"""

import os
import signal
from pathlib import Path

import pytest
from kafka import TopicPartition

from policy.errors import RetentionLost
from policy.schema import load_schema
from stream.connection import Connection, open_admin
from stream.join import Kind
from stream.learner import Learner, LearnerSettings
from stream.topics import Topics
from tests.integration.join_process import Traffic, running_join, write_schema
from tests.kafka import Produced, await_until, produce, read_topic
from tests.stream import learner_world as world

PARTITIONS = 2


def delete_records(connection: Connection, topic: str, partition: int, end: int) -> None:
    """Delete a partition's records before an offset, as retention does."""
    with open_admin(connection) as admin:
        admin.delete_records({TopicPartition(topic, partition): end})


def test_a_running_join_worker_falls_out_of_range(
    connection: Connection, topics: Topics, tmp_path: Path
) -> None:
    """It is suspended, as a virtual machine may be, for longer than the inputs are kept."""
    traffic = Traffic(connection, topics, load_schema(write_schema(tmp_path)))
    with running_join(connection, topics, tmp_path) as worker:
        worker.await_healthy()
        traffic.send(50)
        await_until(lambda: worker.health()["partitions"]["0"]["positions"]["impressions"] > 0)
        os.kill(worker.process.pid, signal.SIGSTOP)
        # What a fetch that is under way takes along, then what the worker has not seen.
        traffic.send(50)
        traffic.send(200)
        end = max(record.offset for record in read_topic(connection, topics.impressions, 0))
        delete_records(connection, topics.impressions, 0, end)
        os.kill(worker.process.pid, signal.SIGCONT)
        assert worker.wait(60.0) == 1
        assert "error: impressions partition 0: expected to read on from offset" in worker.output
        assert f"seen {end} as the first that retention has left: " in worker.output
        assert "records are lost" in worker.output


def test_a_learner_without_checkpoints_finds_no_beginning(
    connection: Connection, topics: Topics, tmp_path: Path
) -> None:
    """Its folder was lost, and so was the log from which to rebuild it."""
    groups = world.join_logs(*world.input_logs(11, 60, PARTITIONS))[Kind.REWARD_GROUPS]
    produce(
        connection,
        topics.reward_groups,
        [
            Produced(record.value, record.key, partition)
            for partition, log in enumerate(groups)
            for record in log.records
        ],
    )
    head = len(groups[0].records) // 2
    delete_records(connection, topics.reward_groups, 0, head)
    learner = Learner(
        world.generation(0), LearnerSettings(PARTITIONS, tmp_path), connection, topics
    )
    with pytest.raises(RetentionLost) as lost:
        learner.run()
    assert str(lost.value).startswith(
        f"{topics.reward_groups} partition 0: expected the reward groups from offset 0 on, seen "
        f"{head} as the first that retention has left: {head} records are gone, with groups that "
        f"no checkpoint has learned (none in {tmp_path}). Put back a copy of the folder"
    )
    assert read_topic(connection, topics.versions) == []
