"""Follows the parameters topic in the background: each good snapshot is swapped in.

Nothing that the topic holds, and no absence of Kafka, stops what is serving.
"""

import contextlib
import dataclasses
import heapq
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import structlog
from google.protobuf.message import DecodeError
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.refused_pb2 import Reason
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from policy.errors import FileNotWritten, SnapshotRefused, TopicError, cut, reason_name
from serving import metrics
from serving.engine import Engine
from serving.generation_schemas import GenerationSchemas
from serving.serving_policy import ServingPolicy
from serving.snapshot import LARGEST_EPOCH, LARGEST_VERSION
from serving.snapshot_file import read_snapshot, write_snapshot
from stream.connection import (
    Connection,
    KafkaUnreachable,
    end_offsets,
    head_offsets,
    open_consumer,
    partitions_of,
)
from stream.topics import Topics

State = Literal["connecting", "catching_up", "following", "away", "stopped", "failed"]

SWAPS_KEPT: Final = 10_000
CANDIDATES_KEPT: Final = 16
"""Newest snapshots that catching up holds in memory: one is served, the next ones stand by in case
it is refused."""

_ATTEMPT_S: Final = 3.0
_RETRY_S: Final = 0.25
_POLL_MS: Final = 100
_SILENCE_S: Final = 1.0
_FILE_INTERVAL_S: Final = 5.0
_MOST_DIGITS: Final = 20
"""Of an unsigned number of 64 bits."""
_LONGEST_SHOWN: Final = 256
"""Bytes of a wrong key that are quoted."""

log = structlog.get_logger(__name__)


class Swap(NamedTuple):
    """One line of the swap log."""

    policy: str
    epoch: int
    version: int
    slot: int
    """Last slot of log time that the version learned from."""
    slot_ms: int
    """Length of a slot in milliseconds."""
    wall_ms: float
    """When it was swapped in, milliseconds since 1970 UTC."""
    record_ms: int | None
    """Time of its Kafka record, milliseconds since 1970 UTC; None if it came from the file."""


class _Candidate(NamedTuple):
    """A snapshot that was not decoded yet; compares by version, then by place in the topic."""

    epoch: int
    version: int
    offset: int
    record: Any


