"""`grade export` and `grade import`: a policy out of one system and into another."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from typer import Typer
from typer.testing import CliRunner, Result

from cli.policy_file import export_policy, import_policy
from policy import policy_file
from policy.errors import (
    FileNotWritten,
    GradeError,
    PolicyFileRefused,
    SettingsError,
    SnapshotRefused,
)
from policy.initial import initial_parameters
from policy.policy_file import PolicyFile
from policy.schema import parse_schema
from stream.codec import encode
from stream.connection import Connection
from stream.generations import read_generations
from stream.topics import Topics
from tests.kafka import Produced, create_fresh, produce, read_topic
from tests.stream import learner_world as world

SCHEMA = world.SCHEMA
FOURTH = '\n[[objectives]]\nname = "pshare"\ntransform = "logit"\nbaseline = 0.0\n'

app = Typer()
app.command("export")(export_policy)
app.command("import")(import_policy)

Run = Callable[..., Result]


@pytest.fixture
def run(
    connection: Connection, topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Runs a verb on the fresh topics, in a folder with the example's schema."""
    (tmp_path / "policy.toml").write_text(SCHEMA.toml, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADE_BOOTSTRAP_SERVERS", connection.bootstrap_servers)
    monkeypatch.setenv("GRADE_TOPIC_PREFIX", topics.prefix)
    monkeypatch.setenv("GRADE_PARTITIONS", "2")

    def invoke(*arguments: str) -> Result:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, GradeError):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A policy as another system might have exported it."""
    tensors = initial_parameters(SCHEMA, seed=3)
    tensors["static_logits"] = np.array([0.5, -0.25, 0.125])
    path = tmp_path / "policy.safetensors"
    policy_file.write(path, PolicyFile(SCHEMA, tensors, epoch=1, version=41, generation=1))
    return path


def refusal(result: Result, kind: type[GradeError]) -> str:
    assert isinstance(result.exception, kind), result
    return str(result.exception)


def test_export_writes_the_newest_version_that_is_kept_or_the_one_that_is_named(
    run: Run, connection: Connection, topics: Topics, tmp_path: Path
) -> None:
    content = world.content(seed=5)
    first_generation = Produced(encode(world.FIRST[1]), SCHEMA.policy.encode())
    produce(connection, topics.generations, [first_generation])
    *_, before, newest = content.parameters.records
    for topic, records in (
        (topics.versions, content.versions.records),
        (topics.parameters, [before, newest, newest._replace(value=None)]),
    ):
        produce(connection, topic, [Produced(each.value, each.key) for each in records])
    learned = {each.version.version: each for each in world.learn_logs([*content.reward_groups])}
    last = max(learned)

    done = run("export", "newest")
    assert f"version 1:{last - 1} of policy '{SCHEMA.policy}' is in newest" in done.output
    written = policy_file.read(tmp_path / "newest")
    assert (written.epoch, written.version, written.schema) == (1, last - 1, SCHEMA)
    expected = safetensors.numpy.load(learned[last - 1].snapshot.parameters)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(written.tensors[name], tensor)

    assert run("export", "named", "--version", str(last - 1)).exit_code == 0
    assert policy_file.read(tmp_path / "named").version == last - 1
    gone = refusal(run("export", "gone", "--version", f"1:{last}"), SettingsError)
    assert f"expected one whose snapshot is kept, 1:{last - 1} to 1:{last - 1}" in gone
    unknown = refusal(run("export", "unknown", "--version", "3:1"), SettingsError)
    assert f"has 1:1 to 1:{last}, seen 3:1" in unknown
    unwritable = refusal(run("export", "newest/there"), FileNotWritten)
    assert "newest/there: expected to write " in unwritable
    assert not (tmp_path / "gone").exists()


def test_export_of_a_system_without_versions_says_what_is_served(run: Run) -> None:
    assert "declared baseline is served" in refusal(run("export", "file"), SettingsError)


def test_import_into_a_fresh_system_begins_its_first_generation(
    run: Run, file: Path, connection: Connection, topics: Topics
) -> None:
    done = run("import", file.name)
    assert "generation 1 of policy 'example' starts from version 1:41" in done.output
    (begun,) = read_generations(connection, topics, SCHEMA.policy)
    assert begun.note == "imported version 1:41 in policy.safetensors"
    assert begun.schema_digest == SCHEMA.digest
    written, expected = safetensors.numpy.load(begun.initial_parameters), policy_file.read(file)
    assert written.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(written[name], tensor)
    # The first generation begins where the logs do: there is no boundary in them.
    assert not read_topic(connection, topics.impressions)

    assert "generation 1 starts from these parameters already" in run("import", file.name).output
    assert len(read_generations(connection, topics, SCHEMA.policy)) == 1


def test_import_into_a_system_that_runs_begins_the_next_generation(
    run: Run, file: Path, connection: Connection, topics: Topics
) -> None:
    run("import", file.name)
    written = policy_file.read(file)
    written.tensors["static_logits"][0] = 0.75
    policy_file.write(file, written._replace(version=99))
    assert "generation 2 of policy" in run("import", file.name, "--note", "retrained").output
    first, second = read_generations(connection, topics, SCHEMA.policy)
    assert (first.generation, second.generation, second.note) == (1, 2, "retrained")
    logits = safetensors.numpy.load(second.initial_parameters)["static_logits"]
    assert logits.tolist() == [0.75, -0.25, 0.125]
    for topic in (topics.impressions, topics.conversions):
        boundaries = [each.partition for each in read_topic(connection, topic)]
        assert boundaries == [0, 1]


def test_import_adopts_by_name_and_says_what_is_new(
    run: Run, file: Path, connection: Connection, topics: Topics, tmp_path: Path
) -> None:
    wider = SCHEMA.toml.replace("features = [", 'features = ["weekday", ').replace(
        "\n[[outcomes]]", FOURTH + "\n[[outcomes]]", 1
    )
    (tmp_path / "policy.toml").write_text(wider, encoding="utf-8")
    done = run("import", file.name)
    assert "adopted: features.weekday: absent → present" in done.output
    assert "adopted: objectives.pshare: absent → present" in done.output
    (begun,) = read_generations(connection, topics, SCHEMA.policy)
    adopted, known = safetensors.numpy.load(begun.initial_parameters), policy_file.read(file)
    target = parse_schema(wider)
    assert adopted["static_logits"].shape == (target.n_objectives,)
    at = [each.name for each in target.features].index("hour")
    of = [each.name for each in SCHEMA.features].index("hour")
    np.testing.assert_array_equal(
        adopted["hidden0_weight"][:, at], known.tensors["hidden0_weight"][:, of]
    )


def test_import_refuses_another_policys_file(run: Run, file: Path, tmp_path: Path) -> None:
    other = SCHEMA.toml.replace('policy = "example"', 'policy = "another"')
    (tmp_path / "policy.toml").write_text(other, encoding="utf-8")
    message = refusal(run("import", file.name), PolicyFileRefused)
    assert "expected a file of policy 'another', seen one of 'example'" in message


@pytest.mark.parametrize(
    ("name", "tensor", "check"),
    [
        ("static_logits", np.array([np.nan, 0, 0]), "finite"),
        ("gate", np.array([2.0]), "bounds"),
        ("mean_bias", np.zeros(4), "tensors"),
        ("another", np.zeros(1), "tensors"),
    ],
)
def test_import_refuses_parameters_that_may_not_be_served(
    run: Run,
    file: Path,
    connection: Connection,
    topics: Topics,
    name: str,
    tensor: np.ndarray,
    check: str,
) -> None:
    content = policy_file.read(file)
    policy_file.write(file, content._replace(tensors=content.tensors | {name: tensor}))
    assert check in refusal(run("import", file.name), SnapshotRefused)
    assert not read_generations(connection, topics, SCHEMA.policy)


def test_import_refuses_a_damaged_file_and_begins_nothing(
    run: Run, file: Path, connection: Connection, topics: Topics
) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    assert "expected a safetensors file" in refusal(run("import", file.name), PolicyFileRefused)
    assert not read_generations(connection, topics, SCHEMA.policy)


def test_a_history_with_its_own_time_takes_a_first_generation_but_no_next_one(
    run: Run, file: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = create_fresh(connection, timestamps="event")
    monkeypatch.setenv("GRADE_TOPIC_PREFIX", topics.prefix)
    monkeypatch.setenv("GRADE_TIMESTAMPS", "event")
    assert "generation 1" in run("import", file.name).output
    content = policy_file.read(file)
    policy_file.write(file, content._replace(tensors=initial_parameters(SCHEMA, seed=4)))
    assert "timestamps: expected 'broker'" in refusal(run("import", file.name), SettingsError)
