"""One partition recomputed across boundaries and accepted losses, from random histories."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import pytest
from grade.v1.refused_pb2 import Refused
from grade.v1.reward_group_pb2 import JoinRecord

from policy.errors import RetentionLost
from stream.codec import BOUNDARY_HEADER, TICK_HEADER, encode
from stream.join import Kind, Output
from stream.logs import Log, LogRecord
from stream.reconcile_join import PartitionContent, PartitionReport, reconcile_partition
from tests.stream.join_histories import History, random_history
from tests.stream.join_losses import run_with_losses, segments_of
from tests.stream.join_oracle import Entry
from tests.stream.join_owners import OutputPartition, run_with_crashes

NAMES = {kind: kind.value for kind in Kind}


def content_of(history: History, output: OutputPartition) -> PartitionContent:
    """Everything as the topics hold it."""
    kinds = {kind: [o for o in output.sides if o.kind is kind] for kind in Kind}
    del kinds[Kind.REWARD_GROUPS]
    return PartitionContent(
        inputs(history.impressions),
        inputs(history.conversions),
        outputs(output.main),
        {kind: outputs(found) for kind, found in kinds.items()},
    )


def inputs(entries: Sequence[Entry]) -> Log:  # type: ignore[type-arg]
    records = [
        LogRecord(
            each.offset,
            each.timestamp_ms,
            each.key,
            each.value,
            [TICK_HEADER] * each.tick + [BOUNDARY_HEADER] * each.boundary,
        )
        for each in entries
    ]
    return Log(entries[0].offset, entries[-1].offset + 1, records)


def outputs(found: Sequence[Output]) -> Log:
    records = [LogRecord(at, 0, each.key, each.value) for at, each in enumerate(found)]
    return Log(0, len(records), records)


def cut(log: Log, head: int) -> Log:
    """What retention leaves of a log."""
    return Log(max(head, log.head), log.end, [each for each in log.records if each.offset >= head])


def check(history: History, content: PartitionContent) -> PartitionReport:
    return reconcile_partition(
        history.terms,
        content,
        NAMES,
        partition=history.partition,
        partitions=history.partitions,
    )


def assert_sound(report: PartitionReport) -> None:
    assert [str(each) for each in report.differences] == []
    assert report.unconserved == []
    for fates in (report.impressions, report.conversions):
        fate = fates.used + fates.late + fates.orphans + fates.duplicates
        assert fates.read == fate + fates.dead_letters + fates.ticks + fates.open


def joined(seed: int) -> tuple[History, PartitionContent]:
    rng = Random(seed)
    history, output = random_history(rng), OutputPartition()
    run_with_crashes(history, output, rng)
    return history, content_of(history, output)


def lossy(seed: int) -> tuple[History, OutputPartition]:
    rng = Random(seed)
    history, output = random_history(rng), OutputPartition()
    run_with_losses(history, output, rng)
    return history, output


def test_boundaries_crashes_and_zombies_change_nothing() -> None:
    crossed = 0
    for seed in range(60):
        history, content = joined(seed)
        report = check(history, content)
        assert_sound(report)
        assert (report.losses, report.not_compared) == ([], [])
        crossed += "boundary" in kinds_of(content)
    assert crossed > 10


def test_accepted_losses_are_recomputed_from_their_starts() -> None:
    """As long as the inputs of the segments before are there, these are compared as well."""
    losses = 0
    for seed in range(60):
        history, output = lossy(seed)
        report = check(history, content_of(history, output))
        assert_sound(report)
        assert report.not_compared == []
        assert len(report.losses) == len(segments_of(history, output)) - 1
        losses += len(report.losses)
    assert losses > 30


def test_a_segment_whose_inputs_are_gone_is_named_and_not_guessed() -> None:
    named = 0
    for seed in range(60):
        history, output = lossy(seed)
        content = content_of(history, output)
        head = segments_of(history, output)[-1].start.head
        content = replace(
            content,
            impressions=cut(content.impressions, head.impression_offset),
            conversions=cut(content.conversions, head.conversion_offset),
        )
        report = check(history, content)
        assert_sound(report)
        for sentence in report.not_compared:
            assert re.match(
                rf"partition {history.partition} cannot be checked before offset "
                rf"{head.impression_offset} of the impressions and {head.conversion_offset} of the "
                r"conversions: .* deleted \d+ records of the (impr|conv)",
                sentence,
            )
        named += bool(report.not_compared)
    assert named > 10


def test_without_any_whole_segment_nothing_can_be_said() -> None:
    history, content = joined(3)
    content = replace(content, impressions=cut(content.impressions, content.impressions.head + 1))
    with pytest.raises(RetentionLost, match="deleted 1 records of the impressions from offset"):
        check(history, content)
    history, content = joined(3)
    content = replace(content, reward_groups=cut(content.reward_groups, 1))
    with pytest.raises(RetentionLost, match="expected its start record at offset 0"):
        check(history, content)


def test_groups_of_a_segment_whose_start_is_gone_are_named() -> None:
    """Retention has taken the beginning of the output, but not where a loss was accepted."""
    history, output = next(
        (history, output)
        for history, output in map(lossy, range(100))
        if len(segments_of(history, output)) == 2 and segments_of(history, output)[0].records
    )
    content = content_of(history, output)
    report = check(history, replace(content, reward_groups=cut(content.reward_groups, 1)))
    assert_sound(report)
    [sentence] = report.not_compared
    assert "cannot be checked before offset 1 of reward-groups: expected its start" in sentence


# --- planted differences ---


def kinds_of(content: PartitionContent) -> list[str | None]:
    return [
        JoinRecord.FromString(each.value or b"").WhichOneof("kind")
        for each in content.reward_groups.records
    ]


def crossing(seed: int = 0) -> tuple[History, PartitionContent]:
    """A history whose output has a boundary, and progress after it."""
    while True:
        history, content = joined(seed)
        kinds = kinds_of(content)
        if "boundary" in kinds and "progress" in kinds[kinds.index("boundary") :]:
            return history, content
        seed += 1


def changed(
    content: PartitionContent, at: int, change: Callable[[JoinRecord], object]
) -> PartitionContent:
    """The output with one record changed."""
    log = content.reward_groups
    message = JoinRecord.FromString(log.records[at].value or b"")
    change(message)
    records = list(log.records)
    records[at] = records[at]._replace(value=encode(message))
    return replace(content, reward_groups=log._replace(records=records))


def test_a_changed_boundary_is_found() -> None:
    history, content = crossing()
    at = kinds_of(content).index("boundary")

    def change(message: JoinRecord) -> None:
        message.boundary.close_time_ms += 1

    report = check(history, changed(content, at, change))
    assert str(report.differences[0]).startswith(
        f"reward-groups partition {history.partition} offset {at}: boundary.close_time_ms: expected"
    )


def test_a_missing_boundary_is_found() -> None:
    history, content = crossing()
    log = content.reward_groups
    kept = [
        each
        for each, kind in zip(log.records, kinds_of(content), strict=True)
        if kind != "boundary"
    ]
    report = check(history, replace(content, reward_groups=log._replace(records=kept)))
    assert any(
        re.search(r"boundary of impression \d+: expected one, seen none", str(each))
        for each in report.differences
    )


@pytest.mark.parametrize(
    "name", ["rewind_impression_generation", "rewind_conversion_generation", "prev"]
)
def test_changed_progress_behind_a_boundary_is_found(name: str) -> None:
    history, content = crossing()
    kinds = kinds_of(content)
    at = kinds.index("progress", kinds.index("boundary"))

    def change(message: JoinRecord) -> None:
        told = message.progress.standing
        setattr(told, name, getattr(told, name) + 1)

    report = check(history, changed(content, at, change))
    assert f"progress.standing.{name}: expected" in str(report.differences[0])


def test_a_loss_that_says_the_wrong_number_is_found() -> None:
    history, output = next(
        (history, output)
        for history, output in map(lossy, range(100))
        if len(segments_of(history, output)) == 2
    )
    content = content_of(history, output)
    kinds = kinds_of(content)
    at = kinds.index("start", 1)

    def change(message: JoinRecord) -> None:
        message.start.loss.impressions += 1

    differences = check(history, changed(content, at, change)).differences
    assert "loss.impressions: expected" in str(differences[0])


def test_a_lost_side_output_of_the_last_segment_is_missed() -> None:
    """Though those of a segment that cannot be recomputed are not."""
    for seed in range(60):
        history, output = lossy(seed)
        last = segments_of(history, output)[-1]
        sides = last.oracle.conversion_sides()
        if len(segments_of(history, output)) < 2 or not sides:
            continue
        gone = max(sides)
        output.sides = [
            each
            for each, told in zip(output.sides, output.refused(), strict=True)
            if (told.topic, told.offset) != ("conversions", gone)
        ]
        head, content = last.start.head, content_of(history, output)
        content = replace(
            content,
            impressions=cut(content.impressions, head.impression_offset),
            conversions=cut(content.conversions, head.conversion_offset),
        )
        report = check(history, content)
        [difference] = report.differences
        assert f"record for conversions offset {gone}: expected one, seen none" in str(difference)
        assert report.unconserved
        return
    pytest.fail("expected a history with a side output behind a loss")


def test_a_changed_side_output_is_found() -> None:
    history, content = next(
        (history, content)
        for history, content in map(joined, range(100))
        if content.refused[Kind.LATE].records
    )
    log = content.refused[Kind.LATE]
    refused = Refused.FromString(log.records[0].value or b"")
    refused.time_ms += 1
    records = [log.records[0]._replace(value=encode(refused)), *log.records[1:]]
    refused_logs = {**content.refused, Kind.LATE: log._replace(records=records)}
    report = check(history, replace(content, refused=refused_logs))
    assert "late partition" in str(report.differences[0])
    assert "time_ms: expected" in str(report.differences[0])
