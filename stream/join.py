"""The join of one partition: two logs in, reward groups and side outputs out. No Kafka, no clock.

Design §3 is the specification; its rules are named where they are carried out. What is written is
a function of the two logs alone, however reading interleaves, however batches are cut, and whatever
crashed when: every decision is taken by comparing log times, never by who came first, and a group's
`Standing` is worked out for its frontier, not for the state of this process (stream/standing.py).
Only which progress records are written depends on the batches; what each says does not.

The order of events for one owner: `start_record` if the output partition is empty, `resume`, then
`feed` for whichever log is `readable`. After an error the owner is of no further use, except after
`OffsetGap`: read again from `position`.
"""

from collections import deque
from collections.abc import Sequence

from grade.v1.refused_pb2 import Reason
from grade.v1.reward_group_pb2 import JoinRecord

from policy.errors import OffsetGap, StreamError
from policy.schema import Schema
from stream.attribution import Attribution, PendingConversion, Window
from stream.deduplication import RecentKeys, RecentVolume
from stream.join_outputs import Outputs, check_retained
from stream.join_records import (
    NEVER,
    Cursor,
    JoinSettings,
    Kind,
    Log,
    Output,
    Record,
    Step,
)
from stream.standing import (
    CONVERSION_DEAD,
    CONVERSION_DUPLICATE,
    CONVERSION_TICK,
    DEAD,
    DUPLICATE,
    GROUPED,
    JOINED,
    LATE,
    OPEN,
    ORPHAN,
    TICK,
    Frontier,
    LogReading,
)
from stream.validation import Refusal, read_conversion, read_impression, shown

__all__ = [
    "Cursor",
    "JoinSettings",
    "Kind",
    "Log",
    "Output",
    "PartitionJoin",
    "Record",
    "Step",
]

JOINED_OVERHEAD_BYTES = 32
"""Most that a group adds to the bytes of a conversion that it holds."""

FINISHED_TOGETHER = 128
"""Most groups whose rewards are worked out together: no more of them are held decoded."""


