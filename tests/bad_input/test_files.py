"""Every broken file is refused by its reason and in words, never by a traceback."""

from pathlib import Path

import pytest
from grade.v1.refused_pb2 import Reason

from cli.settings import load_settings, source_of
from evaluation.data_folder import read_data_folder
from policy import checkpoint
from policy.errors import BadInput, BoundaryError, SchemaError, SettingsError
from policy.schema import load_schema
from stream.connection import Connection
from stream.join import Kind
from stream.version_chain import ChainState, VersionChain, by_number
from tests.bad_input.case import Case, named
from tests.bad_input.checkpoints import CHECKPOINTS, Break
from tests.bad_input.configuration import CONFIGURATION, BrokenSettings
from tests.bad_input.data_folders import DATA_FOLDERS, MakeFolder
from tests.bad_input.schema_files import SCHEMA_FILES, SOUND
from tests.evaluation.folders import tiny_schema, tiny_tables, write
from tests.stream import learner_world as world

PARTITIONS = 2


@pytest.mark.parametrize("case", SCHEMA_FILES, ids=named)
def test_a_broken_schema_file_is_refused(tmp_path: Path, case: Case[bytes | None]) -> None:
    path = tmp_path / "policy.toml"
    if case.broken is None:
        path.mkdir()
    else:
        path.write_bytes(case.broken)
    with pytest.raises(SchemaError) as refused:
        load_schema(path)
    assert str(refused.value).startswith(str(path))
    case.check(refused.value.reason, str(refused.value))


def test_a_schema_file_that_cannot_be_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError) as refused:
        load_schema(tmp_path / "missing.toml")
    assert refused.value.reason == Reason.REASON_UNAVAILABLE
    with pytest.raises(SchemaError) as refused:
        load_schema(Path("a\0b"))
    assert refused.value.reason == Reason.REASON_BAD_NAME


def test_the_schema_that_the_cases_begin_with_is_sound(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(SOUND, encoding="utf-8")
    assert load_schema(tmp_path / "policy.toml").policy == "example"


@pytest.mark.parametrize("case", CONFIGURATION, ids=named)
def test_broken_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case[BrokenSettings]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in case.broken.environment:
        monkeypatch.setenv(name, value)
    if case.broken.file is not None:
        (tmp_path / "grade.toml").write_bytes(case.broken.file)
    if case.broken.folder:
        (tmp_path / "grade.toml").mkdir()
    with pytest.raises(SettingsError) as refused:
        load_settings()
    case.check(refused.value.reason, str(refused.value))
    if case.broken.file is not None and case.reason == Reason.REASON_UNDECODABLE:
        with pytest.raises(SettingsError):
            source_of("partitions")


def test_an_address_that_is_none_is_refused() -> None:
    for servers in ("nowhere", "host:port", f"host:{'9' * 9_000}", "host:70000"):
        with pytest.raises(SettingsError) as refused:
            _ = Connection(servers).addresses
        assert refused.value.reason == Reason.REASON_BAD_NAME
        assert "bootstrap_servers: expected host:port, seen" in str(refused.value)


@pytest.mark.parametrize("case", DATA_FOLDERS, ids=named)
def test_a_broken_data_folder_is_refused(tmp_path: Path, case: Case[MakeFolder]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    case.broken(folder)
    with pytest.raises(BadInput) as refused:
        read_data_folder(folder, tiny_schema())
    case.check(refused.value.reason, str(refused.value))


def test_the_folder_that_the_cases_begin_with_is_sound(tmp_path: Path) -> None:
    assert len(read_data_folder(write(tmp_path, tiny_tables()), tiny_schema()).request_ids) == 2


@pytest.fixture(scope="module")
def state() -> ChainState:
    """Of a learner that has learned some slots, from requests of which some had an outcome."""
    chain = world.new_chain(PARTITIONS)
    groups = world.join_logs(*world.input_logs(3, 60, PARTITIONS))[Kind.REWARD_GROUPS]
    for partition, log in enumerate(groups):
        for record in log.records:
            chain.feed(partition, record.value)
    return chain.state()


def restore(path: Path) -> VersionChain:
    """As the learner does."""
    loaded = ChainState(*checkpoint.load(path))
    return VersionChain.restore(by_number(world.FIRST), PARTITIONS, loaded)


@pytest.mark.parametrize("case", CHECKPOINTS, ids=named)
def test_a_broken_checkpoint_is_refused(
    tmp_path: Path, state: ChainState, case: Case[Break]
) -> None:
    path = tmp_path / checkpoint.file_name(1, 1)
    case.broken(state, path)
    # What was made under other settings is no bad file: the learner stops there.
    error: type[BadInput] | type[BoundaryError] = BadInput
    if case.reason == Reason.REASON_OTHER_SETTINGS:
        error = BoundaryError
    with pytest.raises(error) as refused:
        restore(path)
    assert isinstance(refused.value, BadInput | BoundaryError)
    case.check(refused.value.reason, str(refused.value))


def test_the_checkpoint_that_the_cases_begin_with_is_sound(
    tmp_path: Path, state: ChainState
) -> None:
    path = checkpoint.write(tmp_path, state.tensors, state.metadata, keep=1)
    assert restore(path).version == int(state.metadata["version"]) > 0
