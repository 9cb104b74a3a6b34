"""The learner process on a real Kafka: whatever it finds on disk and in its topics, the same bytes.

What must come out is worked out in memory by `learner_world.learn_logs`.
"""

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from grade.v1.generation_pb2 import Generation
from grade.v1.parameters_pb2 import ParameterSnapshot, Version
from grade.v1.reward_group_pb2 import JoinRecord

from policy import checkpoint
from policy.errors import BoundaryError, GradeError, LedgerGap, SettingsError, StreamError
from stream.broker import LocalBroker
from stream.codec import encode
from stream.connection import Connection
from stream.join import Kind
from stream.learner import Learner, LearnerSettings
from stream.logs import Log, LogRecord, read_logs
from stream.parameters import VersionId, parse_snapshot_key, snapshot_key, summarise
from stream.topics import Topics, create
from stream.version_chain import Learned
from tests.kafka import Produced, await_until, create_fresh, fresh_plan, produce, read_topic
from tests.stream import learner_world as world
from tests.stream.test_chain_generations import BEGUN, GENERATIONS, LONGER

PARTITIONS = 2
WANTED = world.generation(0)
"""What the learner's own settings say."""


@pytest.fixture(scope="module")
def groups() -> list[Log]:
    return world.join_logs(*world.input_logs(11, 60, PARTITIONS))[Kind.REWARD_GROUPS]


@pytest.fixture(scope="module")
def expected(groups: list[Log]) -> list[Learned]:
    return world.learn_logs(groups)


class Running:
    """A learner in a thread of its own."""

    def __init__(
        self,
        connection: Connection,
        topics: Topics,
        settings: LearnerSettings,
        wanted: Generation = WANTED,
    ) -> None:
        self.learner = Learner(wanted, settings, connection, topics)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.learner.run()
        except GradeError as error:
            self.error = error

    def start(self) -> "Running":
        self._thread.start()
        return self

    def wait(self, timeout_s: float = 30.0) -> None:
        """Wait until the learner has ended, and raise what it raised."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the learner did not end"
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Ask the learner to stop and wait."""
        self.learner.stop()
        self.wait()

    def await_version(self, version: int) -> None:
        """Wait until this version has been learned."""

        def there() -> bool:
            assert self._thread.is_alive(), self.error
            return bool(self.learner.health()["version"] == version)

        await_until(there, 30.0, f"version {version}")


@contextmanager
def running(
    connection: Connection,
    topics: Topics,
    settings: LearnerSettings,
    wanted: Generation = WANTED,
) -> Iterator[Running]:
    """A learner that is stopped at the end, and must then have ended without an error."""
    learner = Running(connection, topics, settings, wanted).start()
    try:
        yield learner
    finally:
        learner.stop()


def settings(folder: Path) -> LearnerSettings:
    return LearnerSettings(PARTITIONS, folder, versions_per_checkpoint=1)


def write_generations(
    connection: Connection, topics: Topics, generations: world.Generations = world.FIRST
) -> None:
    """Write generations as whoever begins them does."""
    records = [Produced(encode(each), b"example") for each in generations.values()]
    produce(connection, topics.generations, records)


def write_groups(
    connection: Connection,
    topics: Topics,
    groups: Sequence[Log],
    part: Callable[[int], slice] = lambda _: slice(None),
) -> None:
    """Write the records of a part of every partition's log; `part` gets the log's length."""
    if not read_topic(connection, topics.generations):
        write_generations(connection, topics)
    produce(
        connection,
        topics.reward_groups,
        [
            Produced(record.value, record.key, partition)
            for partition, log in enumerate(groups)
            for record in log.records[part(len(log.records))]
        ],
    )


def publish(connection: Connection, topics: Topics, versions: Sequence[Learned]) -> None:
    """Write versions as the learner does."""
    lineage, snapshots = world.published_logs(list(versions))
    for topic, log in ((topics.versions, lineage), (topics.parameters, snapshots)):
        produce(connection, topic, [Produced(each.value, each.key) for each in log.records])


def checkpoints(folder: Path, suffix: str) -> list[int]:
    """Versions of the files of a suffix."""
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob(f"*{suffix}"))


def found_versions(connection: Connection, topics: Topics) -> list[bytes]:
    return [record.value for record in read_topic(connection, topics.versions)]


