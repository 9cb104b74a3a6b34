"""The join as a Faust app: the wiring, read downwards as the data flows.

Faust does what it is good at: it assigns partitions to workers, rebalances them and runs the fetch
loop. Where to read from, what has been written and whether all is well is decided by the owners of
the partitions (stream/ownership.py), who trust only the logs.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import faust
import structlog
from faust.types import TP, StreamT
from mode import CrashingSupervisor

from policy.errors import StreamError
from stream.connection import Connection
from stream.join import JoinLimits
from stream.join_logs import JoinLogs
from stream.owner import OwnerSettings
from stream.ownership import Ownership
from stream.topics import Topics
from stream.transport import BatchConsumer, BatchSchema, BatchTransport, FetchedBatch

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S = 5.0

MOST_FETCHED = 20_000
"""Records that are handed on at a time: all that has come, so that no partition's part is cut. How
much that can be is bounded in bytes, by Faust's `consumer_max_fetch_size` per partition."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a join worker takes part in its group."""

    group: str = "grade-join"
    """Consumer group of the workers."""
    partitions: int = 4
    """Partitions of the event topics."""
    session_timeout_s: float = 10.0
    """How long a silent worker keeps its partitions."""
    owner: OwnerSettings = field(default_factory=OwnerSettings)
    """How partitions are owned."""


