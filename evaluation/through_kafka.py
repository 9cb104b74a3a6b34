"""A replay's way through a running system: gRPC, Kafka, join and learner."""

import time
from collections.abc import Callable, Sequence
from typing import Final

from grade.v1.parameters_pb2 import Version

from evaluation.replay import ShownList, UserAction
from grade_client import EventProducer, PolicyClient, Sampled, SampleQuestion
from policy.errors import GradeError
from stream.connection import Connection
from stream.logs import read_logs
from stream.topics import Topics

_BATCH: Final = 256
FLUSH_EVERY: Final = 10_000
"""Events after which a slot's log is confirmed; far below what a producer refuses."""
_POLL_S: Final = 0.005


class ThroughKafka:
    """See `evaluation.replay.Way`.

    Args:
        client: asks the policy server.
        producer: logs events; its topics carry the events' own time.
        connection: where Kafka is.
        topics: names of the topics.
        timeout_s: how long a version may take after its slot has ended.
        watch: called while waiting; raises if a process of the system has ended.
    """

    def __init__(
        self,
        client: PolicyClient,
        producer: EventProducer,
        connection: Connection,
        topics: Topics,
        *,
        timeout_s: float = 60.0,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._producer = producer
        self._connection = connection
        self._topics = topics
        self._timeout_s = timeout_s
        self._watch = watch
        self._serving = 0
        self._unflushed = 0

    def serve(self, questions: Sequence[SampleQuestion]) -> list[Sampled]:
        """See `Way`."""
        answers: list[Sampled] = []
        for start in range(0, len(questions), _BATCH):
            answers += self._client.sample_batch(questions[start : start + _BATCH])
        return answers

    def log(self, shown: Sequence[ShownList], actions: Sequence[UserAction]) -> None:
        """See `Way`."""
        for each in shown:
            self._producer.log_impression(
                each.sampled,
                each.item_ids,
                each.scores,
                each.positions,
                shown_at_ms=each.time_ms,
                timestamp_ms=each.time_ms,
            )
            self._logged()
        for action in actions:
            self._producer.log_conversion(
                action.request_id,
                action.item_id,
                action.outcome,
                action.value,
                conversion_id=action.conversion_id,
                happened_at_ms=action.time_ms,
                timestamp_ms=action.time_ms,
            )
            self._logged()

    def pass_time(self, time_ms: int, version: int) -> None:
        """See `Way`."""
        for partition in range(self._producer.partitions):
            self._producer.tick("impressions", partition, time_ms)
            self._producer.tick("conversions", partition, time_ms)
        self._flush()
        deadline = time.monotonic() + self._timeout_s
        while self._serving < version:
            self._watch()
            if time.monotonic() > deadline:
                raise GradeError(
                    f"expected version {version} within {self._timeout_s:g} s of event time "
                    f"{time_ms}, seen version {self._serving}"
                )
            time.sleep(_POLL_S)  # polling another process
            self._serving = self._client.describe().version
        if self._serving != version:
            raise GradeError(
                f"expected version {version} at event time {time_ms}, seen {self._serving}"
            )

    def version_digests(self) -> list[str]:
        """See `Way`."""
        name = self._topics.versions
        records = read_logs(self._connection, [name])[name][0].records
        digests = {}
        for record in records:
            version = Version.FromString(record.value or b"")
            digests[version.version] = version.parameters_sha256.hex()
        return [digests[number] for number in sorted(digests)]

    def _logged(self) -> None:
        self._unflushed += 1
        if self._unflushed >= FLUSH_EVERY:
            self._flush()

    def _flush(self) -> None:
        self._producer.flush()
        self._unflushed = 0
