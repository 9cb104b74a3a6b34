"""Reconciling a run without faults, with harmless faults, and with one planted difference each."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from grade.v1.parameters_pb2 import ParameterSnapshot, Version
from grade.v1.refused_pb2 import Refused
from grade.v1.reward_group_pb2 import JoinRecord

from policy.errors import RetentionLost
from stream.codec import TICK_HEADER, encode
from stream.join import Kind
from stream.logs import Log
from stream.reconcile import ReconcileReport, WholeContent, reconcile
from tests.stream import learner_world as world
from tests.stream.learner_world import changed, put, with_another, without

GROUPS = "grade.reward-groups.v1"


@pytest.fixture(scope="module")
def sound() -> WholeContent:
    return world.content()


def check(content: WholeContent) -> ReconcileReport:
    return reconcile([*world.FIRST.values()], content)


def message_at(log: Log, kind: str, number: int) -> tuple[int, JoinRecord]:
    """Place and message of the record of a kind with this number in the log."""
    found = [
        (at, message)
        for at, record in enumerate(log.records)
        if (message := JoinRecord.FromString(record.value or b"")).HasField(kind)  # type: ignore[arg-type]
    ]
    return found[number]


def test_a_run_without_faults_is_conserved_and_reconciled(sound: WholeContent) -> None:
    report = check(sound)
    assert [str(each) for each in report.differences] == []
    assert report.unconserved == []
    assert report.ok
    assert report.groups == 60  # every request's first impression
    assert report.impressions.read == sum(len(log.records) for log in sound.impressions)
    assert report.impressions.used == 60
    assert report.impressions.ticks == 4
    assert report.conversions.late > 0
    assert report.conversions.orphans > 0
    assert report.conversions.duplicates > 0
    assert report.impressions.dead_letters + report.conversions.dead_letters == 3
    versions = report.versions
    assert versions.versions == len(sound.versions.records) > 5
    assert versions.versions_compared == versions.snapshots_compared == versions.versions
    assert versions.groups_applied == sum(
        1
        for log in sound.reward_groups
        for record in log.records
        if (message := JoinRecord.FromString(record.value or b"")).HasField("group")
        and message.group.HasField("rewards")
    )
    assert (versions.groups_lost, versions.groups_applied_twice) == (0, 0)


def test_every_record_read_has_exactly_one_fate(sound: WholeContent) -> None:
    for partition in check(sound).partitions:
        for fates in (partition.impressions, partition.conversions):
            assert fates.read == (
                fates.used
                + fates.late
                + fates.orphans
                + fates.duplicates
                + fates.dead_letters
                + fates.ticks
                + fates.open
            )


def test_a_tick_with_a_value_is_a_dead_letter_here_as_in_the_join(sound: WholeContent) -> None:
    """Its value would be a valid impression: the header alone says that it is none."""
    log = sound.impressions[0]
    at = next(at for at, each in enumerate(log.records) if (each.key or b"").startswith(b"request"))
    impressions = put(sound.impressions, 0, changed(log, at, headers=[TICK_HEADER]))
    outputs = world.join_logs(impressions, list(sound.conversions))
    versions, parameters = world.published_logs(world.learn_logs(outputs[Kind.REWARD_GROUPS]))
    report = check(
        replace(
            sound,
            impressions=impressions,
            reward_groups=outputs[Kind.REWARD_GROUPS],
            late=outputs[Kind.LATE],
            orphans=outputs[Kind.ORPHANS],
            dead_letters=outputs[Kind.DEAD_LETTERS],
            versions=versions,
            parameters=parameters,
        )
    )
    assert [str(each) for each in report.differences] == []
    assert report.ok
    assert report.impressions.ticks == check(sound).impressions.ticks
    assert report.impressions.dead_letters == check(sound).impressions.dead_letters + 1


def test_repeats_of_an_old_owner_change_nothing(sound: WholeContent) -> None:
    groups, late = sound.reward_groups[0], sound.late[0]
    repeated = groups
    for number in (0, 3):
        at, _ = message_at(groups, "group", number)
        repeated = with_another(repeated, groups.records[at].key, groups.records[at].value)
    content = replace(
        sound,
        reward_groups=put(sound.reward_groups, 0, repeated),
        late=put(sound.late, 0, with_another(late, late.records[0].key, late.records[0].value)),
        versions=with_another(
            sound.versions, sound.versions.records[0].key, sound.versions.records[0].value
        ),
    )
    report = check(content)
    assert report.ok
    assert report.partitions[0].repeats == 2
    assert report.conversions == check(sound).conversions


def test_what_the_join_and_the_learner_have_not_written_yet_is_open(sound: WholeContent) -> None:
    """Cut the outputs in the middle, as a running system looks."""
    groups = sound.reward_groups[1]
    middle = len(groups.records) // 2
    cut = Log(0, middle, groups.records[:middle])
    versions = Log(0, 1, sound.versions.records[:1])
    parameters = Log(0, 0, [])
    content = replace(
        sound,
        reward_groups=put(sound.reward_groups, 1, cut),
        versions=versions,
        parameters=parameters,
    )
    report = check(content)
    assert [str(each) for each in report.differences] == []
    assert report.ok
    assert report.partitions[1].impressions.open > 0


def test_nothing_written_at_all_is_open_and_no_difference(sound: WholeContent) -> None:
    empty = [Log(0, 0, []) for _ in sound.impressions]
    content = replace(
        sound,
        reward_groups=empty,
        late=empty,
        orphans=empty,
        dead_letters=empty,
        versions=Log(0, 0, []),
        parameters=Log(0, 0, []),
    )
    report = check(content)
    assert report.ok
    assert report.impressions.open == report.impressions.read - report.impressions.ticks


def alter_group(content: WholeContent) -> WholeContent:
    at, message = message_at(content.reward_groups[0], "group", 2)
    message.group.rewards.posterior[1] += 1e-12
    log = changed(content.reward_groups[0], at, value=encode(message))
    return replace(content, reward_groups=put(content.reward_groups, 0, log))


def alter_key(content: WholeContent) -> WholeContent:
    at, _ = message_at(content.reward_groups[1], "group", 0)
    log = changed(content.reward_groups[1], at, key=b"another")
    return replace(content, reward_groups=put(content.reward_groups, 1, log))


def lose_group(content: WholeContent) -> WholeContent:
    at, _ = message_at(content.reward_groups[0], "group", 4)
    log = without(content.reward_groups[0], at)
    return replace(content, reward_groups=put(content.reward_groups, 0, log))


def repeat_differently(content: WholeContent) -> WholeContent:
    at, message = message_at(content.reward_groups[0], "group", 3)
    message.group.close_time_ms += 1
    log = with_another(
        content.reward_groups[0], content.reward_groups[0].records[at].key, encode(message)
    )
    return replace(content, reward_groups=put(content.reward_groups, 0, log))


def invent_group(content: WholeContent) -> WholeContent:
    _, message = message_at(content.reward_groups[0], "group", 3)
    message.group.offset += 10_000
    log = with_another(content.reward_groups[0], b"key", encode(message))
    return replace(content, reward_groups=put(content.reward_groups, 0, log))


def alter_progress(content: WholeContent) -> WholeContent:
    at, message = message_at(content.reward_groups[0], "progress", -1)
    message.progress.standing.counts.conversions_duplicate += 1
    log = changed(content.reward_groups[0], at, value=encode(message))
    return replace(content, reward_groups=put(content.reward_groups, 0, log))


def lose_start(content: WholeContent) -> WholeContent:
    log = without(content.reward_groups[1], 0)
    return replace(content, reward_groups=put(content.reward_groups, 1, log))


def lose_late(content: WholeContent) -> WholeContent:
    return replace(content, late=put(content.late, 0, without(content.late[0], 1)))


def alter_orphan(content: WholeContent) -> WholeContent:
    refused = Refused.FromString(content.orphans[0].records[0].value or b"")
    refused.time_ms -= 1
    log = changed(content.orphans[0], 0, value=encode(refused))
    return replace(content, orphans=put(content.orphans, 0, log))


def scramble_dead_letter(content: WholeContent) -> WholeContent:
    partition = next(at for at, log in enumerate(content.dead_letters) if log.records)
    log = changed(content.dead_letters[partition], 0, value=b"\xff")
    return replace(content, dead_letters=put(content.dead_letters, partition, log))


def alter_state(content: WholeContent) -> WholeContent:
    version = Version.FromString(content.versions.records[4].value or b"")
    version.state_sha256 = bytes(32)
    return replace(content, versions=changed(content.versions, 4, value=encode(version)))


def lose_version(content: WholeContent) -> WholeContent:
    return replace(content, versions=without(content.versions, 3))


def alter_snapshot(content: WholeContent) -> WholeContent:
    snapshot = ParameterSnapshot.FromString(content.parameters.records[2].value or b"")
    snapshot.parameters = snapshot.parameters[:-1] + b"\x01"
    return replace(content, parameters=changed(content.parameters, 2, value=encode(snapshot)))


def lose_snapshot(content: WholeContent) -> WholeContent:
    return replace(content, parameters=without(content.parameters, 2))


def invent_version(content: WholeContent) -> WholeContent:
    record = content.versions.records[-1]
    version = Version.FromString(record.value or b"")
    version.version += 7
    log = with_another(content.versions, record.key, encode(version))
    return replace(content, versions=log)


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (alter_group, rf"{GROUPS} partition 0 offset \d+: group.rewards.posterior\[1\]: expected"),
        (alter_key, rf"{GROUPS} partition 1 offset \d+: key: expected .*, seen {b'another'.hex()}"),
        (lose_group, rf"{GROUPS} partition 0: group of impression \d+: expected one, seen none"),
        (repeat_differently, rf"{GROUPS} partition 0 offset \d+: group.close_time_ms: expected"),
        (
            invent_group,
            rf"{GROUPS} partition 0 offset \d+: group of impression 100\d\d: expected n",
        ),
        (
            alter_progress,
            rf"{GROUPS} partition 0 offset \d+: progress.standing.counts.conversions_duplicate",
        ),
        (lose_start, rf"{GROUPS} partition 1 offset 0: kind: expected the partition's start"),
        (lose_late, r"grade.late.v1 partition 0: record for conversions offset \d+: expected one"),
        (alter_orphan, "grade.orphans.v1 partition 0 offset 0: time_ms: expected"),
        (scramble_dead_letter, r"grade.dead-letters.v1 partition \d offset 0: value: expected a R"),
        (alter_state, "grade.versions.v1 partition 0 offset 4: version 5 of epoch 1: state_sha256"),
        (lose_version, "grade.versions.v1 partition 0: version 4 of epoch 1: expected one"),
        (alter_snapshot, "grade.parameters.v1 partition 0 offset 2: version 3 .*: parameters: exp"),
        (lose_snapshot, "grade.parameters.v1 partition 0: version 3 of epoch 1: expected one, se"),
        (invent_version, r"grade.versions.v1 partition 0 offset \d+: version \d+ of epoch 1: expe"),
    ],
)
def test_a_planted_difference_is_found_and_named(
    sound: WholeContent, plant: Callable[[WholeContent], WholeContent], named: str
) -> None:
    report = check(plant(sound))
    assert not report.ok
    assert not report.reconciled
    sentences = [str(each) for each in report.differences]
    assert re.match(named, sentences[0]), sentences[:3]


def test_a_lost_record_is_also_missed_in_the_sums(sound: WholeContent) -> None:
    report = check(lose_late(sound))
    assert not report.conserved
    assert "conversions" in report.unconserved[0]
    assert report.as_json()["conserved"] is False


def relearn(content: WholeContent, change: Callable[[Version], None], at: int) -> WholeContent:
    version = Version.FromString(content.versions.records[at].value or b"")
    change(version)
    return replace(content, versions=changed(content.versions, at, value=encode(version)))


def test_groups_that_a_version_leaves_out_are_lost(sound: WholeContent) -> None:
    def leave_one_out(version: Version) -> None:
        version.groups -= 1

    report = check(relearn(sound, leave_one_out, 2))
    assert report.versions.groups_lost == 1
    assert report.versions.groups_applied_twice == 0


def test_groups_that_two_versions_apply_are_applied_twice(sound: WholeContent) -> None:
    grandparent = Version.FromString(sound.versions.records[1].value or b"")
    parent = Version.FromString(sound.versions.records[2].value or b"")

    def learn_from_grandparent(version: Version) -> None:
        version.parent = grandparent.version
        version.groups += parent.groups

    report = check(relearn(sound, learn_from_grandparent, 3))
    assert report.versions.groups_applied_twice == parent.groups
    assert report.versions.groups_lost == 0


def test_a_ledger_that_jumps_back_and_forth_at_the_end_is_noticed(sound: WholeContent) -> None:
    last = len(sound.versions.records) - 1
    before = Version.FromString(sound.versions.records[last - 1].value or b"")

    def stand_still(version: Version) -> None:
        del version.ledger[:]
        version.ledger.extend(before.ledger)
        version.groups = 0

    own = Version.FromString(sound.versions.records[last].value or b"").groups
    assert check(relearn(sound, stand_still, last)).versions.groups_lost == own


def test_inputs_that_retention_took_are_named_and_not_guessed(sound: WholeContent) -> None:
    log = sound.impressions[0]
    content = replace(
        sound, impressions=put(sound.impressions, 0, Log(5, log.end, log.records[5:]))
    )
    with pytest.raises(
        RetentionLost,
        match=r"partition 0 cannot be checked before offset 5 of the impressions .*5 rec",
    ):
        check(content)


def test_outputs_that_retention_took_are_no_difference(sound: WholeContent) -> None:
    """The start record may be gone with the groups behind it, or with all of them."""
    log = sound.reward_groups[1]
    for left in (log.records[3:], []):
        head = left[0].offset if left else log.end
        cut = replace(sound, reward_groups=put(sound.reward_groups, 1, Log(head, log.end, left)))
        with pytest.raises(
            RetentionLost, match=rf"partition 1 cannot be checked before offset {head} of {GROUPS}"
        ):
            check(cut)
