"""A replay in memory: which version serves whom, and that it can be repeated bit for bit."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.data_folder import DataFolder, read_data_folder
from evaluation.in_memory import MemoryLoop
from evaluation.replay import Served, first_difference, play, second_half_ndcg, slots_of
from evaluation.through_memory import ThroughMemory
from evaluation.yardsticks import lists_of, ndcg_of_weights
from policy.schema import Schema
from policy.trainer_settings import TrainerSettings
from tests.evaluation.folders import (
    HOUR_MS,
    REQUESTS,
    learnable_tables,
    tiny_schema,
    tiny_tables,
    write,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    path = write(tmp_path_factory.mktemp("folder"), learnable_tables())
    return read_data_folder(path, tiny_schema())


def replayed(folder: DataFolder, schema: Schema, partitions: int = 2) -> tuple[Served, MemoryLoop]:
    loop = MemoryLoop(
        schema,
        seed=0,
        members=4,
        trainer=TrainerSettings(),
        partitions=partitions,
        slot_ms=HOUR_MS,
    )
    slots = slots_of(folder, schema, HOUR_MS)
    return play(folder, schema, slots, ThroughMemory(loop, schema.policy)), loop


def test_slots_by_hand(tmp_path: Path) -> None:
    """Requests at 0:59:59.999 and 1:00, W = 10 min, with an hour's rest before the last at 3:55."""
    tables = tiny_tables()
    times = [HOUR_MS - 1, HOUR_MS, 4 * HOUR_MS - 300_000]
    tables["requests"] = {
        "request_id": ["a", "b", "c"],
        "user_id": [1, 2, 3],
        "time_ms": times,
        "ctx_age": [1.0] * 3,
        "ctx_hour": [1.0] * 3,
    }
    tables["impressions"] = {
        "request_id": ["a", "b", "c"],
        "item_id": [1, 1, 1],
        "position": [0, 0, 0],
        "time_ms": times,
        "score_p": [0.5] * 3,
        "score_q": [1.0] * 3,
    }
    tables["conversions"] = {
        "conversion_id": ["x"],
        "request_id": ["a"],
        "item_id": [1],
        "type": ["click"],
        "value": [1.0],
        "time_ms": [HOUR_MS + 5],
    }
    slots = slots_of(
        read_data_folder(write(tmp_path, tables), tiny_schema()), tiny_schema(), HOUR_MS
    )
    # The last group closes at 4:05, so a fifth slot is played. The groups of a and b close in the
    # second slot, that of c in the fifth.
    assert [slot.end_ms // HOUR_MS for slot in slots] == [1, 2, 3, 4, 5]
    assert [list(slot.requests) for slot in slots] == [[0], [1], [], [2], []]
    assert [list(slot.conversions) for slot in slots] == [[], [0], [], [], []]
    assert [slot.version for slot in slots] == [0, 1, 1, 1, 2]


def test_the_same_replay_gives_the_same_bits(folder: DataFolder) -> None:
    one, _ = replayed(folder, tiny_schema())
    other, _ = replayed(folder, tiny_schema())
    assert first_difference(one, other) is None
    assert one.parameters_sha256 == other.parameters_sha256 != ""
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.executed, other.executed)


def test_every_version_is_made_when_it_is_due(folder: DataFolder) -> None:
    served, loop = replayed(folder, tiny_schema())
    closes = (folder.times_ms + tiny_schema().window_ms) // HOUR_MS
    assert [version.slot for version in loop.versions] == np.unique(closes).tolist()
    assert len(served.version_digests) == len(loop.versions)
    assert sum(version.groups for version in loop.versions) == REQUESTS
    assert not loop.refused


def test_the_first_requests_get_the_baseline(folder: DataFolder) -> None:
    served, _ = replayed(folder, tiny_schema())
    first_close = int(folder.times_ms[0]) + tiny_schema().window_ms
    learned_from = (first_close // HOUR_MS + 1) * HOUR_MS
    before = folder.times_ms < learned_from
    np.testing.assert_allclose(served.mean[before], 0.5)
    assert not np.allclose(served.mean[~before], 0.5)


def test_what_users_do_moves_the_weights(folder: DataFolder) -> None:
    served, _ = replayed(folder, tiny_schema())
    lists = lists_of(folder, tiny_schema())
    assert served.mean[-1, 1] > 0.6  # clicks follow objective q
    uniform = ndcg_of_weights(lists, np.full((REQUESTS, 2), 0.5))[REQUESTS // 2 :].mean()
    assert second_half_ndcg(lists, served)["served_mean"] > uniform


def test_a_difference_is_named(folder: DataFolder) -> None:
    served, _ = replayed(folder, tiny_schema())
    digests = [*served.version_digests]
    digests[2] = "other"
    assert first_difference(served, served._replace(version_digests=digests)) == (
        f"version 3: parameters with sha256 {served.version_digests[2]} and other"
    )
    shorter = served._replace(version_digests=digests[:2])
    difference = first_difference(shorter, served)
    assert difference is not None
    assert difference.startswith("version 3: parameters with sha256 none and ")
    other = served._replace(decisions_sha256="other")
    assert first_difference(served, other) == "the versions are equal, the decisions are not"