class PartitionJoin:
    """Joins partition p of impressions with partition p of conversions.

    Args:
        schema: the policy's schema.
        settings: how long to wait and what to take.
        partition: the partition of both logs and of the output.
        partitions: how many partitions each topic has.
    """

    def __init__(
        self, schema: Schema, settings: JoinSettings, *, partition: int, partitions: int
    ) -> None:
        self._schema = schema
        self._settings = settings
        self._partition = partition
        self._partitions = partitions
        self._outputs = Outputs(schema, settings, partition)
        self._resumed = False
        self._frontier = Frontier(settings)
        self._impressions = self._frontier.impressions
        self._conversions = self._frontier.conversions
        # Rules 2 and 3.
        self._seen_impressions = RecentKeys[str](settings.repeat_ms)
        self._seen_conversions = RecentKeys[tuple[str, str]](settings.conversion_repeat_ms)
        self._volume = RecentVolume[str](settings.conversion_repeat_ms)
        self._attribution = Attribution(settings)
        # Accepted impressions whose window is open, in offset order; those that were written before
        # a crash are among them, until no conversion can belong to them any more.
        self._windows: deque[Window] = deque()
        self._open_groups = 0
        # Groups that leave now, the last ones; their rewards are worked out together.
        self._leaving: list[JoinRecord] = []

    @property
    def open_groups(self) -> int:
        """Accepted impressions whose group has not left."""
        return self._open_groups

    @property
    def idle(self) -> bool:
        """Nothing is open and nothing waits; only a tick can move the frontier."""
        return not self._windows and not self._attribution.waiting

    def position(self, log: Log) -> int:
        """The offset that is expected next."""
        return self._reading(log).position

    def readable(self, log: Log) -> bool:
        """Whether a log may be read further (rule 7); never are both refused.

        If conversions are ahead, ct > it + W, then ct > a + W for every impression read, so that no
        group is open. A batch that is fed all the same is joined as well.
        """
        if log is Log.IMPRESSIONS:
            return self._open_groups < self._settings.max_open_groups
        ct, it = self._conversions.time_ms, self._impressions.time_ms
        return ct == NEVER or ct <= it + self._settings.window_ms

    def start_record(self, head: Cursor) -> Output:
        """What to write if the output partition is empty, and then to read back (rule 14).

        Args:
            head: first offsets in both logs.
        """
        return self._outputs.start(head)

    def resume(self, first: bytes, tail: Sequence[bytes], head: Cursor) -> Cursor:
        """Take over from what has been written (rules 13 to 15).

        Args:
            first: value of the first record of the output partition.
            tail: values of its last records; more than one, so that what a zombie wrote last is
                not all that is seen, but even then nothing is lost.
            head: first offsets that are still in both logs.

        Returns:
            where to read from.

        Raises:
            RetentionLost: what is needed has been deleted from a log.
            BoundaryError: a record was written under other settings, schema or computation.
            StreamError: a value is not what must be there.
        """
        furthest = self._outputs.furthest((first, *tail))
        if furthest is None:
            begin = self._outputs.start_head(first)
            check_retained(begin, head)
            self._frontier.begin(begin)
        else:
            standing, prev = furthest
            begin = Cursor(standing.rewind.impression_offset, standing.rewind.conversion_offset)
            check_retained(begin, head)
            self._frontier.resume(standing, prev)
        self._resumed = True
        return begin

    def feed(self, log: Log, records: Sequence[Record]) -> Step:
        """Read the next records of a log.

        Args:
            log: which log.
            records: in offset order, beginning at `position`.

        Returns:
            what is to be written because of them.

        Raises:
            OffsetGap: an offset is missing or comes again; no record of the batch has been read.
            StreamError: the log is not the one that the output was made from, or nothing has been
                resumed.
        """
        if not self._resumed:
            raise StreamError("expected resume before the first record, seen none")
        reading = self._reading(log)
        for expected, record in enumerate(records, reading.position):
            if record.offset != expected:
                raise OffsetGap(log.value, expected, record.offset)
        step = Step([], [], [])
        if records:
            reading.check_first(records[0])
            read = self._read_impression if log is Log.IMPRESSIONS else self._read_conversion
            for record in records:
                read(record, step)
            self._finish_groups(step)
            self._forget()
            self._tell_progress(step)
        return step

    # --- impressions ---

    def _read_impression(self, record: Record, step: Step) -> None:
        if self._impressions.advance(record.timestamp_ms):
            for conversion in self._attribution.overdue(self._impressions.time_ms):
                self._decide_unjoined(conversion, step)
        reading = self._impressions
        if record.tick and not record.value:
            reading.note(TICK)
            return
        read = read_impression(
            self._schema,
            record,
            self._partition,
            self._partitions,
            max_bytes=self._settings.max_record_bytes,
        )
        if isinstance(read, Refusal):
            if reading.note(DEAD) is not None:
                self._bury(Log.IMPRESSIONS, record, reading.time_ms, read, step)
        elif self._seen_impressions.see(read.request_id, reading.time_ms):
            reading.note(DUPLICATE)
        else:
            if reading.note(GROUPED) is not None:
                self._open_groups += 1
            window = Window(record, reading.time_ms, read)
            self._windows.append(window)
            for conversion in self._attribution.accept(window):
                self._join(conversion, window, step)
            self._close_windows(step)

    # --- conversions ---

    def _read_conversion(self, record: Record, step: Step) -> None:
        risen = self._conversions.advance(record.timestamp_ms)
        self._take_conversion(record, step)
        if risen:
            self._close_windows(step)

    def _take_conversion(self, record: Record, step: Step) -> None:
        reading = self._conversions
        if record.tick and not record.value:
            reading.note(CONVERSION_TICK)
            return
        read = read_conversion(
            self._schema,
            record,
            self._partition,
            self._partitions,
            max_bytes=self._settings.max_record_bytes,
        )
        if isinstance(read, Refusal):
            if reading.note(CONVERSION_DEAD) is not None:
                self._bury(Log.CONVERSIONS, record, reading.time_ms, read, step)
            return
        time_ms = reading.time_ms
        size = len(record.value or b"") + JOINED_OVERHEAD_BYTES
        volume = self._volume.add(read.request_id, time_ms, size)
        if self._seen_conversions.see((read.request_id, read.conversion_id), time_ms):
            reading.note(CONVERSION_DUPLICATE)
            return
        cell = reading.note(OPEN)
        # What lies before `done` only had to be remembered (rule 13).
        if cell is not None:
            conversion = PendingConversion(record, time_ms, read, cell)
            if volume > self._settings.max_request_bytes:
                self._refuse_volume(conversion, volume, step)
            else:
                self._attribute(conversion, step)

    def _attribute(self, conversion: PendingConversion, step: Step) -> None:
        window = self._attribution.window_of(conversion)
        if window is not None:
            self._join(conversion, window, step)
        elif self._impressions.time_ms >= conversion.time_ms + self._settings.early_ms:
            self._decide_unjoined(conversion, step)
        else:
            self._attribution.wait(conversion)

    def _join(self, conversion: PendingConversion, window: Window, step: Step) -> None:
        items = window.item_ids
        if conversion.message.item_id in items:
            conversion.cell[1] = JOINED
            window.members.append(conversion)
            return
        listed = ", ".join(shown(item) for item in items[:3]) + (", ..." if len(items) > 3 else "")
        refusal = Refusal(
            Reason.REASON_ITEM_NOT_SHOWN,
            f"item_id: expected one of the {len(items)} items of impression {window.offset} "
            f"({listed}), seen {shown(conversion.message.item_id)}",
        )
        self._kill(conversion, refusal, step)

    def _decide_unjoined(self, conversion: PendingConversion, step: Step) -> None:
        """A conversion that lies in no window: late or orphan (rule 5)."""
        settings = self._settings
        window = self._attribution.late_for(conversion)
        if window is not None:
            conversion.cell[1] = LATE
            kind, reason, offset = Kind.LATE, Reason.REASON_LATE, window.offset
            message = (
                f"time: expected at most {settings.window_ms} ms after impression {offset}, "
                f"seen {conversion.time_ms - window.time_ms} ms"
            )
        else:
            conversion.cell[1] = ORPHAN
            kind, reason, offset = Kind.ORPHANS, Reason.REASON_ORPHAN, -1
            message = (
                f"request_id: expected an impression of it from {settings.late_ms} ms before to "
                f"{settings.early_ms} ms after, seen none"
            )
        record, time_ms = conversion.record, conversion.time_ms
        output = self._outputs.refused(
            kind, Log.CONVERSIONS, record, time_ms, reason, message, offset
        )
        step.side.append(output)

    def _refuse_volume(self, conversion: PendingConversion, volume: int, step: Step) -> None:
        """Keep a group from growing beyond what Kafka takes.

        Like rule 3 it looks at valid conversions within D_c only, accepted or not, so that a new
        owner decides the same.
        """
        settings = self._settings
        refusal = Refusal(
            Reason.REASON_TOO_LARGE,
            f"conversions of one request within {settings.conversion_repeat_ms} ms: expected at "
            f"most {settings.max_request_bytes} bytes, seen {volume} with this one",
        )
        self._kill(conversion, refusal, step)

    def _kill(self, conversion: PendingConversion, refusal: Refusal, step: Step) -> None:
        conversion.cell[1] = CONVERSION_DEAD
        self._bury(Log.CONVERSIONS, conversion.record, conversion.time_ms, refusal, step)

    def _bury(self, log: Log, record: Record, time_ms: int, refusal: Refusal, step: Step) -> None:
        step.side.append(self._outputs.refused(Kind.DEAD_LETTERS, log, record, time_ms, *refusal))

    # --- leaving ---

    def _close_windows(self, step: Step) -> None:
        """Let the groups leave whose window has passed: ct > a + W (rule 6)."""
        windows = self._windows
        limit = self._conversions.time_ms - self._settings.window_ms
        while windows and windows[0].time_ms < limit:
            window = windows.popleft()
            if window.offset >= self._impressions.live_from:
                self._open_groups -= 1
                standing = self._frontier.at_group(window.offset, window.time_ms)
                self._leaving.append(self._outputs.group(window, standing))
                if len(self._leaving) == FINISHED_TOGETHER:
                    self._finish_groups(step)
            window.close()

    def _finish_groups(self, step: Step) -> None:
        step.groups.extend(self._outputs.finished(self._leaving))
        self._leaving.clear()

    def _tell_progress(self, step: Step) -> None:
        """Write progress if another step of log time has been reached (rule 8)."""
        it, ct = self._impressions.time_ms, self._conversions.time_ms
        window_ms, step_ms = self._settings.window_ms, self._settings.progress_step_ms
        if NEVER in (it, ct):
            return
        frontier_ms, last_ms = min(ct - window_ms, it), self._frontier.frontier_ms
        if (frontier_ms + window_ms) // step_ms > (last_ms + window_ms) // step_ms:
            standing = self._frontier.at_progress(frontier_ms)
            step.progress.append(self._outputs.progress(standing))

    def _forget(self) -> None:
        it, ct = self._impressions.time_ms, self._conversions.time_ms
        self._seen_impressions.forget(it)
        self._seen_conversions.forget(ct)
        self._volume.forget(ct)
        self._attribution.forget(it, ct)

    def _reading(self, log: Log) -> LogReading:
        return self._impressions if log is Log.IMPRESSIONS else self._conversions
