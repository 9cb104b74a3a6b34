"""Reconciling across generations, and stretches of versions."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from grade.v1.parameters_pb2 import Version

from policy.errors import SettingsError
from stream.codec import encode
from stream.join import Cursor, Kind
from stream.join import Log as Side
from stream.logs import Log
from stream.parameters import VersionId, snapshot_key
from stream.reconcile import ReconcileReport, WholeContent, reconcile
from stream.version_range import EVERY, NO_VERSION, VersionRange, check_range, parse_range
from tests.stream import learner_world as world
from tests.stream.learner_world import changed, with_another, without
from tests.stream.test_chain_generations import BEGUN, GENERATIONS, boundary_of, with_loss


@pytest.fixture(scope="module")
def sound() -> WholeContent:
    return world.content(seed=4, requests=100, begun=BEGUN)


def check(content: WholeContent, versions: str = "all") -> ReconcileReport:
    return reconcile([*GENERATIONS.values()], content, versions=versions)


def lineage(content: WholeContent) -> list[Version]:
    return [Version.FromString(record.value or b"") for record in content.versions.records]


def place(content: WholeContent, epoch: int, version: int) -> int:
    """Offset of a version's record."""
    return [(each.epoch, each.version) for each in lineage(content)].index((epoch, version))


def last_of(content: WholeContent, epoch: int) -> int:
    return max(each.version for each in lineage(content) if each.epoch == epoch)


def test_two_boundaries_are_crossed_and_everything_is_equal(sound: WholeContent) -> None:
    report = check(sound)
    assert [str(each) for each in report.differences] == []
    assert report.unconserved == []
    assert report.not_compared == []
    assert report.ok
    versions = report.versions
    assert versions.versions == len(sound.versions.records)
    assert versions.versions_compared == versions.snapshots_compared == versions.versions
    assert [last_of(sound, epoch) > 3 for epoch in (1, 2, 3)] == [True] * 3
    # Both boundaries in both partitions, beside the two ticks of each.
    assert report.impressions.ticks == 2 * (2 + 2)


def alter(content: WholeContent, epoch: int, version: int) -> WholeContent:
    at = place(content, epoch, version)
    message = lineage(content)[at]
    message.gate += 0.25
    return replace(content, versions=changed(content.versions, at, value=encode(message)))


def lose_the_first_of_an_epoch(content: WholeContent) -> WholeContent:
    return replace(content, versions=without(content.versions, place(content, 2, 1)))


def forge_a_far_lineage(content: WholeContent) -> WholeContent:
    forged = lineage(content)[-1]
    forged.epoch, forged.version = 9, 9
    log = with_another(content.versions, b"example", encode(forged))
    return replace(content, versions=log)


def forge_a_snapshot(content: WholeContent) -> WholeContent:
    log = with_another(content.parameters, snapshot_key("example", VersionId(2, 900)), b"x")
    return replace(content, parameters=log)


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (lambda content: alter(content, 2, 1), "version 1 of epoch 2: gate: expected"),
        (lambda content: alter(content, 3, 2), "version 2 of epoch 3: gate: expected"),
        (lose_the_first_of_an_epoch, "version 1 of epoch 2: expected one, seen none"),
        (
            forge_a_far_lineage,
            "version 9 of epoch 9: expected none from these groups, seen one",
        ),
        (forge_a_snapshot, "version 900 of epoch 2: expected none from these groups, seen one"),
    ],
)
def test_a_planted_difference_is_named_with_its_epoch(
    sound: WholeContent, plant: Callable[[WholeContent], WholeContent], named: str
) -> None:
    report = check(plant(sound))
    assert not report.reconciled
    sentences = [str(each) for each in report.differences]
    assert any(named in each for each in sentences), sentences


def test_a_stretch_compares_its_own_versions_only(sound: WholeContent) -> None:
    wrong = alter(sound, 1, 3)
    stretch = check(wrong, "2:1..3:2")
    assert stretch.ok
    expected = last_of(sound, 2) + 2
    assert stretch.versions.versions_compared == expected
    assert stretch.versions.snapshots_compared == expected
    total = len(sound.versions.records)
    assert stretch.not_compared == [f"{total - expected} of {total} versions, outside of 2:1..3:2"]
    assert not check(wrong, "1:3..1:3").ok
    assert check(wrong, "1:4..1:4").versions.versions_compared == 1


def test_no_version_at_all_may_be_compared(sound: WholeContent) -> None:
    report = check(alter(sound, 2, 2), "none")
    assert report.ok
    assert report.versions.versions_compared == 0
    assert report.groups > 0
    assert report.versions.groups_applied > 0


