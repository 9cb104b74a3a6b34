"""What was learned under an earlier generation's schema serves under the next one."""

import numpy as np
import pytest
from grade.v1.refused_pb2 import Reason

from policy.adoption import adopt_parameters
from policy.errors import SnapshotRefused
from policy.schema import Schema, parse_schema
from serving.snapshot import load_policy
from stream.connection import Connection
from stream.generations import begin, generation_of
from stream.topics import Topics
from tests.kafka import await_until
from tests.serving.parameters import EXAMPLE, made_snapshot, made_tensors, publish
from tests.serving.running import running_server


def changed(old: str, new: str) -> Schema:
    assert old in EXAMPLE.toml
    return parse_schema(EXAMPLE.toml.replace(old, new))


LONGER = changed("window_s = 5", "window_s = 6")
"""Decides as the example does."""
GROWN = changed('features = ["hour"', 'features = ["weekday", "hour"')
EARLIER = {EXAMPLE.digest: EXAMPLE}
CONTEXTS = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)


def test_where_schemas_decide_alike_nothing_changes() -> None:
    snapshot = made_snapshot(7)
    adopted = load_policy(snapshot, LONGER, EARLIER)
    assert adopted.order == (1, 7)
    before = load_policy(snapshot, EXAMPLE)
    assert adopted.alpha(CONTEXTS).tobytes() == before.alpha(CONTEXTS).tobytes()


def test_a_new_feature_changes_no_answer_before_it_is_learned() -> None:
    snapshot = made_snapshot(7)
    adopted = load_policy(snapshot, GROWN, EARLIER)
    weekdays = np.linspace(0, 6, 5, dtype=np.float32)[:, None]
    grown = adopted.alpha(np.hstack([weekdays, CONTEXTS]))
    before = load_policy(snapshot, EXAMPLE).alpha(CONTEXTS)
    np.testing.assert_allclose(grown, before, rtol=1e-12)
    direct = adopt_parameters(made_tensors(EXAMPLE, 7), EXAMPLE, GROWN)
    expected = load_policy(made_snapshot(7, schema=GROWN, tensors=direct), GROWN)
    assert adopted.alpha(np.hstack([weekdays, CONTEXTS])).tobytes() == (
        expected.alpha(np.hstack([weekdays, CONTEXTS])).tobytes()
    )


def test_an_unknown_schema_is_refused() -> None:
    with pytest.raises(SnapshotRefused, match="or one of another generation, seen") as refused:
        load_policy(made_snapshot(1, schema=LONGER), GROWN, EARLIER)
    assert (refused.value.check, refused.value.reason) == ("schema", Reason.REASON_UNKNOWN_SCHEMA)


def test_what_fits_neither_schema_is_refused() -> None:
    cut = made_snapshot(1, tensors=made_tensors(GROWN, 1))
    with pytest.raises(SnapshotRefused, match="tensors"):
        load_policy(cut, GROWN, EARLIER)


def test_a_server_of_the_next_generation_goes_on_with_what_was_learned(
    connection: Connection, topics: Topics
) -> None:
    settings = {"learn_slot_ms": 250}
    for schema in (EXAMPLE, GROWN, LONGER):
        begin(connection, topics, generation_of(schema, settings, 1), partitions=2)
    publish(connection, topics.parameters, [made_snapshot(5)])
    with running_server(connection, topics, GROWN) as server:
        engine = server.engines["example"]
        assert engine.policy.order == (1, 5)
        assert server.health()["refused"] == 0
        # The third generation is not served here yet: its versions wait for a server that has it.
        publish(connection, topics.parameters, [made_snapshot(6, epoch=2, schema=LONGER)])
        await_until(lambda: server.health()["refused"] == 1)
        assert "snapshot refused by schema" in server.health()["last_refused"]
        publish(connection, topics.parameters, [made_snapshot(7, epoch=2, schema=GROWN)])
        await_until(lambda: engine.policy.order == (2, 7))


def test_a_schema_that_has_not_begun_yet_comes_after_all_others(
    connection: Connection, topics: Topics
) -> None:
    begin(connection, topics, generation_of(EXAMPLE, {}, 1), partitions=2)
    publish(connection, topics.parameters, [made_snapshot(5)])
    with running_server(connection, topics, GROWN) as server:
        assert server.engines["example"].policy.order == (1, 5)


def test_a_running_server_follows_later_generations_that_decide_alike(
    connection: Connection, topics: Topics
) -> None:
    """A longer window needs no new server; a new feature does, and is not served blindly."""
    settings = {"learn_slot_ms": 250}
    for schema in (EXAMPLE, LONGER, GROWN):
        begin(connection, topics, generation_of(schema, settings, 1), partitions=2)
    publish(connection, topics.parameters, [made_snapshot(5)])
    with running_server(connection, topics, EXAMPLE) as server:
        engine = server.engines["example"]
        publish(connection, topics.parameters, [made_snapshot(6, epoch=2, schema=LONGER)])
        await_until(lambda: engine.policy.order == (2, 6))
        publish(connection, topics.parameters, [made_snapshot(7, epoch=3, schema=GROWN)])
        await_until(lambda: server.health()["refused"] == 1)
        assert engine.policy.order == (2, 6)
