"""Which partitions this worker owns, where each begins, and whether all of them get on."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from policy.errors import StreamError
from stream import join_metrics as metrics
from stream.beginning import Beginning
from stream.connection import KafkaUnreachable
from stream.join import JoinLimits, Kind, Log
from stream.join_logs import Extent, JoinLogs
from stream.owner import Flow, OwnerSettings, PartitionOwner
from stream.terms import Terms, terms_of

log = structlog.get_logger(__name__)

WATCH_INTERVAL_S = 1.0
ENDS_INTERVAL_S = 5.0


class Ownership:
    """The partitions of this worker.

    Args:
        policy: name of the policy; at least one generation of it has begun.
        limits: of the core.
        settings: how to own.
        partitions: how many partitions each topic has.
        logs: the join's topics.
        flow: how to steer the fetching.
    """

    def __init__(
        self,
        policy: str,
        limits: JoinLimits,
        settings: OwnerSettings,
        *,
        partitions: int,
        logs: JoinLogs,
        flow: Flow,
    ) -> None:
        self._policy = policy
        self._limits = limits
        self._settings = settings
        self._partitions = partitions
        self._logs = logs
        self._flow = flow
        self._log_of = {logs.topic_of[each]: each for each in Log}
        self._owners: dict[int, PartitionOwner] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises what ends the worker, as soon as there is such a thing."""
        self.settled = False
        """Whether the group has ever given this worker its share, and it has taken it."""
        self.kafka_trouble = ""
        """Why Kafka did not answer when it was asked last; empty if it did."""

    @property
    def partitions(self) -> set[int]:
        """The partitions that are owned."""
        return set(self._owners)

    # --- taking and giving up ---

    async def claim(self, assigned: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Own exactly the assigned partitions.

        Args:
            assigned: pairs [topic, partition]: both logs of each partition.

        Returns:
            where to begin in each.

        Raises:
            StreamError: a partition's logs went to different workers, or its output contradicts
                the design.
            BoundaryError: this build cannot go on with a generation.
            RetentionLost: records that are needed have been deleted, and that is not accepted.
        """
        mine = self._co_partitioned(assigned)
        self.release_all_but(mine)
        what: list[Log | Kind] = [*Log, Kind.REWARD_GROUPS]
        begins: dict[tuple[str, int], int] = {}
        # Anew each time: another worker may have crossed a boundary since this one has started.
        terms = terms_of(await self._logs.generations(self._policy))
        for partition, extents in (await self._logs.extents(what, mine)).items():
            *inputs, output = extents
            for each, offset in (await self._own(terms, partition, inputs, output)).items():
                begins[self._logs.topic_of[each], partition] = offset
        metrics.PARTITIONS.set(len(self._owners))
        self.settled = True
        return begins

    def suspend(self) -> None:
        """A rebalance has begun: read and tick no more until the next `claim`."""
        for owner in self._owners.values():
            owner.suspend()

    def release_all_but(self, kept: Iterable[int]) -> None:
        """Give up the other partitions."""
        for partition in set(self._owners).difference(kept):
            self._owners.pop(partition).suspend()
            self._tasks.pop(partition).cancel()
            metrics.forget_partition(partition)
        metrics.PARTITIONS.set(len(self._owners))

    async def put(self, topic: str, partition: int, fetched: Any, end: int) -> None:
        """Hand a batch to its owner; one of a partition that is not owned is dropped."""
        owner = self._owners.get(partition)
        if owner is not None:
            try:
                await owner.put(self._log_of[topic], fetched, end)
            except StreamError as error:
                self.fail(error)

    # --- watching ---

    async def watch(self) -> None:
        """Look after the owners until cancelled.

        Raises:
            StreamError: an owner has records to read and does not get on, or a log no longer
                reaches to where it has been read.
        """
        since_ends_s = 0.0
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            since_ends_s += WATCH_INTERVAL_S
            if since_ends_s >= ENDS_INTERVAL_S:
                since_ends_s = 0.0
                await self._learn_ends()
            for owner in self._owners.values():
                owner.check()
                owner.show()

    def health(self) -> dict[str, Any]:
        """What is owned and how far each partition has come; callable from any thread."""
        owners = dict(self._owners)
        return {str(partition): owners[partition].health() for partition in sorted(owners)}

    async def _learn_ends(self) -> None:
        """Ask the broker itself how far the logs go: a fetcher that has died would not know."""
        # From before the question: the answer may be older than what is read meanwhile.
        read = {partition: owner.positions() for partition, owner in self._owners.items()}
        try:
            async with asyncio.timeout(ENDS_INTERVAL_S):
                extents = await self._logs.extents(list(Log), list(read))
        except (KafkaUnreachable, TimeoutError) as error:
            self.kafka_trouble = str(error) or "expected offsets of the join's topics in time"
            log.warning("kafka_away", error=self.kafka_trouble)
            for each_owner in self._owners.values():
                each_owner.excuse()
            return
        self.kafka_trouble = ""
        for partition, found in extents.items():
            owner = self._owners.get(partition)
            for each, extent in zip(Log, found, strict=True):
                if owner is not None:
                    owner.learn_end(each, extent.end, read[partition][each])

    # --- beginning ---

    def _co_partitioned(self, assigned: Iterable[tuple[str, int]]) -> list[int]:
        found: dict[int, set[str]] = {}
        for topic, partition in assigned:
            found.setdefault(partition, set()).add(topic)
        for partition, topics in found.items():
            if partition >= self._partitions:
                raise StreamError(
                    f"expected partitions 0 to {self._partitions - 1}, seen {partition}: the "
                    "number of partitions is fixed for the life of the topics"
                )
            if topics != set(self._log_of):
                raise StreamError(
                    f"partition {partition}: expected both {' and '.join(self._log_of)} to be "
                    f"assigned to this worker, seen {', '.join(topics)} alone"
                )
        return sorted(found)

    async def _own(
        self, terms: Mapping[int, Terms], partition: int, inputs: list[Extent], output: Extent
    ) -> dict[Log, int]:
        beginning = Beginning(
            self._logs,
            terms,
            self._limits,
            partition=partition,
            partitions=self._partitions,
            accept_loss=self._settings.accept_loss,
        )
        written = await beginning.written(inputs, output)
        owner = self._owners.get(partition)
        if owner is not None and owner.may_continue(written.tail[-1]):
            for each, extent in zip(Log, inputs, strict=True):
                owner.learn_end(each, extent.end)
            log.info("partition_kept", partition=partition)
            return owner.continue_from()
        self.release_all_but(set(self._owners) - {partition})
        core, begin, last = await beginning.resume(inputs, written)
        for each, offset, extent in zip(Log, begin, inputs, strict=True):
            if offset > extent.end:
                raise StreamError(
                    f"{each.value} partition {partition}: expected at least {offset} records, seen "
                    f"{extent.end}: this is not the log that the reward groups were made from"
                )
        ends = {each: extent.end for each, extent in zip(Log, inputs, strict=True)}
        owner = PartitionOwner(core, partition, self._logs, self._flow, self._settings, last, ends)
        self._owners[partition] = owner
        self._tasks[partition] = asyncio.create_task(owner.run(), name=f"partition-{partition}")
        self._tasks[partition].add_done_callback(self._on_ended)
        log.info("partition_owned", partition=partition, begin=tuple(begin), output=output.end)
        return dict(zip(Log, begin, strict=True))

    def fail(self, error: BaseException) -> None:
        """End the worker; the first error counts."""
        if not self.failed.done():
            self.failed.set_exception(error)

    def _on_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)
