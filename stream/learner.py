"""The learner process: reward groups in, checkpoints on disk, versions out.

Kafka's part in it is a log and nothing more: positions come from the checkpoint, there is no
consumer group, and a version is published only after the checkpoint that contains it is durable.
What is learned is decided in version_chain.py; this file moves records and survives crashes.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from grade.v1.generation_pb2 import Generation
from kafka import TopicPartition
from kafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from policy import checkpoint
from policy.errors import (
    CheckpointRefused,
    LedgerGap,
    RetentionLost,
    SettingsError,
    StreamError,
    reason_name,
)
from stream import learner_metrics as metrics
from stream.checkpoint_folder import CheckpointFolder, Stopped
from stream.connection import (
    Connection,
    KafkaUnreachable,
    end_offsets,
    head_offsets,
    open_consumer,
    open_producer,
)
from stream.generations import ensure_first, read_generations, require_current
from stream.parameters import Published, Publisher, VersionId, read_published
from stream.topics import Topics
from stream.version_chain import ChainState, Learned, VersionChain, by_number

log = structlog.get_logger(__name__)

POLL_MS = 200
"""How long a poll waits for records; it returns at once when some come."""

QUIET_S = 5.0
"""After so long without a record the learner asks whether Kafka is still there."""

SLOW_S = 2.0
"""A call of Kafka that takes longer shows in the health."""

DELIVERY = {"linger_ms": 0, "request_timeout_ms": 5_000, "delivery_timeout_ms": 10_000}
"""A version is published at once, or tried again by a new producer: a repeat does no harm."""

BACKOFF_S = (0.2, 5.0)
"""First and longest wait before Kafka is tried again."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How the learner process works; what it learns is in the generations."""

    partitions: int
    """Partitions of the reward-groups topic."""
    checkpoints: Path
    """Folder of the checkpoints."""
    keep_checkpoints: int = 5
    """Checkpoints that are kept; never less than two, as the newest is ahead of the topics until
    its versions are published."""
    keep_versions: int = 100
    """Snapshots that stay in the parameters topic."""
    versions_per_checkpoint: int = 20
    """Most versions that share a checkpoint when the learner is behind."""
    max_waiting_groups: int = 20_000
    """Waiting groups at which partitions that are ahead of the slowest are read no further."""