class ParametersFollower:
    """Keeps an engine at the newest good snapshot of the parameters topic.

    Args:
        engine: whose policy is swapped.
        connection: how to reach Kafka.
        topics: names of the policy's topics: parameters, one partition, and generations.
        file: where the last good snapshot is kept; None keeps none.
    """

    def __init__(
        self, engine: Engine, connection: Connection, topics: Topics, file: Path | None
    ) -> None:
        self._engine = engine
        self._connection = dataclasses.replace(
            connection, timeout_s=min(connection.timeout_s, _ATTEMPT_S)
        )
        self._partition = TopicPartition(topics.parameters, 0)
        self._schemas = GenerationSchemas(self._connection, topics, engine.schema)
        self._policy = engine.schema.policy
        self._file = file
        self._position: int | None = None
        self._state: State = "connecting"
        self._trouble = ""
        self._refused: Counter[tuple[str, str]] = Counter()
        self._last_refused = ""
        self._heard: float | None = None
        self._swapped = time.monotonic()
        self._swaps: deque[Swap] = deque(maxlen=SWAPS_KEPT)
        self._lock = threading.Lock()
        self._unwritten: ParameterSnapshot | None = None
        self._disk_trouble = ""
        self._written = -_FILE_INTERVAL_S
        self._caught_up = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"parameters-{self._policy}", daemon=True
        )

    def start(self) -> None:
        """Begin to follow, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following, and write what is not on disk yet."""
        self._stopping.set()
        if self._thread.ident is not None:
            # Its own calls to Kafka may take long to give up; the process need not wait for them.
            self._thread.join(_ATTEMPT_S + 2)
        self._write_file(now=True)

    def wait_caught_up(self, timeout_s: float) -> bool:
        """Wait until the topic has been read to the end that it had.

        Returns:
            False if that took longer than `timeout_s`.
        """
        return self._caught_up.wait(timeout_s)

    def serve_last_good(self) -> bool:
        """Swap in the snapshot from disk, if there is one that is good and newer.

        Returns:
            Whether it was swapped in.
        """
        if self._file is None:
            return False
        try:
            snapshot = read_snapshot(self._file)
            if snapshot is None:
                return False
            policy = self._engine.load(snapshot)
        except SnapshotRefused as error:
            self._refuse(error, where=str(self._file))
            return False
        return self._swap(policy, record_ms=None)

    def swaps(self) -> list[dict[str, Any]]:
        """The last swaps, oldest first, as JSON."""
        with self._lock:
            return [swap._asdict() for swap in self._swaps]

    def version_age_s(self) -> float:
        """Seconds since the serving version was swapped in, or since the start."""
        return time.monotonic() - self._swapped

    def kafka_age_s(self) -> float:
        """Seconds since the parameters topic was last heard from; -1 if never."""
        return -1.0 if self._heard is None else time.monotonic() - self._heard

    def health(self) -> dict[str, Any]:
        """What an operator wants to know, as JSON."""
        with self._lock:
            refused = self._refused.copy()
        by_check, by_reason = Counter[str](), Counter[str]()
        for (check, reason), count in refused.items():
            by_check[check] += count
            by_reason[reason] += count
        policy = self._engine.policy
        return {
            "epoch": policy.epoch,
            "version": policy.version,
            "version_age_s": round(self.version_age_s(), 3),
            "kafka": self._state,
            "kafka_age_s": round(self.kafka_age_s(), 3),
            "kafka_trouble": self._trouble,
            "disk_trouble": self._disk_trouble,
            "refused": refused.total(),
            "refused_by_check": dict(by_check),
            "refused_by_reason": dict(by_reason),
            "last_refused": self._last_refused,
        }

    @property
    def failed(self) -> bool:
        """Whether following ended by an error that nobody expected."""
        return self._state == "failed"

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._follow()
                except (KafkaError, KafkaUnreachable, TopicError, OSError) as error:
                    self._away(error)
                    self._stopping.wait(_RETRY_S)
                self._write_file()
            self._state = "stopped"
        # Requests must go on being answered; health tells, so that a supervisor can act.
        except Exception:
            self._state = "failed"
            log.exception("parameters_follower_failed")

    def _follow(self) -> None:
        """Read from the last position, or the beginning, until told to stop or an error."""
        consumer = open_consumer(self._connection)
        try:
            end = self._seek(consumer)
            self._state = "catching_up"
            self._catch_up(consumer, end)
            self._caught_up.set()
            if not self._stopping.is_set():
                self._state, self._trouble = "following", ""
                log.info(
                    "parameters_caught_up",
                    policy=self._policy,
                    offset=end,
                    version=self._engine.policy.version,
                )
            while not self._stopping.is_set():
                self._load_newest(list(self._candidates(self._poll(consumer))))
                self._position = consumer.position(self._partition)
                self._write_file()
        finally:
            with contextlib.suppress(KafkaError):
                consumer.close(timeout_ms=1000)

    def _seek(self, consumer: KafkaConsumer) -> int:
        """Go to where reading must continue; returns the topic's end."""
        topic = self._partition.topic
        found = partitions_of(consumer, topic)
        if found != [self._partition]:
            raise TopicError(f"{topic}: expected 1 partition, seen {len(found)}")
        head = head_offsets(consumer, found)[self._partition]
        end = end_offsets(consumer, found)[self._partition]
        if self._position is None or not head <= self._position <= end:
            self._position = head
        consumer.assign(found)
        consumer.seek(self._partition, self._position)
        self._heard = time.monotonic()
        return end

    def _catch_up(self, consumer: KafkaConsumer, end: int) -> None:
        """Read up to an offset; only the newest good snapshot is loaded."""
        newest: list[_Candidate] = []
        while not self._stopping.is_set() and consumer.position(self._partition) < end:
            for candidate in self._candidates(self._poll(consumer)):
                if len(newest) < CANDIDATES_KEPT:
                    heapq.heappush(newest, candidate)
                else:
                    heapq.heappushpop(newest, candidate)
        self._load_newest(newest)
        # Only now: what an interrupted attempt has read but not looked at must be read again.
        self._position = consumer.position(self._partition)
        if newest and (newest[0].epoch, newest[0].version) < self._engine.policy.order:
            log.warning(
                "parameters_topic_behind",
                expected=f"versions above {_name(self._engine.policy.order)}, which is serving",
                seen=f"none above {_name(newest[0][:2])}",
            )

    def _poll(self, consumer: KafkaConsumer) -> list[Any]:
        """The next records, perhaps none; makes sure now and then that Kafka is still there."""
        records = consumer.poll(timeout_ms=_POLL_MS).get(self._partition, [])
        if not records:
            if self._heard is not None and time.monotonic() - self._heard < _SILENCE_S:
                return []
            # A poll without records does not tell whether anybody answered it.
            consumer.end_offsets([self._partition], timeout_ms=round(_ATTEMPT_S * 1000))
        self._heard = time.monotonic()
        return list(records)

    def _candidates(self, records: Iterable[Any]) -> Iterable[_Candidate]:
        """This policy's snapshots; tombstones and other policies' records are none."""
        for record in records:
            if record.value is None:
                continue
            try:
                key = _parse_key(record.key)
            except SnapshotRefused as error:
                self._refuse(error, where=_where(record))
                continue
            if key.policy == self._policy:
                yield _Candidate(key.epoch, key.version, record.offset, record)

    def _load_newest(self, candidates: list[_Candidate]) -> None:
        """Swap in the newest snapshot that is good; older ones will never be served.

        Args:
            candidates: are put in order, newest first.
        """
        candidates.sort(reverse=True)
        for candidate in candidates:
            if (candidate.epoch, candidate.version) <= self._engine.policy.order:
                return
            try:
                snapshot = _decode(candidate.record)
                others = self._schemas.for_digest(snapshot.schema_digest)
                policy = self._engine.load(snapshot, others)
            except SnapshotRefused as error:
                self._refuse(error, where=_where(candidate.record))
                continue
            if self._swap(policy, record_ms=candidate.record.timestamp):
                self._unwritten = snapshot
                if snapshot.schema_digest in others:
                    metrics.ADOPTED.labels(policy=self._policy).inc()
            return

    def _swap(self, policy: ServingPolicy, record_ms: int | None) -> bool:
        with self._lock:
            if not self._engine.swap(policy):
                return False
            wall_ms = time.time() * 1000
            self._swapped = time.monotonic()
            self._swaps.append(
                Swap(
                    self._policy,
                    policy.epoch,
                    policy.version,
                    policy.slot,
                    policy.slot_ms,
                    wall_ms,
                    record_ms,
                )
            )
            # Inside the lock: another thread's older version must not overwrite a newer one's.
            metrics.EPOCH.labels(policy=self._policy).set(policy.epoch)
            metrics.VERSION.labels(policy=self._policy).set(policy.version)
        metrics.SWAPS.labels(policy=self._policy).inc()
        log.debug("policy_swapped", policy=self._policy, epoch=policy.epoch, version=policy.version)
        return True

    def _refuse(self, error: SnapshotRefused, where: str) -> None:
        reason = reason_name(error.reason)
        with self._lock:
            self._refused[error.check, reason] += 1
            self._last_refused = f"{where}: {error}"
        metrics.REFUSED.labels(policy=self._policy, check=error.check, reason=reason).inc()
        log.error(
            "snapshot_refused",
            policy=self._policy,
            where=where,
            check=error.check,
            reason=reason,
            expected=error.expected,
            seen=error.seen,
            serving_epoch=self._engine.policy.epoch,
            serving_version=self._engine.policy.version,
        )

    def _away(self, error: Exception) -> None:
        trouble = str(error) or type(error).__name__
        if self._state != "away":
            log.warning(
                "kafka_away",
                policy=self._policy,
                trouble=trouble,
                kafka_age_s=round(self.kafka_age_s(), 3),
            )
        self._state, self._trouble = "away", trouble

    def _write_file(self, *, now: bool = False) -> None:
        """Keep the newest good snapshot on disk, not more often than every few seconds."""
        snapshot = self._unwritten
        if self._file is None or snapshot is None:
            return
        if not now and time.monotonic() - self._written < _FILE_INTERVAL_S:
            return
        self._written = time.monotonic()
        try:
            write_snapshot(self._file, snapshot)
        except FileNotWritten as error:
            if not self._disk_trouble:
                log.error("snapshot_file_not_written", reason=str(error))
            self._disk_trouble = str(error)
            return
        if self._disk_trouble:
            self._disk_trouble = ""
            log.info("snapshot_file_written", path=str(self._file))
        if self._unwritten is snapshot:
            self._unwritten = None


