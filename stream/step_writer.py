"""Writes what the join of one partition leads to, step by step, while the join reads on.

The order is rule 12 of design §3: what is refused, then groups and progress, each acknowledged
before the next is sent. Steps that have come together are written together: first what all of them
refuse, then their groups and progress, step by step. So a group never stands in the output before
what lies in front of it has been written, and at any moment the output partition holds a beginning
of what it will hold in the end.

That is why the join need not wait: every output is a function of the two logs alone (rule 11),
nothing that follows depends on an acknowledgement, and a new owner goes on from that beginning as
if this one had not read any further. What waits is bounded, so that a slow Kafka slows the reading.
"""

import asyncio

from grade.v1.refused_pb2 import Refused
from grade.v1.reward_group_pb2 import JoinRecord

from policy.errors import reason_name
from stream import join_metrics as metrics
from stream.join_logs import JoinLogs
from stream.join_records import Step

WAITING_STEPS = 4
"""Steps that wait while earlier ones are written."""


class StepWriter:
    """Writes the steps of one partition.

    Args:
        logs: where to write.
        partition: the partition.
        written: value of the partition's last reward-groups record.
    """

    def __init__(self, logs: JoinLogs, partition: int, written: bytes) -> None:
        self.written = written
        """Value of the last reward-groups record that was acknowledged."""
        self._logs = logs
        self._partition = partition
        self._steps: asyncio.Queue[Step] = asyncio.Queue(WAITING_STEPS)
        self._unwritten = 0

    @property
    def unwritten(self) -> int:
        """Steps that are not acknowledged yet."""
        return self._unwritten

    async def put(self, step: Step) -> None:
        """Hand over a step; waits while too many are in front of it."""
        if any(step):
            self._unwritten += 1
            await self._steps.put(step)

    async def finish(self) -> None:
        """Wait until every step is acknowledged."""
        await self._steps.join()

    async def run(self) -> None:
        """Write what is put until cancelled.

        Raises:
            StreamError: a record is larger than the topics take.
            KafkaUnreachable: an output was not acknowledged.
        """
        while True:
            steps = [await self._steps.get()]
            while not self._steps.empty():
                steps.append(self._steps.get_nowait())
            with metrics.WRITE_SECONDS.time():
                await self._write(steps)
            self._unwritten -= len(steps)
            for step in steps:
                self._steps.task_done()
                _show(self._partition, step)

    async def _write(self, steps: list[Step]) -> None:
        refused = [output for step in steps for output in step.side]
        if refused:
            await self._logs.append(self._partition, refused)
        told = [output for step in steps for output in (*step.groups, *step.progress)]
        if told:
            self.written = await self._logs.append(self._partition, told) or self.written


def _show(partition: int, step: Step) -> None:
    """Count what has been written."""
    metrics.GROUPS.inc(len(step.groups))
    metrics.PROGRESS.inc(len(step.progress))
    for output in step.side:
        reason = Refused.FromString(output.value).reason
        metrics.REFUSED.labels(reason_name(reason)).inc()
    if step.progress:
        standing = JoinRecord.FromString(step.progress[-1].value).progress.standing
        metrics.show_decided(partition, standing.counts)
