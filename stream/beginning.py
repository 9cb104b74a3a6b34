"""Where a new owner begins: where the logs do, where the last owner stopped, or after a loss."""

from collections.abc import Mapping
from typing import NamedTuple

import structlog
from grade.v1.reward_group_pb2 import JoinRecord

from policy.errors import RetentionLost
from stream.join import Cursor, JoinLimits, Kind, Log, Loss, PartitionJoin
from stream.join_logs import Extent, JoinLogs
from stream.terms import Terms

log = structlog.get_logger(__name__)

TAIL_RECORDS = 64
"""Last reward-groups records that a new owner looks at; some may be a paused old owner's."""

ATTEMPTS = 3
"""How often a loss is accepted at most, while retention goes on deleting."""

ACCEPT_LOSS = "grade join --accept-loss"


class Written(NamedTuple):
    """What a partition's output says to a new owner."""

    first: bytes
    """Value of the first record that it has."""
    tail: list[bytes]
    """Values of the last ones; at least one."""
    end: int
    """Offset that its next record will get."""


class Beginning:
    """Finds where to begin in one partition, and writes a start record where one is needed.

    Args:
        logs: the join's topics.
        terms: of every known generation, by number.
        limits: of the core.
        partition: the partition.
        partitions: how many there are.
        accept_loss: whether to go on without records that retention has deleted.
    """

    def __init__(
        self,
        logs: JoinLogs,
        terms: Mapping[int, Terms],
        limits: JoinLimits,
        *,
        partition: int,
        partitions: int,
        accept_loss: bool,
    ) -> None:
        self._logs = logs
        self._terms = terms
        self._limits = limits
        self._partition = partition
        self._partitions = partitions
        self._accept_loss = accept_loss

    async def written(self, inputs: list[Extent], output: Extent) -> Written:
        """What has been written; a start record is what an empty output gets first.

        Args:
            inputs: what both logs hold.
            output: what the output holds.

        Raises:
            RetentionLost: all of the output has been deleted, and that is not accepted.
        """
        if output.head == output.end:
            loss = None
            if output.end > 0:
                loss = self._core().loss([], _head(inputs), output.end)
                self._accept(loss, self._emptied(output), "how much was not decided is unknown")
            await self._start(inputs, loss, [])
            _, output = await self._extents()
        return await self._read(output)

    async def resume(
        self, inputs: list[Extent], written: Written
    ) -> tuple[PartitionJoin, Cursor, bytes]:
        """Go on where the last owner stopped, or, if that is accepted, after a loss.

        Returns:
            The core, where to begin to read, and the value of the last record of the output.

        Raises:
            RetentionLost: records that are needed have been deleted, and that is not accepted.
            StreamError: the output contradicts the logs.
        """
        for _ in range(ATTEMPTS):
            core, head, (first, tail, end) = self._core(), _head(inputs), written
            try:
                return core, core.resume(first, tail, head), tail[-1]
            except RetentionLost as error:
                lost = error
            loss = core.loss([first, *tail], head, end)
            what = f"{loss.impressions} impressions and {loss.conversions} conversions"
            self._accept(loss, str(lost), f"{what} that were not decided are gone")
            await self._start(inputs, loss, tail)
            inputs, output = await self._extents()
            written = await self._read(output)
        raise RetentionLost(
            f"partition {self._partition}: {lost}; seen so again {ATTEMPTS} times: retention "
            "deletes faster than the join can begin"
        )

    def _accept(self, loss: Loss, why: str, what: str) -> None:
        if not self._accept_loss:
            raise RetentionLost(
                f"partition {self._partition}: {why}; {what}: `{ACCEPT_LOSS}` records the loss and "
                "goes on with what is left"
            )
        log.warning(
            "loss_accepted",
            partition=self._partition,
            why=why,
            impressions=loss.impressions,
            conversions=loss.conversions,
            prev=loss.prev,
        )

    def _emptied(self, output: Extent) -> str:
        return (
            f"{self._logs.topic_of[Kind.REWARD_GROUPS]}: expected the last of the {output.end} "
            "records that the join has written, seen that all of them have been deleted"
        )

    async def _start(self, inputs: list[Extent], loss: Loss | None, tail: list[bytes]) -> None:
        generation = await self._generation_at_heads(inputs, tail)
        record = self._core().start_record(_head(inputs), generation, loss)
        await self._logs.append(self._partition, [record])

    async def _generation_at_heads(self, inputs: list[Extent], tail: list[bytes]) -> int:
        """The latest of the generations in force at the heads of both logs and in the output.

        The first boundary that a log still has tells which one comes to an end there. Boundaries
        that lie ahead in one log alone, or that the output has crossed, have begun already.
        """
        latest = max(self._terms)
        found = max([1, *(_generation_of(value) for value in tail)])
        for each, extent in zip(Log, inputs, strict=True):
            if found < latest and extent.head > 0:
                begins = await self._logs.first_boundary(each, self._partition, extent)
                found = max(found, latest if begins is None else begins - 1)
        return found

    async def _extents(self) -> tuple[list[Extent], Extent]:
        what: list[Log | Kind] = [*Log, Kind.REWARD_GROUPS]
        [[*inputs, output]] = (await self._logs.extents(what, [self._partition])).values()
        return inputs, output

    async def _read(self, output: Extent) -> Written:
        [first] = await self._logs.read_groups(self._partition, output.head, output.head + 1)
        start = max(output.head, output.end - TAIL_RECORDS)
        tail = await self._logs.read_groups(self._partition, start, output.end)
        return Written(first, tail, output.end)

    def _core(self) -> PartitionJoin:
        return PartitionJoin(
            self._terms, partition=self._partition, partitions=self._partitions, limits=self._limits
        )


def _head(inputs: list[Extent]) -> Cursor:
    return Cursor(*(extent.head for extent in inputs))


def _generation_of(value: bytes) -> int:
    """The generation that is in force in the output behind a record."""
    record = JoinRecord.FromString(value)
    if record.HasField("boundary"):
        return record.boundary.next.generation
    # All but one of these are empty, and an empty one's number is 0.
    return record.group.generation + record.progress.generation + record.start.generation
