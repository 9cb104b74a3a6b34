"""The join of one partition: two logs in, reward groups and side outputs out. No Kafka, no clock.

Design §3 is the specification; its rules are named where they are carried out. What is written is
a function of the two logs alone, however reading interleaves, however batches are cut, and whatever
crashed when: every decision is taken by comparing log times, never by who came first, and a group's
`Standing` is worked out for its frontier, not for the state of this process (stream/standing.py).
Only which progress records are written depends on the batches; what each says does not.

Boundary records in both logs begin the policy's next generation there: each record is judged by the
terms in force at its offset. The boundary in the impression log stands in the queue of windows like
an impression and leaves like one, so all groups of a generation lie before it in the output.

The order of events for one owner: `start_record` if the output partition is empty, `resume`, then
`feed` for whichever log is `readable`. After an error the owner is of no further use, except after
`OffsetGap`: read again from `position`.
"""

from collections import deque
from collections.abc import Mapping, Sequence

from grade.v1.generation_pb2 import Generation
from grade.v1.reward_group_pb2 import JoinRecord, Start

from policy.errors import OffsetGap, StreamError
from stream.attribution import Attribution, Crossing, PendingConversion, Window
from stream.deduplication import RecentKeys, RecentVolume
from stream.horizons import known
from stream.join_outputs import LeavingGroup, Outputs, check_retained, decided_before
from stream.join_records import (
    NEVER,
    Cursor,
    JoinLimits,
    JoinSettings,
    Kind,
    Log,
    Loss,
    Output,
    Record,
    SoundImpression,
    Step,
)
from stream.join_refusals import not_shown, too_late, too_much, without_impression
from stream.screening import ImpressionReader
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
from stream.terms import Terms, next_terms
from stream.validation import (
    Refusal,
    check_known_outcome,
    read_boundary,
    read_conversion,
)

__all__ = [
    "Cursor",
    "JoinLimits",
    "JoinSettings",
    "Kind",
    "Log",
    "Loss",
    "Output",
    "PartitionJoin",
    "Record",
    "Step",
]

JOINED_OVERHEAD_BYTES = 32
"""Most that a group adds to the bytes of a conversion that it holds."""

_NO_LIMITS = JoinLimits()

FINISHED_TOGETHER = 128
"""Most groups whose rewards are worked out together: no more of them are held until then."""


