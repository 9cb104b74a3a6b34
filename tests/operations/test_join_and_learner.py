"""What operators do to join workers and the learner of a running system: nothing is lost or twice.

The tests share one system. Each ends with everything recomputed from the topics.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grade.v1.parameters_pb2 import Version

from stream.broker import BrokerStatus
from stream.connection import Connection
from tests.kafka import await_until, read_topic
from tests.operations.operated import Operated, Process, checkpoints
from tests.system import running_system


@pytest.fixture(scope="module")
def operated(broker: BrokerStatus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    """A system with two join workers; its learner is stopped where a test has its own."""
    connection = Connection(broker.bootstrap_servers, client_id="grade-test")
    with running_system(connection, tmp_path_factory.mktemp("operated"), join_workers=2) as system:
        yield Operated(system)


def published(operated: Operated) -> list[int]:
    """Version of every record of the versions topic, in its order."""
    records = read_topic(operated.system.connection, operated.system.topics.versions)
    return [Version.FromString(record.value).version for record in records]


def await_version_above(health: Callable[[], dict[str, Any]], version: int) -> None:
    """Learning again from the first record takes long where other work has the processors."""
    await_until(lambda: (health().get("version") or 0) > version, 150, f"a version above {version}")


def test_join_workers_are_replaced_one_after_the_other(operated: Operated) -> None:
    with operated.load() as traffic:
        traffic.await_more(60)
        for name in ("join-1", "join-2"):
            operated.replace(name)
            traffic.await_more(60)
    operated.balance()


def test_the_learner_moves_with_its_folder_and_the_old_one_comes_back(
    operated: Operated, tmp_path: Path
) -> None:
    system = operated.system
    with operated.load() as traffic:
        traffic.await_more(60)
        system.supervisor.stop(["learn"])
        before = published(operated)
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(checkpoints(system), checkpoints(system, elsewhere))
        moved = {"GRADE_DATA_DIR": str(elsewhere)}
        with Process(system, ["learn"], tmp_path / "moved.log", changes=moved) as learner:
            await_version_above(learner.health, max(before))
            assert published(operated)[: len(before)] == before
            # The old one was not switched off after all: it starts where it was stopped.
            system.supervisor.start(["learn"])
            await_until(lambda: system.health("learn")["status"] == "ok", 60, "the old learner")
            await_version_above(lambda: system.health("learn"), max(published(operated)))
            assert learner.health()["status"] == "ok"
    versions = published(operated)
    assert len(versions) > len(set(versions)), "both have published"
    operated.balance()


def test_what_the_learner_has_forgotten_it_learns_again(operated: Operated) -> None:
    """First all checkpoints but the oldest are deleted, then the whole folder is."""
    system, folder = operated.system, checkpoints(operated.system)
    with operated.load() as traffic:
        traffic.await_more(60)
        kept = system.settings.learn_checkpoints_kept
        for restored in (1, 0):
            await_until(lambda: len(list(folder.glob("*.ckpt"))) == kept, 60, "all checkpoints")
            system.supervisor.stop(["learn"])
            before = published(operated)
            files = sorted(folder.glob("*.ckpt"))
            for file in files[restored:]:
                file.unlink()
            if not restored:
                shutil.rmtree(folder)
            system.supervisor.start(["learn"])
            await_version_above(lambda: system.health("learn"), max(before) + 5)
            after = published(operated)
            assert after[: len(before)] == before
            assert after[len(before) :] == list(range(max(before) + 1, max(after) + 1))
            log = system.supervisor.log_path.read_text("utf-8")
            assert (str(files[0]) if restored else "learning from the first record") in log
    operated.balance()