def test_ends_of_a_stretch_that_there_are_no_versions_for_are_named(sound: WholeContent) -> None:
    report = check(sound, "3:2..4:7")
    assert report.ok
    assert any("version 7 of epoch 4, which" in each for each in report.not_compared)


def test_what_the_topics_no_longer_have_is_named(sound: WholeContent) -> None:
    """Snapshots that were deleted by tombstones, lineage by retention."""
    kept = place(sound, 2, 2)
    versions = Log(kept, sound.versions.end, sound.versions.records[kept:])
    tombstones = [(each.key, None) for each in sound.parameters.records[:kept]]
    alive = [(each.key, each.value) for each in sound.parameters.records[kept:]]
    report = check(
        replace(sound, versions=versions, parameters=world.log_of([*tombstones, *alive]))
    )
    assert [str(each) for each in report.differences] == []
    assert report.versions.versions_compared == len(alive)
    assert report.not_compared == [
        f"the lineage of {kept} versions (version 1 of epoch 1 to version 1 of epoch 2), which "
        "grade.versions.v1 no longer has",
        f"the snapshots of {kept} versions (version 1 of epoch 1 to version 1 of epoch 2), which "
        "grade.parameters.v1 no longer has",
    ]


def test_what_tombstones_have_not_yet_taken_is_compared_and_not_called_missing(
    sound: WholeContent,
) -> None:
    """The broker deletes a snapshot some time after its tombstone."""
    parameters = sound.parameters
    for record in sound.parameters.records[: place(sound, 2, 2)]:
        parameters = with_another(parameters, record.key, None)
    report = check(replace(sound, parameters=parameters))
    assert report.ok
    assert report.versions.snapshots_compared == len(sound.parameters.records)
    assert report.not_compared == []


def test_an_accepted_loss_is_told_and_the_versions_are_equal_all_the_same() -> None:
    ((impressions,), (conversions,)) = world.input_logs(3, 100, 1, rate_ms=300, begun=BEGUN)
    logs = {Side.IMPRESSIONS: impressions, Side.CONVERSIONS: conversions}
    head = Cursor(*(boundary_of(log, 2) - 3 for log in logs.values()))
    written = with_loss(logs, head, 1)
    outputs = {
        kind: [world.log_of([(each.key, each.value) for each in written if each.kind is kind])]
        for kind in Kind
    }
    groups = outputs[Kind.REWARD_GROUPS]
    versions, parameters = world.published_logs(world.learn_logs(groups, GENERATIONS))
    left = [
        Log(first, log.end, log.records[first:])
        for first, log in zip(head, logs.values(), strict=True)
    ]
    report = check(
        WholeContent(
            world.TOPICS,
            impressions=left[:1],
            conversions=left[1:],
            reward_groups=groups,
            late=outputs[Kind.LATE],
            orphans=outputs[Kind.ORPHANS],
            dead_letters=outputs[Kind.DEAD_LETTERS],
            versions=versions,
            parameters=parameters,
        )
    )
    assert [str(each) for each in report.differences] == []
    assert report.ok
    assert len(report.losses) == 1
    assert report.not_compared, "the groups before the loss"
    assert report.versions.versions_compared == len(versions.records)


def test_a_policy_that_never_ran_is_named(sound: WholeContent) -> None:
    with pytest.raises(SettingsError, match="join and learner have never run"):
        reconcile([], sound)


# --- ranges -----------------------------------------------------------------------------------


def test_ranges_as_people_write_them() -> None:
    assert parse_range("all", {1, 2}) == EVERY
    assert parse_range("none", {1, 2}) == NO_VERSION
    assert parse_range("3..17", {4}) == VersionRange(VersionId(4, 3), VersionId(4, 17))
    assert parse_range("1:9..2:4", {1, 2}) == VersionRange(VersionId(1, 9), VersionId(2, 4))
    assert VersionId(1, 10) in parse_range("1:9..2:4", {1, 2})
    assert VersionId(2, 5) not in parse_range("1:9..2:4", {1, 2})
    assert VersionId(1, 1) in EVERY
    assert VersionId(1, 1) not in NO_VERSION


@pytest.mark.parametrize("text", ["", "3", "3..", "..3", "a..b", "1:..2", "-1..2", "1:2:3..4"])
def test_what_is_no_range_is_refused_before_anything_is_read(text: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"seen {text!r}")):
        check_range(text)


def test_a_version_without_its_epoch_is_refused_where_there_are_several() -> None:
    with pytest.raises(SettingsError, match=r"epochs 1, 2, seen '3\.\.4'"):
        parse_range("3..4", {1, 2})
    with pytest.raises(SettingsError, match="first not to come after the last, seen 4"):
        parse_range("4..3", {1})