class PartitionJoin:
    """Joins partition p of impressions with partition p of conversions.

    Args:
        terms: of every generation that has begun, by number; one that begins later is taken from
            its boundary record.
        partition: the partition of both logs and of the output.
        partitions: how many partitions each topic has.
        limits: how much to hold and how often to tell.
    """

    def __init__(
        self,
        terms: Mapping[int, Terms],
        *,
        partition: int,
        partitions: int,
        limits: JoinLimits = _NO_LIMITS,
    ) -> None:
        self._terms = dict(terms)
        self._limits = limits
        self._partition = partition
        self._partitions = partitions
        first = terms[min(terms)]
        self._policy = first.schema.policy
        self._outputs = Outputs(self._policy, self._terms, partition)
        self._resumed = False
        self._frontier = Frontier(self._terms)
        self._impressions = self._frontier.impressions
        self._conversions = self._frontier.conversions
        # In force where each log has been read to, and at the frontier.
        self._conversion_terms = self._frontier_terms = first
        self._impression_reader = self._reader(first)
        # Rules 2 and 3.
        self._seen_impressions = RecentKeys[str](first.settings.repeat_ms)
        self._seen_conversions = RecentKeys[tuple[str, str]](first.settings.conversion_repeat_ms)
        self._volume = RecentVolume[str](first.settings.conversion_repeat_ms)
        self._attribution = Attribution()
        # Accepted impressions whose window is open, in offset order, and boundaries among them;
        # those that were written before a crash are among them, until no conversion can belong to
        # them any more.
        self._windows: deque[Window | Crossing] = deque()
        self._crossings: deque[Crossing] = deque()
        self._open_groups = 0
        # No group that is read from now on closes before the one, nor one that leaves from now on
        # before the other: by then every window of the generations before has closed.
        self._least_close_ms = self._left_close_ms = NEVER
        # Groups that leave now, the last ones, all of one generation; their rewards are worked out
        # together.
        self._leaving: list[LeavingGroup] = []
        self._leaving_terms = first

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

    @property
    def terms(self) -> Mapping[int, Terms]:
        """Of every generation that was known or has been met."""
        return self._terms

    def generation(self, log: Log) -> int:
        """The generation in force where a log has been read to."""
        return self._reading(log).generation

    def readable(self, log: Log) -> bool:
        """Whether a log may be read further (rule 7); never are both refused.

        If conversions are ahead, ct > it + W and no older generation is open, then ct > a + W for
        every impression read, so that no group is open. A batch that is fed all the same is joined
        as well.
        """
        if log is Log.IMPRESSIONS:
            return self._open_groups < self._limits.max_open_groups
        ct, it = self._conversions.time_ms, self._impressions.time_ms
        window_ms = self._impression_reader.terms.settings.window_ms
        return ct == NEVER or ct <= max(it + window_ms, self._least_close_ms)

    def start_record(self, head: Cursor, generation: int, loss: Loss | None = None) -> Output:
        """What to write if the output partition is empty, or if a loss has been accepted.

        It has to be read back (rule 14): another owner may have been quicker.

        Args:
            head: first offsets in both logs.
            generation: in force there in both.
            loss: what is given up; see `loss`.

        Raises:
            BoundaryError: the generation is not known.
        """
        return self._outputs.start(head, generation, loss)

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
            BoundaryError: a record was written under other settings, schema or computation, or in
                a generation that is not known.
            StreamError: a value is not what must be there.
        """
        latest = self._outputs.latest((first, *tail))
        if isinstance(latest, Start):
            begin = Cursor(latest.head.impression_offset, latest.head.conversion_offset)
            check_retained(begin, head)
            self._frontier.begin(latest, decided_before(latest))
        else:
            rewind = latest.standing.rewind
            begin = Cursor(rewind.impression_offset, rewind.conversion_offset)
            check_retained(begin, head)
            self._frontier.resume(*latest)
        self._least_close_ms = self._left_close_ms = self._frontier.least_close_ms
        self._begin_terms()
        self._resumed = True
        return begin

    def loss(self, values: Sequence[bytes], head: Cursor, end: int) -> Loss:
        """What an operator gives up who accepts that records needed have been deleted.

        Args:
            values: of the first and the last records of the output partition, as for `resume`;
                none if retention has emptied it, when it is not known what is lost.
            head: first offsets that are still in both logs.
            end: the offset that the output partition's next record will get.

        Raises:
            BoundaryError, StreamError: as `resume`.
        """
        return self._outputs.loss(values, head, end)

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
            if log is Log.IMPRESSIONS:
                self._read_impressions(records, step)
            else:
                for record in records:
                    self._read_conversion(record, step)
            self._finish_groups(step)
            self._forget()
            self._tell_progress(step)
        return step

    # --- impressions ---

    def _read_impressions(self, records: Sequence[Record], step: Step) -> None:
        """Read a batch; what lies between two boundaries is judged together."""
        first = 0
        for end in [i for i, each in enumerate(records) if each.is_boundary] + [len(records)]:
            stretch = records[first:end]
            asked = [each for each in stretch if not each.is_tick]
            reads = iter(self._impression_reader.read(asked))
            for record in stretch:
                self._pass_time(record, step)
                if record.is_tick:
                    self._impressions.note(TICK)
                else:
                    self._take_impression(record, next(reads), step)
            if end < len(records):
                self._pass_time(records[end], step)
                self._read_impression_boundary(records[end], step)
            first = end + 1

    def _pass_time(self, record: Record, step: Step) -> None:
        if self._impressions.advance(record.timestamp_ms):
            for conversion in self._attribution.overdue(self._impressions.time_ms):
                self._decide_unjoined(conversion, step)

    def _take_impression(self, record: Record, read: SoundImpression | Refusal, step: Step) -> None:
        reading = self._impressions
        if isinstance(read, Refusal):
            if reading.note(DEAD) is not None:
                self._bury(Log.IMPRESSIONS, record, reading.time_ms, read, step)
        elif self._seen_impressions.see(read.request_id, reading.time_ms):
            reading.note(DUPLICATE)
        else:
            if reading.note(GROUPED) is not None:
                self._open_groups += 1
            terms = self._impression_reader.terms
            window = Window(record, reading.time_ms, read, terms, self._least_close_ms)
            self._windows.append(window)
            for conversion in self._attribution.accept(window):
                self._join(conversion, window, step)
            self._close_windows(step)

    def _read_impression_boundary(self, record: Record, step: Step) -> None:
        reading, ending = self._impressions, self._impression_reader.terms
        generation = read_boundary(record, self._policy)
        if isinstance(generation, Refusal):
            if reading.note(DEAD) is not None:
                self._bury(Log.IMPRESSIONS, record, reading.time_ms, generation, step)
            return
        reading.note(TICK)
        terms = self._next_terms(Log.IMPRESSIONS, record.offset, generation)
        if terms is None:
            return
        self._impression_reader = self._reader(terms)
        self._frontier.cross(Log.IMPRESSIONS, terms.generation)
        self._seen_impressions.change(terms.settings.repeat_ms)
        # The last window that the ending generation can have opened.
        end_ms = reading.time_ms + ending.settings.window_ms
        self._least_close_ms = max(end_ms, self._least_close_ms)
        crossing = Crossing(
            record.offset, reading.time_ms, self._least_close_ms, ending, generation
        )
        self._windows.append(crossing)
        self._crossings.append(crossing)
        self._close_windows(step)

    # --- conversions ---

    def _read_conversion(self, record: Record, step: Step) -> None:
        risen = self._conversions.advance(record.timestamp_ms)
        self._take_conversion(record, step)
        if risen:
            self._close_windows(step)

    def _take_conversion(self, record: Record, step: Step) -> None:
        reading, terms = self._conversions, self._conversion_terms
        if record.is_tick:
            reading.note(CONVERSION_TICK)
            return
        if record.boundary:
            self._read_conversion_boundary(record, step)
            return
        read = read_conversion(
            terms.schema,
            record,
            self._partition,
            self._partitions,
            max_bytes=terms.settings.max_record_bytes,
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
            conversion = PendingConversion(record, time_ms, read, terms, cell)
            if volume > terms.settings.max_request_bytes:
                self._kill(conversion, too_much(conversion, volume), step)
            else:
                self._attribute(conversion, step)

    def _read_conversion_boundary(self, record: Record, step: Step) -> None:
        reading = self._conversions
        generation = read_boundary(record, self._policy)
        if isinstance(generation, Refusal):
            if reading.note(CONVERSION_DEAD) is not None:
                self._bury(Log.CONVERSIONS, record, reading.time_ms, generation, step)
            return
        reading.note(CONVERSION_TICK)
        terms = self._next_terms(Log.CONVERSIONS, record.offset, generation)
        if terms is not None:
            self._conversion_terms = terms
            self._frontier.cross(Log.CONVERSIONS, terms.generation)
            reading.patience_ms = terms.settings.early_ms
            self._seen_conversions.change(terms.settings.conversion_repeat_ms)
            self._volume.change(terms.settings.conversion_repeat_ms)

    def _attribute(self, conversion: PendingConversion, step: Step) -> None:
        window = self._attribution.window_of(conversion)
        if window is not None:
            self._join(conversion, window, step)
        elif self._impressions.time_ms >= conversion.until_ms:
            self._decide_unjoined(conversion, step)
        else:
            self._attribution.wait(conversion)

    def _join(self, conversion: PendingConversion, window: Window, step: Step) -> None:
        if conversion.message.item_id not in window.shown.item_ids:
            self._kill(conversion, not_shown(conversion, window), step)
            return
        if conversion.terms is not window.terms:
            unknown = check_known_outcome(conversion.message, window.terms.schema)
            if unknown is not None:
                self._kill(conversion, unknown, step)
                return
        conversion.cell[1] = JOINED
        window.members.append(conversion)

    def _decide_unjoined(self, conversion: PendingConversion, step: Step) -> None:
        """A conversion that lies in no window: late or orphan (rule 5)."""
        window = self._attribution.late_for(conversion)
        if window is not None:
            conversion.cell[1] = LATE
            kind, refusal, offset = Kind.LATE, too_late(conversion, window), window.offset
        else:
            conversion.cell[1] = ORPHAN
            kind, refusal, offset = Kind.ORPHANS, without_impression(conversion), -1
        record, time_ms = conversion.record, conversion.time_ms
        step.side.append(
            self._outputs.refused(kind, Log.CONVERSIONS, record, time_ms, *refusal, offset)
        )

    def _kill(self, conversion: PendingConversion, refusal: Refusal, step: Step) -> None:
        conversion.cell[1] = CONVERSION_DEAD
        self._bury(Log.CONVERSIONS, conversion.record, conversion.time_ms, refusal, step)

    def _bury(self, log: Log, record: Record, time_ms: int, refusal: Refusal, step: Step) -> None:
        step.side.append(self._outputs.refused(Kind.DEAD_LETTERS, log, record, time_ms, *refusal))

    # --- leaving ---

    def _close_windows(self, step: Step) -> None:
        """Let leave whose window has passed: ct > a + W (rule 6), in the order of the log."""
        windows, ct = self._windows, self._conversions.time_ms
        while windows and windows[0].close_ms < ct:
            window = windows.popleft()
            new = window.offset >= self._impressions.live_from
            if isinstance(window, Window):
                if new:
                    self._open_groups -= 1
                    group = self._outputs.group(window)
                    standing = group.record.group.standing
                    self._frontier.at_group(
                        standing, window.offset, window.time_ms, window.close_ms
                    )
                    self._leaving.append(group)
                    self._leaving_terms = window.terms
                    if len(self._leaving) == FINISHED_TOGETHER:
                        self._finish_groups(step)
                window.close()
                continue
            self._finish_groups(step)
            self._crossings.popleft()
            self._left_close_ms = window.close_ms
            self._frontier_terms = self._terms[window.next.generation]
            if new:
                record = JoinRecord()
                self._frontier.at_boundary(record.boundary.standing, *window[:3])
                step.groups.append(self._outputs.boundary(window, record))
            else:
                self._frontier.pass_boundary(window.time_ms)

    def _finish_groups(self, step: Step) -> None:
        step.groups.extend(self._outputs.finished(self._leaving_terms, self._leaving))
        self._leaving.clear()

    def _tell_progress(self, step: Step) -> None:
        """Write progress if another step of log time has been reached (rule 8).

        A generation's last frontier is the time of its boundary, until that has left.
        """
        it, ct = self._impressions.time_ms, self._conversions.time_ms
        if NEVER in (it, ct) or ct <= self._left_close_ms:
            return
        terms, step_ms = self._frontier_terms, self._limits.progress_step_ms
        window_ms = terms.settings.window_ms
        frontier_ms = min(ct - window_ms, it)
        if self._crossings:
            frontier_ms = min(frontier_ms, self._crossings[0].time_ms)
        if frontier_ms <= self._frontier.frontier_ms:
            return
        close_ms = max(frontier_ms + window_ms, self._left_close_ms)
        if close_ms // step_ms > self._frontier.close_ms // step_ms:
            record = JoinRecord()
            self._frontier.at_progress(record.progress.standing, frontier_ms, close_ms)
            step.progress.append(self._outputs.progress(terms, record, close_ms))

    def _forget(self) -> None:
        it, ct = self._impressions.time_ms, self._conversions.time_ms
        self._seen_impressions.forget(it)
        self._seen_conversions.forget(ct)
        self._volume.forget(ct)
        self._attribution.forget(it, ct)

    def _reading(self, log: Log) -> LogReading:
        return self._impressions if log is Log.IMPRESSIONS else self._conversions

    # --- generations ---

    def _begin_terms(self) -> None:
        """Go by the generations in force where reading begins."""
        terms = self._begun(Log.IMPRESSIONS)
        self._impression_reader = self._reader(terms)
        # What has left will be met again, if it lies behind where reading begins.
        self._frontier_terms = terms
        self._conversion_terms = self._begun(Log.CONVERSIONS)
        conversion_settings = self._conversion_terms.settings
        self._conversions.patience_ms = conversion_settings.early_ms
        self._seen_impressions = RecentKeys(terms.settings.repeat_ms)
        self._seen_conversions = RecentKeys(conversion_settings.conversion_repeat_ms)
        self._volume = RecentVolume(conversion_settings.conversion_repeat_ms)

    def _reader(self, terms: Terms) -> ImpressionReader:
        return ImpressionReader(terms, self._partition, self._partitions)

    def _begun(self, log: Log) -> Terms:
        terms = known(self._terms, self._reading(log).generation)
        terms.require_computable()
        return terms

    def _next_terms(self, log: Log, offset: int, generation: Generation) -> Terms | None:
        """The terms that a boundary begins; None if it is one that has begun already."""
        place = f"{log.value} partition {self._partition} offset {offset}"
        return next_terms(self._terms, self._reading(log).generation, generation, place)
