"""Lineage read from the topics: parents, what a version covers, names, what is kept."""

import pytest
from grade.v1.parameters_pb2 import Ledger, Version

from policy.errors import SettingsError, TopicError
from stream import lineage as reading
from stream.codec import encode
from stream.connection import Connection
from stream.lineage import Covered, Lineage, live_snapshots, read_lineage, summarise_lineage
from stream.logs import LogRecord
from stream.parameters import VersionId
from stream.topics import Topics
from tests.kafka import Produced, produce
from tests.stream import learner_world as world

POLICY = world.SCHEMA.policy


def version(
    epoch: int, number: int, ledger: list[int], parent: int | None = None, **fields: int
) -> Version:
    return Version(
        policy=POLICY,
        epoch=epoch,
        version=number,
        parent=number - 1 if parent is None else parent,
        ledger=[Ledger(partition=p, offset=offset) for p, offset in enumerate(ledger)],
        groups=number,
        **fields,  # type: ignore[arg-type]  # whole numbers all
    )


def record(offset: int, value: bytes | None, key: str = POLICY) -> LogRecord:
    return LogRecord(offset, 1000 + offset, key.encode(), value)


def lineage_of(*versions: Version) -> Lineage:
    return summarise_lineage(POLICY, [record(at, encode(each)) for at, each in enumerate(versions)])


TWO_EPOCHS = (
    version(1, 1, [-1, 4]),
    version(1, 2, [3, 4]),
    version(1, 3, [7, 9]),
    # A new generation takes version 3 over and goes on.
    version(2, 1, [7, 9], parent=3, parent_epoch=1, generation=2, slot=-1),
    version(2, 2, [8, 9], parent_epoch=2, generation=2),
)


def test_a_version_covers_what_lies_between_its_parents_ledger_and_its_own() -> None:
    known = lineage_of(*TWO_EPOCHS)
    covered = {
        reading.name_of(id): known.covered(each.version) for id, each in known.versions.items()
    }
    assert covered == {
        "1:1": [Covered(0, -1, -1), Covered(1, -1, 4)],
        "1:2": [Covered(0, -1, 3), Covered(1, 4, 4)],
        "1:3": [Covered(0, 3, 7), Covered(1, 4, 9)],
        "2:1": [Covered(0, 7, 7), Covered(1, 9, 9)],
        "2:2": [Covered(0, 7, 8), Covered(1, 9, 9)],
    }


def test_without_its_parent_nobody_knows_what_a_version_covers() -> None:
    known = lineage_of(*TWO_EPOCHS[1:])
    assert known.covered(TWO_EPOCHS[1]) is None
    assert known.covered(TWO_EPOCHS[2]) is not None


def test_names_mean_the_newest_epoch_unless_they_say_another() -> None:
    known = lineage_of(*TWO_EPOCHS)
    assert known.find("2").id == VersionId(2, 2)
    assert known.find("1:2").id == VersionId(1, 2)


@pytest.mark.parametrize("name", ["3", "2:3", "9:1", "0:0"])
def test_an_unknown_version_is_refused_with_the_versions_that_there_are(name: str) -> None:
    with pytest.raises(SettingsError, match=r"has 1:1 to 1:3, 2:1 to 2:2, seen " + name):
        lineage_of(*TWO_EPOCHS).find(name)
    with pytest.raises(SettingsError, match=f"has none, seen {name}"):
        lineage_of().find(name)


@pytest.mark.parametrize("name", ["", "x", "1:", ":", "1:x", "-1", "1:2:3", "²"])
def test_what_is_no_name_of_a_version_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="expected epoch:version or a version"):
        lineage_of(*TWO_EPOCHS).find(name)


def test_steps_follow_the_parents_across_epochs() -> None:
    known = lineage_of(*TWO_EPOCHS)
    steps = known.steps(VersionId(1, 2), VersionId(2, 2))
    assert steps is not None
    assert [(each.epoch, each.version) for each in steps] == [(1, 3), (2, 1), (2, 2)]
    assert known.steps(VersionId(1, 2), VersionId(1, 2)) == []


def test_versions_on_different_lines_have_no_steps_between_them() -> None:
    rollback = version(2, 1, [3, 4], parent=2, parent_epoch=1)
    known = lineage_of(*TWO_EPOCHS[:3], rollback)
    assert known.steps(VersionId(1, 3), VersionId(2, 1)) is None
    assert known.steps(VersionId(1, 2), VersionId(2, 1)) is not None


def test_others_records_are_left_out_and_broken_or_differing_ones_are_told() -> None:
    first, other = version(1, 1, [0]), version(1, 1, [5])
    known = summarise_lineage(
        POLICY,
        [
            record(0, encode(first)),
            record(1, encode(first)),
            record(2, encode(first), key="another"),
            record(3, b"\xff"),
            record(4, encode(other)),
            record(5, None),
        ],
    )
    assert [each.version for each in known.versions.values()] == [first]
    assert [problem.split(":")[0] for problem in known.problems] == [
        "versions offset 3",
        "versions offset 4",
    ]


def test_a_snapshot_is_live_until_its_tombstone_and_only_if_it_is_what_its_key_says() -> None:
    learned = world.learn_logs([*world.content().reward_groups])[:3]
    _, parameters = world.published_logs(learned)
    first, second, third = parameters.records
    altered = learned[2].snapshot.__class__()
    altered.CopyFrom(learned[2].snapshot)
    altered.parameters = altered.parameters[:-1] + b"\0"
    records = [
        first,
        second,
        first._replace(value=None),
        third._replace(value=encode(altered)),
        third._replace(key=b"another/1/3"),
        third._replace(key=f"{POLICY}/1/4".encode()),
    ]
    live = live_snapshots(POLICY, records)
    assert list(live) == [VersionId(1, 2)]
    assert reading.is_of(live[VersionId(1, 2)], learned[1].version)
    assert not reading.is_of(live[VersionId(1, 2)], learned[2].version)
    assert not reading.is_of(None, learned[1].version)


def test_reading_goes_back_no_further_than_is_enough(
    connection: Connection, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FIRST_PIECE", 2)
    others = [Produced(encode(version(1, n, [n])), b"another") for n in range(1, 4)]
    own = [Produced(encode(version(1, n, [n])), POLICY.encode()) for n in range(1, 12)]
    produce(connection, topics.versions, [*own, *others])
    newest = read_lineage(connection, topics, POLICY, lambda known: len(known.versions) > 2)
    # Pieces of 2 and 4 from the end, of which three are another policy's.
    assert [id.version for id in newest.versions] == [9, 10, 11]
    assert not newest.complete
    everything = read_lineage(connection, topics, POLICY)
    assert [id.version for id in everything.versions] == list(range(1, 12))
    assert everything.complete
    nobody = read_lineage(connection, topics, "nobody")
    assert nobody.complete
    assert not nobody.versions


def test_a_missing_topic_is_named(connection: Connection) -> None:
    with pytest.raises(TopicError, match=r"none-such\.versions\.v1: expected 1 partition, seen 0"):
        read_lineage(connection, Topics("none-such"), POLICY)
