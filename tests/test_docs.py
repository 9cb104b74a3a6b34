"""The documentation's examples work and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from policy.schema import parse_schema

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def test_the_schema_example_is_a_schema() -> None:
    (example,) = blocks(ROOT / "docs" / "schema.md", "toml")
    schema = parse_schema(example)
    assert schema.policy == "shop-home"
    assert [objective.floor for objective in schema.objectives] == [0.0, 0.05, 0.0]
    assert (schema.window_ms, schema.early_ms, schema.late_ms) == (30_000, 1_000, 60_000)


def test_every_operation_names_its_test() -> None:
    _, *sections = (ROOT / "docs" / "operations.md").read_text("utf-8").split("\n## ")
    assert len(sections) >= 10
    named = re.compile(r"\bTests?:\s+`tests/\w+/\w+\.py`")
    assert [each.splitlines()[0] for each in sections if not named.search(each)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    folders = "policy|stream|serving|grade_client|simulator|evaluation|monitor|cli|docs|proto|tests"
    for named in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        assert (ROOT / named).exists(), named
