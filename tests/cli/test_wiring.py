"""Which policies a system has, and which of them a process works for."""

from pathlib import Path

import pytest

from cli.settings import Settings, load_settings
from cli.wiring import one_policy, policies
from policy.errors import SchemaError, SettingsError
from tests.serving.parameters import EXAMPLE


def settings_for(path: Path) -> Settings:
    return load_settings({"schema_path": path, "topic_prefix": "grade"})


def written(folder: Path, **policies: str) -> Path:
    """A folder of schema files: name of the file -> name of the policy."""
    folder.mkdir()
    for file, policy in policies.items():
        text = EXAMPLE.toml.replace('"example"', f'"{policy}"')
        (folder / f"{file}.toml").write_text(text, encoding="utf-8")
    return folder


def test_a_file_is_one_policy_with_the_prefix_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "policies", feed="feed") / "feed.toml"
    [(schema, topics)] = policies(settings_for(path))
    assert (schema.policy, topics.prefix) == ("feed", "grade")
    assert one_policy(settings_for(path)) == (schema, topics)
    assert one_policy(settings_for(path), "feed") == (schema, topics)


def test_a_folder_keeps_its_policies_apart_by_their_topics(tmp_path: Path) -> None:
    folder = written(tmp_path / "policies", b="search", a="feed")
    (folder / "notes.md").write_text("not a policy", encoding="utf-8")
    found = policies(settings_for(folder))
    assert [(schema.policy, topics.prefix) for schema, topics in found] == [
        ("feed", "grade.feed"),
        ("search", "grade.search"),
    ]
    assert found[0][1].impressions == "grade.feed.impressions.v1"
    assert one_policy(settings_for(folder), "search") == found[1]


def test_one_policy_in_a_folder_need_not_be_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "policies", only="feed")
    schema, topics = one_policy(settings_for(folder))
    assert (schema.policy, topics.prefix) == ("feed", "grade.feed")


def test_of_several_one_must_be_named(tmp_path: Path) -> None:
    settings = settings_for(written(tmp_path / "policies", a="feed", b="search"))
    with pytest.raises(SettingsError, match=r"--policy: expected one of feed, search .* seen none"):
        one_policy(settings)
    with pytest.raises(SettingsError, match=r"--policy: expected one of feed, search .*'shop'"):
        one_policy(settings, "shop")


def test_names_must_differ(tmp_path: Path) -> None:
    folder = written(tmp_path / "policies", a="feed", b="feed")
    with pytest.raises(SchemaError, match=r"b\.toml: policy: expected another .*a\.toml, seen"):
        policies(settings_for(folder))


def test_a_folder_without_schemas_and_a_broken_one_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    with pytest.raises(SchemaError, match="expected a schema file or a folder of them"):
        policies(settings_for(folder))
    (folder / "feed.toml").write_text("policy =", encoding="utf-8")
    with pytest.raises(SchemaError, match=r"feed\.toml: expected TOML"):
        policies(settings_for(folder))
