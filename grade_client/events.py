"""Logging what was shown and what users did: to Kafka, with the right key, confirmed."""

import math
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from grade.v1.conversion_pb2 import Conversion
from grade.v1.impression_pb2 import Impression
from grade.v1.refused_pb2 import Reason
from kafka import KafkaProducer
from kafka.errors import KafkaError, RetriableError

from grade_client.calls import Sampled
from grade_client.errors import DeliveryFailed, EventRefused
from policy.errors import TopicError
from stream.codec import TICK_HEADER, TICK_VALUE, encode, partition_for
from stream.connection import Connection, KafkaUnreachable, close_producer, open_producer
from stream.topics import FUTURE_MS, LARGEST_EVENT_BYTES, Topics

_REOPEN_INTERVAL_S = 1.0

_FOR_EVER_MS = 2**31 - 1
"""However long Kafka is away: an idempotent producer of kafka-python that has given up one batch
for its age never sends again. What bounds the memory is `max_unconfirmed`."""

_Event = TypeVar("_Event", Impression, Conversion)


class Logged(NamedTuple):
    """Where a confirmed event lies."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    """The log's time of the event, milliseconds since 1970 UTC."""


class EventProducer:
    """Writes impressions and conversions. May be used from several threads; close it after use.

    Every event goes to the partition that the join expects it in (murmur2 of its request_id), and
    counts as delivered only when all replicas have it. A retry by the producer is not a second
    event.

    Args:
        connection: where Kafka is.
        topics: names of the topics; they must exist.
        policy: name of the policy whose events these are.
        max_unconfirmed: events on their way at which further ones are refused, so that an absent
            Kafka cannot fill the memory. Nothing is kept on disk.

    Raises:
        KafkaUnreachable: no broker answered in time.
        TopicError: a topic is missing, or the two have different partition counts.
    """

    def __init__(
        self,
        connection: Connection,
        topics: Topics,
        policy: str,
        *,
        max_unconfirmed: int = 100_000,
    ) -> None:
        self._policy = policy
        self._topics = {"impressions": topics.impressions, "conversions": topics.conversions}
        self._max_unconfirmed = max_unconfirmed
        self._lock = threading.Lock()
        self._sent = 0
        self._confirmed = 0
        self._failed = 0
        self._unreported: list[str] = []
        self._connection = connection
        self._opening = threading.Lock()
        self._producer = self._open()
        self._spent: KafkaProducer | None = None
        self._reopen_at = 0.0
        try:
            self.partitions = self._count_partitions()
        except BaseException:
            self._producer.close(timeout=1)
            raise

    @property
    def sent(self) -> int:
        """Events handed over so far, ticks included."""
        return self._sent

    @property
    def confirmed(self) -> int:
        """Events that all replicas have."""
        return self._confirmed

    @property
    def failed(self) -> int:
        """Events that were given up."""
        return self._failed

    def log_impression(
        self,
        sampled: Sampled,
        item_ids: Sequence[str],
        scores: npt.ArrayLike,
        positions: Sequence[int] | None = None,
        *,
        unshown_scores: npt.ArrayLike | None = None,
        shown_at_ms: int | None = None,
        timestamp_ms: int | None = None,
    ) -> "Future[Logged]":
        """Log the list that was shown for a request.

        Args:
            sampled: what the policy server answered for the request.
            item_ids: [item] the items shown.
            scores: [item, objective] the predicted scores that were fused.
            positions: [item] position of each item, 0 is the top; None: the items are in order.
            unshown_scores: [candidate, objective] predicted scores of the candidates that were not
                shown, or of a sample of them; signals are standardised over both, so without them
                the learner sees other signals than the ranking tier fused.
            shown_at_ms: when it was shown, milliseconds since 1970 UTC; None: now.
            timestamp_ms: the event's own time where topics carry that; None: now.

        Raises:
            EventRefused: lengths do not fit each other, a score is not finite, a field is not what
                the contract says, or too many events are on their way.
        """
        objectives = len(sampled.weights)
        if positions is None:
            positions = range(len(item_ids))
        elif len(positions) != len(item_ids):
            raise EventRefused(
                f"positions: expected one per item, {len(item_ids)}, seen {len(positions)}",
                Reason.REASON_WRONG_DIMENSION,
            )
        impression = _made(
            Impression,
            policy=self._policy,
            request_id=sampled.request_id,
            decision=sampled.decision,
            item_ids=item_ids,
            positions=positions,
            scores=_flat("scores", scores, len(item_ids), objectives),
            shown_at_ms=_now_ms() if shown_at_ms is None else shown_at_ms,
        )
        if unshown_scores is not None:
            impression.unshown_scores.extend(
                _flat("unshown_scores", unshown_scores, None, objectives)
            )
        return self._log("impressions", sampled.request_id, impression, timestamp_ms)

    def log_conversion(
        self,
        request_id: str,
        item_id: str,
        outcome: str,
        value: float = 1.0,
        *,
        conversion_id: str | None = None,
        happened_at_ms: int | None = None,
        timestamp_ms: int | None = None,
    ) -> "Future[Logged]":
        """Log what a user did with an item.

        Args:
            request_id: the request whose list held the item.
            item_id: the item.
            outcome: outcome type, one of the schema's.
            value: value of the outcome in the schema's unit for its type; 1 for a plain event.
            conversion_id: unique within the request; one that comes again is counted once. None: a
                new one, so sending again would count twice.
            happened_at_ms: when it happened, milliseconds since 1970 UTC; None: now.
            timestamp_ms: the event's own time where topics carry that; None: now.

        Raises:
            EventRefused: the value is negative or not finite, or too many events are on their way.
        """
        if not (math.isfinite(value) and value >= 0):
            finite = math.isfinite(value)
            raise EventRefused(
                f"value: expected a finite number >= 0, seen {value}",
                Reason.REASON_OUT_OF_RANGE if finite else Reason.REASON_NOT_FINITE,
            )
        conversion = _made(
            Conversion,
            policy=self._policy,
            request_id=request_id,
            conversion_id=uuid.uuid4().hex if conversion_id is None else conversion_id,
            item_id=item_id,
            outcome=outcome,
            value=value,
            happened_at_ms=_now_ms() if happened_at_ms is None else happened_at_ms,
        )
        return self._log("conversions", request_id, conversion, timestamp_ms)

    def tick(
        self, log: Literal["impressions", "conversions"], partition: int, timestamp_ms: int
    ) -> "Future[Logged]":
        """Carry the time of one partition forward, where topics carry the events' own time.

        Args:
            log: which topic.
            partition: which partition.
            timestamp_ms: time before which no event will follow, milliseconds since 1970 UTC.

        Raises:
            EventRefused: too many events are on their way.
        """
        return self._send(log, partition, None, TICK_VALUE, timestamp_ms, [TICK_HEADER])

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until every event handed over so far is confirmed.

        Raises:
            DeliveryFailed: events were given up since the last flush, or are still unconfirmed.
        """
        try:
            self._producer.flush(timeout_s)
        except KafkaError as error:
            unconfirmed = self._sent - self._confirmed - self._failed
            raise DeliveryFailed(
                f"expected every event to be confirmed within {timeout_s:g} s, "
                f"seen {unconfirmed} unconfirmed"
            ) from error
        with self._lock:
            given_up, self._unreported = self._unreported, []
        if given_up:
            raise DeliveryFailed(
                f"expected every event to be confirmed, seen {len(given_up)} given up; "
                f"the first: {given_up[0]}"
            )

    def close(self, timeout_s: float = 30.0) -> None:
        """Flush and end the connection.

        Raises:
            DeliveryFailed: as `flush`; the connection is ended all the same.
        """
        try:
            self.flush(timeout_s)
        finally:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._end()

    def _count_partitions(self) -> int:
        counts = {}
        for topic in self._topics.values():
            try:
                counts[topic] = len(self._producer.partitions_for(topic))
            except KafkaError as error:
                raise TopicError(
                    f"{topic}: expected to exist, seen: {error}; `grade topics create` makes it"
                ) from error
        if len(set(counts.values())) != 1:
            raise TopicError(f"partitions: expected equal counts, seen {counts}")
        return int(next(iter(counts.values())))

    def _log(
        self, log: str, request_id: str, event: Message, timestamp_ms: int | None
    ) -> "Future[Logged]":
        key = request_id.encode("utf-8")
        partition = partition_for(key, self.partitions)
        return self._send(log, partition, key, encode(event), timestamp_ms, [])

    def _send(
        self,
        log: str,
        partition: int,
        key: bytes | None,
        value: bytes,
        timestamp_ms: int | None,
        headers: list[tuple[str, bytes]],
    ) -> "Future[Logged]":
        if timestamp_ms is not None and timestamp_ms > _now_ms() + FUTURE_MS:
            # Kafka would refuse it, and with it everything that is on its way.
            raise EventRefused(
                f"timestamp_ms: expected at most an hour ahead of now, seen {timestamp_ms}",
                Reason.REASON_OUT_OF_RANGE,
            )
        with self._lock:
            unconfirmed = self._sent - self._confirmed - self._failed
            if unconfirmed >= self._max_unconfirmed:
                raise EventRefused(
                    f"expected fewer than {self._max_unconfirmed} unconfirmed events, "
                    f"seen {unconfirmed}; Kafka does not confirm them fast enough"
                )
            self._sent += 1
        logged: Future[Logged] = Future()
        logged.set_running_or_notify_cancel()  # what was handed to Kafka cannot be taken back
        try:
            producer = self._working_producer()
            sending = producer.send(
                self._topics[log],
                value,
                key=key,
                headers=headers,
                partition=partition,
                timestamp_ms=timestamp_ms,
            )
        except BaseException as error:
            with self._lock:
                self._sent -= 1
            if not isinstance(error, KafkaError | KafkaUnreachable):
                raise
            raise EventRefused(f"{self._topics[log]}: not sent: {error}") from error
        sending.add_callback(self._on_confirmed, logged)
        sending.add_errback(self._on_failed, producer, logged)
        return logged

    def _on_confirmed(self, logged: "Future[Logged]", record: Any) -> None:
        with self._lock:
            self._confirmed += 1
        logged.set_result(Logged(record.topic, record.partition, record.offset, record.timestamp))

    def _on_failed(
        self, producer: KafkaProducer, logged: "Future[Logged]", error: Exception
    ) -> None:
        with self._lock:
            self._failed += 1
            self._unreported.append(f"{type(error).__name__}: {error}")
            if not isinstance(error, RetriableError):
                self._spent = producer
        logged.set_exception(DeliveryFailed(f"not confirmed: {type(error).__name__}: {error}"))

    def _open(self, timeout_s: float | None = None) -> KafkaProducer:
        connection = self._connection
        if timeout_s is not None:
            connection = replace(connection, timeout_s=timeout_s)
        return open_producer(
            connection,
            max_request_size=LARGEST_EVENT_BYTES,
            delivery_timeout_ms=_FOR_EVER_MS,
        )

    def _working_producer(self) -> KafkaProducer:
        """The producer, or a new one if Kafka has refused a record of it.

        An idempotent producer of kafka-python never sends again after a record was refused.
        """
        if self._spent is not self._producer:
            return self._producer
        with self._opening:
            if self._spent is self._producer:
                if time.monotonic() < self._reopen_at:
                    raise KafkaUnreachable("expected a Kafka broker, seen none a moment ago")
                try:
                    spent, self._producer = self._producer, self._open(_REOPEN_INTERVAL_S)
                except KafkaUnreachable:
                    self._reopen_at = time.monotonic() + _REOPEN_INTERVAL_S
                    raise
                close_producer(spent, timeout_s=1.0)
            return self._producer

    def _end(self) -> None:
        close_producer(self._producer, timeout_s=1.0)


def _made(kind: type[_Event], **fields: Any) -> _Event:
    """A message, unless a field cannot be written as what the contract says."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise EventRefused(
            f"{kind.DESCRIPTOR.name}: expected fields as the contract says, seen: {error}",
            Reason.REASON_WRONG_TYPE,
        ) from None


def _flat(
    name: str, scores: npt.ArrayLike, rows: int | None, objectives: int
) -> npt.NDArray[np.float32]:
    """Scores as an impression carries them: row-major float32."""
    # What overflows float32 becomes infinite, and is refused as such.
    with np.errstate(over="ignore"):
        table = np.asarray(scores, dtype=np.float32)
    expected = ("candidate" if rows is None else str(rows), str(objectives))
    if table.ndim != 2 or table.shape[1] != objectives or rows not in (None, len(table)):
        raise EventRefused(
            f"{name}: expected the shape [{', '.join(expected)}], seen {list(table.shape)}",
            Reason.REASON_WRONG_DIMENSION,
        )
    if not np.isfinite(table).all():
        raise EventRefused(
            f"{name}: expected finite numbers, seen NaN or infinity", Reason.REASON_NOT_FINITE
        )
    return table.ravel()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
