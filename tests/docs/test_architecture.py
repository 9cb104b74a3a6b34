"""What the architecture page names exists, and its picture of the imports is the one enforced."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
FOLDERS = "cli|evaluation|simulator|monitor|serving|grade_client|stream|policy|proto"
DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
NAMED = sorted(set(re.findall(rf"\b((?:{FOLDERS})/[\w/]*(?:\.py)?)(?::([\w.]+\w))?", TEXT)))


def has(tree: ast.AST, name: str) -> bool:
    """Whether a module, or a class in it, defines a dotted name."""
    first, _, rest = name.partition(".")
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, DEFINITIONS) and node.name == first:
            return not rest or has(node, rest)
    return False


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_is_named_exists(file: str, name: str) -> None:
    assert (ROOT / file).exists()
    if name:
        assert has(ast.parse((ROOT / file).read_text("utf-8")), name)


def test_it_names_the_whole_way() -> None:
    assert len(NAMED) > 30
    assert sum(bool(name) for _, name in NAMED) > 15


def test_its_layers_are_the_ones_that_are_enforced() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (layers,) = (
        contract["layers"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    assert f"\n{' → '.join(layers)}\n" in TEXT
