"""What one running system has learned, another one begins with: export, import, first version."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from typer import Typer
from typer.testing import CliRunner

from cli.policy_file import export_policy, import_policy
from cli.settings import Settings
from cli.supervisor import Supervisor
from cli.system import admin_ports, process_plans, wait_until_healthy
from cli.wiring import topic_plan
from grade_client import PolicyClient
from policy import policy_file
from stream.connection import Connection
from stream.lineage import read_lineage, read_snapshots
from stream.parameters import VersionId
from stream.topics import create
from tests.kafka import await_until, fresh_plan
from tests.system import RunningSystem, Traffic, running_system

app = Typer()
app.command("export")(export_policy)
app.command("import")(import_policy)

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a verb by a system's settings."""

    def invoke(settings: Settings, *arguments: str) -> str:
        for name in ("schema_path", "bootstrap_servers", "topic_prefix", "partitions"):
            monkeypatch.setenv(f"GRADE_{name.upper()}", str(getattr(settings, name)))
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.exception
        return done.output

    return invoke


def expect_first_version(system: RunningSystem, epoch: int, file: Path) -> None:
    """The first version of an epoch must be what the file holds, taken over and served."""
    wanted, policy = policy_file.read(file).tensors, system.schema.policy
    with PolicyClient(system.target, policy, timeout_s=5) as client:
        await_until(lambda: client.describe().epoch == epoch, 30, f"epoch {epoch} served")
    first = VersionId(epoch, 1)
    served = read_snapshots(system.connection, system.topics, policy)[first]
    tensors = safetensors.numpy.load(served.parameters)
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(tensors[name], tensor)
    lineage = read_lineage(system.connection, system.topics, policy).versions[first].version
    assert (lineage.groups, lineage.slot, lineage.generation) == (0, -1, epoch)


def test_what_one_system_has_learned_another_begins_with(
    connection: Connection, tmp_path: Path, run: Run
) -> None:
    file = tmp_path / "policy.safetensors"
    folder = tmp_path / "first"
    folder.mkdir()
    with running_system(connection, folder) as system:
        with Traffic(system) as traffic:
            traffic.await_more(80)
        system.await_applied(traffic.shown)
        assert "is in" in run(system.settings, "export", str(file))
        # Another file, into the system that runs: its next generation.
        written = policy_file.read(file)
        written.tensors["static_logits"] += 0.125
        other = tmp_path / "other.safetensors"
        policy_file.write(other, written)
        assert "generation 2 of policy" in run(system.settings, "import", str(other))
        expect_first_version(system, 2, other)

    fresh = system.settings.model_copy(
        update={"topic_prefix": fresh_plan().topics.prefix, "data_dir": tmp_path / "second"}
    )
    create(connection, topic_plan(fresh, system.schema))
    assert "generation 1 of policy" in run(fresh, "import", str(file))
    plans = [each for each in process_plans(fresh, 1) if each.name != "join"]
    with Supervisor(plans, tmp_path / "second.log") as supervisor:
        wait_until_healthy(admin_ports(plans), supervisor)
        second = dataclasses.replace(system, settings=fresh, supervisor=supervisor)
        expect_first_version(second, 1, file)