class _Key(NamedTuple):
    policy: str
    epoch: int
    version: int


def _parse_key(key: bytes | None) -> _Key:
    """The key policy/epoch/version of a record of the parameters topic."""
    parts = (key or b"").decode(errors="replace").split("/")
    numbers = all(p.isascii() and p.isdecimal() and len(p) <= _MOST_DIGITS for p in parts[1:])
    if len(parts) == 3 and numbers:
        found = _Key(parts[0], int(parts[1]), int(parts[2]))
        # Here, so that they take no place among the newest.
        if found.epoch > LARGEST_EPOCH or found.version > LARGEST_VERSION:
            raise SnapshotRefused(
                "key",
                f"an epoch of at most {LARGEST_EPOCH} and a version of at most {LARGEST_VERSION}",
                f"epoch {found.epoch} and version {found.version}",
                Reason.REASON_OUT_OF_RANGE,
            )
        return found
    seen = repr(key) if key is None or len(key) <= _LONGEST_SHOWN else f"{len(key)} bytes"
    raise SnapshotRefused("key", "a key policy/epoch/version", seen, Reason.REASON_WRONG_KEY)


def _decode(record: Any) -> ParameterSnapshot:
    if not record.value:
        raise SnapshotRefused(
            "decode", "a serialized ParameterSnapshot", "0 bytes", Reason.REASON_NULL_VALUE
        )
    try:
        snapshot = ParameterSnapshot.FromString(record.value)
    except DecodeError:
        raise SnapshotRefused(
            "decode",
            "a serialized ParameterSnapshot",
            f"{len(record.value)} other bytes",
            Reason.REASON_UNDECODABLE,
        ) from None
    key = _Key(snapshot.policy, snapshot.epoch, snapshot.version)
    if key != _parse_key(record.key):
        raise SnapshotRefused(
            "key",
            f"a snapshot of {record.key.decode()}",
            cut("/".join(map(str, key))),
            Reason.REASON_WRONG_KEY,
        )
    return snapshot


def _where(record: Any) -> str:
    return f"{record.topic} offset {record.offset}"


def _name(order: tuple[int, int]) -> str:
    return f"epoch {order[0]} version {order[1]}"