class Learner:
    """Follows the reward-groups topic until it is told to stop.

    Args:
        wanted: the generation that the process's own schema and settings define.
        settings: how the process works.
        connection: how to reach Kafka.
        topics: names of the topics.
    """

    def __init__(
        self,
        wanted: Generation,
        settings: LearnerSettings,
        connection: Connection,
        topics: Topics,
    ) -> None:
        self._wanted = wanted
        self._settings = settings
        self._connection = connection
        self._topics = topics
        self._stop = threading.Event()
        self._generations: dict[int, Generation] = {}
        self._chain: VersionChain | None = None
        self._publisher: Publisher | None = None
        self._paused: set[TopicPartition] = set()
        self._repeats = 0
        self._refused = 0
        self._retries = 0
        self._started = False
        self._folder = CheckpointFolder(
            settings.checkpoints, max(2, settings.keep_checkpoints), self._stop
        )
        self._deleted: dict[int, str] = {}
        self._call: tuple[str, float] | None = None
        self._failure: str | None = None
        self._published: VersionId | None = None
        self._record_at = time.monotonic()
        self._version_at: float | None = None

    def stop(self) -> None:
        """Ask `run` to return once the slot in hand is published; may be called from a signal."""
        self._stop.set()

    def health(self) -> Mapping[str, Any]:
        """How the learner is; `status` is "ok" or says what it waits for.

        `version` is the last that Kafka has confirmed; ages are in seconds.
        """
        now = time.monotonic()
        chain, published = self._chain, self._published
        return {
            "status": self._status(now),
            "generation": chain.cutter.generation if chain else None,
            "epoch": published.epoch if published else None,
            "version": published.version if published else None,
            "slot": chain.cutter.last_slot if chain else None,
            "waiting_groups": chain.cutter.waiting if chain else 0,
            "repeated_groups": self._repeats,
            "record_age_s": round(now - self._record_at, 3),
            "version_age_s": None if self._version_at is None else round(now - self._version_at, 3),
            "checkpoints_refused": self._refused,
            "kafka_retries": self._retries,
        }

    def _status(self, now: float) -> str:
        call, failure = self._call, self._failure
        if call is not None and (failure is not None or now - call[1] > SLOW_S):
            why = f": {failure}" if failure is not None else ""
            return f"waiting for Kafka ({call[0]}) for {now - call[1]:.1f} s{why}"
        return self._folder.waits_for or ("ok" if self._started else "starting")

    def run(self) -> None:
        """Learn until `stop` is called.

        Raises:
            GradeError: what was found contradicts the design or the settings; nothing is skipped.
        """
        consumer = None
        try:
            self._folder.own()
            self._know(
                self._call_kafka(
                    "ensure_first",
                    lambda: ensure_first(self._connection, self._topics, self._wanted),
                )
            )
            require_current([*self._generations.values()], self._wanted)
            published = self._call_kafka(
                "read_published",
                lambda: read_published(self._connection, self._topics, self._wanted.policy),
            )
            chain = self._chain = self._restore(published)
            self._publisher = Publisher(
                self._topics,
                self._wanted.policy,
                published,
                keep=self._settings.keep_versions,
                open_producer=lambda: open_producer(self._connection, **DELIVERY),
            )
            consumer = self._call_kafka("open_consumer", lambda: open_consumer(self._connection))
            self._call_kafka("seek", lambda: self._seek(consumer, chain))
            if chain.latest is not None:
                self._publish([chain.latest])
            self._started = True
            log.info(
                "learning",
                generation=chain.cutter.generation,
                epoch=chain.epoch,
                version=chain.version,
                positions=chain.cutter.next_positions,
                published=published.complete_up_to,
            )
            while not self._stop.is_set():
                self._read(consumer, chain)
                self._learn(chain)
                self._hold_back(consumer, chain)
        except Stopped:
            pass
        finally:
            if consumer is not None:
                consumer.close()
            if self._publisher is not None:
                self._publisher.close()
            self._folder.release()
        log.info("stopped", version=self._chain.version if self._chain else None)

    def _know(self, generations: list[Generation]) -> None:
        self._generations |= {each.generation: each for each in generations}

    def _generation(self, number: int) -> Generation:
        """A generation by number; one that has begun since the start is read from its topic."""
        if number not in self._generations:
            self._know(
                self._call_kafka(
                    "read_generations",
                    lambda: read_generations(self._connection, self._topics, self._wanted.policy),
                )
            )
        return by_number(self._generations)(number)

    def _restore(self, published: Published) -> VersionChain:
        """Go on from the newest checkpoint that is sound and not ahead of what can be published."""
        settings = self._settings
        for path in sorted(settings.checkpoints.glob("*.ckpt"), reverse=True):
            try:
                state = ChainState(*checkpoint.load(path))
                chain = VersionChain.restore(self._generation, settings.partitions, state)
            except CheckpointRefused as error:
                self._refused += 1
                why = reason_name(error.reason)
                metrics.CHECKPOINTS_REFUSED.labels(why).inc()
                log.error("checkpoint_refused", file=str(path), reason=why, message=str(error))
                continue
            if not _follows(chain, published):
                # Out of the way: what is learned again takes its place.
                aside = path.replace(path.with_suffix(checkpoint.AHEAD))
                log.warning(
                    "checkpoint_ahead_of_topics",
                    file=str(path),
                    renamed_to=aside.name,
                    version=chain.version,
                    published=published.complete_up_to,
                    what="versions between are missing in the topics; they are learned again",
                )
                continue
            log.info(
                "checkpoint_restored", file=str(path), epoch=chain.epoch, version=chain.version
            )
            return chain
        log.info("no_checkpoint", what="learning from the first record")
        return VersionChain(self._generation, settings.partitions)

    def _seek(self, consumer: Any, chain: VersionChain) -> None:
        """Begin where the chain left off, after checking that the topic still has it."""
        topic = self._topics.reward_groups
        partitions = [TopicPartition(topic, each) for each in range(self._settings.partitions)]
        found = consumer.partitions_for_topic(topic) or set()
        if len(found) != len(partitions):
            raise SettingsError(
                f"partitions: expected {len(found)}, which {topic} has, seen {len(partitions)}"
            )
        consumer.assign(partitions)
        heads, ends = head_offsets(consumer, partitions), end_offsets(consumer, partitions)
        for each, position in zip(partitions, chain.cutter.next_positions, strict=True):
            if position < heads[each]:
                # Whether a group is among what is gone, the ledger will tell.
                self._deleted[each.partition] = self._what_is_deleted(chain, each, heads[each])
                log.warning(
                    "records_deleted",
                    partition=each.partition,
                    position=position,
                    first_left=heads[each],
                )
            if position > ends[each]:
                raise StreamError(
                    f"{topic} partition {each.partition}: expected at least {position} records, "
                    f"which were read before, seen its end at {ends[each]}: it is another topic "
                    "than the checkpoint's"
                )
            consumer.seek(each, max(position, heads[each]))

    def _what_is_deleted(self, chain: VersionChain, partition: TopicPartition, head: int) -> str:
        position = chain.cutter.next_positions[partition.partition]
        newest = f"version {chain.version} as the newest" if chain.version else "none"
        return (
            f"{partition.topic} partition {partition.partition}: expected the reward groups from "
            f"offset {position} on, seen {head} as the first that retention has left: "
            f"{head - position} records are gone, with groups that no checkpoint has learned "
            f"({newest} in {self._settings.checkpoints}). Put back a copy of the folder that has "
            "learned them; what was published goes on serving"
        )

    def _read(self, consumer: Any, chain: VersionChain) -> None:
        fetched = self._call_kafka("poll", lambda: consumer.poll(timeout_ms=POLL_MS))
        for each, records in fetched.items():
            for record in records:
                try:
                    chain.read(each.partition, record.value, position=record.offset)
                except LedgerGap as gap:
                    if each.partition not in self._deleted:
                        raise
                    raise RetentionLost(f"{self._deleted[each.partition]} ({gap})") from gap
        if fetched:
            self._record_at = time.monotonic()
            metrics.REPEATS.inc(chain.cutter.repeats - self._repeats)
            self._repeats = chain.cutter.repeats
        elif time.monotonic() - self._record_at > QUIET_S:
            partitions = list(consumer.assignment())
            self._call_kafka("end_offsets", lambda: end_offsets(consumer, partitions))

    def _learn(self, chain: VersionChain) -> None:
        batch: list[Learned] = []
        began = time.perf_counter()
        for learned in chain.learn():
            batch.append(learned)
            metrics.LEARN_SECONDS.observe(time.perf_counter() - began)
            if len(batch) >= self._settings.versions_per_checkpoint or self._stop.is_set():
                self._commit(chain, batch)
                batch = []
            if self._stop.is_set():
                return
            began = time.perf_counter()
        if batch:
            self._commit(chain, batch)
        metrics.WAITING_GROUPS.set(chain.cutter.waiting)

    def _commit(self, chain: VersionChain, batch: list[Learned]) -> None:
        """Make the chain's state durable, then publish the versions that it contains.

        While the disk takes no checkpoint nothing is published: a version that no checkpoint has
        would be gone with the process.
        """
        state = chain.state()
        with metrics.CHECKPOINT_SECONDS.time():
            self._folder.write(state)
        with metrics.PUBLISH_SECONDS.time():
            self._publish(batch)
        for learned in batch:
            metrics.observe(learned, chain.terms)
        last = batch[-1].version
        log.debug("published", epoch=last.epoch, version=last.version, versions=len(batch))

    def _publish(self, batch: list[Learned]) -> None:
        publisher = self._publisher
        assert publisher is not None, "run opens it"
        self._call_kafka("publish", lambda: publisher.publish(batch))
        self._version_at = time.monotonic()
        last = batch[-1].version
        self._published = VersionId(last.epoch, last.version)

    def _hold_back(self, consumer: Any, chain: VersionChain) -> None:
        """Read only the slowest partitions while too many groups wait for them."""
        ahead: set[TopicPartition] = set()
        if chain.cutter.waiting > self._settings.max_waiting_groups:
            reached = chain.cutter.reached
            ahead = {
                TopicPartition(self._topics.reward_groups, number)
                for number, each in enumerate(reached)
                if each > min(reached)
            }
        if ahead != self._paused:
            consumer.resume(*(self._paused - ahead))
            consumer.pause(*(ahead - self._paused))
            self._paused = ahead

    def _call_kafka(self, what: str, call: Callable[[], _T]) -> _T:
        """Call until Kafka answers, waiting longer each time."""
        since = time.monotonic()
        self._call = (what, since)
        wait_s, longest_s = BACKOFF_S
        while True:
            try:
                result = call()
            except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
                raise RetentionLost(
                    f"{self._topics.reward_groups}: expected the records from the learner's "
                    f"position on, seen that they have been deleted: {error}"
                ) from error
            except MessageSizeTooLargeError as error:
                raise StreamError(
                    f"expected {what} to fit into the topic's largest record, seen: {error}"
                ) from error
            except (KafkaError, KafkaUnreachable) as error:
                self._retries += 1
                metrics.KAFKA_RETRIES.inc()
                self._failure = str(error)
                log.warning(
                    "kafka_unavailable",
                    call=what,
                    age_s=round(time.monotonic() - since, 1),
                    retry_s=wait_s,
                    reason=str(error),
                )
                if self._stop.wait(wait_s):
                    raise Stopped from error
                wait_s = min(wait_s * 2, longest_s)
            else:
                self._call = self._failure = None
                return result


def _follows(chain: VersionChain, published: Published) -> bool:
    """Whether every version before the chain's last one is in the topics."""
    if chain.latest is None:
        return True
    last = chain.latest.version
    return VersionId(last.parent_epoch, last.parent) <= published.complete_up_to