class JoinWorker:
    """One process of the join.

    Args:
        connection: where Kafka is.
        topics: names of the topics; they exist and have been checked.
        policy: name of the policy; at least one generation of it has begun.
        limits: of the core.
        settings: how to take part.
    """

    def __init__(
        self,
        connection: Connection,
        topics: Topics,
        policy: str,
        limits: JoinLimits,
        settings: WorkerSettings,
    ) -> None:
        self._connection = connection
        self._topics = topics
        self._policy = policy
        self._limits = limits
        self._settings = settings
        self._ownership: Ownership | None = None
        self._app: faust.App | None = None
        self._status = "starting"

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], None] = lambda: None) -> None:
        """Join until told to stop.

        Args:
            stop: set it to end cleanly.
            on_ready: called when the group has been joined.

        Raises:
            GradeError: the worker cannot go on; to start it again is safe and may help.
        """
        async with JoinLogs(self._connection, self._topics) as logs:
            flow = _FaustFlow()
            ownership = self._ownership = Ownership(
                self._policy,
                self._limits,
                self._settings.owner,
                partitions=self._settings.partitions,
                logs=logs,
                flow=flow,
            )
            app = self._app = flow.app = faust_app(
                self._connection, self._topics, self._settings, ownership
            )
            try:
                await self._until_stopped(app, ownership, stop, on_ready)
            finally:
                self._status = "stopping"
                ownership.suspend()
                await _stop(app)
                ownership.release_all_but([])

    def health(self) -> dict[str, Any]:
        """Status ("ok" once the group's share is owned), trouble with Kafka, owned partitions."""
        ownership, app, status = self._ownership, self._app, self._status
        if status == "ok" and not (ownership is not None and ownership.settled):
            status = "starting"
        return {
            "status": status,
            "group": self._settings.group,
            "rebalancing": bool(app is not None and app.rebalancing),
            "kafka_trouble": ownership.kafka_trouble if ownership is not None else "",
            "partitions": ownership.health() if ownership is not None else {},
        }

    async def _until_stopped(
        self,
        app: faust.App,
        ownership: Ownership,
        stop: asyncio.Event,
        on_ready: Callable[[], None],
    ) -> None:
        tasks: list[asyncio.Future[Any]] = [
            asyncio.create_task(stop.wait(), name="stop"),
            asyncio.create_task(ownership.watch(), name="watch"),
            asyncio.create_task(self._watch_group(app, ownership), name="watch-group"),
            asyncio.create_task(self._start(app, on_ready), name="faust"),
            ownership.failed,
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for error in [task.exception() for task in done]:
                if error is not None:
                    raise error
        finally:
            for task in tasks:
                task.cancel()

    async def _start(self, app: faust.App, on_ready: Callable[[], None]) -> None:
        """Start Faust, and raise when it has ended by itself, which is never meant."""
        await app.start()
        self._status = "ok"
        on_ready()
        await app.wait()
        reason = app.crash_reason
        if isinstance(reason, Exception):
            raise reason
        raise StreamError(f"expected Faust to run, seen that it stopped: {reason!r}")

    async def _watch_group(self, app: faust.App, ownership: Ownership) -> None:
        """End a worker whose rebalance never does, or that is assigned what it does not own."""
        patience_s = self._settings.owner.stall_timeout_s + self._settings.session_timeout_s
        settled_at = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            if self._status != "ok" or (
                not app.rebalancing
                and ownership.partitions == {tp.partition for tp in app.consumer.assignment()}
            ):
                settled_at = time.monotonic()
            elif time.monotonic() - settled_at > patience_s:
                raise StreamError(
                    f"consumer group {self._settings.group}: expected a rebalance to end, "
                    f"seen it going on for {patience_s:.0f} s"
                )


class _App(faust.App):
    """A Faust app that leaves no folder behind: there are no tables."""

    logger = logging.getLogger("faust.app")

    def _create_directories(self) -> None:
        pass


class _FaustFlow:
    """Steers the app's consumer for the owners."""

    app: faust.App

    def pause(self, topic: str, partition: int) -> None:
        """Take the partition out of the next fetches."""
        self.app.consumer.pause_partitions({TP(topic, partition)})

    def resume(self, topic: str, partition: int) -> None:
        """Take the partition into the next fetches, unless a rebalance has taken it away."""
        tp = TP(topic, partition)
        if not self.app.rebalancing and tp in self.app.consumer.assignment():
            self.app.consumer.resume_partitions({tp})

    async def rewind(self, topic: str, partition: int, offset: int) -> None:
        """Seek, unless a rebalance has taken the partition away: then it is sought after it."""
        tp, consumer = TP(topic, partition), self.app.consumer
        assert isinstance(consumer, BatchConsumer)
        if not self.app.rebalancing and tp in consumer.assignment():
            await consumer.rewind(tp, offset)


def faust_app(
    connection: Connection, topics: Topics, settings: WorkerSettings, ownership: Ownership
) -> faust.App:
    """Wire the flow: fetched batches of both logs, to the owners of their partitions."""
    app = _App(
        settings.group,
        broker=[f"kafka://{host}:{port}" for host, port in connection.addresses],
        broker_client_id=connection.client_id,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 4,
        broker_rebalance_timeout=max(60.0, settings.session_timeout_s),
        broker_max_poll_records=MOST_FETCHED,
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=8,
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        autodiscover=False,
    )

    async def claim(assigned: set[TP]) -> Mapping[TP, int]:
        try:
            begins = await ownership.claim(assigned)
        except Exception as error:
            # Faust would go on, or bury the reason: wait here for the end that this brings.
            ownership.fail(error)
            return await asyncio.Future()
        return {TP(*place): offset for place, offset in begins.items()}

    app.transport = BatchTransport(app.conf.broker_consumer, app, start_offsets=claim)
    batches = app.topic(*topics.inputs, schema=BatchSchema(), acks=False)

    async def join(stream: StreamT[Any]) -> None:
        async for batch in cast(faust.Stream[FetchedBatch], stream).noack():
            await ownership.put(*batch)

    app.agent(batches, name="join", supervisor_strategy=CrashingSupervisor)(join)

    async def on_revoked(_app: Any, /, *revoked: Any, signal: Any, **_: Any) -> None:
        ownership.suspend()

    async def on_assigned(_app: Any, /, *assigned: Any, signal: Any, **_: Any) -> None:
        kept = {tp.partition for tps in assigned for tp in tps}
        ownership.release_all_but(kept)
        if not kept:
            ownership.settled = True

    app.on_partitions_revoked.connect(on_revoked)
    app.on_partitions_assigned.connect(on_assigned)
    return app


async def _stop(app: faust.App) -> None:
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await app.stop()
    except TimeoutError:
        log.warning("faust_did_not_stop", waited_s=STOP_TIMEOUT_S)