def assert_published(connection: Connection, topics: Topics, expected: Sequence[Learned]) -> None:
    """The topics hold exactly these versions, once each."""
    assert found_versions(connection, topics) == [encode(each.version) for each in expected]
    assert [(record.key, record.value) for record in read_topic(connection, topics.parameters)] == [
        (snapshot_key("example", VersionId(1, each.version.version)), encode(each.snapshot))
        for each in expected
    ]


def test_every_version_is_published_once_in_order(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
) -> None:
    write_groups(connection, topics, groups)
    with running(connection, topics, LearnerSettings(PARTITIONS, tmp_path)) as learner:
        learner.await_version(len(expected))
        await_until(lambda: learner.learner.health()["status"] == "ok")
        health = learner.learner.health()
        assert health["waiting_groups"] == 0
        assert health["version_age_s"] < 30
    assert_published(connection, topics, expected)


def test_a_learner_that_is_stopped_goes_on_where_it_was(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
) -> None:
    write_groups(connection, topics, groups, lambda length: slice(length // 2))
    with running(connection, topics, settings(tmp_path)) as learner:
        await_until(lambda: learner.learner.health()["waiting_groups"] > 0)
        await_until(lambda: (learner.learner.health()["version"] or 0) > 1)
    early = len(found_versions(connection, topics))
    assert 1 < early < len(expected)
    write_groups(connection, topics, groups, lambda length: slice(length // 2, None))
    with running(connection, topics, settings(tmp_path)) as learner:
        learner.await_version(len(expected))
    assert_published(connection, topics, expected)


@pytest.mark.parametrize(("published", "ahead"), [(-1, 0), (-3, 2), (0, 5)])
def test_topics_that_are_behind_the_checkpoint_are_completed(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
    published: int,
    ahead: int,
) -> None:
    """As after a crash between checkpoint and publishing, a longer outage, or topics made anew."""
    write_groups(connection, topics, groups)
    with running(connection, topics, settings(tmp_path)) as learner:
        learner.await_version(len(expected))
    behind = create_fresh(connection)
    write_groups(connection, behind, groups)
    publish(connection, behind, expected[:published])
    with running(connection, behind, settings(tmp_path)) as learner:
        learner.await_version(len(expected))
        await_until(lambda: len(read_topic(connection, behind.parameters)) == len(expected))
    assert_published(connection, behind, expected)
    last = len(expected)
    assert checkpoints(tmp_path, ".ckpt") == [*range(last - 4, last + 1)]
    assert checkpoints(tmp_path, ".ahead") == [*range(last - ahead + 1, last + 1)]


def test_one_kept_checkpoint_is_not_lost_before_its_successor_is_published(
    connection: Connection, topics: Topics, groups: list[Log], tmp_path: Path
) -> None:
    write_groups(connection, topics, groups)
    with running(connection, topics, replace(settings(tmp_path), keep_checkpoints=1)) as learner:
        await_until(lambda: (learner.learner.health()["version"] or 0) >= 3)
    assert len(checkpoints(tmp_path, ".ckpt")) == 2


def test_a_checkpoint_of_another_log_publishes_nothing(
    connection: Connection, topics: Topics, groups: list[Log], tmp_path: Path
) -> None:
    """Its version would be the topics' next, but its positions lie beyond their ends."""
    write_generations(connection, topics)
    chain = world.new_chain(PARTITIONS)
    for partition, log in enumerate(groups):
        for record in log.records:
            chain.read(partition, record.value, position=record.offset)
    next(chain.learn())
    checkpoint.write(tmp_path, *chain.state(), keep=1)
    with pytest.raises(StreamError, match="another topic than the checkpoint's"):
        Running(connection, topics, settings(tmp_path)).start().wait()
    assert_published(connection, topics, [])


def test_lineage_without_its_snapshot_is_completed(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
) -> None:
    """As after a crash between the two records of a version."""
    write_groups(connection, topics, groups)
    publish(connection, topics, expected[:4])
    produce(connection, topics.versions, [Produced(encode(expected[4].version), b"example")])
    with running(connection, topics, settings(tmp_path)) as learner:
        learner.await_version(len(expected))
    assert_published(connection, topics, expected)


def test_topics_that_are_ahead_are_compared_and_not_written_again(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
) -> None:
    """As after the loss of the checkpoints."""
    write_groups(connection, topics, groups)
    publish(connection, topics, expected)
    with running(connection, topics, settings(tmp_path)) as learner:
        learner.await_version(len(expected))
    assert_published(connection, topics, expected)


def test_a_version_in_the_topic_that_the_log_does_not_yield_stops_the_learner(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
) -> None:
    write_groups(connection, topics, groups)
    other = Version.FromString(encode(expected[2].version))
    other.state_sha256 = bytes(32)
    forged = [*expected[:2], expected[2]._replace(version=other), *expected[3:]]
    publish(connection, topics, forged)
    with pytest.raises(StreamError, match=r"versions.v1: expected version 3 of epoch 1 to be what"):
        Running(connection, topics, settings(tmp_path)).start().wait()


def test_a_snapshot_in_the_topic_that_the_log_does_not_yield_stops_the_learner(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
) -> None:
    write_groups(connection, topics, groups)
    other = ParameterSnapshot.FromString(encode(expected[4].snapshot))
    other.parameters = b"?" + other.parameters[1:]
    publish(connection, topics, [*expected[:4], expected[4]._replace(snapshot=other)])
    with pytest.raises(StreamError, match=r"parameters.v1: expected version 5 of epoch 1"):
        Running(connection, topics, settings(tmp_path)).start().wait()


@pytest.mark.parametrize("corrupt", [1, 5])
def test_a_corrupt_checkpoint_is_refused_counted_and_replaced_by_an_older_one(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
    corrupt: int,
) -> None:
    """One of five, and all of five: then from the beginning of the log."""
    write_groups(connection, topics, groups, lambda length: slice(length * 3 // 4))
    with running(connection, topics, settings(tmp_path)) as learner:
        await_until(lambda: (learner.learner.health()["version"] or 0) >= 5)
        await_until(lambda: learner.learner.health()["status"] == "ok")
    files = sorted(tmp_path.glob("*.ckpt"), reverse=True)
    assert len(files) == 5
    for file in files[:corrupt]:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x40
        file.write_bytes(content)
    write_groups(connection, topics, groups, lambda length: slice(length * 3 // 4, None))
    with running(connection, topics, settings(tmp_path)) as learner:
        learner.await_version(len(expected))
        assert learner.learner.health()["checkpoints_refused"] == corrupt
    assert_published(connection, topics, expected)


def test_a_second_learner_started_by_accident_publishes_the_same_bytes(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
) -> None:
    with (
        running(connection, topics, settings(tmp_path / "one")) as one,
        running(connection, topics, settings(tmp_path / "two")) as two,
    ):
        await_until(lambda: one.learner.health()["status"] == "ok")
        await_until(lambda: two.learner.health()["status"] == "ok")
        write_groups(connection, topics, groups)
        one.await_version(len(expected))
        two.await_version(len(expected))
    versions = found_versions(connection, topics)
    assert list(dict.fromkeys(versions)) == [encode(each.version) for each in expected]
    assert len(versions) == 2 * len(expected)
    with running(connection, topics, settings(tmp_path / "one")) as one:
        one.await_version(len(expected))
    assert len(found_versions(connection, topics)) == 2 * len(expected)


def test_a_second_learner_on_the_same_checkpoints_stands_by_and_takes_over(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
) -> None:
    write_groups(connection, topics, groups, lambda length: slice(length // 2))
    first = Running(connection, topics, settings(tmp_path)).start()
    await_until(lambda: (first.learner.health()["version"] or 0) > 1)
    with running(connection, topics, settings(tmp_path)) as second:
        await_until(lambda: "another learner uses" in second.learner.health()["status"])
        first.stop()
        write_groups(connection, topics, groups, lambda length: slice(length // 2, None))
        second.await_version(len(expected))
    assert_published(connection, topics, expected)


def test_partitions_that_are_ahead_wait_for_the_slowest_and_go_on(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
) -> None:
    impatient = replace(settings(tmp_path), max_waiting_groups=0)
    with running(connection, topics, impatient) as learner:
        for begin, end in ((0, 10), (10, 20), (20, 1000)):
            for partition, log in enumerate(groups):
                part = [Log(0, 0, []) for _ in groups]
                part[partition] = Log(0, 0, log.records[begin:end])
                write_groups(connection, topics, part)
                if partition == begin == 0:
                    await_until(lambda: learner.learner.health()["waiting_groups"] > 0)
        learner.await_version(len(expected))
    assert_published(connection, topics, expected)


def test_only_the_last_snapshots_stay(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
) -> None:
    write_groups(connection, topics, groups)
    few = replace(settings(tmp_path), keep_versions=3)
    with running(connection, topics, few) as learner:
        learner.await_version(len(expected))
    last = len(expected)
    logs = read_logs(connection, [topics.parameters, topics.versions])
    (log,), (lineage,) = logs.values()
    published = summarise("example", lineage.records, log.records)
    assert list(published.live) == [VersionId(1, each) for each in range(last - 2, last + 1)]
    dead = [parse_snapshot_key(each.key, "example") for each in log.records if each.value is None]
    assert dead == [VersionId(1, each) for each in range(1, last - 2)]
    assert len(found_versions(connection, topics)) == last


def test_a_checkpoint_of_another_system_is_refused(
    connection: Connection, topics: Topics, groups: list[Log], tmp_path: Path
) -> None:
    write_groups(connection, topics, groups)
    with running(connection, topics, settings(tmp_path)) as learner:
        await_until(lambda: (learner.learner.health()["version"] or 0) >= 1)
    other = create_fresh(connection)
    noted = world.generation()
    noted.note = "another system's"
    write_generations(connection, other, {1: noted})
    with pytest.raises(
        BoundaryError, match=r"generation_sha256: expected .* in the checkpoint of gen"
    ):
        Running(connection, other, settings(tmp_path)).start().wait()


def test_settings_that_no_generation_has_begun_are_refused(
    connection: Connection, topics: Topics, tmp_path: Path
) -> None:
    write_generations(connection, topics, {1: world.generation(slot_ms=500)})
    with pytest.raises(BoundaryError, match=r"learn_slot_ms: expected 500 .* seen 250"):
        Running(connection, topics, settings(tmp_path)).start().wait()


def test_the_first_learner_of_a_new_system_begins_its_first_generation(
    connection: Connection, topics: Topics, tmp_path: Path
) -> None:
    with running(connection, topics, settings(tmp_path)) as learner:
        await_until(lambda: learner.learner.health()["status"] == "ok")
    (begun,) = [Generation.FromString(e.value) for e in read_topic(connection, topics.generations)]
    assert begun.generation == 1
    assert begun.schema_digest == WANTED.schema_digest


def test_a_forged_lineage_of_a_far_version_does_not_stop_publishing(
    connection: Connection,
    topics: Topics,
    groups: list[Log],
    expected: list[Learned],
    tmp_path: Path,
) -> None:
    write_groups(connection, topics, groups)
    publish(connection, topics, expected[:3])
    forged = Version.FromString(encode(expected[-1].version))
    forged.version += 1000
    produce(connection, topics.versions, [Produced(encode(forged), b"example")])
    with running(connection, topics, settings(tmp_path)) as learner:
        learner.await_version(len(expected))
    versions = found_versions(connection, topics)
    assert versions[3] == encode(forged)
    assert [*versions[:3], *versions[4:]] == [encode(each.version) for each in expected]


def test_generations_that_begin_while_the_learner_runs_are_crossed(
    connection: Connection, topics: Topics, tmp_path: Path
) -> None:
    """It is killed in the middle and comes back under the settings of the last one."""
    logs = world.input_logs(3, 100, PARTITIONS, begun=BEGUN)
    groups = world.join_logs(*logs, generations=GENERATIONS)[Kind.REWARD_GROUPS]
    expected = world.learn_logs(groups, GENERATIONS)
    second = next(at for at, each in enumerate(expected) if each.version.epoch == 2)
    write_generations(connection, topics)
    with running(connection, topics, settings(tmp_path)) as learner:
        await_until(lambda: learner.learner.health()["status"] == "ok")
        later = {number: each for number, each in GENERATIONS.items() if number > 1}
        write_generations(connection, topics, later)
        third = [
            next(at for at, each in enumerate(log.records) if of_generation(each, 3))
            for log in groups
        ]
        for partition, log in enumerate(groups):
            part = [Log(0, 0, []) for _ in groups]
            part[partition] = Log(0, 0, log.records[: third[partition]])
            write_groups(connection, topics, part)
        await_until(
            lambda: (
                (learner.learner.health()["epoch"], learner.learner.health()["generation"])
                == (2, 2)
            ),
            30.0,
            "the second epoch",
        )
    versions = found_versions(connection, topics)
    assert versions == [encode(each.version) for each in expected[: len(versions)]]
    assert len(versions) > second
    for partition, log in enumerate(groups):
        part = [Log(0, 0, []) for _ in groups]
        part[partition] = Log(0, 0, log.records[third[partition] :])
        write_groups(connection, topics, part)
    wanted = world.generation(0, schema=LONGER, slot_ms=400)
    with running(connection, topics, settings(tmp_path), wanted) as learner:
        await_until(lambda: len(found_versions(connection, topics)) == len(expected))
    assert found_versions(connection, topics) == [encode(each.version) for each in expected]
    keys = [record.key for record in read_topic(connection, topics.parameters)]
    assert keys[-1] == snapshot_key("example", VersionId(3, expected[-1].version.version))


def of_generation(record: LogRecord, generation: int) -> bool:
    message = JoinRecord.FromString(record.value or b"")
    kind = message.WhichOneof("kind") or ""
    return bool(getattr(message, kind).generation == generation)


def test_a_gap_in_the_groups_stops_the_learner(
    connection: Connection, topics: Topics, groups: list[Log], tmp_path: Path
) -> None:
    places = [
        at
        for at, record in enumerate(groups[1].records)
        if JoinRecord.FromString(record.value or b"").HasField("group")
    ]
    holes = [groups[0], world.without(groups[1], places[len(places) // 2])]
    write_groups(connection, topics, holes)
    with pytest.raises(LedgerGap, match="partition 1"):
        Running(connection, topics, settings(tmp_path)).start().wait()


def test_another_number_of_partitions_is_refused(
    connection: Connection, topics: Topics, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"expected 2, which .* has, seen 3"):
        Running(connection, topics, LearnerSettings(3, tmp_path)).start().wait()


def test_groups_that_were_deleted_before_they_were_learned_are_a_gap(
    connection: Connection, topics: Topics, groups: list[Log], tmp_path: Path
) -> None:
    """The topic of a learner without checkpoints has lost its beginning."""
    later = [Log(0, 0, log.records[len(log.records) // 2 :]) for log in groups]
    write_groups(connection, topics, later)
    with pytest.raises(LedgerGap, match="impression -1, seen"):
        Running(connection, topics, settings(tmp_path)).start().wait()


def test_a_learner_that_waits_for_kafka_says_so_and_can_be_stopped(tmp_path: Path) -> None:
    nobody = Connection("127.0.0.1:1", timeout_s=0.2)
    learner = Running(nobody, Topics("nobody"), settings(tmp_path)).start()
    await_until(lambda: learner.learner.health()["kafka_retries"] > 1)
    status = learner.learner.health()["status"]
    assert "waiting for Kafka (ensure_first)" in status
    assert "127.0.0.1:1" in status
    learner.stop()


@pytest.fixture
def refused_sockets(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """kafka-python leaves the sockets of refused connections to the garbage collector.

    Its captured log lines would keep them beyond the test.
    """
    with caplog.at_level(logging.CRITICAL + 1, logger="kafka"):
        yield
    gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.usefixtures("refused_sockets")
def test_kafka_may_go_away_and_come_back(
    groups: list[Log], expected: list[Learned], tmp_path: Path
) -> None:
    broker = LocalBroker(tmp_path / "kafka")
    plan = fresh_plan()
    try:
        connection = Connection(broker.up().bootstrap_servers, timeout_s=2.0)
        create(connection, plan)
        topics = plan.topics
        write_groups(connection, topics, groups, lambda length: slice(length // 2))
        with running(connection, topics, settings(tmp_path / "checkpoints")) as learner:
            await_until(lambda: (learner.learner.health()["version"] or 0) > 1)
            broker.down()
            await_until(
                lambda: "waiting for Kafka" in learner.learner.health()["status"], 30.0, "trouble"
            )
            broker.up()
            await_until(lambda: learner.learner.health()["status"] == "ok", 30.0, "recovery")
            write_groups(connection, topics, groups, lambda length: slice(length // 2, None))
            learner.await_version(len(expected))
        versions = found_versions(connection, topics)
        assert list(dict.fromkeys(versions)) == [encode(each.version) for each in expected]
    finally:
        broker.down()
