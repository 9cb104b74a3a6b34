"""What the versions and the parameters topic say; only what agrees with its lineage counts."""

import pytest
from grade.v1.parameters_pb2 import ParameterSnapshot, Version

from policy.errors import StreamError
from stream.codec import encode
from stream.logs import LogRecord
from stream.parameters import Published, VersionId, summarise


def lineage(version: int, epoch: int = 1) -> bytes:
    sha256 = bytes([version % 256]) * 32
    return encode(Version(policy="feed", epoch=epoch, version=version, parameters_sha256=sha256))


def lineages(*names: tuple[int, int]) -> list[LogRecord]:
    """Records of versions, each as (epoch, version)."""
    return [
        LogRecord(at, 0, b"feed", lineage(version, epoch))
        for at, (epoch, version) in enumerate(names)
    ]


def snapshot(version: int, parameters: int | None = None) -> bytes:
    """A version's snapshot, or one that says it has another version's parameters."""
    sha256 = bytes([parameters or version]) * 32
    return encode(
        ParameterSnapshot(policy="feed", epoch=1, version=version, parameters_sha256=sha256)
    )


def found(*snapshots: tuple[str, bytes | None], lineages: int = 4) -> Published:
    """What is found besides the lineage of the first versions."""
    return summarise(
        "feed",
        [LogRecord(at, 0, b"feed", lineage(at + 1)) for at in range(lineages)],
        [LogRecord(at, 0, key.encode(), value) for at, (key, value) in enumerate(snapshots)],
    )


def good(*versions: int) -> list[tuple[str, bytes | None]]:
    return [(f"feed/1/{version}", snapshot(version)) for version in versions]


@pytest.mark.parametrize(
    "stray",
    [
        pytest.param(("feed/1/200", b"\xff\xff"), id="junk"),
        pytest.param(("feed/1/200", snapshot(200)), id="no lineage"),
        pytest.param(("feed/1/200", None), id="tombstone of what never was"),
        pytest.param(("feed/1/4", b"\xff\xff"), id="junk in the next one's place"),
        pytest.param(("feed/1/4", snapshot(2)), id="another version under the key"),
        pytest.param(("feed/1/4", snapshot(4, 3)), id="other parameters"),
        pytest.param(("feed/1/2", snapshot(2, 3)), id="other parameters, in one's place"),
    ],
)
def test_a_record_that_is_not_its_versions_snapshot_does_not_count(
    stray: tuple[str, bytes | None],
) -> None:
    assert found(*good(1, 2, 3), stray) == found(*good(1, 2, 3))
    assert found(stray, *good(1, 2, 3)) == found(*good(1, 2, 3))
    assert found(*good(1, 2, 3), stray).complete_up_to == VersionId(1, 3)


def test_a_tombstone_says_that_there_was_a_snapshot() -> None:
    published = found(*good(1, 2), ("feed/1/1", None), ("feed/1/2", None))
    assert published.last_snapshot == VersionId(1, 2)
    assert not published.live


def test_a_snapshot_of_the_right_name_and_other_content_is_a_contradiction() -> None:
    other = ParameterSnapshot.FromString(snapshot(2))
    other.slot = 9
    with pytest.raises(StreamError, match="parameters offset 2: expected version 2 of epoch 1 as"):
        found(*good(1, 2), ("feed/1/2", encode(other)))


FAR = (2**40, 2**40)


@pytest.mark.parametrize(
    ("names", "last"),
    [
        pytest.param([(1, 1), (1, 2), (1, 200), (1, 3)], (1, 3), id="a far version"),
        pytest.param([(1, 1), FAR, (1, 2)], (1, 2), id="a far epoch"),
        pytest.param([(1, 1), (1, 2), (2, 1), (2, 2)], (2, 2), id="a next epoch"),
        pytest.param([(1, 1), (2, 1), (1, 2), (2, 2)], (2, 2), id="back to an ended epoch"),
        pytest.param([(1, 1), (2, 2), (3, 1)], (1, 1), id="an epoch that begins in the middle"),
        pytest.param([(1, 1), (1, 2), (2, 1), (1, 2), (2, 2)], (2, 2), id="a repeat"),
        pytest.param([(1, 7), (1, 8), (2, 1), FAR], (2, 1), id="the beginning deleted"),
        pytest.param([(1, 7), (1, 9)], (1, 7), id="a gap after that"),
        pytest.param([(1, 0), (1, 7), (1, 8)], (1, 8), id="no version"),
    ],
)
def test_only_lineage_that_continues_what_is_before_it_counts(
    names: list[tuple[int, int]], last: tuple[int, int]
) -> None:
    assert summarise("feed", lineages(*names), []).last_version == VersionId(*last)


def test_nothing_deleted_means_that_the_first_version_comes_first() -> None:
    forged_first = lineages(FAR, (1, 1), (1, 2))
    assert summarise("feed", forged_first, [], whole=True).last_version == VersionId(1, 2)


@pytest.mark.parametrize("value", [b"\xff\xff", b"", None])
def test_what_is_no_lineage_is_left_alone(value: bytes | None) -> None:
    records = [*lineages((1, 1)), LogRecord(7, 0, b"feed", value), *lineages((1, 2))]
    assert summarise("feed", records, []).last_version == VersionId(1, 2)


def test_two_different_lineages_of_one_version_are_refused() -> None:
    records = [
        LogRecord(0, 0, b"feed", lineage(4)),
        LogRecord(1, 0, b"feed", lineage(4)),
        LogRecord(2, 0, b"another", b"whatever"),
    ]
    assert summarise("feed", records, []).last_version == VersionId(1, 4)
    other = Version.FromString(lineage(4))
    other.groups = 1
    records.append(LogRecord(3, 0, b"feed", encode(other)))
    with pytest.raises(StreamError, match="versions offset 3: expected version 4 of epoch 1 as it"):
        summarise("feed", records, [])
